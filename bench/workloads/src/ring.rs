//! A ring of pointers from one thread to another, as cheap as such a thing can be, so that the allocator is what is
//! measured. Its cost is part of every figure all the same, and subtracted as the floor.

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use crossbeam_utils::{Backoff, CachePadded};

/// Pointers on their way; a power of two.
pub const LENGTH: usize = 4096;
/// A side publishes its position, and looks at the other's, this often: cache lines travel per batch, not per block.
const BATCH: usize = 512;

/// The ring. Positions count for ever; a slot's index is the position modulo the length.
#[derive(Debug)]
pub struct Ring {
    slots: Vec<AtomicPtr<u8>>,
    filled: CachePadded<AtomicUsize>,
    taken: CachePadded<AtomicUsize>,
}

impl Default for Ring {
    fn default() -> Self {
        Ring::new()
    }
}

impl Ring {
    /// An empty one.
    pub fn new() -> Self {
        Ring {
            slots: (0..LENGTH).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            filled: CachePadded::default(),
            taken: CachePadded::default(),
        }
    }

    /// The end that sends; one thread at a time may have it.
    pub fn sender(&self) -> Sender<'_> {
        let index = self.filled.load(Ordering::Relaxed);
        Sender { ring: self, index, free_until: index, one_thread: PhantomData }
    }

    /// The end that receives; one thread at a time may have it.
    pub fn receiver(&self) -> Receiver<'_> {
        let index = self.taken.load(Ordering::Relaxed);
        Receiver { ring: self, index, filled_until: index, one_thread: PhantomData }
    }
}

/// See [`Ring::sender`].
#[derive(Debug)]
pub struct Sender<'a> {
    ring: &'a Ring,
    index: usize,
    free_until: usize,
    one_thread: PhantomData<*mut ()>,
}

impl Sender<'_> {
    /// Sends a pointer as soon as there is room; `false` if `goes_on` said no before that.
    #[inline]
    pub fn send(&mut self, pointer: *mut u8, goes_on: impl Fn() -> bool) -> bool {
        if self.index == self.free_until {
            // The other side may be waiting for what is not published yet.
            self.flush();
            let room = wait_until(goes_on, || {
                let until = self.ring.taken.load(Ordering::Acquire) + LENGTH;
                (until > self.index).then_some(until)
            });
            match room {
                Some(until) => self.free_until = until,
                None => return false,
            }
        }
        self.ring.slots[self.index % LENGTH].store(pointer, Ordering::Relaxed);
        self.index += 1;
        if self.index.is_multiple_of(BATCH) {
            self.flush();
        }
        true
    }

    /// Shows the other side all that was sent.
    #[inline]
    pub fn flush(&mut self) {
        self.ring.filled.store(self.index, Ordering::Release);
    }
}

/// See [`Ring::receiver`].
#[derive(Debug)]
pub struct Receiver<'a> {
    ring: &'a Ring,
    index: usize,
    filled_until: usize,
    one_thread: PhantomData<*mut ()>,
}

impl Receiver<'_> {
    /// Receives the next pointer as soon as there is one; `None` if `goes_on` said no before that.
    #[inline]
    pub fn receive(&mut self, goes_on: impl Fn() -> bool) -> Option<*mut u8> {
        if self.index == self.filled_until {
            self.ring.taken.store(self.index, Ordering::Release);
            self.filled_until = wait_until(goes_on, || {
                let filled = self.ring.filled.load(Ordering::Acquire);
                (filled > self.index).then_some(filled)
            })?;
        }
        Some(self.take())
    }

    /// The next pointer if there is one already.
    #[inline]
    pub fn receive_if_any(&mut self) -> Option<*mut u8> {
        if self.index == self.filled_until {
            self.filled_until = self.ring.filled.load(Ordering::Acquire);
            if self.index == self.filled_until {
                return None;
            }
        }
        Some(self.take())
    }

    #[inline]
    fn take(&mut self) -> *mut u8 {
        let pointer = self.ring.slots[self.index % LENGTH].load(Ordering::Relaxed);
        self.index += 1;
        if self.index.is_multiple_of(BATCH) {
            self.ring.taken.store(self.index, Ordering::Release);
        }
        pointer
    }
}

impl Drop for Sender<'_> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl Drop for Receiver<'_> {
    fn drop(&mut self) {
        self.ring.taken.store(self.index, Ordering::Release);
    }
}

/// Spins, then yields the CPU, until there is an answer or no reason to go on.
fn wait_until<T>(goes_on: impl Fn() -> bool, mut answer: impl FnMut() -> Option<T>) -> Option<T> {
    let backoff = Backoff::new();
    loop {
        if let Some(answer) = answer() {
            return Some(answer);
        }
        if !goes_on() {
            return None;
        }
        backoff.snooze();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    #[test]
    fn pointers_arrive_in_order_and_once() {
        const COUNT: usize = 10 * LENGTH + 7;
        let ring = Ring::new();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut sender = ring.sender();
                for number in 1..=COUNT {
                    assert!(sender.send(ptr::without_provenance_mut(number), || true));
                }
            });
            let mut receiver = ring.receiver();
            for number in 1..=COUNT {
                assert_eq!(receiver.receive(|| true).map(|pointer| pointer.addr()), Some(number));
            }
            assert_eq!(receiver.receive(|| false), None);
            assert_eq!(receiver.receive_if_any(), None);
        });
    }

    #[test]
    fn the_next_receiver_goes_on_where_the_last_one_ended() {
        let ring = Ring::new();
        let send = |number| ring.sender().send(ptr::without_provenance_mut(number), || true);
        assert!((1..=5).all(send));
        for number in 1..=5 {
            assert_eq!(ring.receiver().receive_if_any().map(|pointer| pointer.addr()), Some(number));
        }
        assert_eq!(ring.receiver().receive_if_any(), None);
    }

    #[test]
    fn a_full_ring_takes_no_more() {
        let ring = Ring::new();
        let mut sender = ring.sender();
        for number in 1..=LENGTH {
            assert!(sender.send(ptr::without_provenance_mut(number), || false));
        }
        assert!(!sender.send(ptr::without_provenance_mut(1), || false));
        assert!(ring.receiver().receive_if_any().is_some());
    }
}
