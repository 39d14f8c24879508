//! Decay of both back ends: what has been free for long enough goes back to the operating system, a little at a time, on
//! calls that come from slow paths; or all of it at once.

use crate::{large, os, pages};

/// Lets pages and cached large blocks go whose time has come. Called where reading a coarse clock does not show.
pub(crate) fn tick() {
    let now = os::clock::now_ms();
    pages::tick(now);
    large::tick(now);
}

/// Gives back all free pages and all cached large blocks; returns their bytes.
pub(crate) fn purge() -> usize {
    pages::purge() + large::purge()
}
