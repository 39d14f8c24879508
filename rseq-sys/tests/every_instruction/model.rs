//! The data of one vCPU, the operations on it, and what they do one after the other: the measure for what they do when
//! one is cut.

use rseq_sys::sequence::Outcome;
use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An operation with its operands. Those that are stopped, and those that others do meanwhile.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Step {
    Pop,
    Push(usize),
    StaticPop,
    StaticPush(usize),
    Replace,
    CompareStore(usize, usize),
    CompareCompareStore(usize, usize, usize),
    Add(usize),
    LoadStore,
    CompareLoadStore(usize),
    /// Puts a node in front of the list.
    Link(usize),
    /// A plain store to the second word that some sequences compare.
    Seal(usize),
}

use Step::{
    Add, CompareCompareStore, CompareLoadStore, CompareStore, Link, LoadStore, Pop, Push, Replace, Seal, StaticPop,
    StaticPush,
};

/// Every sequence of the crate. Each succeeds on the initial state, so all instructions up to its commit are run.
pub(crate) const OPERATIONS: [Step; 10] = [
    Pop,
    Push(300),
    StaticPop,
    StaticPush(300),
    Replace,
    CompareStore(10, 11),
    CompareCompareStore(10, 0, 11),
    Add(1),
    LoadStore,
    CompareLoadStore(0),
];

/// What happens while an operation is stopped.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Disturbance {
    /// Another thread of the process does this on the same CPU.
    Steps(&'static [Step]),
    /// The thread is moved to another CPU.
    Move,
}

use Disturbance::{Move, Steps};

/// What may befall a stack: nothing, another top at the same height, fewer and more pointers, none and no room, the
/// very pointer that is being pushed, and another stack in its place.
const TO_STACKS: [Disturbance; 9] = [
    Steps(&[]),
    Steps(&[Pop, Push(400)]),
    Steps(&[StaticPop]),
    Steps(&[StaticPush(500)]),
    Steps(&[Pop, Pop]),
    Steps(&[Push(500), Push(600)]),
    Steps(&[Push(300)]),
    Steps(&[Replace]),
    Move,
];
const TO_HEADERS: [Disturbance; 6] =
    [Steps(&[]), Steps(&[Pop]), Steps(&[Pop, Push(400)]), Steps(&[Replace]), Steps(&[Seal(1)]), Move];
const TO_WORDS: [Disturbance; 4] = [Steps(&[]), Steps(&[Add(5)]), Steps(&[CompareStore(10, 7), Seal(1)]), Move];
/// The third leaves the same node in front of another one.
const TO_LISTS: [Disturbance; 6] = [
    Steps(&[]),
    Steps(&[LoadStore]),
    Steps(&[LoadStore, LoadStore, Link(0)]),
    Steps(&[LoadStore, LoadStore, LoadStore]),
    Steps(&[Link(3), Seal(1)]),
    Move,
];

impl Step {
    /// What to try on it.
    pub(crate) fn disturbances(self) -> &'static [Disturbance] {
        match self {
            Pop | Push(_) | StaticPop | StaticPush(_) => &TO_STACKS,
            Replace => &TO_HEADERS,
            CompareStore(..) | CompareCompareStore(..) | Add(_) | Seal(_) => &TO_WORDS,
            LoadStore | CompareLoadStore(_) | Link(_) => &TO_LISTS,
        }
    }

    /// Whether it works on the vCPU that it finds itself on; the others are told one and refuse another.
    pub(crate) fn takes_any_vcpu(self) -> bool {
        matches!(self, Pop | Push(_) | StaticPop | StaticPush(_))
    }
}

/// How an operation ended.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Answer {
    Took(usize),
    Did,
    Not(Outcome),
}

/// Pointers that fit a stack.
const ROOM: usize = 4;
/// Height of the first stack at the beginning: what `Replace` expects.
const HEIGHT: usize = 2;
const NODES: usize = 4;

/// The data of one vCPU as values.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct State {
    word: usize,
    seal: usize,
    list: Vec<usize>,
    stacks: [Vec<usize>; 2],
    current: usize,
}

impl State {
    /// What every operation is started on.
    pub(crate) fn initial() -> Self {
        State { word: 10, seal: 0, list: vec![0, 1, 2], stacks: [vec![100, 200], vec![900]], current: 0 }
    }

    /// Does `step` as if nobody else were there.
    pub(crate) fn apply(&mut self, step: Step) -> Answer {
        let differs = Answer::Not(Outcome::Differs);
        let stack = &mut self.stacks[self.current];
        match step {
            Pop | StaticPop => stack.pop().map_or(differs, Answer::Took),
            Push(p) | StaticPush(p) if stack.len() == ROOM || stack.last() == Some(&p) => differs,
            Push(p) | StaticPush(p) => {
                stack.push(p);
                Answer::Did
            }
            Replace if (self.current, stack.len(), self.seal) != (0, HEIGHT, 0) => differs,
            Replace => {
                self.current = 1;
                Answer::Did
            }
            CompareStore(expect, _) if self.word != expect => differs,
            CompareCompareStore(expect, expect2, _) if (self.word, self.seal) != (expect, expect2) => differs,
            CompareStore(_, new) | CompareCompareStore(_, _, new) => {
                self.word = new;
                Answer::Did
            }
            Add(n) => {
                self.word += n;
                Answer::Did
            }
            CompareLoadStore(expect2) if self.seal != expect2 => differs,
            LoadStore | CompareLoadStore(_) if self.list.is_empty() => differs,
            LoadStore | CompareLoadStore(_) => Answer::Took(self.list.remove(0)),
            Link(node) => {
                self.list.insert(0, node);
                Answer::Did
            }
            Seal(n) => {
                self.seal = n;
                Answer::Did
            }
        }
    }
}

