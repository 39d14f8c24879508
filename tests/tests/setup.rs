//! Set-up and exhaustion under odd circumstances. The process runs on the system's allocator and uses ours directly, as
//! a plug-in in a foreign program would, so each child decides when the first allocation comes.

use std::alloc::{GlobalAlloc, Layout};
use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alloc_core::RseqAlloc;
use integration::child;
use integration::harness::{self, Check};

static ALLOC: RseqAlloc = RseqAlloc::new();

/// Names the scene that a child plays, with its argument behind a colon.
const SCENE: &str = "SETUP_SCENE";
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Ok(scene) = std::env::var(SCENE) {
        let (name, argument) = scene.split_once(':').expect("name:argument");
        let argument = argument.parse().expect("a number");
        match name {
            "address_space" => play_address_space(argument),
            "purgers" => play_purgers(argument),
            "fork" => play_fork(argument),
            "first" => play_first(argument),
            "stack" => play_stack(),
            "decay" => play_decay(),
            "limit" => play_limit(argument),
            "errno" => play_errno(),
            "budget" => play_budget(argument),
            "mode" => println!("{}", alloc_core::mode()),
            _ => panic!("no such scene: {name}"),
        }
        return ExitCode::SUCCESS;
    }
    harness::main(&[&[
        Check::new("a_small_address_space_is_used", a_small_address_space_is_used),
        Check::new("exhaustion_beside_purging_threads_recovers", exhaustion_beside_purging_threads_recovers),
        Check::new("a_fork_in_the_middle_of_set_up_is_survived", a_fork_in_the_middle_of_set_up_is_survived),
        Check::new("the_first_small_blocks_map_nothing", the_first_small_blocks_map_nothing),
        Check::new("a_small_stack_is_enough_to_decide", a_small_stack_is_enough_to_decide),
        Check::new("what_c_sets_first_stays_set", what_c_sets_first_stays_set),
        Check::new("the_first_blocks_count_for_the_hard_limit", the_first_blocks_count_for_the_hard_limit),
        Check::new("errno_is_kept_by_the_first_allocation", errno_is_kept_by_the_first_allocation),
        Check::new("an_unlimited_budget_is_no_budget_of_zero", an_unlimited_budget_is_no_budget_of_zero),
        Check::new("the_loader_as_program_finds_the_symbols", the_loader_as_program_finds_the_symbols),
    ]])
}

/// Plays a scene in a child and returns what it printed.
fn play(scene: &str, argument: usize) -> String {
    let finished = child::run(child::again().env(SCENE, format!("{scene}:{argument}")), LIMIT);
    finished.expect_success(scene);
    finished.stdout
}

fn layout(size: usize) -> Layout {
    Layout::from_size_align(size, 8).expect("a layout")
}

/// A size in bytes from `/proc/self/status`.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let line = text.lines().find(|line| line.starts_with(field)).expect("the field");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).expect("a number") * 1024
}

