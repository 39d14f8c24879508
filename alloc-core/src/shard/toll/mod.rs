//! While memory waits to be given back, some calls are made to reach the slow path, so that light activity that only hits
//! in magazines moves decay on.
//!
//! Nothing on the hit path may ask for the time. What sends a call away is a header without a magazine; so the slow
//! path leaves some headers without one. How many is a matter of cost:
//!
//! * *Light:* the first [`LIGHT`] visits of a vCPU in each window of time leave the header without a magazine, and some
//!   more for bins that had few visits in the window: what follows a dense burst at once, for another size. The depot or
//!   the spans serve such a call, which takes some 100 ns. What calls less often than that never hits in what it calls
//!   for, and each of its calls can move decay on.
//! * *Cold:* at the first visit of a window, headers that hold what they held a window ago lose their chains to the
//!   depot; if there was no visit in the window before, all do. So what else the process calls for, while a burst of one
//!   size goes on or after it, comes here again.
//! * *Dense:* beyond the light visits, magazines are loaded as usual. But a burst over many bins ends with a magazine
//!   in each of them, and then rare calls would only hit. So some bins are *tolls*: their chains are *parked* in the
//!   second of the bin's headers, which the hit path does not know. Calls for them come here, and take from the parked
//!   magazine or put into it by one more sequence, the same as that of the hit path.
//!
//! ```text
//!   hit path -> loaded: none -> slow path: time, decay -> parked: full <--- in use ---> empty
//! ```
//!
//! # Tolls
//!
//! A bin is a toll as long as it has a parked chain. That goes back to be loaded when it has no block or no room for a
//! call, when nothing waits any more, and when it was called for too often: a call costs some 15 ns more than one that
//! hits, and is paid from a *credit* to which every other dense visit adds, see [`CREDIT`]. Then another bin becomes
//! a toll, so in the end those are that are called for least.
//!
//! There are [`TOLLS`] places for them, and each is for its own part of the bins that have a magazine, in the order of
//! their sizes: what calls for many sizes, but not for all that the burst had, calls for the toll of one part or the
//! other. Where a few bins only have a magazine nothing is parked, since each of them would be called for often.
//!
//! All that only while the vCPU has given away a lot more than it took, of late: [`WORTH`] bytes. Programs whose
//! blocks come and go pay nothing.
//!
//! # What comes of it
//!
//! After random frees of 512 MiB in blocks of 16 to 1024 bytes both tolls were there in 49 of 50 processes, and one in the
//! other; half of them had every other bin only. A thousand pairs a second call for one of two tolls some 30 times, and
//! were noticed after 50 to 400 ms.
//!
//! What a loop that only ever hits gets: if it called rarely, or for many sizes, when it last came to a slow path, the
//! curve. If it was dense and of few sizes then, nothing, until one of its calls misses: at the end of a magazine, for
//! another size, on another vCPU, or when it is preempted inside a sequence.
//!
//! Rejected: a toll without a chain, served by the depot as in light visits. At 100 ns a call there could be one only, and
//! that was to be found 7 times in 10 when a burst over all bins ended, less often with half as many. And tolls
//! whatever was given away: loops over 64 bins and more took 2% longer, with waves of 10 MiB 3 to 8%.
//!
//! The counts are those of a vCPU, but relaxed, as hints.

use super::{Access, HEADERS, Shard, Visit, bin_of, carry, idle, parked, unload};
use crate::magazine::NONE;
use crate::size_class::BINS;
use crate::{decay, depot};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicUsize, Ordering::Relaxed};

/// `log2` of the milliseconds of a window.
const WINDOW_SHIFT: u32 = 5;
/// Visits of a window that install nothing: 5000 per second.
const LIGHT: u16 = 160;
/// And so many more where the bin had fewer than these: 0.2% of a CPU in all.
const LIGHT_BIN: u8 = 80;
const LIGHT_BINS: u16 = 500;
/// Bins that are tolls at a time.
const TOLLS: usize = 2;
/// Loaded magazines, besides that of the visit, below which nothing is parked.
const FEW: usize = 16;
/// What a dense visit that is no toll's adds to the credit, in calls for tolls: some 120 ns, as much as it takes to exchange
/// a magazine, and a part of the 2 µs that it takes to empty one into the spans. Frees over 64 bins need 5, over 126 half of that.
const CREDIT: u8 = 8;
/// The most credit there can be, which is what it takes to look for another toll, and what one costs that is found.
/// Where there is none all credit is gone, so 16 visits share the 100 ns that it takes to see that.
const MOST: u8 = 128;
const CHOICE: u8 = 16;
/// Calls for tolls in a dense burst of which one asks for the time, which is half of what it costs. The others go unnoticed
/// if the burst has ended.
const CALLS: u8 = 4;
/// Bytes that a vCPU has given to the depot and the spans, less those that it took from there, for which there are
/// tolls. After a burst over all small bins its own magazines hold 11 MiB, and 16 may stay.
const WORTH: usize = 4 << 20;
/// `log2` of the windows in which most of what was given away is forgotten: 8 s. What goes on for longer moves decay on
/// meanwhile.
const FORGET_SHIFT: u32 = 8;

