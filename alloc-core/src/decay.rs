//! Decay of both back ends: what has been free for long enough goes back to the operating system, a little at a time,
//! on calls that come from slow paths; or all of it at once.

use crate::{large, os, pages};

/// Sets the interval of both.
pub(crate) fn set_ms(ms: u64) {
    pages::set_decay_ms(ms);
    large::set_decay_ms(ms);
}

/// Lets pages and cached large blocks go whose time has come. Called from slow paths only, where reading the coarse
/// clock costs nothing that can be measured.
pub(crate) fn tick() {
    let now = os::clock::now_ms();
    pages::tick(now);
    large::tick(now);
}

/// Gives back all free pages and all cached large blocks; returns their bytes.
pub(crate) fn purge() -> usize {
    pages::purge() + large::purge()
}
