//! The data of one vCPU, the operations on it, and what they do one after the other: the measure for what they do when
//! one is cut.

use rseq_sys::sequence::{EMPTY, FULL, Outcome};
use std::mem::offset_of;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An operation with its operands. Those that are stopped, and those that others do meanwhile.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Step {
    Pop,
    Push(usize),
    StaticPop,
    StaticPush(usize),
    EntryPop,
    EntryPopAside,
    EntryPush(usize),
    Replace,
    CompareStore(usize, usize),
    CompareCompareStore(usize, usize, usize),
    Add(usize),
    LoadStore,
    CompareLoadStore(usize),
    PopChained(Which),
    PushChained(Which, usize),
    /// On the chain to pop from.
    Exchange,
    /// On the chain to push to.
    Extend,
    /// Puts a node in front of the list.
    Link(usize),
    /// A plain store to the second word that some sequences compare.
    Seal(usize),
}

use Step::{
    Add, CompareCompareStore, CompareLoadStore, CompareStore, EntryPop, EntryPopAside, EntryPush, Exchange, Extend,
    Link, LoadStore, Pop, PopChained, Push, PushChained, Replace, Seal, StaticPop, StaticPush,
};

/// There are two chains, so that each operation has one on which it goes its longest way: one whose stack in use is empty,
/// and one whose is full.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) enum Which {
    ToPop,
    ToPush,
}

use Which::{ToPop, ToPush};

