//! Reading the kernel's small text files without allocation.
//!
//! System calls go by number: the functions `open` and `read` are where a cancelled thread ends.

use super::keep_errno;
use core::ffi::{CStr, c_int};

/// Bytes of a line that are kept; the rest of a longer one is cut off.
pub(crate) const LINE: usize = 1024;

/// An open file.
struct File(c_int);

impl File {
    /// [open(2)](https://man7.org/linux/man-pages/man2/open.2.html), for reading.
    fn open(path: &CStr) -> Option<Self> {
        let flags = libc::O_RDONLY | libc::O_CLOEXEC;
        // SAFETY: the path is a C string.
        let file = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path.as_ptr(), flags, 0) };
        (file >= 0).then_some(Self(file as c_int))
    }

    /// [read(2)](https://man7.org/linux/man-pages/man2/read.2.html). Nothing at the end, and after an error.
    fn read<'a>(&self, buffer: &'a mut [u8]) -> &'a [u8] {
        loop {
            // SAFETY: the buffer may be written to for its length.
            let read = unsafe { libc::syscall(libc::SYS_read, self.0, buffer.as_mut_ptr(), buffer.len()) };
            // SAFETY: errno of this thread.
            if read >= 0 || unsafe { *libc::__errno_location() } != libc::EINTR {
                return buffer.get(..read.max(0) as usize).unwrap_or_default();
            }
        }
    }
}

impl Drop for File {
    fn drop(&mut self) {
        // SAFETY: opened here, and used no more.
        unsafe { libc::syscall(libc::SYS_close, self.0) };
    }
}

/// Calls `each` with the contents of a file, piece by piece. False if it cannot be opened.
pub(crate) fn for_each_piece(path: &CStr, each: &mut dyn FnMut(&[u8])) -> bool {
    keep_errno(|| {
        let Some(file) = File::open(path) else { return false };
        let mut buffer = [0; LINE];
        loop {
            let read = file.read(&mut buffer);
            if read.is_empty() {
                return true;
            }
            each(read);
        }
    })
}

/// Calls `each` with every line of a file, without its end and cut to [`LINE`] bytes. A file that cannot be read has
/// none.
pub(crate) fn for_each_line(path: &CStr, mut each: impl FnMut(&[u8])) {
    let mut line = [0; LINE];
    let mut len = 0;
    for_each_piece(path, &mut |piece| {
        for &byte in piece {
            if byte == b'\n' {
                each(line.get(..len).unwrap_or_default());
                len = 0;
            } else if let Some(slot) = line.get_mut(len) {
                *slot = byte;
                len += 1;
            }
        }
    });
    if len > 0 {
        each(line.get(..len).unwrap_or_default());
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    extern crate std;
    use std::ffi::CString;
    use std::vec::Vec;

    #[test]
    fn lines_are_those_of_the_file() {
        let path = std::env::temp_dir().join(std::format!("rseq-alloc-lines-{}", std::process::id()));
        let long = "x".repeat(3 * LINE);
        std::fs::write(&path, std::format!("one\n\n{long}\nlast")).unwrap();
        let name = CString::new(path.to_str().unwrap()).unwrap();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for_each_line(&name, |line| lines.push(line.to_vec()));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(lines, [b"one".to_vec(), Vec::new(), long.as_bytes()[..LINE].to_vec(), b"last".to_vec()]);
        for_each_line(&name, |_| panic!("a file that is gone has no lines"));
        // A directory can be opened but not read.
        for_each_line(c"/", |_| panic!("a directory has no lines"));
    }
}
