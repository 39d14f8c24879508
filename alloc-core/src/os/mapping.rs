//! Private anonymous mappings: reserving, committing, growing and giving back.
//!
//! Address space is first reserved without access and made usable later, in steps. A writable reservation would be
//! charged in full by `RLIMIT_DATA` and strict overcommit, and populated by `mlockall`.
//!
//! Invariants: lengths are multiples of the OS page; memory that comes from here is zero; an address never has
//! more than [`ADDRESS_BITS`](super::ADDRESS_BITS) bits, because no hint is passed. A failed call leaves
//! everything as it was.
//!
//! What it does not do: no NUMA policy, no record of what was mapped.
//! Sources: [mmap(2)](https://man7.org/linux/man-pages/man2/mmap.2.html) and the pages named at each function.

use core::ffi::{CStr, c_int, c_ulong};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::keep_errno;

/// An OS page size that is a multiple of every other in use; assumed if the kernel does not tell.
const LARGEST_PAGE: usize = 64 << 10;

/// The part of a limited address space that one reservation may take: the rest belongs to thread stacks, files
/// and large blocks.
const SHARE_OF_LIMIT: usize = 16;

/// A huge page of every processor with OS pages of 4 KiB; with larger ones some are larger, and alignment to this helps
/// nothing and costs nothing.
const HUGE_PAGE: usize = 2 << 20;

static PAGE_SIZE: AtomicUsize = AtomicUsize::new(0);

/// Size of an OS page in bytes, a power of two, read once from the auxiliary vector
/// ([getauxval(3)](https://man7.org/linux/man-pages/man3/getauxval.3.html)).
#[inline]
pub(crate) fn page_size() -> usize {
    match PAGE_SIZE.load(Ordering::Relaxed) {
        0 => read_page_size(),
        size => size,
    }
}

#[cold]
fn read_page_size() -> usize {
    let size = keep_errno(|| {
        // SAFETY: no preconditions; an unknown key gives 0.
        unsafe { libc::getauxval(libc::AT_PAGESZ) }
    }) as usize;
    if !size.is_power_of_two() {
        // Not remembered: the auxiliary vector may be there next time.
        return LARGEST_PAGE;
    }
    PAGE_SIZE.store(size, Ordering::Relaxed);
    size
}

/// `len` rounded up to whole OS pages, or `None` if that is more than an address can hold.
pub(crate) fn whole_pages(len: usize) -> Option<usize> {
    let mask = page_size() - 1;
    Some(len.checked_add(mask)? & !mask)
}

/// Address space without access: `size` bytes aligned to `align` (a power of two).
pub(crate) fn reserve(size: usize, align: usize) -> Option<NonNull<u8>> {
    map_aligned(size, align, libc::PROT_NONE, libc::MAP_NORESERVE)
}

/// A reservation of `wanted` bytes (a power of two times `least`), or half of it, and so on down to `least` (whole OS
/// pages), where the address space is limited or nearly full. Returns its start and size.
///
/// Under `RLIMIT_AS` ([getrlimit(2)](https://man7.org/linux/man-pages/man2/getrlimit.2.html)) it asks for no more
/// than a sixteenth of the limit from the start: untouched address space counts there as much as memory.
pub(crate) fn reserve_up_to(wanted: usize, least: usize, align: usize) -> Option<(NonNull<u8>, usize)> {
    let fair = address_space_limit() / SHARE_OF_LIMIT;
    let mut size = wanted;
    while size > fair && size > least {
        size /= 2;
    }
    loop {
        if let Some(start) = reserve(size, align) {
            return Some((start, size));
        }
        if size <= least {
            return None;
        }
        size /= 2;
    }
}

fn address_space_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    keep_errno(|| {
        // SAFETY: `limit` is a valid place for the answer; if the call fails it stays at "unlimited".
        unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) }
    });
    // RLIM_INFINITY is the largest value there is.
    limit.rlim_cur as usize
}

/// Makes a part of a reservation readable and writable. False if the kernel refuses (a limit), with nothing changed
/// ([mprotect(2)](https://man7.org/linux/man-pages/man2/mprotect.2.html)).
///
/// # Safety
///
/// `[start, start + len)` is OS-page aligned and belongs to a reservation that the caller owns.
#[must_use]
pub(crate) unsafe fn commit(start: NonNull<u8>, len: usize) -> bool {
    keep_errno(|| {
        // SAFETY: the range is the caller's, and gaining access breaks nothing that relied on having none.
        unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE) == 0 }
    })
}

