//! Reads symbols out of an ELF object that the kernel or the loader has mapped, trusting as little as can be.
//!
//! Invariant: apart from the first page, which holds the headers, nothing is read unless it lies inside one readable
//! `PT_LOAD` segment. Every loop is bounded by what it reads from. 64-bit objects only; on a 32-bit target there are
//! no sequences and nothing is asked.
//!
//! It neither relocates nor follows dependencies, and it ignores symbol versions: the names looked for have one.
//!
//! Source: [`elf(5)`](https://man7.org/linux/man-pages/man5/elf.5.html); the GNU hash table as `elf/dl-lookup.c` of
//! glibc and `ldso/dynlink.c` of musl read it.

use core::mem::size_of;
use libc::{Elf64_Ehdr, Elf64_Phdr, Elf64_Sym};

const DT_NULL: u64 = 0;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const STT_OBJECT: u8 = 1;
const SHN_UNDEF: u16 = 0;
const PF_R: u32 = 4;

/// The least page there is: what is surely mapped from the first byte of an image on.
const FIRST_PAGE: usize = 4096;

/// A mapped ELF object.
#[derive(Clone, Copy)]
pub(super) struct Image<'a> {
    base: usize,
    segments: &'a [Elf64_Phdr],
}

impl Image<'_> {
    /// The object mapped at `base`, if it looks like one.
    ///
    /// # Safety
    /// At least one page at `base` is readable if `base` is a multiple of 4096, and the segments that a valid ELF
    /// header found there describes are mapped as it says. Both for the life of the process.
    pub(super) unsafe fn at(base: usize) -> Option<Self> {
        if cfg!(not(target_pointer_width = "64")) || base == 0 || !base.is_multiple_of(FIRST_PAGE) {
            return None;
        }
        let first = core::ptr::with_exposed_provenance::<u8>(base);
        // SAFETY: the header fits the page that the caller vouches for, which is aligned for it.
        let header = unsafe { &*first.cast::<Elf64_Ehdr>() };
        let (count, offset) = (usize::from(header.e_phnum), usize::try_from(header.e_phoff).ok()?);
        let class_64 = 2;
        let valid = header.e_ident[..4] == *b"\x7fELF"
            && header.e_ident[4] == class_64
            && usize::from(header.e_phentsize) == size_of::<Elf64_Phdr>()
            && offset.is_multiple_of(align_of::<Elf64_Phdr>())
            && offset.checked_add(count * size_of::<Elf64_Phdr>())? <= FIRST_PAGE;
        if !valid {
            return None;
        }
        // SAFETY: inside the same page, aligned, by the checks above; nobody writes to it.
        let segments = unsafe { core::slice::from_raw_parts(first.add(offset).cast::<Elf64_Phdr>(), count) };
        Some(Image { base, segments })
    }

    /// The value at `address`, if all of it lies inside one readable segment.
    pub(super) fn read<T: Copy>(&self, address: usize) -> Option<T> {
        let start = address.wrapping_sub(self.base) as u64;
        let end = start.checked_add(size_of::<T>() as u64)?;
        let inside = self.segments.iter().any(|segment| {
            segment.p_type == libc::PT_LOAD
                && segment.p_flags & PF_R != 0
                && segment.p_vaddr <= start
                && segment.p_vaddr.checked_add(segment.p_memsz).is_some_and(|limit| end <= limit)
        });
        // SAFETY: inside a mapped readable segment, as `Image::at` was promised. T is only ever a plain integer or
        // a structure of such.
        inside.then(|| unsafe { core::ptr::with_exposed_provenance::<T>(address).read_unaligned() })
    }

    /// Where the symbols are.
    pub(super) fn symbols(&self) -> Option<Symbols<'_>> {
        let dynamic = self.segments.iter().find(|segment| segment.p_type == libc::PT_DYNAMIC)?;
        let start = self.base.wrapping_add(dynamic.p_vaddr as usize);
        let (mut names, mut table, mut gnu_hash, mut hash) = (None, None, None, None);
        for index in 0..dynamic.p_memsz as usize / size_of::<[u64; 2]>() {
            let [tag, value] = self.read::<[u64; 2]>(start.wrapping_add(index * size_of::<[u64; 2]>()))?;
            match tag {
                DT_NULL => break,
                DT_STRTAB => names = Some(self.address(value)),
                DT_SYMTAB => table = Some(self.address(value)),
                DT_GNU_HASH => gnu_hash = Some(self.address(value)),
                DT_HASH => hash = Some(self.address(value)),
                _ => {}
            }
        }
        let index = match (gnu_hash, hash) {
            (Some(gnu_hash), _) => Index::Gnu(gnu_hash),
            (None, Some(hash)) => Index::SysV(hash),
            (None, None) => return None,
        };
        Some(Symbols { image: self, names: names?, table: table?, index })
    }

    /// glibc relocates these entries in place and musl does not. An object never lies in the lowest part of the address
    /// space that its own size spans, so the two cannot be confused.
    fn address(&self, value: u64) -> usize {
        let value = value as usize;
        if value < self.base { self.base.wrapping_add(value) } else { value }
    }
}

