//! Contents of a block that prove whose it is.
//!
//! The word at offset `o` of a block is a function of the block's address, `o` and a tag that names the owner and the
//! allocation. If two owners hold the same memory, whoever verifies second finds the other's words: no double
//! allocation goes unseen as long as both fill and verify.
//!
//! Blocks up to [`DENSE`] bytes are filled completely, larger ones at every cache line and at their end: an allocator
//! hands out whole blocks, so a second owner of any part overwrites at least one of these words.

/// Up to this size every byte is written and verified.
pub const DENSE: usize = 512;

const STRIDE: usize = 64;

/// A word that was not what the owner had left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Offset in the block, in bytes.
    pub offset: usize,
    /// What the owner had written; for the last bytes of a block only the low bytes count.
    pub expected: u64,
    /// What was found.
    pub found: u64,
}

impl core::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "at offset {} expected {:#018x}, found {:#018x}", self.offset, self.expected, self.found)
    }
}

/// The word at `offset` of a block at `address`, filled with `tag`.
#[inline]
const fn word(address: usize, offset: usize, tag: u64) -> u64 {
    ((address + offset) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ tag
}

/// Distance of the words in a block of `size` bytes.
#[inline]
const fn stride(size: usize) -> usize {
    if size <= DENSE { 8 } else { STRIDE }
}

/// Fills a block with the pattern of its address and `tag`.
///
/// # Safety
///
/// `block` is valid for writes of `size` bytes.
#[inline]
pub unsafe fn fill(block: *mut u8, size: usize, tag: u64) {
    let address = block as usize;
    let step = stride(size);
    let mut offset = 0;
    while offset + 8 <= size {
        // SAFETY: `offset + 8 <= size`, and the caller owns `size` bytes. Blocks may be aligned to one byte only.
        unsafe { block.add(offset).cast::<u64>().write_unaligned(word(address, offset, tag)) };
        offset += step;
    }
    // The end: the last whole word (between strides in a large block) and the bytes after it.
    let whole = size & !7;
    if step != 8 && whole >= 8 {
        let offset = whole - 8;
        // SAFETY: as above.
        unsafe { block.add(offset).cast::<u64>().write_unaligned(word(address, offset, tag)) };
    }
    let bytes = word(address, whole, tag).to_le_bytes();
    for (index, byte) in bytes.iter().enumerate().take(size - whole) {
        // SAFETY: `whole + index < size`.
        unsafe { block.add(whole + index).write(*byte) };
    }
}

/// Verifies a block that was filled at its present address.
///
/// # Errors
///
/// The first word that differs.
///
/// # Safety
///
/// `block` is valid for reads of `size` bytes, all of which [`fill`] saw.
#[inline]
pub unsafe fn verify(block: *const u8, size: usize, tag: u64) -> Result<(), Mismatch> {
    // SAFETY: the same duties.
    unsafe { verify_moved(block, block as usize, size, size, tag) }
}

/// Verifies the first `len` bytes of a block that was filled with `filled` bytes when it stood at `origin`, which is
/// what `realloc` must have kept.
///
/// # Errors
///
/// The first word that differs.
///
/// # Safety
///
/// `block` is valid for reads of `len` bytes, and `len <= filled`.
#[inline]
pub unsafe fn verify_moved(
    block: *const u8,
    origin: usize,
    len: usize,
    filled: usize,
    tag: u64,
) -> Result<(), Mismatch> {
    let step = stride(filled);
    let mut offset = 0;
    while offset + 8 <= len {
        // SAFETY: `offset + 8 <= len`.
        unsafe { expect_word(block, origin, offset, tag)? };
        offset += step;
    }
    let whole = filled & !7;
    if step != 8 && whole >= 8 && whole <= len {
        // SAFETY: the word ends at `whole <= len`.
        unsafe { expect_word(block, origin, whole - 8, tag)? };
    }
    let expected = word(origin, whole, tag);
    for (index, byte) in expected.to_le_bytes().iter().enumerate().take(len.min(filled).saturating_sub(whole)) {
        // SAFETY: `whole + index < len`.
        let found = unsafe { block.add(whole + index).read() };
        if found != *byte {
            return Err(Mismatch { offset: whole + index, expected: u64::from(*byte), found: u64::from(found) });
        }
    }
    Ok(())
}

/// # Safety
///
/// `block` is valid for reads of eight bytes at `offset`.
#[inline]
unsafe fn expect_word(block: *const u8, origin: usize, offset: usize, tag: u64) -> Result<(), Mismatch> {
    let expected = word(origin, offset, tag);
    // SAFETY: the caller's duty.
    let found = unsafe { block.add(offset).cast::<u64>().read_unaligned() };
    if found == expected { Ok(()) } else { Err(Mismatch { offset, expected, found }) }
}

/// The offset of the first byte that is not zero, if there is one.
///
/// # Safety
///
/// `block` is valid for reads of `size` bytes.
pub unsafe fn first_nonzero(block: *const u8, size: usize) -> Option<usize> {
    // SAFETY: the caller's duty; a slice compares many bytes at a time where a loop over words would not.
    let bytes = unsafe { core::slice::from_raw_parts(block, size) };
    let mut chunks = bytes.chunks_exact(64);
    let mut offset = 0;
    for chunk in &mut chunks {
        if chunk.iter().fold(0, |sum, byte| sum | byte) != 0 {
            return chunk.iter().position(|byte| *byte != 0).map(|at| offset + at);
        }
        offset += 64;
    }
    chunks.remainder().iter().position(|byte| *byte != 0).map(|at| offset + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every single changed byte of a dense block is found, and every changed first and last byte of a large one.
    #[test]
    fn a_changed_byte_is_found() {
        for size in [1, 7, 8, 9, 24, 63, 64, 65, 511, 512, 513, 520, 1000, 4096, 4099] {
            let mut block = vec![0_u8; size];
            // SAFETY: the vector has `size` bytes.
            unsafe { fill(block.as_mut_ptr(), size, 77) };
            // SAFETY: as above.
            assert_eq!(unsafe { verify(block.as_ptr(), size, 77) }, Ok(()), "size {size}");
            // SAFETY: as above.
            assert!(unsafe { verify(block.as_ptr(), size, 78) }.is_err(), "another owner, size {size}");
            for at in (0..size).filter(|at| size <= DENSE || *at == 0 || *at == size - 1 || at % STRIDE == 0) {
                block[at] ^= 1;
                // SAFETY: as above.
                assert!(unsafe { verify(block.as_ptr(), size, 77) }.is_err(), "size {size}, byte {at}");
                block[at] ^= 1;
            }
        }
    }

    /// A copy elsewhere verifies against its origin, in full and shortened.
    #[test]
    fn a_moved_block_is_recognised() {
        for size in [5_usize, 8, 100, 512, 700, 5000] {
            let mut block = vec![0_u8; size];
            // SAFETY: the vector has `size` bytes.
            unsafe { fill(block.as_mut_ptr(), size, 5) };
            let origin = block.as_ptr() as usize;
            let moved = block.clone();
            for len in [1, size / 2, size - 1, size] {
                // SAFETY: `len <= size`.
                assert_eq!(unsafe { verify_moved(moved.as_ptr(), origin, len, size, 5) }, Ok(()), "{len} of {size}");
            }
        }
    }

    /// The first byte that is not zero is named.
    #[test]
    fn nonzero_bytes_are_found() {
        let mut block = vec![0_u8; 1000];
        // SAFETY: the vector has 1000 bytes.
        assert_eq!(unsafe { first_nonzero(block.as_ptr(), 1000) }, None);
        for at in [999, 961, 500, 64, 63, 0] {
            block[at] = 1;
            // SAFETY: as above.
            assert_eq!(unsafe { first_nonzero(block.as_ptr(), 1000) }, Some(at));
        }
    }
}