/// Part of a shard. All zero at first.
pub(super) struct Toll {
    window: AtomicU32,
    visits: AtomicU16,
    credit: AtomicU8,
    /// Calls for tolls that are paid for already, and do not ask for the time.
    paid: AtomicU8,
    /// See [`WORTH`].
    given: AtomicUsize,
    /// The bin that was last chosen for each place. It is vacant if the bin has nothing parked (any more).
    places: [AtomicU8; TOLLS],
    /// Visits of each bin in this window.
    visits_of: [AtomicU8; BINS],
    /// Of each header, which slot was the top at the last look, in its magazine; 0 if it was not looked at.
    tops: [AtomicU8; HEADERS],
    /// What tests have [`pending`] say: 0, what it is; 1, that nothing waits; 2, that something does.
    #[cfg(test)]
    pretend: AtomicU8,
}

const _: () = assert!(BINS <= 1 << u8::BITS && TOLLS <= FEW && CHOICE < MOST);

/// How a visit is to be served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Way {
    /// By a loaded magazine, at this time in milliseconds.
    Load(u64),
    /// By the depot or the spans. The bin has no loaded magazine, nor a parked one.
    Aside,
    /// By the parked magazine; if that cannot, by [`end`].
    Parked,
    /// By [`end`].
    Back,
}

/// How a visit for `bin`, which the loaded magazine could not serve, is to be served.
pub(super) fn way(access: &impl Access, bin: usize) -> Way {
    let shard = access.shard();
    let toll = shard.is_toll(bin);
    if toll && shard.toll.is_paid() {
        return Way::Parked;
    }
    let now = access.tick();
    if !pending(&shard.toll) {
        return if toll { Way::Back } else { Way::Load(now) };
    }
    let Decision { way, light, choose, look } = shard.toll.decide(bin, toll, now);
    match look {
        Look::Not => {}
        Look::First => unload_others(access, bin, |_, _| true),
        Look::Again => unload_others(access, bin, stayed),
    }
    if light {
        unload(access, bin);
    }
    if choose {
        fill_a_place(access, bin);
    }
    way
}

/// Whether memory waits to be given back.
#[inline]
fn pending(_toll: &Toll) -> bool {
    #[cfg(test)]
    match _toll.pretend.load(Relaxed) {
        0 => {}
        pretended => return pretended == 2,
    }
    decay::pending() || depot::pending() || idle::pending()
}

/// The bin is no toll any more: its parked chain is loaded, and the visit begins anew.
#[cold]
pub(super) fn end<T>(access: &impl Access, bin: usize) -> Visit<T> {
    carry(access, parked(bin), bin).map_or_else(Visit::from, |()| Visit::Again)
}

impl Shard {
    /// Whether a bin has a parked magazine, as a hint.
    fn is_toll(&self, bin: usize) -> bool {
        self.top(parked(bin)).load(Relaxed) != NONE
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Decision {
    way: Way,
    /// The bin is not to have a loaded magazine.
    light: bool,
    /// A vacant place is to be filled, if there is one.
    choose: bool,
    look: Look,
}

/// Whether a window begins, and whether there were visits in the one before.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Look {
    Not,
    First,
    Again,
}

impl Toll {
    /// `toll`: whether the bin is one.
    fn decide(&self, bin: usize, toll: bool, now: u64) -> Decision {
        let window = (now >> WINDOW_SHIFT) as u32;
        let passed = window.wrapping_sub(self.window.load(Relaxed));
        let look = match passed {
            0 => Look::Not,
            1 => Look::Again,
            _ => Look::First,
        };
        if look != Look::Not {
            self.window.store(window, Relaxed);
            self.visits.store(0, Relaxed);
            self.visits_of.iter().for_each(|visits| visits.store(0, Relaxed));
            let given = self.given.load(Relaxed);
            self.given.store(given - (given >> FORGET_SHIFT) * (passed as usize).min(1 << FORGET_SHIFT), Relaxed);
        }
        let visits = self.visits.load(Relaxed);
        let of_bin = &self.visits_of[bin % BINS];
        let few = of_bin.load(Relaxed) < LIGHT_BIN;
        if visits < LIGHT || (few && visits < LIGHT_BINS) {
            self.visits.store(visits + 1, Relaxed);
            of_bin.store(of_bin.load(Relaxed).saturating_add(1), Relaxed);
            self.paid.store(0, Relaxed);
            let way = if toll { Way::Parked } else { Way::Aside };
            return Decision { way, light: true, choose: false, look };
        }
        let (way, choose) = if toll { (self.spend(), false) } else { (Way::Load(now), self.earn()) };
        Decision { way, light: false, choose, look }
    }

