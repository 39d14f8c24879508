//! A commit sequence that the crate does not have: appending to a log of the current vCPU. Explained step by step in
//! `rseq_sys::own_sequence`.

use rseq_sys::abi::Rseq;
use rseq_sys::{IndexKind, Mode, membarrier};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A power of two.
const CAPACITY: usize = 1 << 20;

/// One for each vCPU. `len` says how many entries count; what lies above is free.
#[repr(C, align(128))]
struct Log {
    len: AtomicUsize,
    entries: [AtomicUsize; CAPACITY],
}

#[derive(Debug, PartialEq)]
enum Append {
    Committed,
    /// The thread runs on another vCPU by now.
    Moved,
    Full,
    /// Preempted, interrupted or fenced in the middle. Nothing has happened.
    Aborted,
}

/// Appends `value` to `log`, in one attempt, if the thread runs on vCPU `id`.
///
/// # Safety
/// `area` is the calling thread's, which is registered; `log` is the one of vCPU `id` as told by `index`, and only this
/// function changes it.
#[cfg(target_arch = "x86_64")]
unsafe fn append(area: *mut Rseq, index: IndexKind, id: u32, log: *const Log, value: usize) -> Append {
    // SAFETY: reads the area and the log, writes one free entry and then the length, as the contract allows.
    unsafe {
        std::arch::asm!(
            // The descriptor: version and flags, start, length, abort handler.
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "9:",
            ".long 0, 0",
            ".quad 2f, 3f - 2f, 4f",
            ".popsection",
            "lea {t}, [rip + 9b]",
            "mov qword ptr [{area} + 8], {t}", // arm: rseq_cs = descriptor
            "2:",
            "cmp dword ptr [{area} + {field}], {id:e}",
            "jne {moved}",
            "mov {t}, qword ptr [{log}]",
            "cmp {t}, {capacity}",
            "jae {full}",
            "mov qword ptr [{log} + 8 * {t} + 8], {value}",
            "inc {t}",
            "mov qword ptr [{log}], {t}", // commit
            "3:",
            // The abort handler, with the signature before it.
            ".pushsection __rseq_abort, \"ax\"",
            ".byte 0x0f, 0xb9, 0x3d", // ud1, with the signature as its operand: keeps disassemblers in step
            ".long {signature}",
            "4:",
            "jmp {aborted}",
            ".popsection",
            area = in(reg) area,
            field = in(reg) index.offset(),
            id = in(reg) id,
            log = in(reg) log,
            value = in(reg) value,
            t = out(reg) _,
            capacity = const CAPACITY,
            signature = const rseq_sys::abi::SIGNATURE,
            moved = label { return Append::Moved },
            full = label { return Append::Full },
            aborted = label { return Append::Aborted },
            options(nostack)
        );
    }
    Append::Committed
}

/// The same for aarch64.
///
/// # Safety
/// As above.
#[cfg(target_arch = "aarch64")]
unsafe fn append(area: *mut Rseq, index: IndexKind, id: u32, log: *const Log, value: usize) -> Append {
    // SAFETY: as above.
    unsafe {
        std::arch::asm!(
            ".pushsection __rseq_cs, \"aw\"",
            ".balign 32",
            "9:",
            ".long 0, 0",
            ".quad 2f, 3f - 2f, 4f",
            ".popsection",
            "adrp {t}, 9b",
            "add {t}, {t}, :lo12:9b",
            "str {t}, [{area}, #8]", // arm: rseq_cs = descriptor
            "2:",
            "ldr {t:w}, [{area}, {field}]",
            "cmp {t:w}, {id:w}",
            "b.ne {moved}",
            "ldr {t}, [{log}]",
            "lsr {s}, {t}, #{bits}",
            "cbnz {s}, {full}",
            "add {s}, {log}, {t}, lsl #3",
            "str {value}, [{s}, #8]",
            "add {t}, {t}, #1",
            "str {t}, [{log}]", // commit
            "3:",
            ".pushsection __rseq_abort, \"ax\"",
            ".long {signature}",
            "4:",
            "b {aborted}",
            ".popsection",
            area = in(reg) area,
            field = in(reg) index.offset(),
            id = in(reg) id,
            log = in(reg) log,
            value = in(reg) value,
            t = out(reg) _,
            s = out(reg) _,
            bits = const CAPACITY.trailing_zeros(),
            signature = const rseq_sys::abi::SIGNATURE,
            moved = label { return Append::Moved },
            full = label { return Append::Full },
            aborted = label { return Append::Aborted },
            options(nostack)
        );
    }
    Append::Committed
}

