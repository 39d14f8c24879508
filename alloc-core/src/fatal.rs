//! Fatal errors: one clear line on file descriptor 2, then abort. Nothing here allocates, locks or formats.
//!
//! A bad free is a defect of the program that can no longer be repaired when it is seen: the block may already be in
//! use by somebody else. So the process ends, and the line says what was seen and where to look.

/// A line under construction.
pub(crate) struct Line {
    bytes: [u8; 256],
    len: usize,
}

impl Line {
    /// A line that begins with the name of the library.
    pub(crate) fn new() -> Self {
        let mut line = Self { bytes: [0; 256], len: 0 };
        line.text("rseq-alloc: ");
        line
    }

    /// Appends text; what does not fit is cut.
    pub(crate) fn text(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// Appends bytes that come from outside; what does not fit is cut.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        for &byte in bytes {
            if let Some(slot) = self.bytes.get_mut(self.len) {
                *slot = byte;
                self.len += 1;
            }
        }
        self
    }

    /// Appends an address.
    pub(crate) fn hex(&mut self, value: usize) -> &mut Self {
        self.text("0x");
        let digits = (usize::BITS - value.leading_zeros()).div_ceil(4).max(1);
        for i in (0..digits).rev() {
            let digit = (value >> (4 * i)) & 15;
            self.bytes(&[if digit < 10 { b'0' + digit as u8 } else { b'a' + digit as u8 - 10 }]);
        }
        self
    }

    /// Appends a number.
    pub(crate) fn decimal(&mut self, value: usize) -> &mut Self {
        let mut digits = [0; 20];
        let mut rest = value;
        let mut first = digits.len();
        for (i, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
            if *digit != b'0' || i == 19 {
                first = i;
            }
        }
        self.bytes(digits.get(first..).unwrap_or_default())
    }

    /// Writes the line to file descriptor 2, in one call so that lines of several threads do not mix. By number, since
    /// the function `write` is where a cancelled thread ends.
    pub(crate) fn write(&mut self) {
        self.len = self.len.min(self.bytes.len() - 1);
        self.bytes(b"\n");
        // SAFETY: the buffer is valid for `len` bytes. <https://man7.org/linux/man-pages/man2/write.2.html>
        unsafe {
            libc::syscall(libc::SYS_write, 2, self.bytes.as_ptr(), self.len);
        }
    }
}

/// Writes the line and ends the process with SIGABRT.
#[cold]
fn die(line: &mut Line) -> ! {
    line.write();
    // SAFETY: always sound. <https://man7.org/linux/man-pages/man3/abort.3.html>
    unsafe { libc::abort() }
}

/// When a bad free was seen, which decides where to look for it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// In the call that is at fault.
    Now,
    /// When the magazine that the block had gone into was emptied.
    Late,
}

/// Ends the line with when it was seen, and the process.
#[cold]
fn die_of_bad_free(line: &mut Line, seen: Seen) -> ! {
    if seen == Seen::Late {
        line.text(" (seen when its magazine was emptied; the faulty free was an earlier one)");
    }
    die(line)
}

/// The block at `address` was freed while it was free.
#[cold]
pub(crate) fn double_free(address: usize, seen: Seen) -> ! {
    die_of_bad_free(Line::new().text("double free of ").hex(address), seen)
}

/// `address` was freed with the layout of blocks of `size` bytes but is not on the grid of its span.
#[cold]
pub(crate) fn off_grid(address: usize, size: usize, seen: Seen) -> ! {
    let mut line = Line::new();
    line.text("free of ").hex(address).text(", which is not the start of a block of ").decimal(size).text(" bytes");
    die_of_bad_free(&mut line, seen)
}

/// The beginning of what is said about a block that was freed with the wrong size.
fn freed_as(address: usize, size: usize) -> Line {
    let mut line = Line::new();
    line.text("free of ").hex(address).text(" as a block of ").decimal(size);
    line
}

/// `address` was freed as a block of `size` bytes but lies among blocks of `actual` bytes.
#[cold]
pub(crate) fn wrong_size(address: usize, size: usize, actual: usize, seen: Seen) -> ! {
    let mut line = freed_as(address, size);
    line.text(" bytes, but it lies among blocks of ").decimal(actual).text(" bytes (wrong layout, or not its start)");
    die_of_bad_free(&mut line, seen)
}

/// `address` was freed as a block of `size` bytes, but a large block of `actual` bytes starts there.
#[cold]
pub(crate) fn wrong_large_size(address: usize, size: usize, actual: usize, seen: Seen) -> ! {
    let mut line = freed_as(address, size);
    line.text(" bytes, but a large block of ").decimal(actual).text(" bytes starts there (wrong layout)");
    die_of_bad_free(&mut line, seen)
}

/// `address` was freed or resized, but no block of this allocator starts there.
#[cold]
pub(crate) fn foreign(address: usize, seen: Seen) -> ! {
    let mut line = Line::new();
    line.text("free of ").hex(address).text(", which this allocator does not know (foreign, or already freed)");
    die_of_bad_free(&mut line, seen)
}

/// The size of the block at `address` was asked for, but no block of this allocator starts there.
#[cold]
pub(crate) fn unknown(address: usize) -> ! {
    die(Line::new().text("size of the block at ").hex(address).text(", which this allocator does not know"))
}

#[cfg(test)]
mod tests {
    use super::Line;

    fn text(line: &Line) -> &[u8] {
        &line.bytes[..line.len]
    }

    #[test]
    fn numbers() {
        let mut line = Line::new();
        line.hex(0).text(" ").hex(0xdead_beef).text(" ").decimal(0).text(" ").decimal(1_000_234);
        assert_eq!(text(&line), b"rseq-alloc: 0x0 0xdeadbeef 0 1000234");
    }

    #[test]
    fn long_lines_are_cut() {
        let mut line = Line::new();
        for _ in 0..100 {
            line.text("0123456789");
        }
        assert_eq!(line.len, 256);
    }
}
