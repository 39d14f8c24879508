//! What the binary says about itself: its code, its functions by name, and the descriptors of its restartable sections.
//!
//! Descriptors are read from the ELF section `__rseq_cs`, where they stand as `struct rseq_cs` (`linux/rseq.h`):
//! version and flags, `start_ip`, `post_commit_offset`, `abort_ip`, 32 bytes each. In a position-independent executable
//! the two addresses are filled in by the loader, so they are taken from the relative relocations instead of the file.

use std::collections::HashMap;

use object::{Object, ObjectSection, ObjectSymbol, SectionKind};

/// Size of `struct rseq_cs`.
const DESCRIPTOR_SIZE: usize = 32;

/// One restartable section.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sequence {
    /// Where its descriptor stands; this value is stored to arm it.
    pub(crate) descriptor: u64,
    /// The first instruction that restarts.
    pub(crate) start: u64,
    /// The first instruction after the commit.
    pub(crate) end: u64,
}

/// The parts of an executable that the count needs.
#[derive(Debug, Default)]
pub(crate) struct Image<'a> {
    /// Executable sections: address and contents.
    code: Vec<(u64, &'a [u8])>,
    /// Function symbols.
    functions: Vec<(&'a str, u64)>,
    /// All restartable sections.
    pub(crate) sequences: Vec<Sequence>,
}

impl<'a> Image<'a> {
    /// Reads an x86-64 ELF executable with a symbol table.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, String> {
        let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
        if file.architecture() != object::Architecture::X86_64 {
            return Err(format!("{:?} is not understood, only x86-64 is", file.architecture()));
        }
        let mut image = Image::default();
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let data = section.data().map_err(|error| error.to_string())?;
            image.code.push((section.address(), data));
        }
        for symbol in file.symbols().filter(|symbol| symbol.is_definition()) {
            if let Ok(name) = symbol.name() {
                image.functions.push((name, symbol.address()));
            }
        }
        if image.functions.is_empty() {
            return Err("the binary has no symbol table".to_owned());
        }
        image.sequences = sequences(&file)?;
        Ok(image)
    }

    /// An image made of one piece of code, for tests.
    #[cfg(test)]
    pub(crate) fn of_code(address: u64, code: &'a [u8], sequences: Vec<Sequence>) -> Self {
        Image { code: vec![(address, code)], functions: Vec::new(), sequences }
    }

    /// The address of the function called `name`, either literally or as the last part of a mangled path.
    pub(crate) fn function(&self, name: &str) -> Result<u64, String> {
        // The v0 mangling writes an identifier as its length and its text, with `_` between them if the text itself
        // starts with an underscore.
        let mangled = format!("{}{}{name}", name.len(), if name.starts_with('_') { "_" } else { "" });
        let mut found: Vec<u64> = self
            .functions
            .iter()
            .filter(|(symbol, _)| *symbol == name || (symbol.starts_with("_R") && symbol.ends_with(&mangled)))
            .map(|&(_, address)| address)
            .collect();
        found.sort_unstable();
        found.dedup();
        match found[..] {
            [address] => Ok(address),
            [] => Err(format!("no function called {name}")),
            _ => Err(format!("{} functions called {name}", found.len())),
        }
    }

    /// The code from `address` to the end of its section.
    pub(crate) fn code_at(&self, address: u64) -> Option<&'a [u8]> {
        self.code.iter().find_map(|&(start, code)| {
            let offset = usize::try_from(address.checked_sub(start)?).ok()?;
            code.get(offset..).filter(|rest| !rest.is_empty())
        })
    }
}

/// Reads the descriptors out of `__rseq_cs`.
fn sequences(file: &object::File<'_>) -> Result<Vec<Sequence>, String> {
    let section = file
        .section_by_name("__rseq_cs")
        .ok_or("no section __rseq_cs: nothing in this binary runs restartable sequences")?;
    let data = section.data().map_err(|error| error.to_string())?;
    if data.len() % DESCRIPTOR_SIZE != 0 {
        return Err(format!("__rseq_cs is {} bytes long, not a multiple of {DESCRIPTOR_SIZE}", data.len()));
    }
    let relocated: HashMap<u64, u64> = file
        .dynamic_relocations()
        .into_iter()
        .flatten()
        .map(|(address, relocation)| (address, relocation.addend() as u64))
        .collect();

    let mut found = Vec::new();
    for (index, descriptor) in data.chunks_exact(DESCRIPTOR_SIZE).enumerate() {
        let address = section.address() + (index * DESCRIPTOR_SIZE) as u64;
        let word = |offset: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&descriptor[offset..offset + 8]);
            let stored = u64::from_le_bytes(bytes);
            // Packed relocations (RELR) leave the value in the file and are not listed, hence the second choice.
            relocated.get(&(address + offset as u64)).copied().unwrap_or(stored)
        };
        if word(0) != 0 {
            return Err(format!("the descriptor at {address:#x} has a version or flags the kernel would refuse"));
        }
        let (start, length) = (word(8), word(16));
        found.push(Sequence { descriptor: address, start, end: start + length });
    }
    Ok(found)
}
