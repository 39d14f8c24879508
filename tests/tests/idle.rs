//! What a process gives back that has become quiet. Promise: with light activity memory goes back along the curve of decay,
//! although that activity only hits; a silent process keeps it.
//!
//! Each scene is a process of its own, with its options in the environment.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use alloc_core::RseqAlloc;
use integration::child;
use integration::harness::{self, Check};
use integration::random::Random;

#[global_allocator]
static GLOBAL: RseqAlloc = RseqAlloc::new();

const MIB: usize = 1 << 20;
/// Bytes that each process allocates and frees first.
const PEAK: usize = 512 * MIB;
/// What may be resident in the end: 5% of that, or 16 MiB if that is more.
const REST: usize = if PEAK / 20 > 16 * MIB { PEAK / 20 } else { 16 * MIB };
/// The interval of decay.
const DECAY: Duration = Duration::from_millis(4000);
/// How long to wait for what takes little more than that.
const PATIENCE: Duration = DECAY.saturating_mul(8);
const OPTIONS: &str = "decay=4000";

const SCENE: &str = "INTEGRATION_SCENE";

/// Name, options beyond [`OPTIONS`], and what happens.
const SCENES: &[(&str, &str, fn())] = &[
    ("light", "index=auto", light_activity),
    ("light_arenas", "index=arenas", light_activity),
    ("one_size", "index=auto", light_activity_of_another_size),
    ("kept", "index=auto", kept_when_silent),
];

fn main() -> ExitCode {
    if let Ok(scene) = std::env::var(SCENE) {
        let (_, _, play) = SCENES.iter().find(|(name, _, _)| *name == scene).expect("a scene");
        play();
        return ExitCode::SUCCESS;
    }
    harness::main(&[&[
        Check::new("light_activity_follows_the_curve", || run("light")),
        Check::new("light_activity_on_arenas_follows_the_curve", || run("light_arenas")),
        Check::new("light_activity_of_another_size_follows_the_curve", || run("one_size")),
        Check::new("silence_gives_nothing_back", || run("kept")),
    ]])
}

fn run(scene: &str) {
    let (_, options, _) = SCENES.iter().find(|(name, _, _)| *name == scene).expect("a scene");
    let options = format!("{OPTIONS},{options}");
    let finished = child::run(
        child::again().env(SCENE, scene).env("RSEQ_ALLOC", options).env("RUST_BACKTRACE", "0"),
        Duration::from_secs(115),
    );
    finished.expect_success(scene);
    print!("{}", finished.stdout);
}

/// Resident bytes ([proc_pid_statm(5)](https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html)), read without
/// allocating: that would be activity.
fn resident() -> usize {
    let mut text = [0_u8; 128];
    // SAFETY: a valid path.
    let file = unsafe { libc::open(c"/proc/self/statm".as_ptr(), libc::O_RDONLY) };
    assert!(file >= 0, "procfs");
    // SAFETY: the buffer is valid for its length.
    let len = unsafe { libc::read(file, text.as_mut_ptr().cast(), text.len()) };
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    let text = std::str::from_utf8(&text[..len as usize]).expect("ASCII");
    let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    // SAFETY: no preconditions.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a valid layout")
}

/// A block whose pages are touched.
fn allocate(size: usize) -> *mut u8 {
    // SAFETY: the size is not zero.
    let block = unsafe { GLOBAL.alloc(layout(size)) };
    assert!(!block.is_null());
    // SAFETY: a fresh block of at least that size.
    unsafe { block.write_bytes(1, size) };
    block
}

fn free(block: *mut u8, size: usize) {
    // SAFETY: allocated with this layout, and given up here.
    unsafe { GLOBAL.dealloc(block, layout(size)) };
}

fn sizes(seed: u64) -> impl FnMut() -> usize {
    let mut random = Random::new(seed);
    move || 100 + random.below(1001)
}

/// Allocates [`PEAK`] bytes in blocks of `size()` and frees them; returns the resident bytes before and at the peak.
fn rise_and_fall(mut size: impl FnMut() -> usize) -> (usize, usize) {
    let mut blocks: Vec<(*mut u8, usize)> = Vec::with_capacity(PEAK / 100);
    let before = resident();
    let mut bytes = 0;
    while bytes < PEAK {
        let size = size();
        blocks.push((allocate(size), size));
        bytes += size;
    }
    let peak = resident();
    assert!(peak >= before + PEAK);
    let list = blocks.len() * size_of::<(*mut u8, usize)>();
    for (block, size) in blocks.drain(..) {
        free(block, size);
    }
    // The list itself was resident, too, and goes at once.
    drop(blocks);
    (before, peak - list)
}

/// Sees that what is resident goes down while `act` is called: to half of the peak, to a quarter, and to [`REST`]. On a
/// machine with time to spare that is after 0.5, 0.7 and 1.0 to 1.25 intervals; where a hundred threads wait for two
/// CPUs, ticks are rare, so this demands no more than that it comes to pass. The curve itself is held to the clock by
/// the unit tests of the page heap.
fn expect_curve(start: Instant, before: usize, peak: usize, mut act: impl FnMut()) {
    let rise = peak - before;
    for most in [rise / 2 + REST, rise / 4 + REST, REST] {
        loop {
            let now = resident().saturating_sub(before);
            if now <= most {
                println!(
                    "{} of {} MiB after {:.2} intervals",
                    now / MIB,
                    rise / MIB,
                    start.elapsed().div_duration_f64(DECAY)
                );
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{now} bytes are resident after {PATIENCE:?}: {}", alloc_core::stats());
            act();
        }
    }
}

/// A thousand pairs per second, a few at a time.
fn pairs(mut size: impl FnMut() -> usize) -> impl FnMut() {
    move || {
        for _ in 0..5 {
            let size = size();
            free(allocate(size), size);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn light_activity() {
    let (before, peak) = rise_and_fall(sizes(1));
    expect_curve(Instant::now(), before, peak, pairs(sizes(2)));
}

fn light_activity_of_another_size() {
    let (before, peak) = rise_and_fall(|| 1000);
    expect_curve(Instant::now(), before, peak, pairs(|| 64));
}

/// Nothing runs beside the program: what is free stays until the program comes back.
fn kept_when_silent() {
    let (before, peak) = rise_and_fall(sizes(1));
    std::thread::sleep(2 * DECAY);
    let now = resident().saturating_sub(before);
    assert!(now > (peak - before) / 2, "{now} bytes are resident: who gave the others back?");
}
