//! Models a program with a thread that only frees (a reaper, a garbage collector, a logger): the other threads, one for
//! each CPU but at least one, allocate lists of 2000 blocks of 16 to 1024 bytes; one more thread frees them. What an
//! allocator keeps for the freeing thread, which never needs it, shows in the peak of resident memory.
//!
//! Counted: blocks that were freed.

use std::sync::mpsc::{RecvTimeoutError, TrySendError, sync_channel};
use std::thread;
use std::time::Duration;

use super::{Outcome, Settings};
use crate::blocks::{Block, Shape, Sizes, Subject};
use crate::crew;

const LIST: usize = 2000;
/// Lists on their way.
const WAITING: usize = 16;

pub(super) fn run<A: Subject>(allocator: A, settings: &Settings) -> Outcome {
    let list = settings.scaled(LIST);
    let sizes = Sizes::small();
    let (sender, receiver) = sync_channel::<Vec<Block>>(WAITING);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let pace = crew::threads(settings.span, crew::cpus() + 1, |number, hand| {
        if number == 0 {
            let taken = receiver.lock().map(|mut receiver| receiver.take());
            let Ok(Some(receiver)) = taken else { unreachable!("there is one worker of this number") };
            while hand.goes_on() {
                match receiver.recv_timeout(Duration::from_millis(1)) {
                    Ok(blocks) => {
                        let length = blocks.len() as u64;
                        blocks.into_iter().for_each(|block| block.free(allocator));
                        hand.did(length);
                    }
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            receiver.try_iter().flatten().for_each(|block| block.free(allocator));
            return;
        }
        let mut index = number * 100;
        'lists: while hand.goes_on() {
            let mut blocks: Vec<Block> = Vec::with_capacity(list);
            for _ in 0..list {
                blocks.push(Block::new(allocator, sizes.layout(index)));
                index += 1;
            }
            while let Err(refused) = sender.try_send(blocks) {
                let (TrySendError::Full(back) | TrySendError::Disconnected(back)) = refused;
                if !hand.goes_on() {
                    back.into_iter().for_each(|block| block.free(allocator));
                    break 'lists;
                }
                blocks = back;
                thread::yield_now();
            }
        }
    });
    Ok(pace.into())
}
