//! 2000 threads that each allocated and freed 1 MiB in small blocks and then went to sleep: resident memory and time.
//!
//! One iteration is one process of the helper program for the allocator, and costs a second or so; the numbers hardly
//! scatter, so ten samples of one iteration are plenty (criterion is given no time for more, and warns about that). The
//! entry `floor` is the same without allocation: subtract it.

use std::time::Duration;

use bench::parked::{BYTES, Helper, Parked, THREADS};
use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};

fn helpers() -> [(&'static str, Helper); 5] {
    [
        ("rseq", Helper::new(env!("CARGO_BIN_EXE_parked_rseq"))),
        ("jemalloc", Helper::new(env!("CARGO_BIN_EXE_parked_jemalloc"))),
        ("snmalloc", Helper::new(env!("CARGO_BIN_EXE_parked_snmalloc"))),
        ("system", Helper::new(env!("CARGO_BIN_EXE_parked_system"))),
        ("floor", Helper::new(env!("CARGO_BIN_EXE_parked_system")).floor()),
    ]
}

/// Runs `helper` `count` times and adds up what `value` finds in the results.
fn total<T: std::iter::Sum>(helper: &Helper, count: u64, value: impl Fn(Parked) -> T) -> T {
    let runs = (0..count).map(|_| helper.run(THREADS, BYTES));
    runs.map(|run| value(run.unwrap_or_else(|error| panic!("{error}")))).sum()
}

fn wall(criterion: &mut Criterion<WallTime>) {
    let mut group = criterion.benchmark_group("parked threads/time");
    group.sampling_mode(SamplingMode::Flat);
    for (name, helper) in helpers() {
        group.bench_function(name, |bencher| bencher.iter_custom(|count| total(&helper, count, |run| run.wall)));
    }
    group.finish();
}

fn memory(criterion: &mut Criterion<Resident>) {
    let mut group = criterion.benchmark_group("parked threads/resident memory");
    group.sampling_mode(SamplingMode::Flat);
    for (name, helper) in helpers() {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| total(&helper, count, |run| run.rss_kib as f64 / 1024.0));
        });
    }
    group.finish();
}

/// Resident memory in MiB as a quantity that criterion can sample; only `iter_custom` makes sense with it.
struct Resident;

impl Measurement for Resident {
    type Intermediate = ();
    type Value = f64;

    fn start(&self) {}

    fn end(&self, (): ()) -> f64 {
        0.0
    }

    fn add(&self, left: &f64, right: &f64) -> f64 {
        left + right
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Mebibytes
    }
}

struct Mebibytes;

impl ValueFormatter for Mebibytes {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        "MiB"
    }

    fn scale_throughputs(&self, _typical: f64, _throughput: &Throughput, _values: &mut [f64]) -> &'static str {
        "MiB"
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        "MiB"
    }
}

fn few_samples<M: Measurement + 'static>(criterion: Criterion<M>) -> Criterion<M> {
    criterion.sample_size(10).warm_up_time(Duration::from_millis(1)).measurement_time(Duration::from_millis(1))
}

criterion_group! {
    name = times;
    config = few_samples(Criterion::default());
    targets = wall
}
criterion_group! {
    name = sizes;
    config = few_samples(Criterion::default().with_measurement(Resident));
    targets = memory
}
criterion_main!(times, sizes);
