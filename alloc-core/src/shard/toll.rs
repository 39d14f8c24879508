//! While memory waits to be given back, some calls are made to reach the slow path, so that light activity that only hits
//! in magazines moves decay on.
//!
//! Nothing on the hit path may ask for the time. What sends a call away is a header without a magazine; so the slow
//! path leaves some headers without one, and the depot or the spans serve the call. How many is a matter of cost, for such
//! a call takes some 100 ns:
//!
//! * *Light:* the first [`LIGHT`] visits of a vCPU in each window of time leave the header without a magazine, and some
//!   more for bins that had few visits in the window: what follows a dense burst at once, for another size. What calls less
//!   often than that never hits in what it calls for, and each of its calls can move decay on.
//! * *Cold:* at the first visit of a window, headers that hold what they held a window ago lose their chains to the
//!   depot; if there was no visit in the window before, all do. So what else the process calls for, while a burst of one size goes on or after it, comes here again.
//! * *Dense:* beyond the light visits, magazines are installed as usual, and one bin, the *toll*, stays without: if it is
//!   not used much, that costs nothing, and the first call for it after things became quiet is one that notices. A bin
//!   that is used much pays from a *credit*; when that is used up another one becomes the toll. The credit grows with the
//!   number of different bins that came to the slow path lately, since with many bins each of them is called for
//!   rarely; with four or less there is none. So a burst of one size pays nothing, and 126 bins in equal use pay about
//!   one visit per exchange of a magazine.
//!
//! What a loop that only ever hits gets: if it called rarely, or for many sizes, when it last came to a slow path, the
//! curve. If it was dense and of few sizes then, nothing, until one of its calls misses: at the end of a magazine, for
//! another size, on another vCPU, or when it is preempted inside a sequence.
//!
//! The counts are those of a vCPU, but relaxed, as hints.

use super::{Access, Shard, idle, unload};
use crate::magazine::NONE;
use crate::size_class::BINS;
use crate::{decay, depot};
use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};

/// `log2` of the milliseconds of a window.
const WINDOW_SHIFT: u32 = 5;
/// Visits of a window that install nothing: 5000 per second.
const LIGHT: u16 = 160;
/// And so many more where the bin had fewer than these: 0.2% of a CPU in all.
const LIGHT_BIN: u8 = 80;
const LIGHT_BINS: u16 = 500;
/// Slow visits over which different bins are counted.
const ROUND: u8 = 64;
/// Bins of a round without credit, and with one for each; each further one is worth two.
const FREE_OF_CREDIT: u32 = 4;
const SINGLE_CREDIT: u32 = 16;
/// Credit that choosing another bin costs, and the most there can be.
const CHOICE: u8 = 4;
const MOST: u8 = 64;

/// Part of a shard. All zero at first.
pub(super) struct Toll {
    window: AtomicU32,
    visits: AtomicU16,
    credit: AtomicU8,
    round: AtomicU8,
    /// The bin without a magazine plus one; 0 for none.
    bin: AtomicU8,
    /// Bins of this round, modulo 64.
    bins: AtomicU64,
    hand: AtomicUsize,
    /// Visits of each bin in this window.
    visits_of: [AtomicU8; BINS],
    /// Of each header, which slot was the top at the last look, in its magazine; 0 if it was not looked at.
    tops: [AtomicU8; BINS],
    #[cfg(test)]
    off: core::sync::atomic::AtomicBool,
}

const _: () = assert!(BINS < 255);