    /// A toll is called for that is not paid for: pays for this call and the next.
    fn spend(&self) -> Way {
        let credit = if self.is_worth_it() { self.credit.load(Relaxed) } else { 0 };
        let calls = credit.min(CALLS);
        self.credit.store(credit - calls, Relaxed);
        self.paid.store(calls.saturating_sub(1), Relaxed);
        if calls > 0 { Way::Parked } else { Way::Back }
    }

    /// Whether a call for a toll is paid for.
    #[inline]
    fn is_paid(&self) -> bool {
        let paid = self.paid.load(Relaxed);
        if paid > 0 {
            self.paid.store(paid - 1, Relaxed);
        }
        paid > 0
    }

    /// Another bin is. Whether there is credit to choose a toll.
    fn earn(&self) -> bool {
        let credit = self.credit.load(Relaxed).saturating_add(CREDIT).min(MOST);
        self.credit.store(credit, Relaxed);
        credit == MOST && self.is_worth_it()
    }

    fn is_worth_it(&self) -> bool {
        self.given.load(Relaxed) >= WORTH
    }

    /// Blocks of so many bytes go to the depot or the spans.
    pub(super) fn note_given(&self, bytes: usize) {
        self.given.store(self.given.load(Relaxed).saturating_add(bytes), Relaxed);
    }

    /// Blocks come from there.
    pub(super) fn note_taken(&self, bytes: usize) {
        self.given.store(self.given.load(Relaxed).saturating_sub(bytes), Relaxed);
    }

    /// For tests that want magazines, whatever waits for its decay in others.
    #[cfg(test)]
    pub(super) fn switch_off(&self) {
        self.pretend.store(1, Relaxed);
    }
}

/// Takes the chains of headers other than those of `not`, if `unwanted` says so of the shard and a header.
#[cold]
fn unload_others(access: &impl Access, not: usize, unwanted: impl Fn(&Shard, usize) -> bool) {
    for header in (0..HEADERS).filter(|&header| bin_of(header) != not) {
        if access.shard().top(header).load(Relaxed) != NONE && unwanted(access.shard(), header) {
            unload(access, header);
        }
    }
}

/// Whether a header has not moved since the last look, and notes where it is. A top that moved by a whole magazine looks
/// the same: that costs one visit.
fn stayed(shard: &Shard, header: usize) -> bool {
    let Some(seen) = shard.toll.tops.get(header) else { return false };
    // The end of a magazine is 0 here, which stands for nothing seen.
    let slot = ((shard.top(header).load(Relaxed) >> 3) as u8).max(1);
    seen.swap(slot, Relaxed) == slot
}

/// Fills a vacant place, if there is one, with a bin other than this one.
fn fill_a_place(access: &impl Access, not: usize) {
    let shard = access.shard();
    let last = |place: usize| usize::from(shard.toll.places[place].load(Relaxed));
    let Some(place) = (0..TOLLS).find(|&place| !shard.is_toll(last(place))) else { return };
    let Some(bin) = next_in_part(shard, place, last(place), not) else { return shard.toll.credit.store(0, Relaxed) };
    shard.toll.credit.store(MOST - CHOICE, Relaxed);
    shard.toll.places[place].store(bin as u8, Relaxed);
    let _ = carry(access, bin, parked(bin));
}

/// The bin that becomes the toll of a place after `last`: the next one of the place's part of the bins that have a loaded
/// magazine.
#[cold]
fn next_in_part(shard: &Shard, place: usize, last: usize, not: usize) -> Option<usize> {
    let (mut loaded, mut count) = ([0_u8; BINS], 0);
    for bin in 0..BINS {
        let Some(slot) = loaded.get_mut(count) else { break };
        *slot = bin as u8;
        // No jump that nobody can foresee.
        count += usize::from((bin != not) & (shard.top(bin).load(Relaxed) != NONE));
    }
    if count < FEW {
        return None;
    }
    let part = loaded.get(place * count / TOLLS..(place + 1) * count / TOLLS)?;
    let next = part.partition_point(|&bin| usize::from(bin) <= last);
    part.get(next).or(part.first()).map(|&bin| usize::from(bin))
}

#[cfg(test)]
mod tests;