/// Elsewhere [`rseq_sys::mode()`] has refused already.
///
/// # Safety
/// None.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn append(_: *mut Rseq, _: IndexKind, _: u32, _: *const Log, _: usize) -> Append {
    unreachable!("no mode on this architecture")
}

/// Logs `values` from the calling thread. Returns how many attempts were aborted.
fn log_all(mode: &Mode, logs: &[Log], values: std::ops::Range<usize>) -> usize {
    rseq_sys::ensure_thread().expect("every thread of this process can be registered");
    let (index, mut aborted) = (mode.default_index(), 0);
    let vcpu = rseq_sys::sequence::Vcpu::new(mode, index);
    for value in values {
        loop {
            let id = vcpu.id();
            // SAFETY: the area is this thread's, the log that of `id`, and it is changed nowhere else.
            match unsafe { append(mode.area(), index, id, &logs[id as usize], value) } {
                Append::Committed => break,
                Append::Moved => {}
                // A library would stop after some attempts and take a slower way: under a debugger that single-steps
                // there is no end to them.
                Append::Aborted => aborted += 1,
                Append::Full => panic!("a log has room for all values of all threads"),
            }
        }
    }
    aborted
}

/// One more than the highest number of a CPU that the machine may ever have, which no id exceeds. The file holds
/// something like `0-3` or `0,2-5`.
fn possible_cpus() -> usize {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").expect("/sys is mounted");
    let last = text.trim().rsplit(['-', ',']).next().and_then(|number| number.parse::<usize>().ok());
    1 + last.expect("a list of numbers")
}

fn main() {
    let mode = match rseq_sys::mode() {
        Ok(mode) => mode,
        Err(reason) => return println!("no rseq: {reason}"),
    };
    // As long as there is one thread this costs nothing.
    let _ = membarrier::register();
    let ids = possible_cpus();
    let layout = std::alloc::Layout::array::<Log>(ids).expect("fits the address space");
    // SAFETY: not of size 0; zeroes are empty logs; the slice is freed with the layout that it was allocated with.
    let logs: Box<[Log]> = unsafe {
        let logs = std::alloc::alloc_zeroed(layout).cast::<Log>();
        assert!(!logs.is_null(), "out of memory");
        Box::from_raw(std::ptr::slice_from_raw_parts_mut(logs, ids))
    };

    let (threads, each) = (8, CAPACITY / 8);
    let aborted: usize = std::thread::scope(|scope| {
        let (mode, logs) = (&mode, &logs);
        let running: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || log_all(mode, logs, thread * each..(thread + 1) * each)))
            .collect();
        // So that there are aborts to be seen, on a quiet machine too.
        while running.iter().any(|thread| !thread.is_finished()) {
            let _ = membarrier::fence();
        }
        running.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    });

    let mut seen = vec![false; threads * each];
    for log in &logs {
        for entry in &log.entries[..log.len.load(Ordering::Relaxed)] {
            let before = std::mem::replace(&mut seen[entry.load(Ordering::Relaxed)], true);
            assert!(!before, "a value was logged twice");
        }
    }
    assert!(seen.iter().all(|seen| *seen), "a value was lost");
    println!("{mode}: {} values logged once each, {aborted} attempts aborted", seen.len());
}