/// Limits a resource to `room` above what is used of it.
fn limit(resource: libc::__rlimit_resource_t, used: usize, room: usize) {
    let limit = libc::rlimit { rlim_cur: (used + room) as libc::rlim_t, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: a valid limit.
    assert_eq!(unsafe { libc::setrlimit(resource, &limit) }, 0);
}

/// Promise: as long as a process has had only some KiB of small blocks, nothing is mapped for it. The blocks are like any
/// others, and serve again once there are caches.
fn the_first_small_blocks_map_nothing() {
    for size in [8, 64, 1000] {
        play("first", size);
    }
}

fn play_first(size: usize) {
    let allocate = |number: usize| {
        // SAFETY: the layout is valid.
        let block = unsafe { ALLOC.alloc(layout(size)) };
        assert!(!block.is_null());
        // SAFETY: a block of that size.
        unsafe { block.write_bytes(number as u8, size) };
        block
    };
    let mut blocks = Vec::with_capacity(1 << 20);
    let before = status("VmSize");
    blocks.extend((0..(20 << 10) / size).map(allocate));
    // SAFETY: a block of that layout, which is not used any more.
    unsafe { ALLOC.dealloc(blocks.swap_remove(7), layout(size)) };
    assert_eq!(status("VmSize"), before);
    assert!(is_registered_for_fences(), "later it would take milliseconds");
    let early = blocks.len();
    blocks.extend((early..(64 << 10) / size).map(allocate));
    assert!(status("VmSize") > before + (1 << 20));
    let stats = alloc_core::stats();
    assert!(stats.allocated >= blocks.len() * size && stats.allocated <= stats.resident, "{stats}");
    let mut addresses: Vec<_> = blocks.iter().map(|block| block.addr()).collect();
    addresses.sort_unstable();
    assert!(addresses.windows(2).all(|pair| pair[0] + size <= pair[1]));
    for block in blocks {
        // SAFETY: a live block of that size, which is freed once.
        unsafe {
            assert!(std::slice::from_raw_parts(block, size).windows(2).all(|pair| pair[0] == pair[1]));
            ALLOC.dealloc(block, layout(size));
        }
    }
    // The last that were freed are the first to serve.
    let again = allocate(0).addr();
    assert!(addresses.binary_search(&again).is_ok());
    alloc_core::purge();
    assert!(alloc_core::stats().allocated <= 4096);
}

/// Whether the process is registered for membarrier's fences for rseq, or the kernel does not say (before Linux 6.3).
fn is_registered_for_fences() -> bool {
    const GET_REGISTRATIONS: i32 = 1 << 9;
    const REGISTER_PRIVATE_EXPEDITED_RSEQ: i64 = 1 << 8;
    // SAFETY: a question. <https://man7.org/linux/man-pages/man2/membarrier.2.html>
    let answer = unsafe { libc::syscall(libc::SYS_membarrier, GET_REGISTRATIONS, 0, 0) };
    answer < 0 || answer & REGISTER_PRIVATE_EXPEDITED_RSEQ != 0
}

/// Promise: the thread that decides the mode may have the smallest stack there is, and have used some of it.
fn a_small_stack_is_enough_to_decide() {
    play("stack", 0);
}

fn play_stack() {
    extern "C" fn run(_: *mut libc::c_void) -> *mut libc::c_void {
        let mut own = [1_u8; 5000];
        std::hint::black_box(&mut own);
        // SAFETY: the block is given back with its layout.
        unsafe { ALLOC.dealloc(ALLOC.alloc(layout(2000)), layout(2000)) };
        std::hint::black_box(&mut own);
        std::ptr::null_mut()
    }
    // SAFETY: each object is initialised by the first call that is given it; the thread runs a function of this program.
    unsafe {
        // The first step of set-up; the thread takes the second.
        ALLOC.dealloc(ALLOC.alloc(layout(8)), layout(8));
        let (mut attributes, mut thread) = (std::mem::zeroed(), 0);
        assert_eq!(libc::pthread_attr_init(&raw mut attributes), 0);
        assert_eq!(libc::pthread_attr_setstacksize(&raw mut attributes, libc::PTHREAD_STACK_MIN), 0);
        assert_eq!(libc::pthread_create(&raw mut thread, &raw const attributes, run, std::ptr::null_mut()), 0);
        assert_eq!(libc::pthread_join(thread, std::ptr::null_mut()), 0);
    }
    let stats = alloc_core::stats();
    assert!(stats.reserved > 0, "the thread decided: {stats}");
}

/// Promise: what a C function sets before the mode is decided is not undone by the decision.
fn what_c_sets_first_stays_set() {
    play("decay", 0);
}

fn play_decay() {
    // SAFETY: the blocks are given back with their layouts.
    unsafe {
        ALLOC.dealloc(ALLOC.alloc(layout(8)), layout(8));
        alloc_core::c::set_decay(false);
        ALLOC.dealloc(ALLOC.alloc(layout(32 << 20)), layout(32 << 20));
    }
    let stats = alloc_core::stats();
    assert_eq!(stats.cached_large, 0, "{stats}");
}

/// Promise: a hard limit is in force from the first block on.
fn the_first_blocks_count_for_the_hard_limit() {
    play("limit", 8192);
}

fn play_limit(bytes: usize) {
    let limited = RseqAlloc::new().hard_limit(alloc_core::Limit::Bytes(bytes));
    // SAFETY: the layout is valid.
    let allocate = || Some(unsafe { limited.alloc(layout(1000)) }).filter(|block| !block.is_null());
    let served = std::iter::from_fn(allocate).take(100).count();
    let stats = alloc_core::stats();
    assert!(
        served > 4 && served * 1000 <= bytes && stats.counted - stats.metadata <= bytes,
        "{served} blocks: {stats}"
    );
}

/// Promise: reservations shrink under a small RLIMIT_AS, so that most of what is left serves blocks; what does not fit
/// is refused with null, and freeing makes room again.
fn a_small_address_space_is_used() {
    for mib in [16, 64, 256] {
        let served: usize = play("address_space", mib).trim().parse().expect("bytes");
        println!("{mib} MiB of address space: {} KiB of blocks", served >> 10);
        assert!(served * 2 > mib << 20, "{served} bytes of blocks in {mib} MiB");
    }
}

fn play_address_space(mib: usize) {
    // Room for the list is made before the limit.
    let mut blocks = Vec::with_capacity(mib << 10);
    limit(libc::RLIMIT_AS, status("VmSize"), mib << 20);
    for round in 0..2 {
        loop {
            // SAFETY: the layout is valid.
            let block = unsafe { ALLOC.alloc(layout(1000)) };
            if block.is_null() {
                break;
            }
            blocks.push(block);
        }
        if round == 1 {
            println!("{}", blocks.len() * 1000);
        }
        for block in blocks.drain(..) {
            // SAFETY: allocated above with this layout.
            unsafe { ALLOC.dealloc(block, layout(1000)) };
        }
    }
}

/// Promise: a request that could be served after everything free was given back is served, also while other threads are
/// giving back at the same time.
fn exhaustion_beside_purging_threads_recovers() {
    for purgers in [0, 8] {
        println!("{}", play("purgers", purgers).trim());
    }
}

fn play_purgers(purgers: usize) {
    const LIVE: usize = 4_000_000;
    let stop = AtomicBool::new(false);
    let barrier = Barrier::new(purgers + 1);
    let mut blocks = Vec::with_capacity(1 << 17);
    let mut rounds = 0;
    std::thread::scope(|scope| {
        for _ in 0..purgers {
            scope.spawn(|| {
                barrier.wait();
                barrier.wait();
                while !stop.load(Ordering::Relaxed) {
                    alloc_core::purge();
                    std::thread::sleep(Duration::from_micros(100));
                }
            });
        }
        barrier.wait();
        limit(libc::RLIMIT_DATA, status("VmData"), 2 * LIVE);
        barrier.wait();
        let end = Instant::now() + Duration::from_secs(4);
        while Instant::now() < end {
            for size in [64, 300, 1000, 3000, 9000, 20_000, 50_000, 100_000] {
                for _ in 0..LIVE / size {
                    // SAFETY: the layout is valid.
                    let block = unsafe { ALLOC.alloc(layout(size)) };
                    assert!(!block.is_null(), "{} of {size} bytes live, and no more to be had", blocks.len());
                    blocks.push((block, layout(size)));
                }
                for (block, layout) in blocks.drain(..) {
                    // SAFETY: allocated above with this layout.
                    unsafe { ALLOC.dealloc(block, layout) };
                }
                rounds += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    println!("{rounds} rounds at half the limit beside {purgers} purging threads, none refused");
}

/// Promise: a child that is forked while another thread is in the middle of set-up decides its mode by itself.
fn a_fork_in_the_middle_of_set_up_is_survived() {
    for micros in [0, 50, 200, 1000, 4000, 12_000] {
        play("fork", micros);
    }
}

fn play_fork(micros: usize) {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            barrier.wait();
            // The first step of set-up, and the second.
            for size in [100, 2000] {
                // SAFETY: the block is given back with its layout.
                unsafe { ALLOC.dealloc(ALLOC.alloc(layout(size)), layout(size)) };
            }
        });
        barrier.wait();
        std::thread::sleep(Duration::from_micros(micros as u64));
        // SAFETY: the child does only what it may after a fork: it allocates here, and exits.
        match unsafe { libc::fork() } {
            0 => {
                for _ in 0..2000 {
                    // SAFETY: as above.
                    unsafe { ALLOC.dealloc(ALLOC.alloc(layout(100)), layout(100)) };
                }
                let stats = alloc_core::stats();
                let decided = !stats.mode.to_string().contains("being decided") && stats.bypasses < 100;
                // SAFETY: ends the child without running handlers.
                unsafe { libc::_exit(i32::from(!decided)) }
            }
            child => {
                let mut status = 0;
                // SAFETY: the child is ours and the place for its status valid.
                assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
                assert_eq!(status, 0, "the child of a fork after {micros} µs");
            }
        }
    });
}

/// Promise: `errno` survives an allocation, the first one and its warnings included.
fn errno_is_kept_by_the_first_allocation() {
    let mut command = child::again();
    command.env(SCENE, "errno:0").env("RSEQ_ALLOC", "colour=red");
    // A closed descriptor 2 makes the warning fail, which sets errno.
    let finished = child::run(&mut command, LIMIT);
    finished.expect_success("errno");
}

fn play_errno() {
    // SAFETY: descriptor 2 is not used any more; errno is this thread's.
    unsafe {
        libc::close(2);
        libc::__errno_location().write(77);
        let block = ALLOC.alloc(layout(100));
        assert_eq!(libc::__errno_location().read(), 77);
        ALLOC.dealloc(block, layout(100));
        assert_eq!(libc::__errno_location().read(), 77);
    }
}

/// Promise: the largest budget means "as much as the classes allow".
fn an_unlimited_budget_is_no_budget_of_zero() {
    play("budget", usize::MAX);
}

fn play_budget(bytes: usize) {
    let unlimited = RseqAlloc::new().shard_budget(bytes);
    let mut blocks = Vec::with_capacity(1000);
    for _ in 0..1000 {
        // SAFETY: the layout is valid.
        blocks.extend((0..1000).map(|_| unsafe { unlimited.alloc(layout(64)) }));
        for block in blocks.drain(..) {
            // SAFETY: allocated above with this layout.
            unsafe { unlimited.dealloc(block, layout(64)) };
        }
    }
    let stats = alloc_core::stats();
    assert!(stats.depot_exchanges < 1000, "bursts of 1000 stay in the shard's lists: {stats}");
}

/// Promise: a program started through the loader by name, where the auxiliary vector tells no loader, comes to the same
/// mode by `dlsym`, although that may allocate in the middle of set-up.
fn the_loader_as_program_finds_the_symbols() {
    let loader = std::fs::read_to_string("/proc/self/maps")
        .expect("procfs")
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5).map(str::to_owned))
        .find(|path| path.contains("/ld-linux") || path.contains("/ld-musl") || path.contains("/ld64"));
    let Some(loader) = loader else {
        println!("this binary is statically linked: there is no loader to start it by");
        return;
    };
    let direct = play("mode", 0);
    let mut command = std::process::Command::new(loader);
    command.arg(std::env::current_exe().expect("the path of this binary")).env(SCENE, "mode:0");
    let finished = child::run(&mut command, LIMIT);
    finished.expect_success("through the loader");
    assert_eq!(finished.stdout, direct);
}
