//! Transparent huge pages: whether the kernel is told anything about them.
//!
//! The system's mode (`/sys/kernel/mm/transparent_hugepage/enabled`) decides first: with `never` no advice makes a huge
//! page, with `madvise` only advice does. Source:
//! [Transparent Hugepage Support](https://docs.kernel.org/admin-guide/mm/transhuge.html).

use super::keep_errno;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

/// What the kernel is told about transparent huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum HugePages {
    /// Nothing, except that it is asked for them where a large block grows to 8 MiB or more: the system's mode decides.
    #[default]
    System,
    /// They are asked for wherever one fits (`MADV_HUGEPAGE`): fewer faults and address translations, at the price that
    /// touching a page makes 2 MiB resident, and that pages which were given back may be filled in again.
    On,
    /// They are declined everywhere (`MADV_NOHUGEPAGE`): nothing is resident but what was touched.
    Off,
}

/// Bytes of a huge page with OS pages of 4 KiB. With larger OS pages some are larger, and the kernel does nothing about
/// a range that none fits in.
const HUGE_PAGE: usize = 2 << 20;

static CHOICE: AtomicU8 = AtomicU8::new(HugePages::System as u8);

/// Sets what is done from now on.
pub(crate) fn set(choice: HugePages) {
    CHOICE.store(choice as u8, Ordering::Relaxed);
}

/// Whether huge pages may be asked for.
pub(crate) fn declined() -> bool {
    CHOICE.load(Ordering::Relaxed) == HugePages::Off as u8
}

/// Tells the kernel what was chosen about a range of user data, with or without access
/// ([madvise(2)](https://man7.org/linux/man-pages/man2/madvise.2.html)). Kernels without huge pages refuse, which is as
/// well.
pub(crate) fn advise(start: NonNull<u8>, len: usize) {
    let advice = match CHOICE.load(Ordering::Relaxed) {
        _ if len < HUGE_PAGE => return,
        choice if choice == HugePages::On as u8 => libc::MADV_HUGEPAGE,
        choice if choice == HugePages::Off as u8 => libc::MADV_NOHUGEPAGE,
        _ => return,
    };
    keep_errno(|| {
        // SAFETY: advice about huge pages changes no contents.
        unsafe { libc::madvise(start.as_ptr().cast(), len, advice) }
    });
}
