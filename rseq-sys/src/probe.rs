//! Asks libc and the kernel what [`crate::features::plan`] needs to know: libc's three symbols and the auxiliary
//! vector.
//!
//! glibc 2.35 and later export `__rseq_offset`, `__rseq_size` and `__rseq_flags`, from the dynamic loader. How to
//! reach them:
//!
//! - Naming them at link time, even weakly, records the symbol version, and the program no longer starts on an
//!   older glibc.
//! - `dlsym` takes the loader's lock and may allocate. A thread that holds that lock and waits for the allocator
//!   which is calling here would wait for ever.
//! - The loader's own symbol table is in memory anyway, at `getauxval(AT_BASE)`, read-only and complete since before
//!   the first instruction of the program. Reading it takes no lock and no memory. This is the way taken.
//! - `AT_BASE` is 0 where the program has no loader or was started by naming it (`ld.so ./program`). A statically
//!   linked program then uses weak references, which no version can spoil; the other one uses `dlsym` after all. A
//!   static library does not know which of the two it will be part of: with the feature `weak-libc-symbols` both are
//!   there.
//!
//! Everything read from the loader's image is checked to lie inside its readable segments first, so a loader with
//! unexpected contents means "no symbols", not a fault. Nothing is cached here; [`crate::mode()`] does that.
//!
//! Sources: [`getauxval(3)`](https://man7.org/linux/man-pages/man3/getauxval.3.html),
//! [`elf(5)`](https://man7.org/linux/man-pages/man5/elf.5.html), the glibc manual on restartable sequences, and
//! `elf/dl-lookup.c` of glibc for the layout of `DT_GNU_HASH`.

use crate::abi::{AT_RSEQ_ALIGN, AT_RSEQ_FEATURE_SIZE, Errno, KeepErrno};
use crate::features::{AuxvSays, LibcSays, Plan, plan};
use crate::membarrier;
use core::ffi::c_ulong;
use core::fmt;

mod fields;
mod image;

pub use fields::{Field, Unusable};

/// Where libc's symbols were found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// In the dynamic loader's symbol table.
    Loader,
    /// By `dlsym`, since the program has no loader recorded in its auxiliary vector.
    Dlsym,
    /// By weak references of a statically linked program.
    Static,
}

/// Displayed as "the loader's symbol table", "dlsym" or "weak references".
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Found::Loader => "the loader's symbol table",
            Found::Dlsym => "dlsym",
            Found::Static => "weak references",
        })
    }
}

/// libc's three symbols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LibcSymbols {
    /// `__rseq_offset`: where the area of a thread lies, from its thread pointer. Valid even if nothing is registered.
    pub offset: isize,
    /// `__rseq_size`. What it means differs between releases of glibc: see [`crate::features`].
    pub size: u32,
    /// `__rseq_flags`: the flags that libc passed when it registered. 0 in all releases so far.
    pub flags: u32,
    /// Where they were found.
    pub found: Found,
}

/// The raw facts, before any conclusion.
///
/// ```
/// let probe = rseq_sys::probe::Probe::take();
/// println!("{probe}");
/// println!("{:?}", probe.plan());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// libc's symbols, if it has them.
    pub libc: Option<LibcSymbols>,
    /// What the kernel says in the auxiliary vector.
    pub auxv: AuxvSays,
    /// The answer of `MEMBARRIER_CMD_QUERY`: a bit for each command.
    pub membarrier: Result<u32, Errno>,
}

impl Probe {
    /// Asks. Leaves `errno` alone; registers nothing.
    pub fn take() -> Self {
        Probe { libc: libc_symbols(), auxv: auxv(), membarrier: membarrier::query() }
    }

    /// What libc says, as [`plan`] wants it.
    pub fn libc_says(&self) -> LibcSays {
        libc_says(self.libc)
    }

    /// The conclusion.
    pub fn plan(&self) -> Plan {
        plan(self.libc_says(), self.auxv)
    }

