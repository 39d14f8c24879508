//! Last words. When a block was found corrupted the heap is not to be trusted, so nothing here allocates: the text is
//! formatted on the stack, written to file descriptor 2 with one `write`, and the process aborts.

use core::fmt::{self, Write};

/// Text of bounded length on the stack; what does not fit is cut off.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; 768],
    used: usize,
}

impl Line {
    /// An empty line.
    pub const fn new() -> Self {
        Self { bytes: [0; 768], used: 0 }
    }

    /// Writes the line to file descriptor 2 by [write(2)](https://man7.org/linux/man-pages/man2/write.2.html).
    pub fn write_to_stderr(&self) {
        // SAFETY: the buffer is valid for `used` bytes; a short or failed write only loses text.
        unsafe { libc::write(2, self.bytes.as_ptr().cast(), self.used) };
    }
}

impl Default for Line {
    fn default() -> Self {
        Self::new()
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - self.used;
        let taken = text.len().min(room);
        self.bytes[self.used..self.used + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.used += taken;
        Ok(())
    }
}

/// Writes one line and aborts; see [`die!`](crate::die).
#[cold]
pub fn die(arguments: fmt::Arguments<'_>) -> ! {
    let mut line = Line::new();
    // Writing into a `Line` cannot fail; an error from a Display implementation only shortens the text.
    let _ = line.write_fmt(arguments);
    let _ = line.write_str("\n");
    line.write_to_stderr();
    std::process::abort()
}

/// Formats one line on the stack, writes it to file descriptor 2 and aborts, without touching the heap.
#[macro_export]
macro_rules! die {
    ($($argument:tt)*) => { $crate::report::die(format_args!($($argument)*)) };
}
