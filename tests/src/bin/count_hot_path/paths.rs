//! Finds the hit paths of a function in its disassembly.
//!
//! 1. From the entry, decode everything that can be reached through fall-through, conditional and unconditional
//!    branches, without passing a call or a lock prefix. An unconditional branch may lead into another function: that
//!    is a tail call, and its instructions count.
//! 2. Walk backwards from the commits and from the returns, so that step 3 never enters a part (a slow path, say) from
//!    which neither can be reached.
//! 3. Enumerate the paths from the entry to a `ret` that run through a commit, visiting no instruction twice, and keep
//!    those that really are a hit: the section's descriptor was loaded and stored to the thread's `rseq` area, the
//!    section was entered at its start and left by its commit, and no second section was armed.
//!
//! If there is none, the search is repeated with calls and lock prefixes allowed, only to be able to say which of them
//! is in the way. Whether a path can be taken at run time (whether its branch conditions contradict each other) is not
//! examined, which can only make the result longer than the truth.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use crate::image::{Image, Sequence};

/// More instructions than any allocation function reaches without calls; a search that comes here has gone astray.
const MOST_INSTRUCTIONS: usize = 20_000;
/// More paths than anybody would read.
const MOST_PATHS: usize = 4_096;

/// One way from entry to `ret` with a commit on it.
#[derive(Clone, Debug)]
pub(crate) struct HitPath {
    /// In the order of execution, `ret` included.
    pub(crate) instructions: Vec<Instruction>,
    /// Index of the store that arms the section.
    pub(crate) armed: usize,
    /// Index of the section's first instruction.
    pub(crate) start: usize,
    /// Index of the store that commits.
    pub(crate) commit: usize,
}

/// All hit paths of one function; there is at least one.
#[derive(Clone, Debug)]
pub(crate) struct HitPaths(Vec<HitPath>);

impl HitPaths {
    /// The path with the most instructions, the one that is judged.
    pub(crate) fn longest(&self) -> &HitPath {
        self.0.iter().max_by_key(|path| path.instructions.len()).unwrap_or(&self.0[0])
    }

    /// How many paths there are, and how long.
    pub(crate) fn describe(&self) -> String {
        let mut lengths: Vec<usize> = self.0.iter().map(|path| path.instructions.len()).collect();
        lengths.sort_unstable();
        match lengths[..] {
            [_] => "one path".to_owned(),
            _ => format!("{} paths of {lengths:?}", lengths.len()),
        }
    }
}

/// What was found out about one function.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// Its hit paths, free of calls and lock prefixes.
    Hit(HitPaths),
    /// Every path through a commit has a call or a lock prefix on it; the text says where.
    Blemished(String),
    /// No path from the entry to a `ret` runs through a commit.
    Missing(String),
}

/// Finds the hit paths of the function at `entry`.
pub(crate) fn judge(image: &Image<'_>, entry: u64) -> Verdict {
    let clean = search(image, entry, false);
    let reason = match clean {
        Ok(paths) if !paths.is_empty() => return Verdict::Hit(HitPaths(paths)),
        Ok(_) => "no path from entry to ret passes the commit of a restartable section".to_owned(),
        Err(reason) => reason,
    };
    match search(image, entry, true) {
        Ok(paths) => match paths.iter().min_by_key(|path| path.instructions.len()) {
            Some(path) => Verdict::Blemished(describe_blemishes(path)),
            None => Verdict::Missing(reason),
        },
        Err(_) => Verdict::Missing(reason),
    }
}

fn describe_blemishes(path: &HitPath) -> String {
    let found: Vec<String> = path
        .instructions
        .iter()
        .filter(|instruction| is_blemish(instruction))
        .map(|instruction| format!("{:#x} {instruction}", instruction.ip()))
        .collect();
    format!("the hit path has a call or a lock prefix on it: {}", found.join(", "))
}

/// One decoded instruction and where execution can go from there.
struct Node {
    instruction: Instruction,
    next: Vec<u64>,
}

/// The hit paths of the function at `entry`; `blemished` lets the search pass calls and lock prefixes.
fn search(image: &Image<'_>, entry: u64, blemished: bool) -> Result<Vec<HitPath>, String> {
    let graph = decode(image, entry, blemished)?;
    let commits: BTreeSet<u64> = graph
        .values()
        .filter(|node| commits(image, &node.instruction).is_some())
        .map(|node| node.instruction.ip())
        .collect();
    let returns = graph.values().filter(|node| node.instruction.flow_control() == FlowControl::Return);
    let to_return = reaching(&graph, returns.map(|node| node.instruction.ip()).collect());
    let to_commit = reaching(&graph, commits.iter().copied().collect());

    let mut enumeration = Enumeration {
        image,
        graph: &graph,
        commits: &commits,
        to_commit: &to_commit,
        to_return: &to_return,
        path: Vec::new(),
        found: Vec::new(),
    };
    enumeration.visit(entry, false)?;
    Ok(enumeration.found)
}

