//! The sequences without assembly, twice.
//!
//! The functions with `plain` in their names are the stack operations for a header that the caller guards by other means:
//! a lock, or exclusive ownership. A fallback that takes a lock for each shard is built on them.
//!
//! The other functions have the signatures of the assembly files and stand in for them on other architectures, under
//! Miri and in tests: one vCPU with the id 0 for the whole process, whose sections a spin lock keeps apart. That is
//! what rseq promises (sections of one vCPU never interleave), only slower, so everything built on sequences behaves
//! the same; no section is ever aborted.

use super::{Attempt, EMPTY, FULL};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Pops from the stack of `header`; 0 if it is empty or there is none.
///
/// # Safety
/// Nobody else uses the header or its stack during the call; both are valid as described at [`super::Stacks`].
#[inline]
pub unsafe fn pop_plain(header: *mut usize) -> usize {
    // SAFETY: the header is a valid word.
    let header = unsafe { word(header) };
    let top = header.load(Ordering::Relaxed);
    if top == 0 {
        return 0;
    }
    let below = top - size_of::<usize>();
    // SAFETY: below the place after the topmost pointer is a slot, or the sentinel.
    let p = unsafe { word(core::ptr::with_exposed_provenance(below)) }.load(Ordering::Relaxed);
    if p != 0 {
        header.store(below, Ordering::Relaxed);
    }
    p
}

/// Pushes `p` on the stack of `header`, whose stacks end at multiples of `STACK` bytes; false if it is full, there is
/// none, or `p` is the topmost pointer.
///
/// # Safety
/// As for [`pop_plain`].
#[inline]
pub unsafe fn push_plain<const STACK: usize>(header: *mut usize, p: usize) -> bool {
    // SAFETY: the header is a valid word.
    let header = unsafe { word(header) };
    let top = header.load(Ordering::Relaxed);
    if top.is_multiple_of(STACK) {
        return false;
    }
    // SAFETY: below the place after the topmost pointer is a slot, or the sentinel.
    let topmost = unsafe { word(core::ptr::with_exposed_provenance(top - size_of::<usize>())) };
    if topmost.load(Ordering::Relaxed) == p {
        return false;
    }
    // SAFETY: what is not the stack's end is a free slot.
    unsafe { word(core::ptr::with_exposed_provenance(top)) }.store(p, Ordering::Relaxed);
    header.store(top + size_of::<usize>(), Ordering::Relaxed);
    true
}

/// The word at `offset` of the stack that `top` points into.
///
/// # Safety
/// `top` is that of a stack in a chain, as described at [`super::Stacks`].
unsafe fn neighbour<'a, const STACK: usize>(top: usize, offset: usize) -> &'a AtomicUsize {
    // SAFETY: by contract the stack begins at that multiple of STACK.
    unsafe { word(core::ptr::with_exposed_provenance(((top - size_of::<usize>()) & !(STACK - 1)) + offset)) }
}

/// As [`super::Stacks::pop_chained`]; 0 if the whole chain is empty or there is none.
///
/// # Safety
/// As for [`pop_plain`], for the whole chain.
pub unsafe fn pop_chained_plain<const STACK: usize>(header: *mut usize) -> usize {
    // SAFETY: by contract.
    let p = unsafe { pop_plain(header) };
    // SAFETY: the header is a valid word.
    let header = unsafe { word(header) };
    let top = header.load(Ordering::Relaxed);
    if p != 0 || top == 0 {
        return p;
    }
    // SAFETY: by contract.
    let full = unsafe { neighbour::<STACK>(top, FULL) }.load(Ordering::Relaxed);
    if full == 0 {
        return 0;
    }
    // SAFETY: by contract; neighbours are stacks of the same chain.
    unsafe { neighbour::<STACK>(full, EMPTY) }.store(top, Ordering::Relaxed);
    header.store(full, Ordering::Relaxed);
    // SAFETY: by contract.
    unsafe { pop_plain(header.as_ptr()) }
}

