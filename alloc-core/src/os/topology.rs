//! Which memory and which last-level cache are near to a CPU.
//!
//! Read once, at set-up, from the kernel's files below `/sys/devices/system`, without allocation:
//!
//! ```text
//! node/online                           0-1               the NUMA nodes
//! node/node1/cpulist                    8-15,24-31        the CPUs of each; none where there is only memory
//! cpu/cpu8/cache/index3/shared_cpu_list 8-11,24-27        the CPUs that share the third level; 2 is the second
//! ```
//!
//! Only CPUs that the process may run on at that time count. So one that was given a single node or cache sees one, and
//! two files are all that is read for it; with few CPUs and memory of one node none.
//!
//! The layers above know a node and a cache by small numbers: nodes below [`NODES`], caches below [`CACHES`]. Where there
//! are more, nodes are folded by their remainder, and neighbouring caches of a node count as one. What two nodes share is
//! one cache in each. A cache of one or two CPUs does not count, since the shards are one for each CPU anyway; the CPUs of
//! a node that have no other share the node's first.
//!
//! With one node and one cache, and wherever the files cannot be read, [`node`] and [`cache`] are a load and a comparison,
//! and the table is not touched. Otherwise they ask for the CPU, on slow paths only.
//!
//! What it does not do: CPUs that the process may use later on count as those of the first node, until it ends.
//!
//! Sources: the kernel's [cacheinfo](https://docs.kernel.org/admin-guide/cputopology.html) and
//! [`sysfs-devices-node`](https://www.kernel.org/doc/Documentation/ABI/stable/sysfs-devices-node).

use super::{file, keep_errno};
use core::ffi::{CStr, c_int};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

/// Nodes that are told apart, and caches.
pub(crate) const NODES: usize = 8;
pub(crate) const CACHES: usize = 16;
/// CPUs that are told apart: no kernel configuration has more (x86-64).
const CPUS: usize = 8192;

/// From so many CPUs on a cache counts.
const LEAST_SHARERS: usize = 3;
/// The indices of what may be a last level. Those of the first level are 0 and 1, for data and code; a fourth one, where it
/// exists, has the sharers of the third.
const LAST_LEVEL: [usize; 2] = [3, 2];
/// No single node of the kernel's.
const NO_ID: u16 = u16::MAX;
/// With fewer CPUs than two caches need that count, and one node, nothing is read: to open and read two files takes longer
/// than all other system calls of the set-up.
const FEW: usize = 2 * LEAST_SHARERS;
/// Words in the kernel's masks of nodes.
const MASK_WORDS: usize = 16;

/// A set of CPUs, as [sched_getaffinity(2)](https://man7.org/linux/man-pages/man2/sched_setaffinity.2.html) fills it.
pub(crate) struct CpuSet([u64; CPUS / 64]);

impl CpuSet {
    /// Those that the thread may run on; none if the kernel does not say.
    pub(crate) fn allowed() -> Self {
        let mut set = [0; CPUS / 64];
        // SAFETY: the buffer is valid for its size.
        keep_errno(|| unsafe {
            libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(&set), set.as_mut_ptr());
        });
        Self(set)
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    fn has(&self, cpu: usize) -> bool {
        self.0.get(cpu / 64).is_some_and(|word| word & (1 << (cpu % 64)) != 0)
    }

    fn iter(&self) -> impl Iterator<Item = usize> {
        (0..CPUS).filter(|&cpu| self.has(cpu))
    }
}

/// For tests: node and cache of each CPU, in place of what the system says.
pub(crate) type Places = &'static [(u8, u8)];

/// The table of a system. All zero bits, as the static one is where nothing else is known, is one node with one cache.
struct Topology {
    /// By CPU: the node in the high byte; in the low one the cache, and while the files are read its number in the node,
    /// from 1 on.
    places: [AtomicU16; CPUS],
    /// By cache, the caches of its node, bit by bit.
    near: [AtomicU16; CACHES],
    /// By node, the kernel's number and 1; 0 or [`NO_ID`]: none or several.
    ids: [AtomicU16; NODES],
}

static TOPOLOGY: Topology = Topology::new();
/// How many there are in force; 0 for one. Not beside the table, which is left alone mostly.
static NODE_COUNT: AtomicUsize = AtomicUsize::new(0);
static CACHE_COUNT: AtomicUsize = AtomicUsize::new(0);

/// What was found, and is not in force yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    nodes: usize,
    caches: usize,
}

impl Found {
    const ONE: Self = Self { nodes: 1, caches: 1 };

