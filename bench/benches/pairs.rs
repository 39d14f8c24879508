//! Malloc and free on one thread, each allocator called directly: pairs of one size, of mixed sizes, and bursts of
//! 1000.
//!
//! The loops are those of `bench::single`; criterion decides how often they run. alloc-core's fast path is inlined into
//! them (entry `rseq`) or not (`rseq, called`); the other allocators are always behind a call.

use bench::contender::{self, Contender};
use bench::single::{Order, Sizes};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn pairs(criterion: &mut Criterion) {
    let fixed = [16, 64, 256, 1024, 8 << 10, 64 << 10].map(|size| (size.to_string(), Sizes::fixed(size)));
    let mixed = [("16-1024", Sizes::spread(16, 1024)), ("16-65536", Sizes::spread(16, 64 << 10))];
    let mixed = mixed.map(|(name, sizes)| (name.to_owned(), sizes));
    for (name, sizes) in fixed.iter().chain(&mixed) {
        let mut group = criterion.benchmark_group(format!("pairs/{name}"));
        for Contender { name, pairs, .. } in contender::ALL {
            group.bench_function(name, |bencher| bencher.iter_custom(|count| pairs(sizes, count)));
        }
        group.finish();
    }
}

fn bursts(criterion: &mut Criterion) {
    const LENGTH: usize = 1000;
    let sizes = Sizes::fixed(64);
    let orders = [("lifo", Order::lifo(LENGTH)), ("fifo", Order::fifo(LENGTH)), ("random", Order::random(LENGTH))];
    for (name, order) in &orders {
        let mut group = criterion.benchmark_group(format!("bursts of {LENGTH}/{name}"));
        group.throughput(Throughput::Elements(LENGTH as u64));
        for Contender { name, bursts, .. } in contender::ALL {
            group.bench_function(name, |bencher| bencher.iter_custom(|count| bursts(&sizes, order, count)));
        }
        group.finish();
    }
}

criterion_group!(benches, pairs, bursts);
criterion_main!(benches);
