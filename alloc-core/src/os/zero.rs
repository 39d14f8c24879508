//! Clearing memory of which little may be resident.
//!
//! Clearing all of it would make all of it resident, which costs a fault for each page, and then memory; giving it back
//! where most of it is resident costs a fault for each page that is used again. So the kernel is asked how much is
//! resident, piece by piece, and each piece is cleared or given back.
//!
//! Asking takes 1 µs and up to 5 for 4 MiB, as long as giving back 8 MiB with a page in them and touching that page
//! again. So it is left out, most of the time, where all that was looked at before gave the same answer: see
//! [`History`]. A wrong guess costs time, and memory up to [`GUESSED`]; what is not zero never depends on it, nor on what
//! the kernel says, by which a page may also be swapped out.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicI8, AtomicU8, Ordering};

use super::keep_errno;
use super::mapping::{discard, page_size};

/// Pages that are looked at together.
const PIECE: usize = 1024;
/// Fewer resident pages than one in so many are better given back than cleared with the rest: clearing 4 KiB that are
/// there takes 0.1 µs, a fault 0.5 to 2 µs.
const SPARSE: usize = 16;
/// So many pages are the end of a range.
const END: usize = 16;
/// So many answers in a row are believed. Where one in `n` differs, it is believed to be like the others with a chance
/// of `(1 - 1 / n)^64`, so that for any `n` the average cost of guesses is about what they save or less.
const SURE: i8 = 64;
/// And then the kernel is asked every so many times.
const AGAIN: u8 = 16;
/// Longer ranges are not cleared on a guess, for the memory that it might cost.
const GUESSED: usize = 1 << 20;

/// What ranges of about the same length were like.
struct History {
    /// How many in a row were mostly resident; negative, how many were hardly.
    streak: AtomicI8,
    turn: AtomicU8,
}

/// By the logarithm of the length.
static HISTORIES: [History; usize::BITS as usize] = [const { History::new() }; usize::BITS as usize];

/// Makes a range zero, by clearing or by giving back.
///
/// # Safety
///
/// The range was mapped here and is the caller's.
pub(crate) unsafe fn zero(start: NonNull<u8>, len: usize) {
    match len.checked_ilog2().and_then(|log| HISTORIES.get(log as usize)) {
        // SAFETY: passed on.
        Some(history) if !cfg!(miri) => unsafe { zero_by(history, start, len) },
        // SAFETY: passed on.
        _ => unsafe { start.write_bytes(0, len) },
    }
}

/// # Safety
///
/// As for [`zero`].
unsafe fn zero_by(history: &History, start: NonNull<u8>, len: usize) {
    let page = page_size();
    let (first, end) = (start.addr().get().next_multiple_of(page), (start.addr().get() + len) & !(page - 1));
    let at = |addr: usize| start.as_ptr().with_addr(addr);
    let guess = history.guess();
    // SAFETY: all places are inside the range.
    unsafe {
        if first >= end || (guess == Some(true) && len <= GUESSED) {
            return start.write_bytes(0, len);
        }
        start.write_bytes(0, first - start.addr().get());
        at(end).write_bytes(0, start.addr().get() + len - end);
        if guess == Some(false) {
            return give_back_or_clear(at(first), end - first);
        }
        let pages = (end - first) / page;
        if pages <= PIECE && ends_resident(at(first), pages) {
            history.note(true);
            return at(first).write_bytes(0, end - first);
        }
        let (mut piece, mut dense) = (first, false);
        while piece < end {
            let len = (end - piece).min(PIECE * page);
            if is_sparse(at(piece), len / page) {
                give_back_or_clear(at(piece), len);
            } else {
                at(piece).write_bytes(0, len);
                dense = true;
            }
            piece += len;
        }
        history.note(dense);
    }
}

impl History {
    const fn new() -> Self {
        Self { streak: AtomicI8::new(0), turn: AtomicU8::new(0) }
    }

    /// Whether the next range is mostly resident; `None`: to be found out.
    fn guess(&self) -> Option<bool> {
        let streak = self.streak.load(Ordering::Relaxed);
        if streak.abs() < SURE {
            return None;
        }
        // Should another thread count at the same time, one more or less does not matter.
        let turn = self.turn.load(Ordering::Relaxed).wrapping_add(1);
        self.turn.store(turn, Ordering::Relaxed);
        (!turn.is_multiple_of(AGAIN)).then_some(streak > 0)
    }