    /// One node and one cache.
    pub(crate) fn is_one(self) -> bool {
        self == Self::ONE
    }

    /// How many nodes.
    pub(crate) fn nodes(self) -> usize {
        self.nodes
    }
}

/// Looks at the system for a process that may run on `cpus`, or takes what a test says; for one thread at a time. `None`:
/// it is known already.
pub(crate) fn find(cpus: &CpuSet, places: Option<Places>) -> Option<Found> {
    if nodes() > 1 || caches() > 1 {
        return None;
    }
    Some(match places {
        Some(places) => TOPOLOGY.take_from(places),
        None if cfg!(miri) || cpus.count() < 2 || (cpus.count() < FEW && has_one_node()) => Found::ONE,
        None => TOPOLOGY.read(cpus, &file::for_each_piece),
    })
}

/// Whether all memory that the thread may use is on one node. False if the kernel does not say, as where system calls are
/// filtered ([get_mempolicy(2)](https://man7.org/linux/man-pages/man2/get_mempolicy.2.html)).
fn has_one_node() -> bool {
    let mut nodes = [0_u64; MASK_WORDS];
    let (none, bits) = (core::ptr::null_mut::<c_int>(), MASK_WORDS * 64);
    const MPOL_F_MEMS_ALLOWED: usize = 1 << 2;
    // SAFETY: a mask of that many bits for the answer, and nothing else is asked for.
    let asked = keep_errno(|| unsafe {
        libc::syscall(libc::SYS_get_mempolicy, none, nodes.as_mut_ptr(), bits, 0_usize, MPOL_F_MEMS_ALLOWED)
    });
    asked == 0 && nodes.iter().map(|word| word.count_ones()).sum::<u32>() == 1
}

/// Puts in force what [`find`] found.
pub(crate) fn publish(found: Found) {
    CACHE_COUNT.store(found.caches, Ordering::Release);
    NODE_COUNT.store(found.nodes, Ordering::Release);
}

/// How many nodes there are. Changes once at most, from 1.
#[inline]
pub(crate) fn nodes() -> usize {
    NODE_COUNT.load(Ordering::Acquire).max(1)
}

/// How many caches there are. Changes once at most, from 1.
#[inline]
pub(crate) fn caches() -> usize {
    CACHE_COUNT.load(Ordering::Acquire).max(1)
}

/// The node of the CPU that the thread runs on.
#[inline]
pub(crate) fn node() -> usize {
    if nodes() == 1 { 0 } else { place() >> 8 }
}

/// The cache of the CPU that the thread runs on.
#[inline]
pub(crate) fn cache() -> usize {
    if caches() == 1 { 0 } else { place() & 0xff }
}

/// The caches of the node that `cache` belongs to, itself included, bit by bit.
pub(crate) fn near(cache: usize) -> u32 {
    TOPOLOGY.near.get(cache).map_or(0, |near| near.load(Ordering::Relaxed).into())
}

/// The nodes, beginning with `first`.
pub(crate) fn nodes_from(first: usize) -> impl Iterator<Item = usize> {
    let nodes = nodes();
    (first..nodes).chain(0..first.min(nodes))
}

/// What the table says for the CPU that the thread runs on. glibc reads that from the thread's rseq area, or it comes from
/// the vDSO ([sched_getcpu(3)](https://man7.org/linux/man-pages/man3/sched_getcpu.3.html)).
#[cold]
fn place() -> usize {
    // SAFETY: no preconditions.
    let cpu = keep_errno(|| unsafe { libc::sched_getcpu() });
    // -1, an error, is no place in the table.
    TOPOLOGY.places.get(cpu as usize).map_or(0, |place| place.load(Ordering::Relaxed).into())
}

/// Asks the kernel to take the memory of a range from a node as long as that has some: what is touched by a thread that
/// just came from elsewhere should not stay there. Without effect for a node that stands for several, and where the
/// thread has a policy of its own, which whoever set it wanted
/// ([mbind(2)](https://man7.org/linux/man-pages/man2/mbind.2.html),
/// [get_mempolicy(2)](https://man7.org/linux/man-pages/man2/get_mempolicy.2.html)). Refusals do no harm: then it is the
/// node of the thread that touches it first.
pub(crate) fn prefer(start: NonNull<u8>, len: usize, node: usize) {
    let id = TOPOLOGY.ids.get(node).map_or(0, |id| id.load(Ordering::Relaxed));
    if cfg!(miri) || nodes() == 1 || id == 0 || id == NO_ID {
        return;
    }
    prefer_id(start, len, usize::from(id) - 1);
}