/// Makes a part of a reservation readable: all zeroes, which take no memory. False if the kernel refuses, with nothing
/// changed.
///
/// # Safety
///
/// As for [`commit`].
#[must_use]
pub(crate) unsafe fn make_readable(start: NonNull<u8>, len: usize) -> bool {
    // SAFETY: the range is the caller's, and gaining access breaks nothing that relied on having none.
    keep_errno(|| unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_READ) == 0 })
}

/// A readable and writable mapping of `len` zero bytes aligned to `align` (a power of two).
pub(crate) fn map(len: usize, align: usize) -> Option<NonNull<u8>> {
    map_aligned(len, align, libc::PROT_READ | libc::PROT_WRITE, 0)
}

/// Maps more than asked for and trims both ends where the alignment exceeds what the kernel gives anyway.
fn map_aligned(len: usize, align: usize, prot: c_int, flags: c_int) -> Option<NonNull<u8>> {
    let page = page_size();
    debug_assert!(align.is_power_of_two() && len.is_multiple_of(page));
    let slack = align.saturating_sub(page);
    let total = len.checked_add(slack)?;
    let base = map_anywhere(total, prot, flags)?;
    let head = base.addr().get().wrapping_neg() & (align - 1) & !(page - 1);
    let tail = slack - head;
    // SAFETY: head <= slack, so the whole aligned block lies inside the mapping.
    let start = unsafe { base.add(head) };
    // Trimming can fail when the process is out of mappings. What then stays mapped is never touched and so costs
    // address space only.
    if head > 0 {
        // SAFETY: the head was mapped just now and is not part of the block.
        unsafe { unmap(base, head) };
    }
    if tail > 0 {
        // SAFETY: the tail starts where the block ends, inside the mapping.
        let end = unsafe { start.add(len) };
        // SAFETY: as for the head.
        unsafe { unmap(end, tail) };
    }
    Some(start)
}

fn map_anywhere(len: usize, prot: c_int, flags: c_int) -> Option<NonNull<u8>> {
    let mapped = keep_errno(|| {
        // SAFETY: a new mapping wherever the kernel likes disturbs nothing.
        unsafe { libc::mmap(core::ptr::null_mut(), len, prot, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags, -1, 0) }
    });
    if mapped == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(mapped.cast())
}

/// Gives a mapping back. False if the kernel refuses, which it does when the removal would split a mapping and the
/// process has too many already; the memory is then still mapped
/// ([munmap(2)](https://man7.org/linux/man-pages/man2/munmap.2.html)).
///
/// # Safety
///
/// `[start, start + len)` is OS-page aligned, was mapped here, and nobody uses it any more.
pub(crate) unsafe fn unmap(start: NonNull<u8>, len: usize) -> bool {
    keep_errno(|| {
        // SAFETY: the caller gives the range up.
        unsafe { libc::munmap(start.as_ptr().cast(), len) == 0 }
    })
}

/// Changes the length of a mapping, moving it if it must. The contents move along and new bytes are zero. `None`:
/// nothing happened ([mremap(2)](https://man7.org/linux/man-pages/man2/mremap.2.html)).
///
/// # Safety
///
/// `[start, start + old)` came from [`map`] and is the caller's; both lengths are multiples of the OS page and
/// not 0. When this returns another address, the old one may already belong to somebody else.
#[must_use]
pub(crate) unsafe fn remap(start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
    // SAFETY: passed on.
    unsafe { mremap(start, old, new, libc::MREMAP_MAYMOVE) }
}

/// As [`remap`] to a greater length, for what goes on growing: what moves goes to the start of a huge page, and has free
/// addresses behind it. With `huge` it asks for huge pages, too; the advice has no effect where the system's mode is
/// "never", and is not needed where it is "always"
/// ([madvise(2)](https://man7.org/linux/man-pages/man2/madvise.2.html), `MADV_HUGEPAGE`).
///
/// # Safety
///
/// As for [`remap`].
#[must_use]
pub(crate) unsafe fn remap_to_grow(start: NonNull<u8>, old: usize, new: usize, huge: bool) -> Option<NonNull<u8>> {
    // SAFETY: passed on.
    let moved = if unsafe { remap_in_place(start, old, new) } {
        start
    } else {
        // SAFETY: passed on; a failed call changed nothing.
        unsafe { remap_aligned(start, old, new).or_else(|| remap(start, old, new)) }?
    };
    if huge {
        keep_errno(|| {
            // SAFETY: advice changes no contents, and the range is the caller's.
            unsafe { libc::madvise(moved.as_ptr().cast(), new, libc::MADV_HUGEPAGE) }
        });
    }
    Some(moved)
}