/// Every sequence of the crate. Each succeeds on the initial state, so all instructions up to its commit are run.
pub(crate) const OPERATIONS: [Step; 17] = [
    Pop,
    Push(300),
    StaticPop,
    StaticPush(300),
    EntryPop,
    EntryPopAside,
    EntryPush(300),
    Replace,
    CompareStore(10, 11),
    CompareCompareStore(10, 0, 11),
    Add(1),
    LoadStore,
    CompareLoadStore(0),
    PopChained(ToPop),
    PushChained(ToPush, 300),
    Exchange,
    Extend,
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

/// What may befall a chain: nothing, a neighbour in use, and the same one as before again, others in their places.
const TO_CHAINS: [Disturbance; 9] = [
    Steps(&[]),
    Steps(&[PopChained(ToPop), PopChained(ToPush)]),
    Steps(&[PushChained(ToPop, 300), PushChained(ToPush, 500)]),
    Steps(&[PushChained(ToPop, 300), PushChained(ToPush, 300)]),
    Steps(&[PopChained(ToPop), PushChained(ToPop, 400), PushChained(ToPush, 400), PopChained(ToPush)]),
    Steps(&[Exchange, Extend]),
    Steps(&[Exchange, PopChained(ToPop), Extend, PopChained(ToPush)]),
    Steps(&[Seal(1)]),
    Move,
];

impl Step {
    /// What to try on it.
    pub(crate) fn disturbances(self) -> &'static [Disturbance] {
        match self {
            Pop | Push(_) | StaticPop | StaticPush(_) | EntryPop | EntryPopAside | EntryPush(_) => &TO_STACKS,
            Replace => &TO_HEADERS,
            CompareStore(..) | CompareCompareStore(..) | Add(_) | Seal(_) => &TO_WORDS,
            LoadStore | CompareLoadStore(_) | Link(_) => &TO_LISTS,
            PopChained(_) | PushChained(..) | Exchange | Extend => &TO_CHAINS,
        }
    }

    /// Whether it works on the vCPU that it finds itself on; the others are told one and refuse another.
    pub(crate) fn takes_any_vcpu(self) -> bool {
        self.is_one_attempt() || matches!(self, PopChained(_) | PushChained(..))
    }

    /// Whether it leaves it to the caller to try again.
    pub(crate) fn is_one_attempt(self) -> bool {
        matches!(self, Pop | Push(_) | StaticPop | StaticPush(_) | EntryPop | EntryPopAside | EntryPush(_))
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
    chains: [Chain; 2],
}

/// A chain as values: which stacks it consists of and what is in them, the full ones first.
#[derive(Clone, PartialEq, Debug)]
struct Chain {
    stacks: Vec<(usize, Vec<usize>)>,
    in_use: usize,
}

/// Stacks that a chain can consist of. The last one is not in it at first, and has one pointer.
const LINKS: usize = 3;
const FRESH: usize = LINKS - 1;
const IN_FRESH: usize = 900;

impl Chain {
    fn pop(&mut self) -> Option<usize> {
        if self.stacks[self.in_use].1.is_empty() {
            self.in_use = self.in_use.checked_sub(1)?;
        }
        self.stacks[self.in_use].1.pop()
    }

    fn push(&mut self, p: usize) -> bool {
        let stack = &self.stacks[self.in_use].1;
        let full = stack.len() == ROOM;
        if stack.last() == Some(&p) || (full && self.in_use + 1 == self.stacks.len()) {
            return false;
        }
        self.in_use += usize::from(full);
        self.stacks[self.in_use].1.push(p);
        true
    }

    /// The number and the height of the stack in use.
    fn top(&self) -> (usize, usize) {
        let (stack, pointers) = &self.stacks[self.in_use];
        (*stack, pointers.len())
    }
}

impl State {
    /// What every operation is started on.
    pub(crate) fn initial() -> Self {
        let full: Vec<usize> = (1..=ROOM).map(|n| n * 10).collect();
        let to_pop = Chain { stacks: vec![(0, full.clone()), (1, Vec::new())], in_use: 1 };
        let to_push = Chain { stacks: vec![(0, full), (1, Vec::new())], in_use: 0 };
        State {
            word: 10,
            seal: 0,
            list: vec![0, 1, 2],
            stacks: [vec![100, 200], vec![900]],
            current: 0,
            chains: [to_pop, to_push],
        }
    }

    /// Does `step` as if nobody else were there.
    pub(crate) fn apply(&mut self, step: Step) -> Answer {
        let differs = Answer::Not(Outcome::Differs);
        let stack = &mut self.stacks[self.current];
        match step {
            Pop | StaticPop | EntryPop | EntryPopAside => stack.pop().map_or(differs, Answer::Took),
            Push(p) | StaticPush(p) | EntryPush(p) if stack.len() == ROOM || stack.last() == Some(&p) => differs,
            Push(p) | StaticPush(p) | EntryPush(p) => {
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
            PopChained(which) => self.chains[which as usize].pop().map_or(differs, Answer::Took),
            PushChained(which, p) if !self.chains[which as usize].push(p) => differs,
            Exchange if (self.chains[0].top(), self.seal) != ((1, 0), 0) => differs,
            Extend if (self.chains[1].top(), self.seal) != ((0, ROOM), 0) => differs,
            PushChained(..) => Answer::Did,
            Exchange => {
                let Chain { stacks, in_use } = &mut self.chains[0];
                stacks[*in_use] = (FRESH, vec![IN_FRESH]);
                Answer::Did
            }
            Extend => {
                let Chain { stacks, in_use } = &mut self.chains[1];
                *in_use += 1;
                stacks.insert(*in_use, (FRESH, vec![IN_FRESH]));
                Answer::Did
            }
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

/// Bytes of a stack: the owner's word, the two of a chain, a sentinel and the slots.
pub(crate) const STACK: usize = 64;

#[repr(C, align(64))]
struct Slots([AtomicUsize; STACK / size_of::<usize>()]);
const _: () = assert!(size_of::<Slots>() == STACK && align_of::<Slots>() == STACK);

impl Slots {
    /// The sentinel and the slots.
    fn words(&self) -> &[AtomicUsize] {
        &self.0[self.0.len() - ROOM - 1..]
    }

    const fn new() -> Self {
        Slots([const { AtomicUsize::new(0) }; STACK / size_of::<usize>()])
    }

    /// The top of the stack with `height` pointers.
    fn top(&self, height: usize) -> usize {
        self.words()[1 + height..].as_ptr().expose_provenance()
    }

    /// The top of the neighbour on one side.
    fn neighbour(&self, side: usize) -> &AtomicUsize {
        &self.0[side / size_of::<usize>()]
    }

    fn write(&self, pointers: &[usize]) {
        let words = self.words();
        words[0].store(0, Ordering::SeqCst);
        words[1..].iter().for_each(|slot| slot.store(7, Ordering::SeqCst));
        words[1..].iter().zip(pointers).for_each(|(slot, p)| slot.store(*p, Ordering::SeqCst));
    }

    fn read(&self, height: usize) -> Vec<usize> {
        self.words()[1..=height].iter().map(|slot| slot.load(Ordering::SeqCst)).collect()
    }
}

/// The data of one vCPU in memory. Its first word is the header of a stack.
#[repr(C, align(1024))]
pub(crate) struct Memory {
    pub(crate) header: AtomicUsize,
    pub(crate) word: AtomicUsize,
    pub(crate) seal: AtomicUsize,
    pub(crate) head: AtomicUsize,
    slots: [Slots; 2],
    pub(crate) nodes: [AtomicUsize; NODES],
    pub(crate) chains: [AtomicUsize; 2],
    links: [[Slots; LINKS]; 2],
}

/// Of the size of [`Memory`].
pub(crate) const SHIFT: u32 = 10;
const _: () = assert!(size_of::<Memory>() == 1 << SHIFT && offset_of!(Memory, header) == 0);

/// Displacement of the header of a chain.
pub(crate) fn displacement(which: Which) -> usize {
    offset_of!(Memory, chains) + which as usize * size_of::<usize>()
}

impl Memory {
    pub(crate) fn new() -> Self {
        let zero = || AtomicUsize::new(0);
        Memory {
            header: zero(),
            word: zero(),
            seal: zero(),
            head: zero(),
            slots: [const { Slots::new() }; 2],
            nodes: [const { AtomicUsize::new(0) }; NODES],
            chains: [const { AtomicUsize::new(0) }; 2],
            links: [const { [const { Slots::new() }; LINKS] }; 2],
        }
    }

    /// The top of a stack with `height` pointers.
    fn top(&self, stack: usize, height: usize) -> usize {
        self.slots[stack].top(height)
    }

    /// What `Exchange` or `Extend` expects and what it stores.
    pub(crate) fn tops_of_chain(&self, which: Which) -> (usize, usize) {
        let (stack, height) = State::initial().chains[which as usize].top();
        let links = &self.links[which as usize];
        (links[stack].top(height), links[FRESH].top(1))
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
        self.slots.iter().zip(&state.stacks).for_each(|(slots, stack)| slots.write(stack));
        for ((header, links), chain) in self.chains.iter().zip(&self.links).zip(&state.chains) {
            links[FRESH].write(&[IN_FRESH]);
            for (place, (stack, pointers)) in chain.stacks.iter().enumerate() {
                links[*stack].write(pointers);
                let top = |&(stack, ref pointers): &(usize, Vec<usize>)| links[stack].top(pointers.len());
                let below = place.checked_sub(1).map_or(0, |below| top(&chain.stacks[below]));
                let above = chain.stacks.get(place + 1).map_or(0, top);
                // The words that lead back to where the stack in use is are old, and nobody reads them.
                let old = |is_old: bool, value: usize| if is_old { 7 } else { value };
                set(links[*stack].neighbour(FULL), old(place > chain.in_use, below));
                set(links[*stack].neighbour(EMPTY), old(place < chain.in_use, above));
            }
            let (stack, height) = chain.top();
            set(header, links[stack].top(height));
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
        stacks[current] = self.slots[current].read(height);
        let chains = [self.chain(ToPop)?, self.chain(ToPush)?];
        let sentinels = self.slots.iter().chain(self.links.iter().flatten()).all(|slots| get(&slots.words()[0]) == 0);
        sentinels.then(|| State { word: get(&self.word), seal: get(&self.seal), list, stacks, current, chains })
    }

    /// A chain as it is, None if it makes no sense.
    fn chain(&self, which: Which) -> Option<Chain> {
        let links = &self.links[which as usize];
        let find = |top: usize, heights: std::ops::RangeInclusive<usize>| {
            let mut all = (0..LINKS).flat_map(|stack| heights.clone().map(move |height| (stack, height)));
            let (stack, height) = all.find(|(stack, height)| links[*stack].top(*height) == top)?;
            Some((stack, links[stack].read(height)))
        };
        let first = find(self.chains[which as usize].load(Ordering::SeqCst), 0..=ROOM)?;
        let follow = |side: usize, height: usize| {
            let mut found = Vec::new();
            let mut from = first.0;
            loop {
                match links[from].neighbour(side).load(Ordering::SeqCst) {
                    0 => return Some(found),
                    top => found.push(find(top, height..=height).filter(|_| found.len() < LINKS)?),
                }
                from = found.last()?.0;
            }
        };
        let (below, above) = (follow(FULL, ROOM)?, follow(EMPTY, 0)?);
        let in_use = below.len();
        let stacks = below.into_iter().rev().chain([first]).chain(above).collect();
        Some(Chain { stacks, in_use })
    }
}
