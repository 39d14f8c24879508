//! Models a process that lives long and does now this, now that: phases with other sizes, numbers of threads and live
//! sets follow each other, again and again. What a phase leaves behind, in other sizes and by threads that have ended,
//! must be of use to the next, or resident memory grows from repetition to repetition.
//!
//! A phase frees nine tenths of what earlier ones left, at random, while it builds up its own live set, then replaces
//! every block twice on average, in random order; its threads end, and the process idles until the phase's time is
//! over. The requests are the same for every allocator, in the same order for each thread.

use std::collections::VecDeque;
use std::io;
use std::thread;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{Amounts, Idling, above, volunteer};
use crate::blocks::{Block, Random, Shape, Sizes};
use crate::subjects::Global;
use crate::usage::Resident;

/// Names it everywhere.
pub const NAME: &str = "soak";

/// One of the phases.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Sizes and threads, in words.
    pub name: &'static str,
    sizes: (usize, usize),
    threads: usize,
    /// Sixteenths of the greatest live set.
    share: usize,
}

/// All of them, in their order.
pub const PHASES: [Phase; 6] = [
    Phase { name: "16-1024 bytes, 2 threads", sizes: (16, 1024), threads: 2, share: 12 },
    Phase { name: "16-128 bytes, 32 threads", sizes: (16, 128), threads: 32, share: 4 },
    Phase { name: "1-64 KiB, 8 threads", sizes: (1 << 10, 64 << 10), threads: 8, share: 10 },
    Phase { name: "64-256 bytes, 1 thread", sizes: (64, 256), threads: 1, share: 2 },
    Phase { name: "32 KiB-2 MiB, 4 threads", sizes: (32 << 10, 2 << 20), threads: 4, share: 12 },
    Phase { name: "16 bytes-32 KiB, 16 threads", sizes: (16, 32 << 10), threads: 16, share: 16 },
];

/// The first repetition builds up; growth is seen between the second and the last.
const REPETITIONS: usize = 3;
/// Of the blocks that earlier phases left, one of so many stays.
const STAYS: usize = 10;
/// How often a block is replaced, on average.
const REPLACED: usize = 2;

/// A reading at the end of a phase.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct End {
    /// Since the beginning.
    pub seconds: f64,
    /// Bytes that are live, as asked for, with the table of blocks.
    pub live: u64,
    /// Resident memory, above that before the beginning.
    pub rss_kib: u64,
}

/// By repetition, then by phase.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Soak {
    /// The ends of the phases of each repetition; all of them are whole.
    pub repetitions: Vec<[End; PHASES.len()]>,
}

impl Soak {
    /// The last reading's.
    fn seconds(&self) -> f64 {
        self.repetitions.last().and_then(|ends| ends.last()).map_or(0.0, |end| end.seconds)
    }
}

/// Repeats the phases until the time is over, and at least three times.
pub(super) fn run(amounts: Amounts) -> io::Result<Soak> {
    volunteer();
    let begun = Instant::now();
    let (mut soak, mut blocks, mut idling) = (Soak::default(), Vec::new(), Idling::new());
    let base = Resident::now()?;
    // By the time that is reported: between it and the next turn of the loop a deadline can pass.
    while soak.repetitions.len() < REPETITIONS || soak.seconds() < amounts.time.as_secs_f64() {
        let mut ends = [End::default(); PHASES.len()];
        for (number, (phase, end)) in PHASES.iter().zip(&mut ends).enumerate() {
            let until = Instant::now() + amounts.phase;
            let bytes = (amounts.mib << 20) / 16 * phase.share;
            blocks = phase.run(blocks, bytes, soak.repetitions.len() * PHASES.len() + number);
            idling.until(until);
            let table = blocks.capacity() * size_of::<Block>();
            *end = End {
                seconds: begun.elapsed().as_secs_f64(),
                live: table as u64 + blocks.iter().map(|block| block.size() as u64).sum::<u64>(),
                rss_kib: above(base)?.rss_kib,
            };
        }
        soak.repetitions.push(ends);
    }
    blocks.into_iter().for_each(|block| block.free(Global));
    Ok(soak)
}

impl Phase {
    /// Takes the blocks that are left, and returns those that are live at its end.
    fn run(&self, mut left: Vec<Block>, bytes: usize, seed: usize) -> Vec<Block> {
        Random::new(seed as u64 + 1).shuffle(&mut left);
        let share = left.len().div_ceil(self.threads);
        let mut all = thread::scope(|scope| {
            let threads: Vec<_> = (0..self.threads)
                .map(|number| {
                    let left = left.split_off(left.len().saturating_sub(share));
                    let random = Random::new((seed * 64 + number) as u64 + 1);
                    scope.spawn(move || self.work(left.into(), bytes / self.threads, random))
                })
                .collect();
            let blocks = threads.into_iter().flat_map(|thread| thread.join().expect("its work does not panic"));
            blocks.collect::<Vec<Block>>()
        });
        all.shrink_to_fit();
        all
    }

    /// What one of its threads does.
    fn work(&self, mut left: VecDeque<Block>, bytes: usize, mut random: Random) -> Vec<Block> {
        let sizes = Sizes::spread(self.sizes.0, self.sizes.1);
        let mut new = || {
            let mut block = Block::new(Global, sizes.layout(random.next() as usize));
            block.fill();
            block
        };
        let (mut stay, mut own, mut total) = (Vec::new(), Vec::new(), 0);
        let mut free_one = |left: &mut VecDeque<Block>| {
            let Some(block) = left.pop_front() else { return };
            if left.len().is_multiple_of(STAYS) { stay.push(block) } else { block.free(Global) }
        };
        while total < bytes {
            let block = new();
            total += block.size();
            own.push(block);
            free_one(&mut left);
        }
        while !left.is_empty() {
            free_one(&mut left);
        }
        let mut places = Random::new(own.len() as u64 + 1);
        for _ in 0..own.len() * REPLACED {
            let place = places.below(own.len());
            std::mem::replace(&mut own[place], new()).free(Global);
        }
        own.append(&mut stay);
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_live_set_is_what_the_phases_say_and_does_not_grow() {
        let amounts = Amounts { mib: 8, time: Duration::from_millis(1), phase: Duration::from_millis(1) };
        let soak = run(amounts).unwrap();
        assert_eq!(soak.repetitions.len(), REPETITIONS);
        let (second, third) = (soak.repetitions[1], soak.repetitions[2]);
        for (number, phase) in PHASES.iter().enumerate() {
            let least = (8 << 20) / 16 * phase.share as u64;
            for end in [second[number], third[number]] {
                assert!(end.live > least * 4 / 5, "{phase:?}: {end:?}");
                assert!(end.live < least * 3 + (12 << 20), "{phase:?}: {end:?}");
            }
            assert!(third[number].seconds > second[number].seconds);
        }
        let sum = |ends: [End; PHASES.len()]| ends.iter().map(|end| end.live as f64).sum::<f64>();
        assert!((0.8..1.25).contains(&(sum(third) / sum(second))));
    }

    #[test]
    fn a_phase_frees_most_of_what_was_left() {
        let left: Vec<Block> = PHASES[0].run(Vec::new(), 1 << 20, 0);
        let before = left.iter().map(Block::size).sum::<usize>();
        let after = PHASES[1].run(left, 1 << 10, 1);
        let size = after.iter().map(Block::size).sum::<usize>();
        assert!((before / 15..before / 6).contains(&size), "{before} {size}");
        after.into_iter().for_each(|block| block.free(Global));
    }
}
