//! Finds the hit paths of a function among the instructions that it can reach (`graph`).
//!
//! A path is followed through five phases ([`Phase`]): nothing yet, the section's descriptor loaded, its section armed,
//! inside the section, committed. What an instruction does to a path depends on the phase alone: the store that arms
//! leads on from "loaded" and makes anything else a failure, for example. So the paths need not be listed one by one,
//! of which there may be 2 to the number of branches: pairs of an instruction and a phase are enough, and there are
//! only five for each instruction.
//!
//! For each section whose commit can be reached:
//!
//! 1. Keep the pairs that can be reached from the entry and from which a `ret` with the section committed can be
//!    reached ([`Useful`]). Every way through these is a hit path, and a slow path, however it was inlined, is not
//!    among them.
//! 2. The instructions of these pairs must not form a loop: a path through one has no length that could be judged.
//! 3. So they can be put in order, and the longest way, the shortest way and the number of ways follow from those of
//!    the successors, each pair taken once.
//!
//! The time is bounded by instructions times sections, and [`MOST_PAIRS`] bounds that.
//!
//! If there is no hit path, the search is repeated with calls and lock prefixes allowed, only to be able to say which
//! of them is in the way. Whether a path can be taken at run time (whether its branch conditions contradict each other)
//! is not examined, which can only make the result longer than the truth.

use std::collections::BTreeSet;

use iced_x86::{FlowControl, Instruction};

use crate::graph::{Graph, Node, arms, is_blemish, is_frame, loads};
use crate::image::{Image, Sequence};

/// More pairs of an instruction and a phase, over all sections, than a sensible function has: about a second's work.
const MOST_PAIRS: usize = 20_000_000;

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

/// Instructions of a path, or of the rest of one: those that count, and all of them. Paths are compared in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Length {
    /// Without those that set up and take down the stack frame.
    pub(crate) counted: usize,
    pub(crate) all: usize,
}

impl Length {
    const ZERO: Self = Self { counted: 0, all: 0 };

    fn and(self, instruction: &Instruction) -> Self {
        Self { counted: self.counted + usize::from(!is_frame(instruction)), all: self.all + 1 }
    }
}

/// What is known about a set of paths, or of rests of paths, that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ways {
    pub(crate) longest: Length,
    pub(crate) shortest: Length,
    /// How many there are; stays at the largest value that fits.
    pub(crate) number: u128,
}

impl Ways {
    /// The one rest that has nothing left.
    const END: Self = Self { longest: Length::ZERO, shortest: Length::ZERO, number: 1 };

    /// All of them with `instruction` in front.
    fn after(self, instruction: &Instruction) -> Self {
        Self { longest: self.longest.and(instruction), shortest: self.shortest.and(instruction), ..self }
    }

    /// Those of both, which have none in common.
    fn or(self, other: Self) -> Self {
        Self {
            longest: self.longest.max(other.longest),
            shortest: self.shortest.min(other.shortest),
            number: self.number.saturating_add(other.number),
        }
    }
}

/// All hit paths of one function.
#[derive(Clone, Debug)]
pub(crate) struct HitPaths {
    /// The path with the most instructions that count, the one that is judged.
    pub(crate) longest: HitPath,
    pub(crate) ways: Ways,
}

impl HitPaths {
    /// How many paths there are, and how many instructions count on them.
    pub(crate) fn describe(&self) -> String {
        match self.ways.number {
            1 => "one path".to_owned(),
            number => {
                format!("{number} paths of {} to {}", self.ways.shortest.counted, self.ways.longest.counted)
            }
        }
    }

    /// These and `other`, which are others.
    fn or(self, other: Self) -> Self {
        let longest = if other.ways.longest > self.ways.longest { other.longest } else { self.longest };
        Self { longest, ways: self.ways.or(other.ways) }
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
    /// Nothing can be said: there is a loop on a hit path, or the function is too large.
    Unclear(String),
}

/// Finds the hit paths of the function at `entry`.
pub(crate) fn judge(image: &Image<'_>, entry: u64) -> Verdict {
    match clean_paths(image, entry) {
        Ok(Some(paths)) => return Verdict::Hit(paths),
        Ok(None) => {}
        Err(reason) => return Verdict::Unclear(reason),
    }
    let missing = "no path from entry to ret passes the commit of a restartable section";
    match shortest_path(image, entry) {
        Ok(Some(path)) => Verdict::Blemished(describe_blemishes(&path)),
        Ok(None) => Verdict::Missing(missing.to_owned()),
        Err(reason) => Verdict::Missing(format!("{missing} without calls; with calls, {reason}")),
    }
}

fn describe_blemishes(path: &[Instruction]) -> String {
    let found: Vec<String> = path
        .iter()
        .filter(|instruction| is_blemish(instruction))
        .map(|instruction| format!("{:#x} {instruction}", instruction.ip()))
        .collect();
    format!("the hit path has a call or a lock prefix on it: {}", found.join(", "))
}

/// How far a path has come, before an instruction is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Begun,
    Loaded,
    Armed,
    Inside,
    Committed,
}

