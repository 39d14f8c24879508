//! Where there are no sequences there is nothing to try.

use super::Trial;
use crate::abi::Errno;

/// Refuses.
///
/// # Safety
/// None; the signature of the assembly files.
pub(super) unsafe fn start(_trial: *mut Trial, _len: u32) -> Result<i32, Errno> {
    Err(Errno(libc::ENOSYS))
}
