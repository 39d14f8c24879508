//! Models an index in memory: a hash map from strings to lists of numbers. A key of a large range is made; if it is new,
//! an entry is inserted, else its list grows; beyond 20 000 entries the oldest goes, and every 100 000 insertions the map
//! is dropped and begun anew, with all the doublings of its table.
//!
//! Counted: insertions, of keys and of numbers.

use std::collections::{HashMap, VecDeque};

use super::{Outcome, Settings};
use crate::blocks::Random;
use crate::crew;

const ENTRIES: usize = 20_000;
const KEYS: usize = 60_000;
const LIFE: usize = 100_000;
/// Insertions between two looks at the clock.
const STRIDE: usize = 100;

pub(super) fn run(settings: &Settings) -> Outcome {
    let (entries, keys) = (settings.scaled(ENTRIES), settings.scaled(KEYS));
    let mut random = Random::new(5);
    let mut map: HashMap<String, Vec<u32>> = HashMap::new();
    let mut ages: VecDeque<String> = VecDeque::new();
    let mut age = 0;
    let pace = crew::alone(settings.span, || {
        for _ in 0..STRIDE {
            let key = format!("{:x}/{}", random.below(keys), settings.divisor);
            if let Some(numbers) = map.get_mut(&key) {
                numbers.push(age);
            } else {
                ages.push_back(key.clone());
                map.insert(key, vec![age]);
            }
            if ages.len() > entries
                && let Some(oldest) = ages.pop_front()
            {
                map.remove(&oldest);
            }
            age += 1;
        }
        if age as usize >= LIFE {
            age = 0;
            map = HashMap::new();
            ages.clear();
        }
        STRIDE as u64
    });
    Ok(pace.into())
}