/// As [`super::Stacks::push_chained`]; false if the whole chain is full, there is none, or `p` is the topmost pointer.
///
/// # Safety
/// As for [`pop_chained_plain`].
pub unsafe fn push_chained_plain<const STACK: usize>(header: *mut usize, p: usize) -> bool {
    // SAFETY: the header is a valid word.
    let top = unsafe { word(header) }.load(Ordering::Relaxed);
    if top != 0 && top.is_multiple_of(STACK) {
        // SAFETY: below a full stack's top is its last slot; neighbours are stacks of the same chain.
        unsafe {
            let topmost = word(core::ptr::with_exposed_provenance(top - size_of::<usize>()));
            let empty = neighbour::<STACK>(top, EMPTY).load(Ordering::Relaxed);
            if topmost.load(Ordering::Relaxed) == p || empty == 0 {
                return false;
            }
            neighbour::<STACK>(empty, FULL).store(top, Ordering::Relaxed);
            word(header).store(empty, Ordering::Relaxed);
        }
    }
    // SAFETY: by contract.
    unsafe { push_plain::<STACK>(header, p) }
}

/// As [`super::Vcpu::exchange`] and, if `extend`, as [`super::Vcpu::extend`]; false if the header is not `expect`.
///
/// # Safety
/// As there, but nobody else uses the header meanwhile.
pub unsafe fn replace_chained_plain<const STACK: usize>(
    header: *mut usize,
    expect: usize,
    new: usize,
    extend: bool,
) -> bool {
    // SAFETY: the header is a valid word; by contract `expect` and `new` are tops of stacks.
    unsafe {
        if word(header).load(Ordering::Relaxed) != expect {
            return false;
        }
        let full = if extend { expect } else { neighbour::<STACK>(expect, FULL).load(Ordering::Relaxed) };
        neighbour::<STACK>(new, FULL).store(full, Ordering::Relaxed);
        let empty = neighbour::<STACK>(expect, EMPTY).load(Ordering::Relaxed);
        neighbour::<STACK>(new, EMPTY).store(empty, Ordering::Relaxed);
        word(header).store(new, Ordering::Relaxed);
    }
    true
}

/// Keeps the sections of the one vCPU apart.
static SECTION: AtomicBool = AtomicBool::new(false);

/// Runs `section` while no other section runs.
fn exclusively<R>(section: impl FnOnce() -> R) -> R {
    while SECTION.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_err() {
        core::hint::spin_loop();
    }
    let result = section();
    SECTION.store(false, Ordering::Release);
    result
}

/// The header at displacement `x` for vCPU 0 of the table at `g`.
///
/// # Safety
/// `g` is a [`super::Stacks`].
unsafe fn header(g: *const usize, x: usize) -> *mut usize {
    // SAFETY: the third word of the table is the base.
    let base = unsafe { &*g.add(2).cast::<AtomicUsize>() };
    core::ptr::with_exposed_provenance_mut(base.load(Ordering::Acquire) + x)
}

/// See [`super::Stacks::pop`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
pub unsafe fn pop<const SHIFT: u32>(g: *const usize, x: usize) -> *mut u8 {
    // SAFETY: by contract; the lock guards the header.
    let p = exclusively(|| unsafe { pop_plain(header(g, x)) });
    core::ptr::with_exposed_provenance_mut(p)
}

/// See [`super::Stacks::push`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
pub unsafe fn push<const SHIFT: u32, const STACK: usize>(g: *const usize, x: usize, p: usize) -> bool {
    // SAFETY: by contract; the lock guards the header.
    exclusively(|| unsafe { push_plain::<STACK>(header(g, x), p) })
}

/// See [`super::Stacks::pop_chained`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
pub unsafe fn pop_chained<const SHIFT: u32, const STACK: usize>(g: *const usize, x: usize) -> (Attempt, usize) {
    // SAFETY: by contract; the lock guards the header and its chain.
    match exclusively(|| unsafe { pop_chained_plain::<STACK>(header(g, x)) }) {
        0 => (Attempt::Differs, 0),
        p => (Attempt::Committed, p),
    }
}