/// Bytes of a stack: words that are not used, a sentinel and the slots.
pub(crate) const STACK: usize = 64;

#[repr(C, align(64))]
struct Slots([AtomicUsize; STACK / size_of::<usize>()]);
const _: () = assert!(size_of::<Slots>() == STACK && align_of::<Slots>() == STACK);

impl Slots {
    /// The sentinel and the slots.
    fn words(&self) -> &[AtomicUsize] {
        &self.0[self.0.len() - ROOM - 1..]
    }
}

/// The data of one vCPU in memory. Its first word is the header of a stack.
#[repr(C, align(256))]
pub(crate) struct Memory {
    pub(crate) header: AtomicUsize,
    pub(crate) word: AtomicUsize,
    pub(crate) seal: AtomicUsize,
    pub(crate) head: AtomicUsize,
    slots: [Slots; 2],
    pub(crate) nodes: [AtomicUsize; NODES],
}

/// Of the size of [`Memory`].
pub(crate) const SHIFT: u32 = 8;
const _: () = assert!(size_of::<Memory>() == 1 << SHIFT && offset_of!(Memory, header) == 0);

impl Memory {
    pub(crate) fn new() -> Self {
        let zero = || AtomicUsize::new(0);
        Memory {
            header: zero(),
            word: zero(),
            seal: zero(),
            head: zero(),
            slots: [const { Slots([const { AtomicUsize::new(0) }; STACK / size_of::<usize>()]) }; 2],
            nodes: [const { AtomicUsize::new(0) }; NODES],
        }
    }

    /// The top of a stack with `height` pointers.
    fn top(&self, stack: usize, height: usize) -> usize {
        self.slots[stack].words()[1 + height..].as_ptr().expose_provenance()
    }

    /// What `Replace` expects and what it stores.
    pub(crate) fn tops(&self) -> (usize, usize) {
        let initial = State::initial();
        (self.top(0, initial.stacks[0].len()), self.top(1, initial.stacks[1].len()))
    }

    pub(crate) fn node(&self, index: usize) -> usize {
        self.nodes[index].as_ptr().expose_provenance()
    }

    /// The node at `address`; an impossible number if there is none.
    pub(crate) fn index(&self, address: usize) -> usize {
        (0..NODES).find(|index| self.node(*index) == address).unwrap_or(usize::MAX)
    }

    /// Stores `state`. Nobody else uses the memory.
    pub(crate) fn write(&self, state: &State) {
        let set = |word: &AtomicUsize, value| word.store(value, Ordering::SeqCst);
        set(&self.word, state.word);
        set(&self.seal, state.seal);
        let links = state.list.iter().map(|node| self.node(*node)).chain([0]).collect::<Vec<_>>();
        set(&self.head, links[0]);
        for (node, next) in state.list.iter().zip(&links[1..]) {
            set(&self.nodes[*node], *next);
        }
        for (slots, stack) in self.slots.iter().zip(&state.stacks) {
            let slots = slots.words();
            set(&slots[0], 0);
            slots[1..].iter().for_each(|slot| set(slot, 7));
            slots[1..].iter().zip(stack).for_each(|(slot, p)| set(slot, *p));
        }
        set(&self.header, self.top(state.current, state.stacks[state.current].len()));
    }

    /// What is there, as far as `like` says what can be known: the stack that is not current is taken from it. None if
    /// it makes no sense.
    pub(crate) fn read(&self, like: &State) -> Option<State> {
        let get = |word: &AtomicUsize| word.load(Ordering::SeqCst);
        let mut list = Vec::new();
        let mut next = get(&self.head);
        while next != 0 {
            let node = self.index(next);
            list.push(node);
            next = get(self.nodes.get(node).filter(|_| list.len() <= NODES)?);
        }
        let header = get(&self.header);
        let at = |stack: usize| (0..=ROOM).find(|height| self.top(stack, *height) == header);
        let (current, height) = [0, 1].into_iter().find_map(|stack| at(stack).map(|height| (stack, height)))?;
        let mut stacks = like.stacks.clone();
        stacks[current] = self.slots[current].words()[1..=height].iter().map(get).collect();
        let sentinels = self.slots.iter().all(|slots| get(&slots.words()[0]) == 0);
        sentinels.then(|| State { word: get(&self.word), seal: get(&self.seal), list, stacks, current })
    }
}