    /// What was found out.
    fn note(&self, dense: bool) {
        let streak = self.streak.load(Ordering::Relaxed);
        let next = if dense { streak.max(0) + 1 } else { streak.min(0) - 1 };
        self.streak.store(next.clamp(-SURE, SURE), Ordering::Relaxed);
    }
}

/// Makes a range zero, whole OS pages, by [`discard`] if possible.
///
/// # Safety
///
/// As for [`zero`].
unsafe fn give_back_or_clear(start: *mut u8, len: usize) {
    // SAFETY: passed on.
    if !NonNull::new(start).is_some_and(|start| unsafe { discard(start, len) }) {
        // Locked in memory, so it may well be resident.
        // SAFETY: passed on.
        unsafe { start.write_bytes(0, len) };
    }
}

/// Whether the last of the pages are all resident, and with them probably the others: what is used in part is mostly used
/// from its start. False if there are fewer than that.
///
/// # Safety
///
/// The pages were mapped here and are the caller's.
unsafe fn ends_resident(start: *mut u8, pages: usize) -> bool {
    let mut states = [0; END];
    let Some(before) = pages.checked_sub(END) else { return false };
    // SAFETY: inside the range.
    unsafe { look(start.add(before * page_size()), &mut states) == Some(END) }
}

/// Whether hardly any of at most [`PIECE`] pages are resident.
///
/// # Safety
///
/// The pages were mapped here and are the caller's.
unsafe fn is_sparse(start: *mut u8, pages: usize) -> bool {
    let mut states = [0; PIECE];
    // SAFETY: passed on.
    let resident = states.get_mut(..pages).and_then(|states| unsafe { look(start, states) });
    resident.is_some_and(|resident| resident * SPARSE < pages)
}

