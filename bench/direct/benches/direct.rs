//! The loops of bench-workloads on each allocator, called directly. Started by `cargo bench -p bench`, which runs this
//! in two builds and says in `BENCH_BUILD` which one it is.

use std::time::Duration;

use bench_direct::{ALL, FLOOR};
use bench_workloads::loops::{Layouts, Loop};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn loops(criterion: &mut Criterion) {
    let (build, layouts) = match std::env::var("BENCH_BUILD").as_deref() {
        Ok("lto") => ("lto", Layouts::Constant),
        _ => ("release", Layouts::AtRunTime),
    };
    for each in Loop::all() {
        let mut group = criterion.benchmark_group(format!("{build}/{each}"));
        for contender in ALL.iter().chain(each.has_floor().then_some(&FLOOR)) {
            let timed = (contender.on)(each, layouts);
            group.throughput(Throughput::Elements(timed.operations));
            group.bench_function(contender.name, |bencher| bencher.iter_custom(&timed.run));
        }
        group.finish();
    }
}

criterion_group! {
    name = benches;
    // There are two hundred of them, in two builds.
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1));
    targets = loops
}
criterion_main!(benches);
