//! Models requests that travel through a thread pool with their data: threads, one for each CPU but at least two, stand
//! in a circle; each takes the list of 500 blocks of 16 to 1024 bytes that its neighbour has left, frees them all,
//! allocates a new list and passes it on.
//!
//! Counted: blocks that were freed.

use std::sync::Mutex;
use std::thread;

use super::{Outcome, Settings};
use crate::blocks::{Block, Shape, Sizes, Subject};
use crate::crew;

const LIST: usize = 500;
/// Lists that may wait between two neighbours.
const WAITING: usize = 4;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let list = settings.scaled(LIST);
    let sizes = Sizes::small();
    let members = crew::cpus().max(2);
    let places: Vec<Mutex<Vec<Vec<Block>>>> = (0..members).map(|_| Mutex::new(Vec::with_capacity(WAITING))).collect();
    let pace = crew::threads(settings.span, members, |number, hand| {
        let mut index = number * 100;
        while hand.goes_on() {
            let taken = places[number].lock().expect("nothing panics with the lock").pop();
            if let Some(blocks) = taken {
                let length = blocks.len() as u64;
                blocks.into_iter().for_each(|block| block.free(allocator));
                hand.did(length);
            }
            let next = &places[(number + 1) % members];
            if next.lock().expect("nothing panics with the lock").len() < WAITING {
                let blocks = (index..index + list).map(|index| Block::new(allocator, sizes.layout(index))).collect();
                index += list;
                // Only this thread adds to its neighbour's lists, so there is still room.
                next.lock().expect("nothing panics with the lock").push(blocks);
            } else {
                thread::yield_now();
            }
        }
    });
    for place in places {
        let lists = place.into_inner().expect("nothing panics with the lock");
        lists.into_iter().flatten().for_each(|block| block.free(allocator));
    }
    Ok(pace.into())
}
