//! What a heap costs over time: what is given back after much was freed, and what a heap grows to that is used in
//! changing ways. Each has a process of its own and prints an outcome of its own as a line of JSON.

pub mod give_back;
pub mod soak;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::blocks::{Block, Random, Shape, Sizes};
use crate::outcome::Description;
use crate::subjects::Global;
use crate::usage::Resident;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Amounts {
    /// MiB that are live at the peak.
    pub mib: usize,
    /// How long a heap is watched, or a soak goes on.
    pub time: Duration,
    /// The least time of a phase of a soak.
    pub phase: Duration,
}

impl Default for Amounts {
    fn default() -> Self {
        Amounts { mib: 256, time: Duration::from_secs(30), phase: Duration::from_secs(1) }
    }
}

/// Runs what has this name, if it is here, and returns what it printed.
pub(crate) fn run(name: &str, amounts: Amounts, describe: fn() -> Description) -> Option<Result<String, String>> {
    if let Ok(case) = name.parse() {
        return Some(line(give_back::run(case, amounts, || describe().metadata)));
    }
    (name == soak::NAME).then(|| line(soak::run(amounts)))
}

fn line(outcome: io::Result<impl serde::Serialize>) -> Result<String, String> {
    outcome.and_then(|outcome| Ok(serde_json::to_string(&outcome)?)).map_err(|error| error.to_string())
}

/// Pairs of one stretch of activity, and the time from one to the next: 1000 pairs a second.
const PAIRS: usize = 10;
const STRETCH: Duration = Duration::from_millis(10);

/// A service that idles: about 1000 blocks of 100 to 1100 bytes a second, each freed at once.
struct Idling {
    sizes: Sizes,
    random: Random,
}

impl Idling {
    fn new() -> Self {
        Idling { sizes: Sizes::even(100, 1100), random: Random::new(6) }
    }

    /// Goes on until then.
    fn until(&mut self, end: Instant) {
        while Instant::now() < end {
            for _ in 0..PAIRS {
                Block::new(Global, self.sizes.layout(self.random.next() as usize)).free(Global);
            }
            sleep_until(end.min(Instant::now() + STRETCH));
        }
    }
}

fn sleep_until(end: Instant) {
    thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// A machine that runs out of memory had better kill this process than any other.
fn volunteer() {
    // Where it cannot be said nothing is lost. <https://man7.org/linux/man-pages/man5/proc_pid_oom_score_adj.5.html>
    _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// What is resident above an earlier reading.
fn above(base: Resident) -> io::Result<Resident> {
    let now = Resident::now()?;
    Ok(Resident {
        rss_kib: now.rss_kib.saturating_sub(base.rss_kib),
        huge_kib: now.huge_kib.saturating_sub(base.huge_kib),
    })
}
