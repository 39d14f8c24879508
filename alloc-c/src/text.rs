//! Text without allocation: a buffer of fixed length that can be formatted into, and a way out for it.

use core::fmt;

/// Text under construction in memory that is somebody's. What does not fit is counted but not kept.
pub(crate) struct Text<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Text<'a> {
    /// No text yet, and room for what `buffer` holds.
    pub(crate) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Bytes written so far, those that did not fit included.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// What fitted.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or(self.buffer)
    }
}

impl fmt::Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.buffer.get_mut(self.len..).unwrap_or_default();
        for (slot, byte) in room.iter_mut().zip(text.bytes()) {
            *slot = byte;
        }
        self.len += text.len();
        Ok(())
    }
}

/// Writes to file descriptor 2. By number, since the function `write` is where a cancelled thread ends, and nothing here
/// may be unwound.
pub(crate) fn say(text: &[u8]) {
    // SAFETY: the text is valid for its length. <https://man7.org/linux/man-pages/man2/write.2.html>
    unsafe { libc::syscall(libc::SYS_write, 2, text.as_ptr(), text.len()) };
}
