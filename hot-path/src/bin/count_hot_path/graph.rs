//! The instructions that a function can reach, and what each of them means for a restartable section.
//!
//! From the entry, everything is decoded that can be reached through fall-through, conditional and unconditional
//! branches. An unconditional branch may lead into another function: that is a tail call, and its instructions count.
//! Jumps through a register are not followed.

use std::collections::HashMap;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::image::{Image, Sequence};

/// More instructions than any allocation function reaches without calls; a search that comes here has gone astray.
pub(crate) const MOST_INSTRUCTIONS: usize = 20_000;

/// One decoded instruction.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) instruction: Instruction,
    /// Indices of the nodes where execution can go from here.
    pub(crate) next: Vec<usize>,
    /// Index of the section that ends with this instruction, if that stores to memory.
    pub(crate) commits: Option<usize>,
}

/// All that is reachable from an entry, which is node 0.
pub(crate) struct Graph(pub(crate) Vec<Node>);

impl Graph {
    /// Decodes from `entry` on; `blemished` says whether to go on after calls and lock prefixes.
    pub(crate) fn decode(image: &Image<'_>, entry: u64, blemished: bool) -> Result<Self, String> {
        let sections: HashMap<u64, usize> = image.sequences.iter().enumerate().rev().map(|(i, s)| (s.end, i)).collect();
        let mut addresses = vec![entry];
        let mut indices = HashMap::from([(entry, 0)]);
        let mut nodes = Vec::new();
        while let Some(&address) = addresses.get(nodes.len()) {
            // Past the end of the code stands an invalid instruction, which leads nowhere.
            let code = image.code_at(address).unwrap_or_default();
            let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
            let mut next = Vec::new();
            for target in targets(&instruction, blemished) {
                let index = *indices.entry(target).or_insert(addresses.len());
                if index == addresses.len() {
                    addresses.push(target);
                }
                next.push(index);
            }
            if addresses.len() > MOST_INSTRUCTIONS {
                return Err(format!("more than {MOST_INSTRUCTIONS} instructions are reachable from the entry"));
            }
            let commits = sections.get(&instruction.next_ip()).copied();
            let commits = commits.filter(|&i| is_commit(&image.sequences[i], &instruction));
            nodes.push(Node { instruction, next, commits });
        }
        Ok(Graph(nodes))
    }
}

fn targets(instruction: &Instruction, blemished: bool) -> Vec<u64> {
    if instruction.code() == Code::INVALID || (is_blemish(instruction) && !blemished) {
        return Vec::new();
    }
    match instruction.flow_control() {
        FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => vec![instruction.next_ip()],
        FlowControl::ConditionalBranch => vec![instruction.next_ip(), instruction.near_branch_target()],
        FlowControl::UnconditionalBranch => vec![instruction.near_branch_target()],
        // A return ends the path; so do traps and jumps through a register, which are never a hit.
        _ => Vec::new(),
    }
}

/// A call, or a bus lock (`xchg` with memory has one without a prefix).
pub(crate) fn is_blemish(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
        || instruction.has_lock_prefix()
        || (instruction.mnemonic() == Mnemonic::Xchg && (0..2).any(|i| instruction.op_kind(i) == OpKind::Memory))
}

/// Sets up or takes down the stack frame.
pub(crate) fn is_frame(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Push | Mnemonic::Pop => true,
        Mnemonic::Sub | Mnemonic::Add => instruction.op0_register() == Register::RSP,
        _ => false,
    }
}

/// Stores a register to thread-local memory: on a path through a section, the store to `rseq_cs`.
pub(crate) fn arms(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
        && instruction.memory_segment() == Register::FS
}

/// Brings the address `descriptor` into a register.
pub(crate) fn loads(instruction: &Instruction, descriptor: u64) -> bool {
    match instruction.mnemonic() {
        Mnemonic::Lea => instruction.is_ip_rel_memory_operand() && instruction.ip_rel_memory_address() == descriptor,
        Mnemonic::Mov => match instruction.op1_kind() {
            OpKind::Immediate32 | OpKind::Immediate64 | OpKind::Immediate32to64 => {
                instruction.immediate(1) == descriptor
            }
            _ => false,
        },
        _ => false,
    }
}

/// Whether `instruction`, which ends where `sequence` does, is the store that commits it.
fn is_commit(sequence: &Sequence, instruction: &Instruction) -> bool {
    sequence.start <= instruction.ip()
        && instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
}
