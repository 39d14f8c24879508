//! What stays resident after a random part of many small blocks was freed: at once, over the decay interval with a
//! little activity, and after a purge.
//!
//! ```console
//! $ RSEQ_ALLOC=decay=2000 cargo run --release -p alloc-core --example sparse -- --mib 600 --percent 90
//! ```

use std::alloc::{Layout, alloc, dealloc};
use std::time::{Duration, Instant};

use clap::Parser;

#[global_allocator]
static GLOBAL: alloc_core::RseqAlloc = alloc_core::RseqAlloc::new();

#[derive(Parser)]
struct Arguments {
    /// MiB of blocks of 16 to 1024 bytes.
    #[arg(long, default_value_t = 600)]
    mib: usize,
    /// How many percent of them are freed, at random.
    #[arg(long, default_value_t = 90)]
    percent: usize,
    /// Milliseconds of waiting, in which a few blocks come and go.
    #[arg(long, default_value_t = 12_000)]
    wait: u64,
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

/// Bytes of resident memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("procfs");
    let pages: usize = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("a number");
    // SAFETY: asks for a number.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

fn main() {
    let Arguments { mib, percent, wait } = Arguments::parse();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let base = resident();
    let mut blocks: Vec<(*mut u8, usize)> = Vec::with_capacity((mib << 20) / 500);
    let mut live = 0;
    while live < mib << 20 {
        let size = 16 + random.below(1009);
        // SAFETY: the size is not 0.
        let block = unsafe { alloc(layout(size)) };
        assert!(!block.is_null());
        // SAFETY: the block is that long.
        unsafe { block.write_bytes(0xa5, size) };
        blocks.push((block, size));
        live += size;
    }
    // What the list of blocks takes is no matter of small blocks.
    let list = blocks.len() * size_of::<(*mut u8, usize)>();
    let show = |what: &str, live: usize| {
        let net = resident() - base - list;
        println!(
            "{what:<24} live {:>4} MiB, resident {:>4} MiB, ratio {:.3}; {} MiB returned inside spans",
            live >> 20,
            net >> 20,
            net as f64 / live as f64,
            alloc_core::stats().returned_in_spans >> 20,
        );
    };
    show("all in use", live);
    for at in (1..blocks.len()).rev() {
        blocks.swap(at, random.below(at + 1));
    }
    let keep = blocks.len() * (100 - percent) / 100;
    for &(block, size) in &blocks[keep..] {
        live -= size;
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(block, layout(size)) };
    }
    show("freed", live);
    let start = Instant::now();
    let mut quarter = 1;
    while start.elapsed() < Duration::from_millis(wait) {
        // Light activity: sizes that miss in their magazines now and then.
        let sizes = 16 + random.below(1009);
        for _ in 0..300 {
            // SAFETY: the size is not 0; freed with the same layout.
            unsafe {
                let some: [*mut u8; 200] = std::array::from_fn(|_| alloc(layout(sizes)));
                some.iter().for_each(|&block| dealloc(block, layout(sizes)));
            }
        }
        std::thread::sleep(Duration::from_millis(2));
        if start.elapsed() > Duration::from_millis(wait * quarter / 4) {
            show(&format!("after {} ms", wait * quarter / 4), live);
            quarter += 1;
        }
    }
    let before = Instant::now();
    let bytes = alloc_core::purge();
    println!("purge: {} MiB in {:?}", bytes >> 20, before.elapsed());
    show("purged", live);
    println!("{}", alloc_core::stats());
    for &(block, size) in &blocks[..keep] {
        // SAFETY: allocated above with this layout.
        unsafe { dealloc(block, layout(size)) };
    }
    drop(blocks);
    alloc_core::purge();
    println!("all freed and purged: {} KiB above the start", (resident().saturating_sub(base)) >> 10);
}
