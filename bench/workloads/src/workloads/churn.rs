//! Models a program that starts a thread for every task: as many threads as there are CPUs each start a thread, wait for
//! its end, and start the next. Such a thread allocates 100 blocks of 16 to 1024 bytes, frees 90 of them and leaves 10
//! to the next one, which frees them first.
//!
//! Counted: threads. Starting and joining a thread is the floor; it is done without the standard library, which
//! allocates for each thread itself.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Outcome, Settings};
use crate::blocks::{Block, Shape, Sizes, Subject};
use crate::crew;

const BLOCKS: usize = 100;
const LEFT: usize = 10;

/// What a thread is given and gives on.
struct Task<A> {
    allocator: A,
    sizes: Sizes,
    index: usize,
    left: [Option<Block>; LEFT],
}

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let refused = AtomicBool::new(false);
    let pace = crew::threads(settings.span, crew::cpus(), |number, hand| {
        let mut task = Task { allocator, sizes: Sizes::small(), index: number * 100, left: [const { None }; LEFT] };
        while hand.goes_on() {
            if !run_thread(&mut task) {
                refused.store(true, Ordering::Relaxed);
                break;
            }
            hand.did(1);
        }
        task.left.iter_mut().filter_map(Option::take).for_each(|block| block.free(allocator));
    });
    if refused.into_inner() { Err("a thread could not be started".to_owned()) } else { Ok(pace.into()) }
}

/// Runs a thread with the task and waits for its end; says whether it could be started.
fn run_thread<A: Subject>(task: &mut Task<A>) -> bool {
    let mut thread: libc::pthread_t = 0;
    // SAFETY: the arguments are valid, and the task outlives the thread, which is joined below and has it for itself
    // until then. <https://man7.org/linux/man-pages/man3/pthread_create.3.html>
    unsafe {
        if libc::pthread_create(&raw mut thread, ptr::null(), body::<A>, ptr::from_mut(task).cast()) != 0 {
            return false;
        }
        libc::pthread_join(thread, ptr::null_mut()) == 0
    }
}

extern "C" fn body<A: Subject>(task: *mut c_void) -> *mut c_void {
    // SAFETY: `run_thread` passes its task and waits.
    let task = unsafe { &mut *task.cast::<Task<A>>() };
    task.left.iter_mut().filter_map(Option::take).for_each(|block| block.free(task.allocator));
    let mut blocks = [const { None }; BLOCKS];
    for block in &mut blocks {
        *block = Some(Block::new(task.allocator, task.sizes.layout(task.index)));
        task.index += 1;
    }
    for (index, block) in blocks.iter_mut().enumerate() {
        if index % (BLOCKS / LEFT) == 0 {
            task.left[index / (BLOCKS / LEFT)] = block.take();
        } else if let Some(block) = block.take() {
            block.free(task.allocator);
        }
    }
    ptr::null_mut()
}