/// Whether a visit for `bin` at the time `now` in milliseconds is to be served by the depot or the spans. Then its header
/// has no magazine.
pub(super) fn aside(access: &impl Access, bin: usize, now: u64) -> bool {
    if !decay::pending() && !depot::pending() && !idle::pending() {
        return false;
    }
    #[cfg(test)]
    if access.shard().toll.off.load(Relaxed) {
        return false;
    }
    let Decision { aside, choose, look } = access.shard().toll.decide(bin, now);
    match look {
        Look::Not => {}
        Look::First => unload_others(access, bin, |_, _| true),
        Look::Again => unload_others(access, bin, stayed),
    }
    if choose {
        another(access, bin);
    }
    if aside {
        unload(access, bin);
    }
    aside
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Decision {
    aside: bool,
    /// Another bin is to be left without a magazine.
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
    fn decide(&self, bin: usize, now: u64) -> Decision {
        let window = (now >> WINDOW_SHIFT) as u32;
        let look = match window.wrapping_sub(self.window.load(Relaxed)) {
            0 => Look::Not,
            1 => Look::Again,
            _ => Look::First,
        };
        if look != Look::Not {
            self.window.store(window, Relaxed);
            self.visits.store(0, Relaxed);
            self.visits_of.iter().for_each(|visits| visits.store(0, Relaxed));
        }
        let no = Decision { aside: false, choose: false, look };
        let yes = Decision { aside: true, choose: false, look };
        let visits = self.visits.load(Relaxed);
        let of_bin = &self.visits_of[bin % BINS];
        let few = of_bin.load(Relaxed) < LIGHT_BIN;
        if visits < LIGHT || (few && visits < LIGHT_BINS) {
            self.visits.store(visits + 1, Relaxed);
            of_bin.store(of_bin.load(Relaxed).saturating_add(1), Relaxed);
            return yes;
        }
        self.earn(bin);
        let toll = usize::from(self.bin.load(Relaxed));
        let credit = self.credit.load(Relaxed);
        if toll == bin + 1 && credit > 0 {
            self.credit.store(credit - 1, Relaxed);
            return yes;
        }
        if toll != 0 && toll != bin + 1 {
            return no;
        }
        self.bin.store(0, Relaxed);
        if credit < CHOICE {
            return no;
        }
        self.credit.store(credit - CHOICE, Relaxed);
        Decision { aside: false, choose: true, look }
    }

    /// For tests that want magazines, whatever waits for its decay in others.
    #[cfg(test)]
    pub(super) fn switch_off(&self) {
        self.off.store(true, Relaxed);
    }

    fn earn(&self, bin: usize) {
        let round = self.round.load(Relaxed);
        self.round.store((round + 1) % ROUND, Relaxed);
        let bins = if round == 0 { 0 } else { self.bins.load(Relaxed) };
        let now = bins | 1 << (bin % 64);
        self.bins.store(now, Relaxed);
        if now != bins {
            let worth = match now.count_ones() {
                bins if bins <= FREE_OF_CREDIT => 0,
                bins if bins <= SINGLE_CREDIT => 1,
                _ => 2,
            };
            self.credit.store((self.credit.load(Relaxed) + worth).min(MOST), Relaxed);
        }
    }
}

/// Takes the chains of headers other than that of `not`, if `unwanted` says so of the shard and a bin.
#[cold]
fn unload_others(access: &impl Access, not: usize, unwanted: impl Fn(&Shard, usize) -> bool) {
    for bin in (0..BINS).filter(|&bin| bin != not) {
        if access.shard().top(bin).load(Relaxed) != NONE && unwanted(access.shard(), bin) {
            unload(access, bin);
        }
    }
}

/// Whether a header has not moved since the last look, and notes where it is. A top that moved by a whole magazine looks
/// the same: that costs one visit.
fn stayed(shard: &Shard, bin: usize) -> bool {
    let Some(seen) = shard.toll.tops.get(bin) else { return false };
    // The end of a magazine is 0 here, which stands for nothing seen.
    let slot = ((shard.top(bin).load(Relaxed) >> 3) as u8).max(1);
    seen.swap(slot, Relaxed) == slot
}

/// Makes the next bin that has a magazine, other than this one, the toll.
#[cold]
fn another(access: &impl Access, not: usize) {
    let shard: &Shard = access.shard();
    let start = shard.toll.hand.load(Relaxed);
    let loaded = |bin: usize| bin != not && shard.top(bin).load(Relaxed) != NONE;
    let Some(bin) = (1..=BINS).map(|step| (start + step) % BINS).find(|&bin| loaded(bin)) else { return };
    shard.toll.hand.store(bin, Relaxed);
    if unload(access, bin) {
        shard.toll.bin.store(bin as u8 + 1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::alone;
    use super::super::{Visit, allocate, drain, free};
    use super::*;

    /// Plays visits: `next` names the bin of each call; headers are loaded by visits that are not aside. Returns the
    /// calls that came to the slow path and were aside.
    fn play(
        toll: &Toll,
        loaded: &mut [bool; BINS],
        calls: usize,
        start: u64,
        mut next: impl FnMut(usize) -> (usize, bool),
    ) -> (usize, usize) {
        let (mut slow, mut asides) = (0, 0);
        for call in 0..calls {
            let (bin, exchange) = next(call);
            if loaded[bin] && !exchange {
                continue;
            }
            slow += 1;
            let decision = toll.decide(bin, start);
            loaded[bin] = !decision.aside;
            asides += usize::from(decision.aside);
            if decision.choose {
                let hand = toll.hand.load(Relaxed);
                let found = (1..=BINS).map(|step| (hand + step) % BINS).find(|&other| other != bin && loaded[other]);
                if let Some(other) = found {
                    toll.hand.store(other, Relaxed);
                    loaded[other] = false;
                    toll.bin.store(other as u8 + 1, Relaxed);
                }
            }
        }
        (slow, asides)
    }

    /// Promise: a dense burst of one size or a few pays nothing beyond the light visits.
    #[test]
    fn few_bins_pay_nothing() {
        for bins in [1, 2, 4] {
            let access = alone();
            let mut loaded = [false; BINS];
            let calls = |call: usize| (call % bins, call.is_multiple_of(100));
            let (slow, asides) = play(&access.shard().toll, &mut loaded, 100_000, 0, calls);
            let light = usize::from(LIGHT).max(bins * usize::from(LIGHT_BIN));
            assert_eq!(asides, light, "{bins} bins, {slow} slow visits");
        }
    }

    /// Promise: after a dense burst over many bins one of them is without a magazine, at the cost of about one visit
    /// per exchange.
    #[test]
    fn many_bins_leave_one_without_a_magazine() {
        let access = alone();
        let toll = &access.shard().toll;
        let mut loaded = [false; BINS];
        let (mut set, mut rounds, mut cost) = (0, 0, 0);
        let mut random = 1_u64;
        for _ in 0..200 {
            let (slow, asides) = play(toll, &mut loaded, 5000, 0, |_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                ((random >> 33) as usize % 126, (random >> 20).is_multiple_of(80))
            });
            rounds += 1;
            set += usize::from((0..126).any(|bin| !loaded[bin]));
            cost += asides;
            assert!(slow > 0);
        }
        assert!(set * 10 >= rounds * 7, "{set} of {rounds} times");
        assert!(cost <= 200 * 5000 / 80 * 3 / 2, "{cost} visits aside");
    }

    /// Promise: while a burst of one size goes on, headers that do not move lose their magazines, and those that do
    /// keep them.
    #[test]
    fn cold_headers_are_unloaded() {
        let access = alone();
        let bins = [520, 552, 584].map(|size| crate::size_class::bin(size - 1).unwrap());
        let loaded = || bins.map(|bin| access.shard().top(bin).load(Relaxed) != NONE);
        access.shard().toll.switch_off();
        while loaded() != [true; 3] {
            for bin in bins {
                let Visit::Done(block) = allocate(&access, bin) else { panic!("alone") };
                assert!(matches!(free(&access, bin, block), Visit::Done(())));
            }
        }
        unload_others(&access, bins[0], stayed);
        assert_eq!(loaded(), [true; 3]);
        let Visit::Done(block) = allocate(&access, bins[1]) else { panic!("alone") };
        unload_others(&access, bins[0], stayed);
        assert_eq!(loaded(), [true, true, false], "the first is the one that is being visited, the second has moved");
        assert!(matches!(free(&access, bins[1], block), Visit::Done(())));
        drain::give_back(&access);
    }

    /// Promise: whoever calls rarely never hits, so decay goes on with each of its calls; but only so often.
    #[test]
    fn light_activity_installs_nothing() {
        let access = alone();
        let mut loaded = [false; BINS];
        for window in 1..50_u64 {
            let (_, asides) =
                play(&access.shard().toll, &mut loaded, 240, window << WINDOW_SHIFT, |call| (call % 3, false));
            assert_eq!(asides, 240);
        }
        let (slow, asides) = play(&access.shard().toll, &mut loaded, 1000, 99 << WINDOW_SHIFT, |_| (7, false));
        assert_eq!((slow, asides), (usize::from(LIGHT) + 1, usize::from(LIGHT)));
    }
}
