//! Statistics: what the layers hold and what they did, gathered on demand without allocation.
//!
//! The bytes add up (see [`Stats::parts`]):
//!
//! ```text
//! mapped = allocated + waste                                     in the hands of the program
//!        + cached_shards + cached_depot + cached_central         free blocks
//!        + cached_pages + cached_large                           free pages and mappings
//!        + returned                                              with the operating system
//!        + metadata
//! counted = mapped - returned                                    what the limits count
//! ```
//!
//! Hit paths count nothing. Bytes are derived from what the layers know anyway (the tops of magazines, the sums under
//! the class locks), counters are kept on slow paths. Figures are exact while no other thread allocates; otherwise
//! blocks that are on their way between two layers may be counted in both or in neither.

use crate::mode::Mode;
use crate::os::topology::{self, NODES};
use crate::shard::{arena, bound, drain, gate, idle, private, vcpu};
use crate::{central, depot, early, front, large, limit, meta, pages};
use core::fmt;

/// See [`crate::stats`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// What the caches are indexed by, and why.
    pub mode: Mode,
    /// Bytes in the hands of the program, in whole blocks (so including what rounding up to a class adds).
    pub allocated: usize,
    /// Bytes beside them that serve nobody: ends of spans too short for a block, and what mappings are longer than the
    /// large blocks in them.
    pub waste: usize,
    /// Bytes of pages that hold at least one block of the program or of a cache: spans and large mappings.
    pub active: usize,
    /// Bytes that may be resident for user data: active pages, cached large mappings, and free pages that were not
    /// given back. An upper bound, since pages never touched are not resident.
    pub resident: usize,
    /// Bytes of the allocator's own data.
    pub metadata: usize,
    /// Bytes of address space that is readable and writable for user data, and metadata.
    pub mapped: usize,
    /// Bytes that the limits count: mapped but not returned. An upper bound of what is resident.
    pub counted: usize,
    /// The soft limit in bytes, 0 for none.
    pub soft_limit: usize,
    /// The hard limit in bytes, 0 for none.
    pub hard_limit: usize,
    /// Large mappings, in use and cached.
    pub large_mappings: usize,
    /// Bytes of address space set aside for huge pages, most of it neither readable nor writable.
    pub reserved: usize,
    /// Bytes of free pages that were given back to the operating system, or never touched.
    pub returned: usize,
    /// Bytes of it inside spans that hold blocks.
    pub returned_in_spans: usize,
    /// Huge pages (2 MiB of address space) that have been in use.
    pub huge_pages: usize,
    /// NUMA nodes with a page heap of their own.
    pub nodes: usize,
    /// Last-level caches with a depot of their own.
    pub depots: usize,
    /// Bytes of the pages of spans, by node.
    pub spans_by_node: [usize; NODES],
    /// Free bytes in the magazines of vCPU shards and arenas.
    pub cached_shards: usize,
    /// Free bytes in the depot.
    pub cached_depot: usize,
    /// Free bytes in spans, those without any block in use included; without what was given back.
    pub cached_central: usize,
    /// Free bytes in pages that were not given back.
    pub cached_pages: usize,
    /// Bytes in freed large mappings that are kept for reuse.
    pub cached_large: usize,
    /// Bytes of free blocks for which the magazines of all vCPU shards have room.
    pub cache_room: usize,
    /// How many those may be, 0 for any number.
    pub cache_limit: usize,
    /// vCPU shards in use.
    pub shards: usize,
    /// Arenas that have been used.
    pub arenas_used: usize,
    /// Magazines exchanged with a shard's header.
    pub magazine_exchanges: u64,
    /// Magazines handed over by the depot, in either direction.
    pub depot_exchanges: u64,
    /// Depot locks that were not free at once.
    pub depot_retries: u64,
    /// Class locks of the central layer taken.
    pub central_locks: u64,
    /// Page heap locks taken.
    pub page_heap_locks: u64,
    /// Magazines filled from spans.
    pub refills: u64,
    /// Magazines emptied into spans.
    pub flushes: u64,
    /// Sequences aborted by the kernel.
    pub aborts: u64,
    /// Sequences that gave up after too many aborts in a row.
    pub give_ups: u64,
    /// Calls that went past the shards.
    pub bypasses: u64,
    /// Batches of vCPU shards drained.
    pub drains: u64,
    /// vCPU shards drained because nobody used them.
    pub idle_drains: u64,
    /// Times that a shard was to have no more magazines because of the limit of all.
    pub cache_limit_hits: u64,
    /// vCPU shards drained because of it.
    pub cache_limit_drains: u64,
    /// Threads that moved to another arena because theirs was locked.
    pub arena_moves: u64,
    /// Times that taking memory from the operating system was put off by the soft limit. One request may be counted
    /// more than once, in different layers.
    pub soft_limit_hits: u64,
    /// Times that it was refused by the hard limit, counted likewise.
    pub hard_limit_hits: u64,
    /// Times that everything free was given back because of the soft limit.
    pub soft_limit_purges: u64,
}