/// Moves a mapping to the start of a huge page.
///
/// # Safety
///
/// As for [`remap`].
unsafe fn remap_aligned(start: NonNull<u8>, old: usize, new: usize) -> Option<NonNull<u8>> {
    let target = reserve(new, HUGE_PAGE)?;
    let moved = keep_errno(|| {
        // SAFETY: the caller owns the mapping, and the place it moves to was reserved just now.
        unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(start.as_ptr().cast(), old, new, flags, target.as_ptr())
        }
    });
    if moved == libc::MAP_FAILED {
        // SAFETY: reserved above. Should a part of it be gone already, the rest goes.
        unsafe { unmap(target, new) };
        return None;
    }
    Some(target)
}

/// As [`remap`], but never moves. True if the mapping now has the new length.
///
/// # Safety
///
/// As for [`remap`].
#[must_use]
pub(crate) unsafe fn remap_in_place(start: NonNull<u8>, old: usize, new: usize) -> bool {
    // SAFETY: passed on.
    unsafe { mremap(start, old, new, 0).is_some() }
}

/// # Safety
///
/// As for [`remap`].
unsafe fn mremap(start: NonNull<u8>, old: usize, new: usize, flags: c_int) -> Option<NonNull<u8>> {
    let moved = keep_errno(|| {
        // SAFETY: the caller owns the mapping and expects it to move only if the flags allow it.
        unsafe { libc::mremap(start.as_ptr().cast(), old, new, flags) }
    });
    if moved == libc::MAP_FAILED {
        return None;
    }
    NonNull::new(moved.cast())
}

/// Gives the memory of a range back but keeps its addresses: the bytes are zero afterwards. False if the kernel
/// refuses (the range is locked in memory); then the contents are unchanged or, in part, zero
/// ([madvise(2)](https://man7.org/linux/man-pages/man2/madvise.2.html), `MADV_DONTNEED`).
///
/// # Safety
///
/// `[start, start + len)` is OS-page aligned, was mapped here, and nobody needs its contents.
#[must_use]
pub(crate) unsafe fn discard(start: NonNull<u8>, len: usize) -> bool {
    keep_errno(|| {
        // SAFETY: nobody needs the contents.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_DONTNEED) == 0 }
    })
}

/// The kernel has no names for ranges. It is asked once, since large blocks come and go.
static NAMELESS: AtomicBool = AtomicBool::new(false);