/// Number of phases.
const PHASES: usize = Phase::Committed as usize + 1;
const ALL_PHASES: [Phase; PHASES] = [Phase::Begun, Phase::Loaded, Phase::Armed, Phase::Inside, Phase::Committed];

/// An instruction and how far a path has come before it: the index of the node times [`PHASES`], plus the phase.
type Pair = usize;

fn pair(node: usize, phase: Phase) -> Pair {
    node * PHASES + phase as usize
}

fn pairs_of(node: usize) -> impl Iterator<Item = Pair> {
    ALL_PHASES.into_iter().map(move |phase| pair(node, phase))
}

/// The search for the hit paths through one section.
struct Search<'a> {
    graph: &'a Graph,
    section: usize,
    sequence: &'a Sequence,
}

impl<'a> Search<'a> {
    /// A search for each section whose commit is in `graph`.
    fn all(image: &'a Image<'_>, graph: &'a Graph) -> Result<impl Iterator<Item = Self>, String> {
        let sections: BTreeSet<usize> = graph.0.iter().filter_map(|node| node.commits).collect();
        if sections.len() * graph.0.len() * PHASES > MOST_PAIRS {
            let (sections, instructions) = (sections.len(), graph.0.len());
            return Err(format!("{sections} sections among {instructions} instructions are too many to examine"));
        }
        Ok(sections.into_iter().map(move |section| Self { graph, section, sequence: &image.sequences[section] }))
    }

    fn node(&self, pair: Pair) -> &'a Node {
        &self.graph.0[pair / PHASES]
    }

    /// The phase after the instruction of `pair`; `None` if a path that comes here is not a hit.
    fn after(&self, pair: Pair) -> Option<Phase> {
        let node = self.node(pair);
        let ip = node.instruction.ip();
        let mut phase = ALL_PHASES[pair % PHASES];
        if phase == Phase::Committed {
            // What other sections commit after this one does not matter, as long as they are not armed.
            return (!arms(&node.instruction)).then_some(phase);
        }
        if arms(&node.instruction) {
            return (phase == Phase::Loaded && ip != self.sequence.start).then_some(Phase::Armed);
        }
        if ip == self.sequence.start {
            match phase {
                Phase::Armed => phase = Phase::Inside,
                Phase::Inside => {}
                _ => return None,
            }
        }
        if phase == Phase::Inside {
            return match node.commits {
                _ if !(self.sequence.start..self.sequence.end).contains(&ip) => None,
                Some(section) => (section == self.section).then_some(Phase::Committed),
                None => Some(Phase::Inside),
            };
        }
        if node.commits.is_some() {
            return None;
        }
        let loaded = phase == Phase::Begun && loads(&node.instruction, self.sequence.descriptor);
        Some(if loaded { Phase::Loaded } else { phase })
    }

    /// Whether a hit path ends with the instruction of `pair`.
    fn is_end(&self, pair: Pair) -> bool {
        self.node(pair).instruction.flow_control() == FlowControl::Return && self.after(pair) == Some(Phase::Committed)
    }

    /// The pairs that can follow `from`.
    fn next(&self, from: Pair) -> impl Iterator<Item = Pair> + use<'a> {
        let phase = self.after(from);
        let next = &self.node(from).next;
        phase.into_iter().flat_map(move |phase| next.iter().map(move |&node| pair(node, phase)))
    }

    /// All pairs that can be reached from the entry, each with one from which it was reached first, in the order of
    /// their distance from the entry.
    fn reachable(&self) -> Vec<(Pair, Pair)> {
        let entry = pair(0, Phase::Begun);
        let mut reached = vec![false; self.graph.0.len() * PHASES];
        reached[entry] = true;
        let mut found = vec![(entry, entry)];
        let mut visited = 0;
        while let Some(&(from, _)) = found.get(visited) {
            visited += 1;
            for to in self.next(from) {
                if !std::mem::replace(&mut reached[to], true) {
                    found.push((to, from));
                }
            }
        }
        found
    }

    /// The instructions of a hit path with the fewest of them; it may pass an instruction in two phases.
    fn shortest_path(&self) -> Option<Vec<Instruction>> {
        let reachable = self.reachable();
        let end = reachable.iter().position(|&(pair, _)| self.is_end(pair))?;
        let mut path = Vec::new();
        let mut wanted = reachable[end].0;
        // Whatever a pair was reached from stands before it.
        for &(pair, from) in reachable[..=end].iter().rev() {
            if pair == wanted {
                path.push(self.node(pair).instruction);
                wanted = from;
            }
        }
        path.reverse();
        Some(path)
    }

    /// The hit paths, if there are any.
    fn hit_paths(&self) -> Result<Option<HitPaths>, String> {
        let useful = Useful::of(self);
        let entry = pair(0, Phase::Begun);
        if !useful.contains(entry) {
            return Ok(None);
        }
        // For each useful pair the ways from it to the end, and the pair with which the longest goes on.
        let mut rests: Vec<Option<(Ways, Option<Pair>)>> = vec![None; useful.0.len()];
        for node in useful.last_to_first(self)? {
            for from in pairs_of(node).filter(|&from| useful.contains(from)) {
                let rest = if self.is_end(from) {
                    Some((Ways::END, None))
                } else {
                    let rests = self.next(from).filter_map(|to| Some((rests[to]?.0, Some(to))));
                    rests.reduce(|one, other| {
                        let longer = if other.0.longest > one.0.longest { other } else { one };
                        (one.0.or(other.0), longer.1)
                    })
                };
                rests[from] = rest.map(|(ways, then)| (ways.after(&self.node(from).instruction), then));
            }
        }
        let longest = std::iter::successors(Some(entry), |&at| rests[at]?.1).collect();
        Ok(rests[entry].map(|(ways, _)| HitPaths { longest: self.hit_path(longest), ways }))
    }

    fn hit_path(&self, pairs: Vec<Pair>) -> HitPath {
        // Every hit path has each of the three; what counts is the first.
        let first = |is: &dyn Fn(&Node) -> bool| pairs.iter().position(|&pair| is(self.node(pair))).unwrap_or_default();
        HitPath {
            armed: first(&|node| arms(&node.instruction)),
            start: first(&|node| node.instruction.ip() == self.sequence.start),
            commit: first(&|node| node.commits == Some(self.section)),
            instructions: pairs.iter().map(|&pair| self.node(pair).instruction).collect(),
        }
    }
}