impl Stats {
    /// What `mapped` is the sum of, in bytes, with a name for each part.
    ///
    /// ```
    /// let stats = alloc_core::stats();
    /// assert_eq!(stats.parts().iter().map(|(_, bytes)| bytes).sum::<usize>(), stats.mapped);
    /// ```
    pub fn parts(&self) -> [(&'static str, usize); 9] {
        [
            ("allocated", self.allocated),
            ("waste", self.waste),
            ("shards", self.cached_shards),
            ("depot", self.cached_depot),
            ("spans", self.cached_central),
            ("pages", self.cached_pages),
            ("large", self.cached_large),
            ("returned", self.returned),
            ("metadata", self.metadata),
        ]
    }
}

pub(crate) fn gather(mode: Mode) -> Stats {
    let (mut cached_shards, mut magazine_exchanges, mut cache_limit_hits, mut shards) = (0, 0, 0, 0);
    for shard in gate::shards() {
        let usage = shard.usage();
        cached_shards += usage.cached;
        magazine_exchanges += usage.exchanges;
        cache_limit_hits += usage.hits;
        shards += 1;
    }
    let mut arenas_used = 0;
    for usage in arena::usages() {
        cached_shards += usage.cached;
        magazine_exchanges += usage.exchanges;
        cache_limit_hits += usage.hits;
        arenas_used += 1;
    }
    let depot = depot::usage();
    let central = central::usage();
    let (pages, spans_by_node) = pages::usage();
    let large = large::usage();
    let early = early::usage();
    let limits = limit::usage();
    let bound = bound::usage();
    let (idle_drains, cache_limit_drains) = idle::drained();
    // Shared arenas have theirs from the metadata's memory.
    let metadata = meta::bytes() + (shards + private::made()) * size_of::<crate::shard::Shard>();
    Stats {
        mode,
        allocated: (central.out + large.served_bytes + early.out).saturating_sub(cached_shards + depot.cached),
        // Blocks, what is with the OS and what is left beside them fill the pages of spans; likewise mappings. Early
        // memory serves once.
        waste: central.behind
            + large.live_bytes.saturating_sub(large.served_bytes)
            + early.used.saturating_sub(early.out),
        active: central.out + central.cached + central.behind + large.live_bytes + early.used,
        resident: pages.used_bytes.saturating_sub(central.returned)
            + pages.free_resident_bytes
            + large.live_bytes
            + large.cached_bytes
            + early.used,
        metadata,
        mapped: pages.committed + large.live_bytes + large.cached_bytes + metadata + early.used,
        counted: limits.counted,
        soft_limit: limits.soft,
        hard_limit: limits.hard,
        large_mappings: large.mappings,
        reserved: pages.reserved,
        returned: pages.returned_bytes + central.returned,
        returned_in_spans: central.returned,
        huge_pages: pages.huge_pages,
        nodes: topology::nodes(),
        depots: topology::caches(),
        spans_by_node,
        cached_shards,
        cached_depot: depot.cached,
        cached_central: central.cached,
        cached_pages: pages.free_resident_bytes,
        cached_large: large.cached_bytes,
        cache_room: bound.held,
        cache_limit: bound.limit,
        shards,
        arenas_used,
        magazine_exchanges,
        depot_exchanges: depot.exchanges,
        depot_retries: depot.retries,
        central_locks: central.locks,
        page_heap_locks: pages.locks_taken,
        refills: central.refills,
        flushes: central.flushes,
        aborts: rseq_sys::sequence::aborts(),
        give_ups: vcpu::give_ups(),
        bypasses: front::bypasses(),
        drains: drain::drains(),
        idle_drains,
        cache_limit_hits,
        cache_limit_drains,
        arena_moves: arena::moves(),
        soft_limit_hits: limits.soft_hits,
        hard_limit_hits: limits.hard_hits,
        soft_limit_purges: limits.soft_purges,
    }
}

/// Bytes with a unit.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0..0x2800 => write!(f, "{} B", self.0),
            0x2800..0xa0_0000 => write!(f, "{} KiB", self.0 >> 10),
            _ => write!(f, "{} MiB", self.0 >> 20),
        }
    }
}

/// One line.
impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, bytes)) in self.parts().into_iter().enumerate() {
            write!(f, "{}{name} {}", if i == 0 { "" } else { " + " }, Size(bytes))?;
        }
        write!(f, " = mapped {}, resident at most {}; ", Size(self.mapped), Size(self.counted))?;
        for (name, limit, hits) in
            [("soft", self.soft_limit, self.soft_limit_hits), ("hard", self.hard_limit, self.hard_limit_hits)]
        {
            if limit != 0 {
                write!(f, "{name} limit {} (hit {hits} times); ", Size(limit))?;
            }
        }
        if self.soft_limit_purges > 0 {
            write!(f, "purges by the soft limit {}; ", self.soft_limit_purges)?;
        }
        write!(f, "{} arenas, {} shards with room for {}", self.arenas_used, self.shards, Size(self.cache_room))?;
        if self.cache_limit != 0 {
            write!(f, " of {} (hit {} times)", Size(self.cache_limit), self.cache_limit_hits)?;
        }
        write!(f, "; ")?;
        if self.nodes > 1 || self.depots > 1 {
            write!(f, "{} nodes, {} depots; ", self.nodes, self.depots)?;
        }
        write!(f, "exchanges: magazine {}, depot {} ", self.magazine_exchanges, self.depot_exchanges)?;
        write!(f, "({} retries), refills {}, flushes {}; ", self.depot_retries, self.refills, self.flushes)?;
        write!(f, "locks: central {}, page heap {}; ", self.central_locks, self.page_heap_locks)?;
        write!(f, "aborts {}, give-ups {}, bypasses {}, ", self.aborts, self.give_ups, self.bypasses)?;
        write!(f, "drains {} (idle shards {}, for room {}), ", self.drains, self.idle_drains, self.cache_limit_drains)?;
        write!(f, "arena moves {}", self.arena_moves)
    }
}
