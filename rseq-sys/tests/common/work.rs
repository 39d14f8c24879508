//! How much work a test does: `RSEQ_SYS_TEST_PERCENT`, of the usual amount. Less of it is for slow emulation.

/// The environment variable as a number; 100 where it is not set.
fn percent() -> usize {
    let Ok(text) = std::env::var("RSEQ_SYS_TEST_PERCENT") else { return 100 };
    text.parse().expect("RSEQ_SYS_TEST_PERCENT is a whole number")
}

/// So much of `usual`, and at least 1.
pub(crate) fn work(usual: usize) -> usize {
    (usual as u128 * percent() as u128 / 100).clamp(1, usize::MAX as u128) as usize
}