/// Names a range in `/proc/self/maps`, where the kernel can (`CONFIG_ANON_VMA_NAME`); without effect elsewhere
/// ([PR_SET_VMA(2const)](https://man7.org/linux/man-pages/man2/PR_SET_VMA.2const.html)).
pub(crate) fn name(start: NonNull<u8>, len: usize, name: &CStr) {
    const PR_SET_VMA: c_int = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: c_ulong = 0;
    if NAMELESS.load(Ordering::Relaxed) {
        return;
    }
    keep_errno(|| {
        // SAFETY: the kernel copies the name; a range that does not fit is refused.
        let failed = unsafe {
            libc::prctl(
                PR_SET_VMA,
                PR_SET_VMA_ANON_NAME,
                start.as_ptr().addr() as c_ulong,
                len as c_ulong,
                name.as_ptr(),
            )
        };
        // SAFETY: errno of this thread. Short of memory, the next one may have its name.
        if failed != 0 && unsafe { *libc::__errno_location() } != libc::ENOMEM {
            NAMELESS.store(true, Ordering::Relaxed);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::string::String;

    #[test]
    fn page_size_is_the_systems() {
        // SAFETY: no preconditions.
        assert_eq!(page_size(), unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize);
        assert_eq!(whole_pages(1), Some(page_size()));
        assert_eq!(whole_pages(0), Some(0));
        assert_eq!(whole_pages(usize::MAX), None);
    }

    #[test]
    fn alignment_and_zero() {
        for shift in 12..26 {
            let align = 1 << shift;
            let len = 3 * page_size();
            let start = map(len, align).unwrap();
            assert_eq!(start.addr().get() % align, 0);
            // SAFETY: mapped above.
            let bytes = unsafe { core::slice::from_raw_parts_mut(start.as_ptr(), len) };
            assert!(bytes.iter().all(|&byte| byte == 0));
            bytes.fill(7);
            // SAFETY: nobody needs the 7s.
            assert!(unsafe { discard(start, len) });
            assert!(bytes.iter().all(|&byte| byte == 0));
            // SAFETY: the slice is not used again.
            assert!(unsafe { unmap(start, len) });
        }
    }

    #[test]
    fn commit_opens_a_part_of_a_reservation() {
        let size = 64 << 20;
        let start = reserve(size, 2 << 20).unwrap();
        // SAFETY: both steps lie in the reservation.
        unsafe {
            assert!(commit(start.add(2 << 20), 2 << 20));
            start.add(2 << 20).write(1);
            start.add((4 << 20) - 1).write(2);
        }
        name(start, size, c"rseq-alloc: test");
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = |at: usize| -> String {
            let prefix = std::format!("{at:x}-");
            String::from(
                maps.lines()
                    .find(|line| line.starts_with(&prefix))
                    .unwrap_or_else(|| panic!("no mapping starts at {at:x}\n{maps}")),
            )
        };
        let base = start.addr().get();
        assert!(line(base + (2 << 20)).contains(" rw-p "));
        assert!(line(base + (4 << 20)).contains(" ---p "));
        // SAFETY: not used again.
        assert!(unsafe { unmap(start, size) });
    }

    #[test]
    fn impossible_requests_are_refused() {
        // SAFETY: errno of this thread.
        unsafe { libc::__errno_location().write(5) };
        assert!(reserve(1 << 60, 4096).is_none());
        assert!(map((isize::MAX as usize) & !0xffff, 1 << 62).is_none());
        assert!(map(usize::MAX & !0xffff, 1 << 40).is_none());
        let (start, size) = reserve_up_to(1 << 56, 1 << 20, 1 << 21).unwrap();
        assert!(size < 1 << 56);
        // SAFETY: errno of this thread.
        assert_eq!(unsafe { libc::__errno_location().read() }, 5);
        // SAFETY: never used.
        assert!(unsafe { unmap(start, size) });
    }

    #[test]
    fn huge_pages_on_request() {
        let page = page_size();
        let (mut start, mut len) = (map(page, page).unwrap(), page);
        for new in [8 << 20, 16 << 20, 40 << 20] {
            // SAFETY: inside the mapping.
            unsafe { start.add(len - 1).write(9) };
            // SAFETY: the mapping is ours, and only the new address is used.
            start = unsafe { remap_to_grow(start, len, new, true) }.unwrap();
            // SAFETY: inside the new length.
            unsafe {
                assert_eq!(start.add(len - 1).read(), 9);
                assert_eq!(start.add(new - 1).read(), 0);
            }
            len = new;
        }
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let addr = start.addr().get();
        let of = smaps.lines().skip_while(|line| !line.starts_with(&std::format!("{addr:x}-")));
        let flags = of.skip(1).find(|line| line.starts_with("VmFlags:"));
        // Where the kernel has huge pages at all.
        if std::fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
            assert!(flags.unwrap().contains(" hg"), "{flags:?}");
        }
        // SAFETY: not used again.
        assert!(unsafe { unmap(start, len) });
    }

    #[test]
    fn remap_keeps_contents() {
        let page = page_size();
        let start = map(4 * page, page).unwrap();
        // SAFETY: inside the mapping.
        unsafe { start.add(4 * page - 1).write(9) };
        // SAFETY: the mapping is ours, and only the new address is used.
        let grown = unsafe { remap(start, 4 * page, 400 * page) }.unwrap();
        // SAFETY: inside the new length.
        unsafe {
            assert_eq!(grown.add(4 * page - 1).read(), 9);
            assert_eq!(grown.add(400 * page - 1).read(), 0);
        }
        // SAFETY: as above; shrinking needs no move.
        assert!(unsafe { remap_in_place(grown, 400 * page, page) });
        // SAFETY: not used again.
        assert!(unsafe { unmap(grown, page) });
    }
}