/// How many pages are resident, if the kernel tells ([mincore(2)](https://man7.org/linux/man-pages/man2/mincore.2.html));
/// there is a state for each.
///
/// # Safety
///
/// The pages were mapped here and are the caller's.
unsafe fn look(start: *mut u8, states: &mut [u8]) -> Option<usize> {
    let answered = keep_errno(|| {
        // SAFETY: the kernel writes a byte for each page, for which there is room.
        unsafe { libc::mincore(start.cast(), states.len() * page_size(), states.as_mut_ptr()) == 0 }
    });
    answered.then(|| states.iter().filter(|&&state| state & 1 != 0).count())
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    use crate::os::mapping::{map, unmap};
    extern crate std;

    fn resident_pages(start: NonNull<u8>, pages: usize) -> usize {
        let mut states = std::vec![0u8; pages];
        // SAFETY: the caller's mapping, with room for the answer.
        let asked = unsafe { libc::mincore(start.as_ptr().cast(), pages * page_size(), states.as_mut_ptr()) };
        assert_eq!(asked, 0);
        states.iter().filter(|&&state| state & 1 != 0).count()
    }

    #[test]
    fn zero_clears_all_and_fills_nothing() {
        let page = page_size();
        let pages = 4 * PIECE;
        let start = map(pages * page, page).unwrap();
        // SAFETY: mapped above.
        let bytes = unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), pages * page) };
        // The first piece is dense; of the second there is a page, of the third there are some, of the fourth half.
        bytes[..PIECE * page].fill(1);
        bytes[(PIECE + 5) * page] = 2;
        (0..PIECE / 32).for_each(|index| bytes[(2 * PIECE + 2 + 32 * index) * page] = 4);
        bytes[7 * PIECE / 2 * page..].fill(3);
        // SAFETY: inside the mapping. Neither end is that of a page, so pieces begin at the second one.
        let resident = |piece: usize| resident_pages(unsafe { start.add((piece * PIECE + 1) * page) }, PIECE - 1);
        assert_eq!([0, 1, 2].map(resident), [PIECE - 1, 1, PIECE / 32]);
        // SAFETY: the mapping is ours.
        unsafe { zero_by(&History::new(), start.add(7), pages * page - 9) };
        assert_eq!([0, 1, 2].map(resident), [PIECE - 1, 0, 0]);
        assert_eq!((bytes[6], bytes[pages * page - 2], bytes[pages * page - 1]), (1, 3, 3));
        assert!(bytes[7..pages * page - 2].iter().all(|&byte| byte == 0));
        // SAFETY: not used again.
        assert!(unsafe { unmap(start, pages * page) });
    }

    /// Whatever is resident, everything is zero afterwards, and hardly more is resident than before.
    #[test]
    fn zero_clears_any_pattern() {
        let page = page_size();
        let pages = PIECE + PIECE / 2;
        let start = map(pages * page, page).unwrap();
        let mut random = 12345u64;
        // Without optimisation looking at every byte takes most of the time.
        for round in 0..if cfg!(debug_assertions) { 40 } else { 200 } {
            // SAFETY: the mapping is ours, and nothing in it is needed.
            assert!(unsafe { discard(start, pages * page) });
            // From a page to a sixteenth of them, sometimes in rows.
            for _ in 0..1 << (round % 7) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let (index, row) = ((random >> 33) as usize % pages, 1 + (random >> 60) as usize % 3);
                for index in index..(index + row).min(pages) {
                    // SAFETY: inside the mapping.
                    unsafe { start.add(index * page).write_bytes(0xa5, page) };
                }
            }
            let before = resident_pages(start, pages);
            // Of all that it might know of earlier ones.
            let history = History { streak: AtomicI8::new([0, SURE, -SURE][round % 3]), turn: AtomicU8::new(0) };
            // SAFETY: the mapping is ours.
            unsafe { zero_by(&history, start, pages * page) };
            // A piece that is mostly there is cleared as a whole.
            assert!(before * SPARSE >= PIECE / 2 || resident_pages(start, pages) <= before);
            // SAFETY: inside the mapping.
            let bytes = unsafe { core::slice::from_raw_parts(start.as_ptr(), pages * page) };
            assert!(bytes.iter().all(|&byte| byte == 0));
        }
        // SAFETY: not used again.
        assert!(unsafe { unmap(start, pages * page) });
    }

    /// The kernel refuses to give back what is locked, also where it is not resident.
    #[test]
    fn zero_clears_locked_memory() {
        let page = page_size();
        let pages = 64 * 1024 / page;
        for flags in [libc::MLOCK_ONFAULT as _, 0] {
            let start = map(pages * page, page).unwrap();
            // SAFETY: the first page of the mapping.
            unsafe { start.write_bytes(7, page) };
            // SAFETY: the mapping is ours. <https://man7.org/linux/man-pages/man2/mlock.2.html>
            assert_eq!(unsafe { libc::mlock2(start.as_ptr().cast(), pages * page, flags) }, 0);
            // SAFETY: the last page of the mapping.
            unsafe { start.add((pages - 1) * page).write_bytes(7, page) };
            // SAFETY: the mapping is ours.
            assert!(!unsafe { discard(start, pages * page) }, "locked");
            for (streak, mark) in [(0, 0), (-SURE, 7), (SURE, 8)] {
                // SAFETY: inside the mapping.
                unsafe { start.add(page).write(mark) };
                let history = History { streak: AtomicI8::new(streak), turn: AtomicU8::new(0) };
                // SAFETY: the mapping is ours.
                unsafe { zero_by(&history, start, pages * page) };
                // SAFETY: inside the mapping.
                let bytes = unsafe { core::slice::from_raw_parts(start.as_ptr(), pages * page) };
                assert!(bytes.iter().all(|&byte| byte == 0));
            }
            // SAFETY: not used again.
            assert!(unsafe { unmap(start, pages * page) });
        }
    }

    /// After many ranges of one kind the next ones are treated like them without a look, and a look now and then sees
    /// when that changes.
    #[test]
    fn history_is_believed_and_checked() {
        let page = page_size();
        let (pages, sure) = (64, SURE as usize);
        let start = map(pages * page, page).unwrap();
        let history = History::new();
        let round = |used: usize| {
            // SAFETY: the mapping is ours.
            unsafe {
                start.write_bytes(7, used * page);
                zero_by(&history, start, pages * page);
            }
            // SAFETY: inside the mapping.
            let bytes = unsafe { core::slice::from_raw_parts(start.as_ptr(), pages * page) };
            let resident = resident_pages(start, pages);
            assert!(bytes.iter().all(|&byte| byte == 0));
            // SAFETY: reading made all of it resident, and nothing in it is needed.
            assert!(unsafe { discard(start, pages * page) });
            resident
        };
        // A page is little, and given back, and so is all of it for a while.
        assert!((0..sure).all(|_| round(1) == 0));
        let given_back = (0..AGAIN).take_while(|_| round(pages) == 0).count();
        assert!(given_back > 0 && given_back < usize::from(AGAIN));
        // All is cleared again, then always, and then even where there is a page.
        assert!((1..sure).all(|_| round(pages) == pages));
        let cleared = (0..AGAIN).take_while(|_| round(1) == pages).count();
        assert!(cleared > 0 && cleared < usize::from(AGAIN));
        assert_eq!(round(1), 0);
        // SAFETY: not used again.
        assert!(unsafe { unmap(start, pages * page) });
    }
}
