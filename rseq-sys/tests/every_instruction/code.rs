//! Where the sections of this binary are and which instructions they are made of. The program that is traced is the
//! same binary at another address, so all of it is read from our own memory.

use object::elf::FileHeader64;
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolKind};
use rseq_sys::abi::{RseqCs, SIGNATURE};
use std::ops::Range;

/// This binary, at the addresses where it is mapped here.
pub(crate) struct Image {
    /// The descriptors.
    descriptors: Range<usize>,
    /// Start and end of each function.
    functions: Vec<Range<usize>>,
}

/// The instructions of one section and their neighbours.
pub(crate) struct Section {
    /// Addresses of the instructions from the one before the arming store to the first one after the commit.
    pub(crate) instructions: Vec<usize>,
    /// Address of the instruction after the arming store: from here on nothing may be missed.
    pub(crate) armed: usize,
    /// Address of the first instruction after the commit.
    pub(crate) post_commit: usize,
}

impl Image {
    pub(crate) fn of_this_binary() -> Self {
        let path = std::env::current_exe().expect("the test knows its own path");
        let bytes = std::fs::read(path).expect("the test can read itself");
        let file = ElfFile64::<Endianness>::parse(&*bytes).expect("an ELF file");
        // SAFETY: a question.
        let headers = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
        let bias = headers.wrapping_sub(program_headers(&file));
        let section = file.section_by_name("__rseq_cs").expect("this binary has sequences");
        let start = (section.address() as usize).wrapping_add(bias);
        let functions = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() != 0);
        let range = |address: u64, size: u64| {
            let start = (address as usize).wrapping_add(bias);
            start..start + size as usize
        };
        let functions: Vec<_> = functions.map(|symbol| range(symbol.address(), symbol.size())).collect();
        assert!(!functions.is_empty(), "the binary is stripped; its functions cannot be found");
        Image { descriptors: start..start + section.size() as usize, functions }
    }

    /// All descriptors.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = usize> {
        self.descriptors.clone().step_by(size_of::<RseqCs>())
    }

    /// The descriptor at `address`.
    pub(crate) fn descriptor(&self, address: usize) -> &'static RseqCs {
        assert!(self.descriptors.contains(&address), "{address:#x} is not that of a descriptor");
        assert!((address - self.descriptors.start).is_multiple_of(size_of::<RseqCs>()));
        // SAFETY: an entry of a section that holds nothing else and was relocated before any of our code ran.
        unsafe { &*std::ptr::with_exposed_provenance::<RseqCs>(address) }
    }

    /// What is wrong with the descriptor at `address`, if anything.
    pub(crate) fn fault(&self, address: usize) -> Option<String> {
        let cs = self.descriptor(address);
        let section = cs.start_ip..cs.start_ip.wrapping_add(cs.post_commit_offset);
        if (cs.version, cs.flags) != (0, 0) {
            return Some(format!("version {}, flags {}", cs.version, cs.flags));
        }
        if section.is_empty() || section.contains(&cs.abort_ip) {
            return Some(format!("section {section:#x?}, handler {:#x}", cs.abort_ip));
        }
        // SAFETY: the word before a handler, which is in our own code.
        let signature = unsafe { std::ptr::with_exposed_provenance::<u32>(cs.abort_ip as usize - 4).read_unaligned() };
        (signature != SIGNATURE).then(|| format!("signature {signature:#x}"))
    }

    /// The section that the descriptor at `address` describes.
    pub(crate) fn section(&self, address: usize) -> Section {
        let cs = self.descriptor(address);
        let (start, post_commit) = (cs.start_ip as usize, (cs.start_ip + cs.post_commit_offset) as usize);
        let function = self.functions.iter().find(|function| function.contains(&start)).expect("code in a function");
        assert!(function.contains(&post_commit), "the section runs out of its function");
        let code = decode(function.start, post_commit);
        let section = code.iter().position(|instruction| instruction.address == start).expect("an instruction");
        // The store that announces a section, wherever the section says it begins.
        let arms = code[..section].iter().rposition(|instruction| instruction.arms).expect("a store to rseq_cs");
        let instructions: Vec<usize> = code[arms - 1..].iter().map(|instruction| instruction.address).collect();
        assert_eq!(instructions.last(), Some(&post_commit), "the section does not end between instructions");
        Section { armed: instructions[2], instructions, post_commit }
    }
}

/// Address of the program headers, as the file has it.
fn program_headers(file: &ElfFile64<'_, Endianness>) -> usize {
    let (endian, header): (_, &FileHeader64<Endianness>) = (file.endian(), file.elf_header());
    let offset = header.e_phoff(endian);
    let segments = file.elf_program_headers().iter();
    let mut loaded = segments.filter(|segment| segment.p_type(endian) == object::elf::PT_LOAD);
    let holds = |from: u64, size: u64| (from..from + size).contains(&offset);
    let segment = loaded.find(|segment| holds(segment.p_offset(endian), segment.p_filesz(endian)));
    let segment = segment.expect("the headers are loaded");
    (offset - segment.p_offset(endian) + segment.p_vaddr(endian)) as usize
}

struct Instruction {
    address: usize,
    /// Whether it stores to the field `rseq_cs` of an area.
    arms: bool,
}

/// The instructions from `start`, where one begins, to the one at `last`.
#[cfg(target_arch = "x86_64")]
fn decode(start: usize, last: usize) -> Vec<Instruction> {
    use iced_x86::{Code, Decoder, DecoderOptions, Register};
    // SAFETY: our own code; 15 bytes are the longest instruction, and more code follows.
    let bytes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance(start), last + 15 - start) };
    let decoder = Decoder::with_ip(64, bytes, start as u64, DecoderOptions::NONE);
    let instructions = decoder.into_iter().map(|instruction| Instruction {
        address: instruction.ip() as usize,
        arms: instruction.code() == Code::Mov_rm64_r64
            && instruction.segment_prefix() == Register::FS
            && instruction.memory_displacement64() == 8,
    });
    instructions.take_while(|instruction| instruction.address <= last).collect()
}

/// The instructions from `start`, where one begins, to the one at `last`.
#[cfg(target_arch = "aarch64")]
fn decode(start: usize, last: usize) -> Vec<Instruction> {
    let instruction = |address| {
        // SAFETY: our own code.
        let word = unsafe { std::ptr::with_exposed_provenance::<u32>(address).read() };
        // `str x?, [x?, #8]`.
        Instruction { address, arms: word & 0xffff_fc00 == 0xf900_0400 }
    };
    (start..=last).step_by(4).map(instruction).collect()
}