fn prefer_id(start: NonNull<u8>, len: usize, id: usize) {
    let mut mask = [0_u64; MASK_WORDS];
    let Some(word) = mask.get_mut(id / 64) else { return };
    *word = 1 << (id % 64);
    let mut mode = 0;
    keep_errno(|| {
        // SAFETY: `mode` is a place for the answer; nothing else is asked for.
        let asked =
            unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, 0_usize, 0_usize, 0_usize, 0_usize) };
        if asked == 0 && (mode == libc::MPOL_DEFAULT || mode == libc::MPOL_LOCAL) {
            // The kernel takes one bit less than it is told of.
            let bits = MASK_WORDS * 64 + 1;
            // SAFETY: a policy changes no contents, and the mask has that many bits.
            unsafe {
                libc::syscall(libc::SYS_mbind, start.as_ptr(), len, libc::MPOL_PREFERRED, mask.as_ptr(), bits, 0_usize)
            };
        }
    });
}

/// Calls back with the contents of the file of this name, piece by piece; false if there is none.
type Text<'a> = &'a dyn Fn(&CStr, &mut dyn FnMut(&[u8])) -> bool;

impl Topology {
    const fn new() -> Self {
        Self {
            places: [const { AtomicU16::new(0) }; CPUS],
            near: [const { AtomicU16::new(0) }; CACHES],
            ids: [const { AtomicU16::new(0) }; NODES],
        }
    }

    /// Node and what the low byte says.
    fn place(&self, cpu: usize) -> (usize, usize) {
        let place = self.places.get(cpu).map_or(0, |place| place.load(Ordering::Relaxed).into());
        (place >> 8, place & 0xff)
    }

    fn set_place(&self, cpu: usize, node: usize, low: usize) {
        if let Some(place) = self.places.get(cpu) {
            place.store((node << 8 | low) as u16, Ordering::Relaxed);
        }
    }

    fn read(&self, allowed: &CpuSet, text: Text) -> Found {
        let nodes = self.read_nodes(allowed, text);
        Found { nodes, caches: self.read_caches(allowed, text, nodes) }
    }

    /// Fills in nodes. A node without CPUs is nobody's own.
    fn read_nodes(&self, allowed: &CpuSet, text: Text) -> usize {
        let online = Path::new().text(b"node/online");
        let mut listed = 0;
        for_each_number(text, &online, |_| listed += 1);
        if listed < 2 {
            return 1;
        }
        let mut found = 0;
        for_each_number(text, &online, |id| {
            let (node, mut cpus) = (found % NODES, 0);
            for_each_number(text, &Path::new().text(b"node/node").number(id).text(b"/cpulist"), |cpu| {
                if allowed.has(cpu) {
                    cpus += 1;
                    self.set_place(cpu, node, 0);
                }
            });
            if cpus > 0 {
                self.set_id(node, if found < NODES { id } else { usize::MAX });
                found += 1;
            }
        });
        found.clamp(1, NODES)
    }

    fn set_id(&self, node: usize, id: usize) {
        if let Some(place) = self.ids.get(node) {
            place.store(id.saturating_add(1).min(NO_ID.into()) as u16, Ordering::Relaxed);
        }
    }

    /// Fills in caches, when the nodes are there.
    fn read_caches(&self, allowed: &CpuSet, text: Text, nodes: usize) -> usize {
        let sharers = |cpu, index| {
            let mut sharers = 0;
            for_each_number(text, &shared_by(cpu, index), |other| sharers += usize::from(allowed.has(other)));
            sharers
        };
        let first = allowed.iter().next().unwrap_or(0);
        // All CPUs have the same indices, or have none at the last level.
        let level =
            LAST_LEVEL.into_iter().map(|index| (index, sharers(first, index))).find(|&(_, sharers)| sharers > 0);
        let mut counts = [0; NODES];
        // With one node it is the common case that one cache is all there is.
        if let Some((index, _)) = level.filter(|&(_, sharers)| nodes > 1 || sharers < allowed.count()) {
            // As a set-up that was cut off may have left it.
            allowed.iter().for_each(|cpu| self.set_place(cpu, if nodes == 1 { 0 } else { self.place(cpu).0 }, 0));
            for cpu in allowed.iter() {
                let (node, low) = self.place(cpu);
                let Some(count) = counts.get_mut(node).filter(|_| low == 0) else { continue };
                if sharers(cpu, index) < LEAST_SHARERS {
                    continue;
                }
                *count = (*count + 1).min(0xff);
                for_each_number(text, &shared_by(cpu, index), |other| {
                    if allowed.has(other) && self.place(other) == (node, 0) {
                        self.set_place(other, node, *count);
                    }
                });
            }
        }
        self.fold(allowed, nodes, &counts)
    }