/// The section that ends with `instruction`, if that stores to memory.
fn commits<'a>(image: &'a Image<'_>, instruction: &Instruction) -> Option<&'a Sequence> {
    image
        .sequences
        .iter()
        .find(|sequence| sequence.end == instruction.next_ip() && sequence.start <= instruction.ip())
        .filter(|_| instruction.mnemonic() == Mnemonic::Mov && instruction.op0_kind() == OpKind::Memory)
}

/// A call, or a bus lock (`xchg` with memory has one without a prefix).
fn is_blemish(instruction: &Instruction) -> bool {
    matches!(instruction.flow_control(), FlowControl::Call | FlowControl::IndirectCall)
        || instruction.has_lock_prefix()
        || (instruction.mnemonic() == Mnemonic::Xchg && (0..2).any(|i| instruction.op_kind(i) == OpKind::Memory))
}

fn decode(image: &Image<'_>, entry: u64, blemished: bool) -> Result<BTreeMap<u64, Node>, String> {
    let mut graph = BTreeMap::new();
    let mut waiting = VecDeque::from([entry]);
    while let Some(address) = waiting.pop_front() {
        if graph.contains_key(&address) {
            continue;
        }
        if graph.len() == MOST_INSTRUCTIONS {
            return Err(format!("more than {MOST_INSTRUCTIONS} instructions are reachable from the entry"));
        }
        let Some(code) = image.code_at(address) else { continue };
        let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
        let mut next = Vec::new();
        if instruction.code() != Code::INVALID && (blemished || !is_blemish(&instruction)) {
            match instruction.flow_control() {
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => next.push(instruction.next_ip()),
                FlowControl::ConditionalBranch => {
                    next.extend([instruction.next_ip(), instruction.near_branch_target()]);
                }
                FlowControl::UnconditionalBranch => next.push(instruction.near_branch_target()),
                // A return ends the path; so do traps and jumps through a register, which are never a hit.
                _ => {}
            }
        }
        waiting.extend(&next);
        graph.insert(address, Node { instruction, next });
    }
    Ok(graph)
}

/// All addresses from which one of `goals` can be reached, the goals included.
fn reaching(graph: &BTreeMap<u64, Node>, goals: Vec<u64>) -> BTreeSet<u64> {
    let mut before: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (&address, node) in graph {
        for &next in &node.next {
            before.entry(next).or_default().push(address);
        }
    }
    let mut reached = BTreeSet::new();
    let mut waiting = goals;
    while let Some(address) = waiting.pop() {
        if reached.insert(address) {
            waiting.extend(before.get(&address).into_iter().flatten());
        }
    }
    reached
}

struct Enumeration<'a> {
    image: &'a Image<'a>,
    graph: &'a BTreeMap<u64, Node>,
    commits: &'a BTreeSet<u64>,
    to_commit: &'a BTreeSet<u64>,
    to_return: &'a BTreeSet<u64>,
    path: Vec<Instruction>,
    found: Vec<HitPath>,
}

impl Enumeration<'_> {
    /// Extends the path by the instruction at `address`; `committed` says whether a commit lies behind it.
    fn visit(&mut self, address: u64, committed: bool) -> Result<(), String> {
        let useful = if committed { self.to_return } else { self.to_commit };
        if !useful.contains(&address) || self.path.iter().any(|instruction| instruction.ip() == address) {
            return Ok(());
        }
        let node = &self.graph[&address];
        self.path.push(node.instruction);
        if committed && node.instruction.flow_control() == FlowControl::Return {
            if self.found.len() == MOST_PATHS {
                return Err(format!("more than {MOST_PATHS} paths pass a commit"));
            }
            self.found.extend(self.classify());
        } else {
            let committed = committed || self.commits.contains(&address);
            for &next in &node.next {
                self.visit(next, committed)?;
            }
        }
        self.path.pop();
        Ok(())
    }

    /// The finished path as a hit path, if it armed, entered and committed one section and armed no other.
    fn classify(&self) -> Option<HitPath> {
        let path = &self.path;
        let commit = path.iter().position(|instruction| self.commits.contains(&instruction.ip()))?;
        let sequence = commits(self.image, &path[commit])?;
        let start = path.iter().position(|instruction| instruction.ip() == sequence.start)?;
        let mut stores = path.iter().enumerate().filter(|(_, instruction)| arms(instruction)).map(|(index, _)| index);
        let armed = stores.next()?;
        let loaded = path[..armed].iter().any(|instruction| loads(instruction, sequence.descriptor));
        let inside = path[start..=commit].iter().all(|i| (sequence.start..sequence.end).contains(&i.ip()));
        let one = stores.next().is_none();
        (one && loaded && inside && armed < start && start <= commit).then(|| HitPath {
            instructions: path.clone(),
            armed,
            start,
            commit,
        })
    }
}

