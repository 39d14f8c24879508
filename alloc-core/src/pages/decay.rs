//! How much free memory may stay resident at a given time: the decay curve.
//!
//! The idea is jemalloc's: free pages do not go back to the OS at once, because most are wanted again soon, but along a
//! smooth curve, so that there is neither a burst of system calls nor a page fault for every reuse. Time is cut into
//! [`EPOCHS`] epochs per interval. Pages that became free in one epoch count in full at first and then less from epoch
//! to epoch, by the smoothstep 3x² - 2x³, until they count nothing:
//!
//! ```text
//! allowed = sum over ages a of  freed[a] * s(1 - a / EPOCHS)          excess = resident - allowed
//! ```
//!
//! The time is an argument, so tests move it as they like. Pure arithmetic: nothing here knows what a page is.

/// Epochs per interval: at most 1/64 of a burst ages at a time (2.3 % of it is due in the steepest epoch).
pub(super) const EPOCHS: usize = 64;

/// The interval unless set otherwise, in milliseconds; jemalloc's default too.
const DEFAULT_MS: u64 = 10_000;
/// The interval that means "never".
pub(crate) const NEVER: u64 = u64::MAX;

/// See the module. All zero bits at first, so that it can be part of a large static without initialised data.
pub(crate) struct Decay {
    /// 0: the default; otherwise the interval in milliseconds plus one.
    interval: u64,
    running: bool,
    epoch_start: u64,
    /// Epochs passed since the start of the process, for the age of huge pages.
    epoch: u64,
    /// Pages freed, by age in epochs.
    freed: [u32; EPOCHS],
    /// Resident free pages as of the last call.
    seen: usize,
}

impl Decay {
    pub(crate) const fn new() -> Self {
        Self { interval: 0, running: false, epoch_start: 0, epoch: 0, freed: [0; EPOCHS], seen: 0 }
    }

    /// The interval in milliseconds; [`NEVER`] for none.
    pub(crate) fn interval_ms(&self) -> u64 {
        match self.interval {
            0 => DEFAULT_MS,
            NEVER => NEVER,
            set => set - 1,
        }
    }

    pub(crate) fn set_interval_ms(&mut self, ms: u64) {
        self.interval = ms.saturating_add(1);
    }

    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Moves on to `now_ms` with `resident` free resident pages, and says how many of them are too many.
    pub(crate) fn advance(&mut self, now_ms: u64, resident: usize) -> usize {
        if !self.running {
            self.running = true;
            self.epoch_start = now_ms;
            self.freed = [0; EPOCHS];
            self.seen = 0;
        }
        // A clock that goes back makes no epoch pass.
        let passed = now_ms.saturating_sub(self.epoch_start) / self.epoch_ms();
        if passed > 0 {
            self.epoch += passed;
            self.epoch_start += passed * self.epoch_ms();
            let shift = (passed as usize).min(EPOCHS);
            self.freed.copy_within(..EPOCHS - shift, shift);
            self.freed[..shift].fill(0);
        }
        let new = resident.saturating_sub(self.seen) as u32;
        self.freed[0] = self.freed[0].saturating_add(new);
        self.seen = resident;
        resident.saturating_sub(self.allowed())
    }

    /// Notes how many free pages are resident after some were returned: they are no new ones.
    pub(crate) fn settle(&mut self, resident: usize) {
        self.seen = resident;
    }

    /// Nothing is free and resident any more; the curve starts anew with the next free.
    pub(crate) fn stop(&mut self) {
        self.running = false;
    }

    /// When the next epoch begins.
    pub(crate) fn next_epoch_ms(&self) -> u64 {
        self.epoch_start.saturating_add(self.epoch_ms())
    }

    fn epoch_ms(&self) -> u64 {
        (self.interval_ms() / EPOCHS as u64).max(1)
    }

    /// Pages that may be resident now.
    fn allowed(&self) -> usize {
        if self.interval_ms() == 0 {
            return 0;
        }
        let scaled: u64 = self
            .freed
            .iter()
            .enumerate()
            .map(|(age, &freed)| u64::from(freed) * smoothstep((EPOCHS - age) as u64))
            .sum();
        (scaled / SCALE) as usize
    }
}

/// 3x² - 2x³ at x = `n` / [`EPOCHS`], times [`SCALE`]; exact in integers.
fn smoothstep(n: u64) -> u64 {
    n * n * (3 * EPOCHS as u64 - 2 * n)
}

const SCALE: u64 = (EPOCHS * EPOCHS * EPOCHS) as u64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothstep_runs_from_zero_to_one() {
        assert_eq!(smoothstep(0), 0);
        assert_eq!(smoothstep(EPOCHS as u64), SCALE);
        assert_eq!(smoothstep(EPOCHS as u64 / 2), SCALE / 2);
        assert!((0..EPOCHS as u64).all(|n| smoothstep(n) < smoothstep(n + 1)));
    }

    /// One burst, then the curve at each quarter of the interval.
    #[test]
    fn a_burst_follows_the_curve() {
        let mut decay = Decay::new();
        decay.set_interval_ms(6400);
        let start = 123_456;
        assert_eq!(decay.advance(start, 1000), 0);
        let mut resident = 1000;
        for (part, expected) in [(1, 843), (2, 500), (3, 156), (4, 0)] {
            let excess = decay.advance(start + part * 1600, resident);
            resident -= excess;
            decay.settle(resident);
            assert_eq!(resident, expected);
        }
    }

    #[test]
    fn later_frees_have_their_own_age() {
        let mut decay = Decay::new();
        decay.set_interval_ms(6400);
        decay.advance(0, 1000);
        assert_eq!(decay.advance(3200, 1000), 500);
        decay.settle(500);
        // 1000 more at half time: half of the first and all of the second may stay.
        assert_eq!(decay.advance(3200, 1500), 0);
        assert_eq!(decay.advance(6400, 1500), 1000);
        decay.settle(500);
        assert_eq!(decay.advance(9600, 500), 500);
    }

    #[test]
    fn reused_pages_are_not_excess() {
        let mut decay = Decay::new();
        decay.set_interval_ms(6400);
        decay.advance(0, 1000);
        assert_eq!(decay.advance(3200, 400), 0);
        assert_eq!(decay.advance(3200 + 1600, 400), 400 - 156);
    }

    #[test]
    fn odd_clocks_and_intervals() {
        let mut decay = Decay::new();
        assert_eq!(decay.interval_ms(), DEFAULT_MS);
        decay.advance(1_000_000, 10);
        assert_eq!(decay.advance(5, 10), 0, "backwards");
        assert_eq!(decay.advance(u64::MAX, 10), 10);
        decay.stop();
        decay.set_interval_ms(0);
        assert_eq!((decay.interval_ms(), decay.advance(7, 10)), (0, 10));
        decay.set_interval_ms(NEVER);
        assert_eq!(decay.interval_ms(), NEVER);
        decay.set_interval_ms(1);
        assert_eq!(decay.next_epoch_ms(), 8);
    }
}
