//! The programs are started as bench starts them, with every loop and workload in its smallest form.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bench_workloads::memory::give_back::GiveBack;
use bench_workloads::memory::soak::Soak;
use bench_workloads::outcome::{Description, Outcome};
use bench_workloads::workloads::{self, json, regexes};

const CHILD: &str = env!("CARGO_BIN_EXE_child");
const LATENCY: &str = env!("CARGO_BIN_EXE_child-latency");
const LIVE: &str = env!("CARGO_BIN_EXE_child-live");
const CONSTANT: &str = env!("CARGO_BIN_EXE_child-constant");
const HELLO: &str = env!("CARGO_BIN_EXE_hello");

fn start(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

fn outcome(program: &str, name: &str, texts: &Path, more: &[&str]) -> Outcome {
    let arguments = [&[name, "--millis", "10", "--divisor", "100", "--texts", texts.to_str().unwrap()], more].concat();
    let printed = start(program, &arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
    serde_json::from_str(&printed).unwrap_or_else(|error| panic!("{name} printed {printed}: {error}"))
}

/// A folder with little text in it, which goes when this does.
struct Texts(PathBuf);

impl Texts {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("bench-child-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(json::FILE), r#"{"packages":[{"name":"a","keywords":["b",1,null]}]}"#).unwrap();
        fs::write(folder.join(regexes::FILE), include_str!("programs.rs")).unwrap();
        Texts(folder)
    }
}

impl Drop for Texts {
    fn drop(&mut self) {
        // Left-overs in the folder for temporary files are no failure of what is tested.
        _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn every_loop_and_workload_reports() {
    let texts = Texts::new("all");
    let names = start(CHILD, &["--list"]).unwrap();
    assert!(names.lines().count() > 40);
    for name in names.lines() {
        let outcome = outcome(CHILD, name, &texts.0, &[]);
        assert!(outcome.operations > 0 && outcome.per_operation() > 0.0, "{name}: {outcome:?}");
        assert!(outcome.peak_rss_kib > 0 && outcome.faults > 0, "{name}: {outcome:?}");
        assert!(outcome.malloc.is_none() && outcome.peak_live.is_none());
        assert_eq!(outcome.rss_kib.is_some(), name == "parked");
    }
    for name in start(CONSTANT, &["--list"]).unwrap().lines() {
        assert!(outcome(CONSTANT, name, &texts.0, &[]).per_operation() > 0.0, "{name}");
    }
}

#[test]
fn the_time_of_every_call_is_reported() {
    let texts = Texts::new("latency");
    for workload in workloads::all().iter().filter(|workload| workload.timed_calls) {
        let outcome = outcome(LATENCY, &workload.name, &texts.0, &[]);
        for latency in [outcome.malloc.unwrap(), outcome.free.unwrap()] {
            assert!(latency.calls > 0, "{}", workload.name);
            assert!(latency.p50 <= latency.p99 && latency.p99 <= latency.p999 && latency.p999 <= latency.max);
        }
    }
}

#[test]
fn live_bytes_are_what_the_workload_says() {
    let texts = Texts::new("live");
    // Blocks of 32 KiB to 2 MiB, one at this divisor; it and the next are live at the same time.
    let live = outcome(LIVE, "large-replace", &texts.0, &[]).peak_live.unwrap();
    assert!((64 << 10..=4 << 20).contains(&live), "{live}");
    let live = outcome(LIVE, "calloc", &texts.0, &[]).peak_live.unwrap();
    assert!((8 << 20..9 << 20).contains(&live), "{live}");
}

#[test]
fn a_heap_that_is_watched_is_resident_and_its_frees_are_seen() {
    let watch = |name| {
        let printed = start(CHILD, &[name, "--mib", "32", "--seconds", "1"]).unwrap();
        serde_json::from_str::<GiveBack>(&printed).unwrap_or_else(|error| panic!("{name} printed {printed}: {error}"))
    };
    for (name, left) in [("give-back/small/90/light", 0.1), ("give-back/mixed/all/none", 0.0)] {
        let found = watch(name);
        // Every byte was written, and glibc adds a header to each block.
        assert!((0.98..1.2).contains(&found.peak_over_live()), "{name}: {found:?}");
        assert!((found.left as f64 / found.live as f64 - left).abs() < 0.03, "{name}: {found:?}");
        assert!(found.faults > 0 && found.metadata.is_none(), "{name}: {found:?}");
        assert!(found.after(0.0).is_some() && found.after(1.0).is_some() && found.after(30.0).is_none());
    }
}

#[test]
fn a_soak_ends_after_its_time_with_whole_repetitions() {
    let printed = start(CHILD, &["soak", "--mib", "8", "--seconds", "1", "--phase-millis", "10"]).unwrap();
    let soak: Soak = serde_json::from_str(&printed).unwrap();
    assert!(soak.repetitions.len() >= 3);
    let ends: Vec<_> = soak.repetitions.iter().flatten().collect();
    assert!(ends.is_sorted_by(|one, next| one.seconds < next.seconds));
    assert!(ends.iter().all(|end| end.live > 0 && end.rss_kib * 1024 > end.live / 2), "{ends:?}");
    assert!(ends.last().is_some_and(|end| end.seconds >= 1.0));
}

#[test]
fn floors_are_measured_where_there_are_any() {
    let texts = Texts::new("floor");
    assert!(outcome(CHILD, "producer-consumer/64", &texts.0, &["--floor"]).operations > 0);
    for more in [&["--calls"][..], &["--calls", "--floor"]] {
        assert!(outcome(CHILD, "pairs/16", &texts.0, more).operations > 0);
    }
    assert!(start(CHILD, &["live-set", "--calls"]).unwrap_err().contains("is not for --calls"));
    assert!(start(CHILD, &["json", "--floor"]).unwrap_err().contains("has no floor"));
}

#[test]
fn the_c_library_is_described() {
    let found: Description = serde_json::from_str(&start(CHILD, &["--describe"]).unwrap()).unwrap();
    assert_eq!((found.name.as_str(), found.mode), ("glibc", None));
    assert!(found.version.starts_with("2."));
}

#[test]
fn nonsense_is_refused() {
    for arguments in
        [&[][..], &["no-such"], &["server", "--millis", "0"], &["server", "--millis"], &["json"], &["give-back/small"]]
    {
        assert!(start(CHILD, arguments).is_err(), "{arguments:?}");
    }
}

#[test]
fn hello_says_hello() {
    assert_eq!(start(HELLO, &[]).unwrap(), "hello, world\n");
    let told = start(HELLO, &["memory"]).unwrap();
    assert!(told.lines().nth(1).unwrap().parse::<u64>().unwrap() > 100);
}