/// Stores a register to thread-local memory: on a path through a section, the store to `rseq_cs`.
fn arms(instruction: &Instruction) -> bool {
    instruction.mnemonic() == Mnemonic::Mov
        && instruction.op0_kind() == OpKind::Memory
        && instruction.op1_kind() == OpKind::Register
        && instruction.memory_segment() == Register::FS
}

/// Brings the address `descriptor` into a register.
fn loads(instruction: &Instruction, descriptor: u64) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = 0x1000;
    /// `mov ecx, 0x9000` loads this descriptor.
    const DESCRIPTOR: u64 = 0x9000;

    const LOAD: &[u8] = &[0xb9, 0x00, 0x90, 0x00, 0x00]; // mov ecx, 0x9000
    const ARM: &[u8] = &[0x64, 0x48, 0x89, 0x48, 0x08]; // mov fs:[rax+8], rcx
    const TEST: &[u8] = &[0x48, 0x85, 0xd2]; // test rdx, rdx
    const COMMIT: &[u8] = &[0x48, 0x89, 0x17]; // mov [rdi], rdx
    const RET: &[u8] = &[0xc3];
    const CALL: &[u8] = &[0xe8, 0x00, 0x00, 0x00, 0x00];
    const LOCKED: &[u8] = &[0xf0, 0x48, 0xff, 0x07]; // lock inc qword ptr [rdi]

    /// Puts `parts` together; the section runs from the part `start` to before the part `end`.
    fn judge_parts(parts: &[&[u8]], start: usize, end: usize) -> Verdict {
        let code = parts.concat();
        let address = |part: usize| BASE + parts[..part].iter().map(|bytes| bytes.len() as u64).sum::<u64>();
        let sequence = Sequence { descriptor: DESCRIPTOR, start: address(start), end: address(end) };
        judge(&Image::of_code(BASE, &code, vec![sequence]), BASE)
    }

    #[test]
    fn a_straight_hit_path_is_counted_with_its_ret() {
        let Verdict::Hit(paths) = judge_parts(&[LOAD, ARM, TEST, COMMIT, RET], 2, 4) else {
            panic!("no hit path");
        };
        let path = paths.longest();
        assert_eq!(path.instructions.len(), 5);
        assert_eq!((path.armed, path.start, path.commit), (1, 2, 3));
    }

    #[test]
    fn a_branch_around_the_commit_is_not_a_hit() {
        // je over the commit, straight to the ret.
        let parts: &[&[u8]] = &[LOAD, ARM, TEST, &[0x74, 0x03], COMMIT, RET];
        let Verdict::Hit(paths) = judge_parts(parts, 2, 5) else { panic!("no hit path") };
        assert_eq!(paths.describe(), "one path");
        assert_eq!(paths.longest().instructions.len(), 6);
    }

    #[test]
    fn the_longest_of_several_hit_paths_is_judged() {
        // je over a nop in front of the section.
        let parts: &[&[u8]] = &[TEST, &[0x74, 0x01], &[0x90], LOAD, ARM, COMMIT, RET];
        let Verdict::Hit(paths) = judge_parts(parts, 5, 6) else { panic!("no hit path") };
        assert_eq!(paths.describe(), "2 paths of [6, 7]");
        assert_eq!(paths.longest().instructions.len(), 7);
    }

    #[test]
    fn calls_and_lock_prefixes_are_refused_and_named() {
        for (blemish, name) in [(CALL, "call"), (LOCKED, "lock")] {
            for parts in [[blemish, LOAD, ARM, COMMIT, RET], [LOAD, ARM, COMMIT, blemish, RET]] {
                let commit = parts.iter().position(|part| *part == COMMIT).expect("every case commits");
                let Verdict::Blemished(reason) = judge_parts(&parts, commit, commit + 1) else {
                    panic!("{name} was not refused");
                };
                assert!(reason.contains(name), "{reason}");
            }
        }
    }

    #[test]
    fn a_section_that_is_never_armed_is_missing() {
        assert!(matches!(judge_parts(&[LOAD, TEST, COMMIT, RET], 1, 3), Verdict::Missing(_)));
        assert!(matches!(judge_parts(&[TEST, ARM, COMMIT, RET], 2, 3), Verdict::Missing(_)));
    }

    #[test]
    fn code_without_a_section_is_missing() {
        let code = [TEST, RET].concat();
        assert!(matches!(judge(&Image::of_code(BASE, &code, Vec::new()), BASE), Verdict::Missing(_)));
    }
}