/// Which hash table finds a symbol.
enum Index {
    Gnu(usize),
    SysV(usize),
}

/// The dynamic symbols of an [`Image`].
pub(super) struct Symbols<'a> {
    image: &'a Image<'a>,
    names: usize,
    table: usize,
    index: Index,
}

impl Symbols<'_> {
    /// Address and size of the data object `name`, which ends in a zero byte.
    pub(super) fn find(&self, name: &[u8]) -> Option<(usize, u64)> {
        match self.index {
            Index::Gnu(at) => self.find_gnu(at, name),
            Index::SysV(at) => self.find_sysv(at, name),
        }
    }

    /// Header: number of buckets, first symbol with a hash, words in the Bloom filter, its shift. Then the filter
    /// (not needed here), the buckets, and one hash for each symbol, whose low bit ends a chain.
    fn find_gnu(&self, at: usize, name: &[u8]) -> Option<(usize, u64)> {
        let [buckets, first, bloom, _] = self.image.read::<[u32; 4]>(at)?;
        let bucket_table = at.checked_add(16)?.checked_add(bloom as usize * 8)?;
        let hashes = bucket_table.checked_add(buckets as usize * 4)?;
        let hash = gnu_hash(name);
        let mut symbol = self.word(bucket_table, hash.checked_rem(buckets)?)?;
        loop {
            // Ends at the latest where the segment does.
            let candidate = self.word(hashes, symbol.checked_sub(first)?)?;
            if candidate | 1 == hash | 1
                && let Some(found) = self.matching(symbol, name)
            {
                return Some(found);
            }
            if candidate & 1 != 0 {
                return None;
            }
            symbol = symbol.checked_add(1)?;
        }
    }

    /// Header: number of buckets, number of symbols. Then the buckets, and for each symbol the next in its chain.
    fn find_sysv(&self, at: usize, name: &[u8]) -> Option<(usize, u64)> {
        let [buckets, symbols] = self.image.read::<[u32; 2]>(at)?;
        let bucket_table = at.checked_add(8)?;
        let chains = bucket_table.checked_add(buckets as usize * 4)?;
        let mut symbol = self.word(bucket_table, sysv_hash(name).checked_rem(buckets)?)?;
        for _ in 0..symbols {
            if symbol == 0 {
                break;
            }
            if let Some(found) = self.matching(symbol, name) {
                return Some(found);
            }
            symbol = self.word(chains, symbol)?;
        }
        None
    }

    fn word(&self, table: usize, index: u32) -> Option<u32> {
        self.image.read(table.checked_add(index as usize * 4)?)
    }

    /// The symbol with this number, if it defines a data object of that name.
    fn matching(&self, symbol: u32, name: &[u8]) -> Option<(usize, u64)> {
        let at = self.table.checked_add(symbol as usize * size_of::<Elf64_Sym>())?;
        let symbol = self.image.read::<Elf64_Sym>(at)?;
        if symbol.st_shndx == SHN_UNDEF || symbol.st_info & 0xf != STT_OBJECT {
            return None;
        }
        let start = self.names.checked_add(symbol.st_name as usize)?;
        let same = (start..).zip(name).all(|(at, byte)| self.image.read::<u8>(at) == Some(*byte));
        same.then(|| (self.image.base.wrapping_add(symbol.st_value as usize), symbol.st_size))
    }
}

/// Without the zero byte at the end of `name`.
fn gnu_hash(name: &[u8]) -> u32 {
    letters(name).fold(5381, |hash: u32, byte| hash.wrapping_mul(33).wrapping_add(u32::from(byte)))
}

/// Without the zero byte at the end of `name`.
fn sysv_hash(name: &[u8]) -> u32 {
    letters(name).fold(0, |hash: u32, byte| {
        let hash = (hash << 4).wrapping_add(u32::from(byte));
        let high = hash & 0xf000_0000;
        (hash ^ high >> 24) & !high
    })
}

