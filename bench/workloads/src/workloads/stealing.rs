//! Models an executor with work stealing, and more workers than CPUs: every worker has a queue of tasks; a task is a
//! block of 16 to 1024 bytes that whoever runs it frees, and running it makes none, one or two more. A worker without
//! tasks steals half of another's. So blocks are freed by other threads, and threads are preempted at any point.
//!
//! Counted: tasks. Queues and thread switches are the floor.

use crossbeam_deque::{Steal, Worker};

use super::{Outcome, Settings};
use crate::blocks::{Block, Random, Shape, Sizes, Subject};
use crate::crew;

/// A worker makes no more tasks while it has so many.
const MOST: usize = 64;
/// Tasks of a worker at the start.
const FIRST: usize = 16;

pub(super) fn run<A: Subject>(allocator: A, threads: usize, settings: &Settings) -> Outcome {
    let sizes = Sizes::small();
    let workers: Vec<Worker<Block>> = (0..threads).map(|_| Worker::new_lifo()).collect();
    let stealers: Vec<_> = workers.iter().map(Worker::stealer).collect();
    let workers: Vec<_> = workers.into_iter().map(|worker| std::sync::Mutex::new(Some(worker))).collect();
    let pace = crew::threads(settings.span, threads, |number, hand| {
        let taken = workers[number].lock().map(|mut worker| worker.take());
        let Ok(Some(own)) = taken else { unreachable!("each worker is taken by the thread of its number") };
        let mut random = Random::new(number as u64);
        let make = |random: &mut Random| Block::new(allocator, sizes.layout(random.next() as usize));
        for _ in 0..FIRST {
            own.push(make(&mut random));
        }
        while hand.goes_on() {
            let task = own.pop().or_else(|| match stealers[random.below(threads)].steal_batch_and_pop(&own) {
                Steal::Success(task) => Some(task),
                Steal::Empty | Steal::Retry => None,
            });
            // Nobody had anything: a new task comes from outside.
            let Some(task) = task else {
                own.push(make(&mut random));
                continue;
            };
            task.free(allocator);
            hand.did(1);
            let more = if own.len() >= MOST { 0 } else { random.below(3) };
            for _ in 0..more {
                own.push(make(&mut random));
            }
        }
        while let Some(task) = own.pop() {
            task.free(allocator);
        }
    });
    Ok(pace.into())
}
