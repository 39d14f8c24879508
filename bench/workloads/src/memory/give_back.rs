//! Models a service after its busy hour: a heap of blocks is built up, then all of it or a random nine tenths are freed
//! in random order, and the process idles. Resident memory is read from the last free on.
//!
//! All figures are above what was resident before the first block, so neither the program nor its table of blocks is
//! part of them. Every byte of a block is written.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Amounts, Idling, above, sleep_until, volunteer};
use crate::blocks::{Block, Random, Shape, Sizes};
use crate::subjects::Global;
use crate::usage::{Resident, Usage};

/// Which blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// 16 to 1024 bytes, every size as likely as any other.
    Small,
    /// 16 bytes to 64 KiB, every doubling as likely as any other.
    Mixed,
}

/// How much of it is freed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freed {
    /// Nine of ten blocks, chosen at random.
    Most,
    /// Every block.
    All,
}

/// What goes on afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// About 1000 small blocks a second, allocated and freed, as a service that idles has.
    Light,
    /// Nothing.
    None,
}

/// One of the cases; its name is for instance `give-back/small/90/light`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Which blocks.
    pub mix: Mix,
    /// How much is freed.
    pub freed: Freed,
    /// What goes on afterwards.
    pub activity: Activity,
}

impl Case {
    /// All of them, those with light activity first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for activity in [Activity::Light, Activity::None] {
            for mix in [Mix::Small, Mix::Mixed] {
                all.extend([Freed::Most, Freed::All].map(|freed| Case { mix, freed, activity }));
            }
        }
        all
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mix = match self.mix {
            Mix::Small => "small",
            Mix::Mixed => "mixed",
        };
        let freed = match self.freed {
            Freed::Most => "90",
            Freed::All => "all",
        };
        let activity = match self.activity {
            Activity::Light => "light",
            Activity::None => "none",
        };
        write!(f, "give-back/{mix}/{freed}/{activity}")
    }
}

impl FromStr for Case {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Case::all().into_iter().find(|case| case.to_string() == name).ok_or(())
    }
}

/// A reading.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Sample {
    /// Since the last free.
    pub seconds: f64,
    /// Resident memory.
    pub rss_kib: u64,
    /// What of it is in transparent huge pages.
    pub huge_kib: u64,
}

/// What came out.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct GiveBack {
    /// Bytes that were live at the peak, as asked for.
    pub live: u64,
    /// Bytes that were still live afterwards.
    pub left: u64,
    /// The reading with all blocks live.
    pub peak: Sample,
    /// Page faults until then.
    pub faults: u64,
    /// Bytes of the allocator's own data then, where it can tell.
    pub metadata: Option<u64>,
    /// Readings from the last free on.
    pub curve: Vec<Sample>,
}

impl GiveBack {
    /// Peak of resident memory over live bytes.
    pub fn peak_over_live(&self) -> f64 {
        self.peak.rss_kib as f64 * 1024.0 / self.live as f64
    }

    /// Resident memory so long after the last free, in KiB; none if it was not watched so long.
    pub fn after(&self, seconds: f64) -> Option<f64> {
        self.curve.iter().find(|sample| sample.seconds >= seconds).map(|sample| sample.rss_kib as f64)
    }
}

/// From one reading to the next.
const STEP: Duration = Duration::from_millis(250);

/// Builds the heap, frees, and watches. `metadata` asks the allocator.
pub(super) fn run(case: Case, amounts: Amounts, metadata: impl Fn() -> Option<u64>) -> io::Result<GiveBack> {
    volunteer();
    let sizes = match case.mix {
        Mix::Small => Sizes::even(16, 1024),
        Mix::Mixed => Sizes::spread(16, 64 << 10),
    };
    let layouts = || {
        let mut random = Random::new(5);
        let sizes = &sizes;
        (0..).map(move |_| sizes.layout(random.next() as usize))
    };
    let bytes = amounts.mib << 20;
    let needed = layouts().scan(0, |total, layout| (*total < bytes).then(|| *total += layout.size())).count();
    // The table and the readings are there before the first one, every page of the table touched.
    let mut blocks: Vec<Option<Block>> = (0..needed).map(|_| None).collect();
    let mut curve = Vec::with_capacity((amounts.time.as_millis() / STEP.as_millis()) as usize + 2);
    let mut idling = Idling::new();
    let (base, usage) = (Resident::now()?, Usage::now());

    for (place, layout) in blocks.iter_mut().zip(layouts()) {
        place.insert(Block::new(Global, layout)).fill();
    }
    let faults = Usage::now().since(usage).faults;
    let peak = sample(base, 0.0)?;
    let metadata = metadata();
    let live = size(&blocks);

    // Freeing in random order, too, is what heaps that were used for a while look like.
    Random::new(7).shuffle(&mut blocks);
    let freed = match case.freed {
        Freed::Most => needed * 9 / 10,
        Freed::All => needed,
    };
    for place in &mut blocks[..freed] {
        place.take().into_iter().for_each(|block| block.free(Global));
    }
    let begun = Instant::now();
    let mut next = begun;
    while next <= begun + amounts.time {
        match case.activity {
            Activity::Light => idling.until(next),
            Activity::None => sleep_until(next),
        }
        curve.push(sample(base, begun.elapsed().as_secs_f64())?);
        next += STEP;
    }
    Ok(GiveBack { live, left: size(&blocks), peak, faults, metadata, curve })
}

fn sample(base: Resident, seconds: f64) -> io::Result<Sample> {
    let Resident { rss_kib, huge_kib } = above(base)?;
    Ok(Sample { seconds, rss_kib, huge_kib })
}

fn size(blocks: &[Option<Block>]) -> u64 {
    blocks.iter().flatten().map(|block| block.size() as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let all = Case::all();
        assert_eq!(all.len(), 8);
        assert!(all.iter().all(|case| case.to_string().parse() == Ok(*case)));
        assert_eq!("give-back/small/50/light".parse::<Case>(), Err(()));
    }

    #[test]
    fn a_heap_is_built_up_and_freed() {
        let amounts = Amounts { mib: 16, time: Duration::from_millis(500), ..Amounts::default() };
        for (name, left) in [("give-back/small/90/light", 0.1), ("give-back/mixed/all/none", 0.0)] {
            let found = run(name.parse().unwrap(), amounts, || Some(1)).unwrap();
            assert!((16 << 20..17 << 20).contains(&found.live), "{found:?}");
            let share = found.left as f64 / found.live as f64;
            assert!((share - left).abs() < 0.03, "{found:?}");
            // What is resident is tested in processes of their own, in bench-child.
            assert!(found.faults > 0 && found.metadata == Some(1), "{found:?}");
            assert_eq!(found.curve.len(), 3);
            assert!(found.after(0.25).is_some() && found.after(0.5).is_some() && found.after(30.0).is_none());
        }
    }

    #[test]
    fn the_reading_at_a_time_is_the_first_not_before_it() {
        let sample = |seconds, rss_kib| Sample { seconds, rss_kib, huge_kib: 0 };
        let curve = vec![sample(0.0, 9), sample(1.01, 5), sample(10.2, 1)];
        let found = GiveBack { curve, live: 2048, peak: sample(0.0, 3), ..GiveBack::default() };
        assert_eq!([found.after(0.0), found.after(1.0), found.after(10.0)], [Some(9.0), Some(5.0), Some(1.0)]);
        assert_eq!(found.after(11.0), None);
        assert_eq!(found.peak_over_live(), 1.5);
    }
}