    /// The commands that membarrier offers, as bit and name; bits without a name are younger than this crate. None if
    /// the question was refused.
    ///
    /// ```
    /// let probe = rseq_sys::probe::Probe::take();
    /// let fence = probe.membarrier_commands().any(|(_, name)| name == Some("PRIVATE_EXPEDITED_RSEQ"));
    /// println!("{}", if fence { "the kernel has the rseq fence" } else { "no rseq fence" });
    /// ```
    pub fn membarrier_commands(&self) -> impl Iterator<Item = (u32, Option<&'static str>)> + use<> {
        let offered = self.membarrier.unwrap_or(0);
        (0..u32::BITS)
            .filter(move |number| offered & 1 << number != 0)
            .map(|number| (1 << number, MEMBARRIER_COMMANDS.get(number as usize).copied()))
    }
}

/// The commands of `include/uapi/linux/membarrier.h` (Linux 6.3, and none younger in 7.0), by number of their bit,
/// without the prefix `MEMBARRIER_CMD_`.
const MEMBARRIER_COMMANDS: [&str; 10] = [
    "GLOBAL",
    "GLOBAL_EXPEDITED",
    "REGISTER_GLOBAL_EXPEDITED",
    "PRIVATE_EXPEDITED",
    "REGISTER_PRIVATE_EXPEDITED",
    "PRIVATE_EXPEDITED_SYNC_CORE",
    "REGISTER_PRIVATE_EXPEDITED_SYNC_CORE",
    "PRIVATE_EXPEDITED_RSEQ",
    "REGISTER_PRIVATE_EXPEDITED_RSEQ",
    "GET_REGISTRATIONS",
];

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.libc {
            Some(LibcSymbols { offset, size, flags, found }) => {
                write!(f, "libc: offset {offset}, size {size}, flags {flags:#x} (from {found})")?;
            }
            None => f.write_str("libc: no rseq symbols")?,
        }
        match self.auxv.feature_size {
            Some(size) => write!(f, "; auxv: feature size {size}")?,
            None => f.write_str("; auxv: no feature size")?,
        }
        match self.auxv.align {
            Some(align) => write!(f, ", alignment {align}")?,
            None => f.write_str(", no alignment")?,
        }
        match self.membarrier {
            Ok(bits) => write!(f, "; membarrier: commands {bits:#x}"),
            Err(errno) => write!(f, "; membarrier: {errno}"),
        }
    }
}

pub(crate) fn libc_says(symbols: Option<LibcSymbols>) -> LibcSays {
    symbols.map_or(LibcSays::NoSymbols, |symbols| LibcSays::Size(symbols.size))
}

/// What the kernel says in the auxiliary vector.
pub(crate) fn auxv() -> AuxvSays {
    AuxvSays { feature_size: auxv_u32(AT_RSEQ_FEATURE_SIZE), align: auxv_u32(AT_RSEQ_ALIGN) }
}

fn auxv_u32(kind: c_ulong) -> Option<u32> {
    match getauxval(kind) {
        0 => None,
        value => Some(u32::try_from(value).unwrap_or(u32::MAX)),
    }
}

fn getauxval(kind: c_ulong) -> usize {
    let _errno = KeepErrno::new();
    // SAFETY: reads a vector that libc saved at start-up; an unknown kind answers 0.
    unsafe { libc::getauxval(kind) as usize }
}

/// libc's symbols, by whichever way there is in this program.
pub(crate) fn libc_symbols() -> Option<LibcSymbols> {
    match getauxval(libc::AT_BASE) {
        0 => without_loader(),
        base => from_loader(base),
    }
}

fn from_loader(base: usize) -> Option<LibcSymbols> {
    // SAFETY: the kernel put the loader there, and it stays for the life of the process.
    let image = unsafe { image::Image::at(base) }?;
    let symbols = image.symbols()?;
    // The size of the symbol is respected since __rseq_offset was an int in early backports of the interface.
    let offset = match symbols.find(b"__rseq_offset\0")? {
        (address, 8) => isize::try_from(image.read::<i64>(address)?).ok()?,
        (address, 4) => isize::try_from(image.read::<i32>(address)?).ok()?,
        _ => return None,
    };
    let unsigned = |name| match symbols.find(name)? {
        (address, 4) => image.read::<u32>(address),
        _ => None,
    };
    Some(LibcSymbols {
        offset,
        size: unsigned(b"__rseq_size\0")?,
        flags: unsigned(b"__rseq_flags\0")?,
        found: Found::Loader,
    })
}

