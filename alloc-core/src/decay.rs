//! Decay of all that lies in pages: what has been free for long enough goes back to the operating system, a little at a
//! time, on calls that come from slow paths; or all of it at once.

use crate::{central, large, os, pages};

/// Sets the interval of all.
pub(crate) fn set_ms(ms: u64) {
    central::set_decay_ms(ms);
    pages::set_decay_ms(ms);
    large::set_decay_ms(ms);
}

/// Lets OS pages inside spans, free pages and cached large blocks go whose time has come. Called from slow paths only,
/// where reading the coarse clock costs nothing that can be measured.
pub(crate) fn tick() {
    tick_at(os::clock::now_ms());
}

/// [`tick`] at a time of [`os::clock::now_ms`].
pub(crate) fn tick_at(now: u64) {
    central::tick(now);
    pages::tick(now);
    large::tick(now);
}

/// The time in milliseconds from which the next of all has something to do; 0 or [`pages::NEVER`]: never, as things are.
pub(crate) fn next_due() -> u64 {
    let dues = [central::due(), pages::due(), large::due()];
    dues.into_iter().filter(|&due| due != 0).min().unwrap_or(0)
}

/// Whether memory waits for its time to go back to the operating system.
pub(crate) fn pending() -> bool {
    let due = next_due();
    due != 0 && due != pages::NEVER
}

/// Gives back all OS pages that no block in use overlaps and all cached large blocks; returns their bytes.
pub(crate) fn purge() -> usize {
    central::return_pages() + pages::purge() + large::purge()
}