fn letters(name: &[u8]) -> impl Iterator<Item = u8> {
    name.iter().copied().take_while(|byte| *byte != 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Values that anybody can compute from the ELF specification and from `elf/dl-hash.h`.
    #[test]
    fn hashes_of_known_names() {
        assert_eq!(gnu_hash(b"\0"), 0x1505);
        assert_eq!(gnu_hash(b"printf\0"), 0x156b_2bb8);
        assert_eq!(sysv_hash(b"\0"), 0);
        assert_eq!(sysv_hash(b"printf\0"), 0x0779_05a6);
    }

    /// A page-aligned object made up of 64-bit words: one segment, a dynamic section, a table of two symbols.
    #[repr(C, align(4096))]
    struct Made([u64; 512]);

    const DYNAMIC: usize = 64;
    const SYMTAB: usize = 80;
    const STRTAB: usize = 96;
    const TABLE: usize = 112;
    const VALUE: usize = 128;
    const NAME: &[u8] = b"__rseq_size\0";

    fn bytes(words: &mut Made) -> &mut [u8] {
        // SAFETY: the same memory as bytes.
        unsafe { core::slice::from_raw_parts_mut(words.0.as_mut_ptr().cast(), 4096) }
    }

    fn made(gnu: bool, absolute: bool) -> std::boxed::Box<Made> {
        let mut made = std::boxed::Box::new(Made([0; 512]));
        let base = made.0.as_mut_ptr().expose_provenance() as u64;
        let put = |made: &mut Made, at: usize, with: &[u8]| bytes(made)[at..at + with.len()].copy_from_slice(with);
        put(&mut made, 0, b"\x7fELF\x02\x01\x01");
        put(&mut made, 32, &64u64.to_le_bytes()); // e_phoff
        put(&mut made, 54, &56u16.to_le_bytes()); // e_phentsize
        put(&mut made, 56, &2u16.to_le_bytes()); // e_phnum
        let phdr = |kind: u32, at: u64, size: u64| {
            let mut header: Vec<u8> = Vec::new();
            header.extend(kind.to_le_bytes());
            header.extend(PF_R.to_le_bytes());
            for field in [at, at, at, size, size, 8] {
                header.extend(field.to_le_bytes());
            }
            header
        };
        put(&mut made, 64, &phdr(libc::PT_LOAD, 0, 4096));
        put(&mut made, 120, &phdr(libc::PT_DYNAMIC, DYNAMIC as u64 * 8, 64));
        let hash_tag = if gnu { DT_GNU_HASH } else { DT_HASH };
        let tables = [(DT_SYMTAB, SYMTAB), (DT_STRTAB, STRTAB), (hash_tag, TABLE), (DT_NULL, 0)];
        for (index, (tag, at)) in tables.into_iter().enumerate() {
            made.0[DYNAMIC + index * 2] = tag;
            made.0[DYNAMIC + index * 2 + 1] = at as u64 * 8 + if absolute { base } else { 0 };
        }
        // Symbol 1: a defined object of four bytes. Symbol 0 is the empty one.
        put(&mut made, SYMTAB * 8 + 24, &1u32.to_le_bytes());
        put(&mut made, SYMTAB * 8 + 28, &[0x11, 0, 1, 0]);
        put(&mut made, SYMTAB * 8 + 32, &(VALUE as u64 * 8).to_le_bytes());
        put(&mut made, SYMTAB * 8 + 40, &4u64.to_le_bytes());
        put(&mut made, STRTAB * 8 + 1, NAME);
        let table: &[u32] = if gnu { &[1, 1, 1, 0, 0, 0, 1, gnu_hash(NAME) | 1] } else { &[1, 2, 1, 0, 0] };
        for (index, word) in table.iter().enumerate() {
            put(&mut made, TABLE * 8 + index * 4, &word.to_le_bytes());
        }
        made.0[VALUE] = 28;
        made
    }

    fn size_in(made: &Made) -> Option<u32> {
        // SAFETY: one page is mapped, and it is all that the headers describe.
        let image = unsafe { Image::at(made.0.as_ptr().expose_provenance()) }?;
        let (address, 4) = image.symbols()?.find(NAME)? else { return None };
        image.read(address)
    }

    #[cfg(target_pointer_width = "64")]
    #[test]
    fn finds_a_symbol_by_either_table_relocated_or_not() {
        for (gnu, absolute) in [(true, true), (true, false), (false, true), (false, false)] {
            assert_eq!(size_in(&made(gnu, absolute)), Some(28), "gnu {gnu}, absolute {absolute}");
        }
    }

    /// Any single byte of the image may be any of a few odd values: the answer may be wrong, nothing may fault or hang.
    #[cfg_attr(miri, ignore = "slow")]
    #[test]
    fn odd_contents_do_no_harm() {
        for gnu in [true, false] {
            let mut made = made(gnu, true);
            for at in (0..4096).filter(|at| *at < 256 || *at >= DYNAMIC * 8 && *at <= VALUE * 8) {
                // The sizes of the segments are what `Image::at` is promised.
                if (64..176).contains(&at) && (at - 64) % 56 >= 16 {
                    continue;
                }
                let before = bytes(&mut made)[at];
                for odd in [0, 1, 0x7f, 0x80, 0xff] {
                    bytes(&mut made)[at] = odd;
                    let _ = size_in(&made);
                }
                bytes(&mut made)[at] = before;
            }
            assert_eq!(size_in(&made), Some(28));
        }
    }

    #[test]
    fn addresses_that_cannot_be_an_image() {
        for base in [0, 1, 4095] {
            // SAFETY: refused before anything is read.
            assert!(unsafe { Image::at(base) }.is_none());
        }
    }
}