fn without_loader() -> Option<LibcSymbols> {
    by_weak_references().or_else(by_dlsym)
}

#[cfg(any(target_feature = "crt-static", feature = "weak-libc-symbols"))]
fn by_weak_references() -> Option<LibcSymbols> {
    let (offset, size, flags) = crate::arch::weak_libc_symbols()?;
    // SAFETY: glibc's objects of these types; it writes them before any user code runs and never again.
    let (offset, size, flags) = unsafe { (*offset, *size, *flags) };
    Some(LibcSymbols { offset, size, flags, found: Found::Static })
}

#[cfg(not(any(target_feature = "crt-static", feature = "weak-libc-symbols")))]
fn by_weak_references() -> Option<LibcSymbols> {
    None
}

#[cfg(target_feature = "crt-static")]
fn by_dlsym() -> Option<LibcSymbols> {
    None
}

#[cfg(not(target_feature = "crt-static"))]
fn by_dlsym() -> Option<LibcSymbols> {
    fn find<T: Copy>(name: &core::ffi::CStr) -> Option<T> {
        // SAFETY: a terminated name and the default search order.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast::<T>();
        // SAFETY: glibc's object of that type; it writes it before any user code runs and never again.
        (!symbol.is_null()).then(|| unsafe { *symbol })
    }
    let _errno = KeepErrno::new();
    Some(LibcSymbols {
        offset: find(c"__rseq_offset")?,
        size: find(c"__rseq_size")?,
        flags: find(c"__rseq_flags")?,
        found: Found::Dlsym,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::{MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ};
    use std::string::ToString;

    #[test]
    fn facts_print_in_one_line() {
        let mut probe = Probe {
            libc: Some(LibcSymbols { offset: 2464, size: 20, flags: 0, found: Found::Loader }),
            auxv: AuxvSays { feature_size: Some(28), align: Some(32) },
            membarrier: Ok(0x3ff),
        };
        assert_eq!(
            probe.to_string(),
            "libc: offset 2464, size 20, flags 0x0 (from the loader's symbol table); \
             auxv: feature size 28, alignment 32; membarrier: commands 0x3ff"
        );
        probe.libc = None;
        probe.auxv = AuxvSays { feature_size: None, align: None };
        probe.membarrier = Err(Errno(libc::ENOSYS));
        assert_eq!(probe.to_string(), "libc: no rseq symbols; auxv: no feature size, no alignment; membarrier: ENOSYS");
    }

    #[test]
    fn membarrier_commands_by_name() {
        let probe = |membarrier| Probe { libc: None, auxv: AuxvSays { feature_size: None, align: None }, membarrier };
        let commands: std::vec::Vec<_> = probe(Ok(1 << 31 | 0x181)).membarrier_commands().collect();
        assert_eq!(
            commands,
            [
                (1, Some("GLOBAL")),
                (MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ as u32, Some("PRIVATE_EXPEDITED_RSEQ")),
                (MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ as u32, Some("REGISTER_PRIVATE_EXPEDITED_RSEQ")),
                (1 << 31, None),
            ]
        );
        assert_eq!(probe(Err(Errno(libc::EPERM))).membarrier_commands().count(), 0);
    }

    #[cfg(all(target_env = "gnu", not(target_feature = "crt-static"), not(miri)))]
    #[test]
    fn the_loaders_table_says_what_the_other_ways_say() {
        if getauxval(libc::AT_BASE) == 0 {
            return;
        }
        let by_table = libc_symbols();
        for other in [without_loader(), by_dlsym()] {
            assert_eq!(by_table, other.map(|symbols| LibcSymbols { found: Found::Loader, ..symbols }));
        }
    }
}