/// See [`super::Stacks::push_chained`].
///
/// # Safety
/// `g` is a [`super::Stacks`]; its contract holds.
pub unsafe fn push_chained<const SHIFT: u32, const STACK: usize>(g: *const usize, x: usize, p: usize) -> Attempt {
    // SAFETY: by contract; the lock guards the header and its chain.
    if exclusively(|| unsafe { push_chained_plain::<STACK>(header(g, x), p) }) {
        Attempt::Committed
    } else {
        Attempt::Differs
    }
}

/// See [`super::Vcpu::exchange`] and [`super::Vcpu::extend`].
///
/// # Safety
/// Their contract holds; `full` is a valid word.
#[expect(clippy::too_many_arguments, reason = "the signature of the assembly files")]
pub unsafe fn replace_chained<const STACK: usize>(
    _own_delta: isize,
    _id_offset: usize,
    id: u32,
    v: *mut usize,
    expect: usize,
    seal: *const usize,
    new: usize,
    full: *const usize,
) -> Attempt {
    if id != 0 {
        return Attempt::Moved;
    }
    exclusively(|| {
        // SAFETY: by contract; what an extension has for its full neighbour is the word that holds `expect`.
        unsafe {
            if word(seal).load(Ordering::Acquire) != 0 {
                return Attempt::Differs;
            }
            let extend = word(full).load(Ordering::Relaxed) == expect;
            if replace_chained_plain::<STACK>(v, expect, new, extend) { Attempt::Committed } else { Attempt::Differs }
        }
    })
}

/// The one id there is.
pub fn read_id(_own_delta: isize, _id_offset: usize) -> u32 {
    0
}

/// A word of a header or a stack; atomic, because a drainer may exchange it, or another thread look at it, meanwhile.
///
/// # Safety
/// `v` is a valid, aligned word.
unsafe fn word<'a>(v: *const usize) -> &'a AtomicUsize {
    // SAFETY: by contract.
    unsafe { &*v.cast::<AtomicUsize>() }
}

/// See [`super::Vcpu::compare_compare_store`].
///
/// # Safety
/// Its contract holds.
#[expect(clippy::too_many_arguments, reason = "the signature of the assembly files")]
pub unsafe fn compare_compare_store(
    _own_delta: isize,
    _id_offset: usize,
    id: u32,
    v: *mut usize,
    expect: usize,
    v2: *const usize,
    expect2: usize,
    new: usize,
) -> Attempt {
    if id != 0 {
        return Attempt::Moved;
    }
    // SAFETY: by contract.
    let (v, v2) = unsafe { (word(v), word(v2)) };
    exclusively(|| {
        if v2.load(Ordering::Acquire) != expect2 || v.load(Ordering::Acquire) != expect {
            return Attempt::Differs;
        }
        v.store(new, Ordering::Release);
        Attempt::Committed
    })
}

/// See [`super::Vcpu::add`].
///
/// # Safety
/// Its contract holds.
pub unsafe fn add(_own_delta: isize, _id_offset: usize, id: u32, v: *mut usize, n: usize) -> Attempt {
    if id != 0 {
        return Attempt::Moved;
    }
    // SAFETY: by contract.
    let v = unsafe { word(v) };
    exclusively(|| v.store(v.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed));
    Attempt::Committed
}

/// See [`super::Vcpu::compare_load_store`].
///
/// # Safety
/// Its contract holds.
#[expect(clippy::too_many_arguments, reason = "the signature of the assembly files")]
pub unsafe fn compare_load_store(
    _own_delta: isize,
    _id_offset: usize,
    id: u32,
    v: *mut usize,
    unless: usize,
    next_offset: usize,
    v2: *const usize,
    expect2: usize,
) -> (Attempt, usize) {
    if id != 0 {
        return (Attempt::Moved, 0);
    }
    // SAFETY: by contract.
    let (v, v2) = unsafe { (word(v), word(v2)) };
    exclusively(|| {
        let p = v.load(Ordering::Acquire);
        if v2.load(Ordering::Acquire) != expect2 || p == unless {
            return (Attempt::Differs, p);
        }
        // SAFETY: by contract the word at `p + next_offset` can be read.
        let next = unsafe { word(core::ptr::with_exposed_provenance(p + next_offset)) }.load(Ordering::Acquire);
        v.store(next, Ordering::Release);
        (Attempt::Committed, p)
    })
}