    /// Numbers the caches of all nodes, of which each has so many, and as many places as all others. Returns how many they
    /// are now.
    fn fold(&self, allowed: &CpuSet, nodes: usize, counts: &[usize; NODES]) -> usize {
        let mut first = [0; NODES];
        let mut taken = [1; NODES];
        let mut all = 0;
        for ((first, taken), count) in first.iter_mut().zip(&mut taken).zip(counts).take(nodes) {
            *first = all;
            *taken = count.div_ceil(CACHES / nodes).max(1);
            let own = count.div_ceil(*taken).max(1);
            for near in self.near.iter().skip(all).take(own) {
                near.store((((1_u32 << own) - 1) << all) as u16, Ordering::Relaxed);
            }
            all += own;
        }
        for cpu in allowed.iter().take(if all > 1 { CPUS } else { 0 }) {
            let (node, number) = self.place(cpu);
            if let (Some(first), Some(taken)) = (first.get(node), taken.get(node)) {
                self.set_place(cpu, node, first + number.saturating_sub(1) / taken);
            }
        }
        all
    }

    /// Takes what a test says, with its numbers.
    fn take_from(&self, places: Places) -> Found {
        let mut found = Found::ONE;
        for (cpu, &(node, cache)) in places.iter().enumerate() {
            let (node, cache) = (usize::from(node) % NODES, usize::from(cache) % CACHES);
            self.set_place(cpu, node, cache);
            self.set_id(node, node);
            found = Found { nodes: found.nodes.max(node + 1), caches: found.caches.max(cache + 1) };
            let near = places.iter().filter(|other| usize::from(other.0) % NODES == node);
            let near = near.fold(0, |near, other| near | 1_u16 << (usize::from(other.1) % CACHES));
            if let Some(place) = self.near.get(cache) {
                place.store(near, Ordering::Relaxed);
            }
        }
        found
    }
}

/// The list of the CPUs that share a CPU's cache of this index.
fn shared_by(cpu: usize, index: usize) -> Path {
    Path::new().text(b"cpu/cpu").number(cpu).text(b"/cache/index").number(index).text(b"/shared_cpu_list")
}

/// Calls `each` with the numbers below [`CPUS`] in a list.
fn for_each_number(text: Text, path: &Path, mut each: impl FnMut(usize)) {
    let mut list = List::default();
    let mut range = |first: usize, last: usize| (first..=last.min(CPUS - 1)).for_each(&mut each);
    text(path.c_str(), &mut |piece| list.piece(piece, &mut range));
    list.end(&mut range);
}

/// A list of the kernel's, such as `0-3,8`, whose text comes in pieces.
#[derive(Default)]
struct List {
    /// Where a range began.
    first: Option<usize>,
    number: Option<usize>,
}

impl List {
    fn piece(&mut self, text: &[u8], range: &mut impl FnMut(usize, usize)) {
        for &byte in text {
            match byte {
                b'0'..=b'9' => {
                    let digit = usize::from(byte - b'0');
                    self.number = Some(self.number.unwrap_or(0).saturating_mul(10).saturating_add(digit));
                }
                b'-' => self.first = self.number.take(),
                _ => self.end(range),
            }
        }
    }

    /// What came last is complete.
    fn end(&mut self, range: &mut impl FnMut(usize, usize)) {
        let first = self.first.take();
        if let Some(last) = self.number.take() {
            range(first.unwrap_or(last), last);
        }
    }
}

/// The name of a file, which ends in zeroes.
struct Path {
    bytes: [u8; Self::LEN],
    len: usize,
}

impl Path {
    /// More than the longest has.
    const LEN: usize = 96;
    const ROOT: &[u8] = b"/sys/devices/system/";

    fn new() -> Self {
        Self { bytes: [0; Self::LEN], len: 0 }.text(Self::ROOT)
    }

    fn text(mut self, text: &[u8]) -> Self {
        for (slot, &byte) in self.bytes.iter_mut().take(Self::LEN - 1).skip(self.len).zip(text) {
            *slot = byte;
            self.len += 1;
        }
        self
    }

    fn number(self, number: usize) -> Self {
        let higher = if number < 10 { self } else { self.number(number / 10) };
        higher.text(&[b'0' + (number % 10) as u8])
    }

    fn c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