/// Which pairs lie on a way from the entry to the end of a hit path.
struct Useful(Vec<bool>);

impl Useful {
    fn of(search: &Search<'_>) -> Self {
        let pairs = search.graph.0.len() * PHASES;
        let reachable = search.reachable();
        let mut before: Vec<Vec<Pair>> = vec![Vec::new(); pairs];
        for &(from, _) in &reachable {
            for to in search.next(from) {
                before[to].push(from);
            }
        }
        let mut useful = vec![false; pairs];
        let mut waiting: Vec<Pair> =
            reachable.into_iter().map(|(pair, _)| pair).filter(|&pair| search.is_end(pair)).collect();
        while let Some(pair) = waiting.pop() {
            if !std::mem::replace(&mut useful[pair], true) {
                waiting.extend(&before[pair]);
            }
        }
        Self(useful)
    }

    fn contains(&self, pair: Pair) -> bool {
        self.0[pair]
    }

    /// The nodes of all useful pairs, each after all that can follow it; an error if they form a loop.
    fn last_to_first(&self, search: &Search<'_>) -> Result<Vec<usize>, String> {
        let next = |node: usize| -> Vec<usize> {
            let next = pairs_of(node)
                .filter(|&pair| self.contains(pair))
                .flat_map(|pair| search.next(pair))
                .filter(|&to| self.contains(to));
            next.map(|to| to / PHASES).collect()
        };
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            OnTheWay,
            Done,
        }
        let mut marks = vec![Mark::New; search.graph.0.len()];
        marks[0] = Mark::OnTheWay;
        let mut order = Vec::new();
        let mut way = vec![(0, next(0))];
        while let Some((node, waiting)) = way.last_mut() {
            match waiting.pop() {
                Some(to) if marks[to] == Mark::New => {
                    marks[to] = Mark::OnTheWay;
                    way.push((to, next(to)));
                }
                Some(to) if marks[to] == Mark::OnTheWay => {
                    let ip = search.graph.0[to].instruction.ip();
                    return Err(format!("the hit path has a loop on it, which goes back to {ip:#x}"));
                }
                Some(_) => {}
                None => {
                    marks[*node] = Mark::Done;
                    order.push(*node);
                    way.pop();
                }
            }
        }
        Ok(order)
    }
}

/// The hit paths without a call or a lock prefix.
fn clean_paths(image: &Image<'_>, entry: u64) -> Result<Option<HitPaths>, String> {
    let graph = Graph::decode(image, entry, false)?;
    let mut found: Option<HitPaths> = None;
    for search in Search::all(image, &graph)? {
        let paths = search.hit_paths()?;
        found = match (found, paths) {
            (Some(one), Some(other)) => Some(one.or(other)),
            (one, other) => one.or(other),
        };
    }
    Ok(found)
}

/// The shortest hit path, whatever is on it.
fn shortest_path(image: &Image<'_>, entry: u64) -> Result<Option<Vec<Instruction>>, String> {
    let graph = Graph::decode(image, entry, true)?;
    Ok(Search::all(image, &graph)?.filter_map(|search| search.shortest_path()).min_by_key(Vec::len))
}
