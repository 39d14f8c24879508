//! The clock that drives decay.
//!
//! A coarse one: it is read through the vDSO without entering the kernel and moves with the timer tick, every
//! 1 to 10 ms, which is fine for curves that take seconds. It does not run while the machine sleeps.

use super::keep_errno;

/// Milliseconds of `CLOCK_MONOTONIC_COARSE`, or 0 if the clock cannot be read.
///
/// Source: [clock_gettime(2)](https://man7.org/linux/man-pages/man2/clock_gettime.2.html).
pub(crate) fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let failed = keep_errno(|| {
        // SAFETY: `now` is a valid place for the answer.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) }
    });
    if failed != 0 {
        return 0;
    }
    // A monotonic clock is never negative.
    (now.tv_sec as u64).wrapping_mul(1000).wrapping_add(now.tv_nsec as u64 / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    #[test]
    #[cfg_attr(miri, ignore = "the clock is simulated")]
    fn goes_forward() {
        let before = now_ms();
        std::thread::sleep(std::time::Duration::from_millis(30));
        let passed = now_ms() - before;
        assert!((10..10_000).contains(&passed), "{passed} ms");
    }
}
