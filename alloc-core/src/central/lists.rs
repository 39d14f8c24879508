//! Where the spans of a class are found: those with room in lists by fullness, all of them in a ring.
//!
//! There is a row of lists for spans with a free block on resident pages and one for the others, whose blocks cost a
//! fault each. A span that has no room is in no list.

use super::span::Span;
use crate::size_class::Class;
use core::ptr::{NonNull, null_mut};

/// Lists of spans by fullness, in each row.
const FULLNESS: usize = 8;
/// The list of spans that are in none.
const NOWHERE: u8 = 2 * FULLNESS as u8;

/// The lists of a class.
pub(super) struct Spans {
    /// The row of the warm ones, then that of the cold ones; the fullest first.
    heads: [*mut Span; 2 * FULLNESS],
}

// SAFETY: the lists are reached only under the lock they live behind.
unsafe impl Send for Spans {}

/// The list that a span belongs to.
fn place(s: &Span, of: &Class) -> u8 {
    if !s.has_room() {
        return NOWHERE;
    }
    let row = if s.is_warm() { 0 } else { FULLNESS };
    (row + s.free() * (FULLNESS - 1) / usize::from(of.blocks).max(1)) as u8
}

/// How many blocks must be free for a span in `list` to be moved: the first number that [`place`] sees otherwise. 0 for
/// those that a single block that comes back may move, the ones that are not warm.
fn stays(list: u8, of: &Class) -> u16 {
    let list = usize::from(list);
    if list >= FULLNESS { 0 } else { ((list + 1) * usize::from(of.blocks)).div_ceil(FULLNESS - 1) as u16 }
}

impl Spans {
    pub(super) const fn new() -> Self {
        Self { heads: [null_mut(); 2 * FULLNESS] }
    }

    /// The span to take blocks from: the fullest that has some on resident pages, else the fullest that has room.
    pub(super) fn best(&self) -> *mut Span {
        self.heads.iter().copied().find(|head| !head.is_null()).unwrap_or(null_mut())
    }

    /// A wholly free span, if there is one.
    pub(super) fn wholly_free(&self, of: &Class) -> Option<NonNull<Span>> {
        for row in self.heads.chunks(FULLNESS) {
            let mut at = *row.last()?;
            // SAFETY: elements of the lists are valid.
            while let Some(span) = unsafe { at.as_ref() } {
                if span.free() == usize::from(of.blocks) {
                    return NonNull::new(at);
                }
                at = span.next;
            }
        }
        None
    }

    /// Adds a span that is in no list, if it has room.
    ///
    /// # Safety
    /// `span` is valid, of this class, and in no list.
    pub(super) unsafe fn add(&mut self, span: *mut Span, of: &Class) {
        // SAFETY: valid by contract, and under the lock of the class.
        let s = unsafe { &mut *span };
        s.list = place(s, of);
        s.stays = stays(s.list, of);
        let Some(head) = self.heads.get_mut(usize::from(s.list)) else { return };
        s.prev = null_mut();
        s.next = *head;
        // SAFETY: elements of the lists are valid.
        if let Some(next) = unsafe { (*head).as_mut() } {
            next.prev = span;
        }
        *head = span;
    }

    /// Takes a span out of its list, if it is in one.
    ///
    /// # Safety
    /// `span` is valid and was added to these.
    pub(super) unsafe fn remove(&mut self, span: *mut Span) {
        // SAFETY: valid by contract, and under the lock of the class.
        let s = unsafe { &mut *span };
        let Some(head) = self.heads.get_mut(usize::from(s.list)) else { return };
        s.list = NOWHERE;
        // SAFETY: elements of the lists are valid.
        if let Some(next) = unsafe { s.next.as_mut() } {
            next.prev = s.prev;
        }
        // SAFETY: as above.
        if let Some(prev) = unsafe { s.prev.as_mut() } {
            prev.next = s.next;
        } else {
            *head = s.next;
        }
        s.next = null_mut();
        s.prev = null_mut();
    }

    /// Moves a span that changed to the list where it belongs now.
    ///
    /// # Safety
    /// As for [`remove`](Self::remove), and of this class.
    pub(super) unsafe fn resort(&mut self, span: *mut Span, of: &Class) {
        // SAFETY: valid by contract, and under the lock of the class.
        let s = unsafe { &*span };
        if place(s, of) != s.list {
            // SAFETY: by contract.
            unsafe { self.remove(span) };
            // SAFETY: it is in no list now.
            unsafe { self.add(span, of) };
        }
    }
}

/// All spans of a class in a circle, with the place where a walk has got to.
pub(super) struct Ring {
    /// The next one that is visited.
    at: *mut Span,
    /// Visits until the walk is complete.
    left: usize,
}

// SAFETY: the ring is reached only under the lock it lives behind.
unsafe impl Send for Ring {}

impl Ring {
    pub(super) const fn new() -> Self {
        Self { at: null_mut(), left: 0 }
    }

    /// Adds a span, which the walk under way does not visit.
    ///
    /// # Safety
    /// `span` is valid and in no ring.
    pub(super) unsafe fn add(&mut self, span: *mut Span) {
        let next = if self.at.is_null() { span } else { self.at };
        // SAFETY: the new one and members are valid, and under the lock of the class.
        unsafe {
            let prev = if next == span { span } else { (*next).ring_prev };
            (*span).ring_next = next;
            (*span).ring_prev = prev;
            (*prev).ring_next = span;
            (*next).ring_prev = span;
        }
        self.at = next;
    }

    /// Takes a span out. The walk under way visits one less, so that it visits none twice.
    ///
    /// # Safety
    /// `span` is a member.
    pub(super) unsafe fn remove(&mut self, span: *mut Span) {
        // SAFETY: members are valid, and under the lock of the class.
        unsafe {
            let (next, prev) = ((*span).ring_next, (*span).ring_prev);
            (*prev).ring_next = next;
            (*next).ring_prev = prev;
            if self.at == span {
                self.at = if next == span { null_mut() } else { next };
            }
        }
        self.left = self.left.saturating_sub(1);
    }

    /// Begins a walk of `visits` visits.
    pub(super) fn begin(&mut self, visits: usize) {
        self.left = visits;
    }

    /// Whether the walk is complete.
    pub(super) fn is_done(&self) -> bool {
        self.left == 0 || self.at.is_null()
    }

    /// The next span of the walk.
    pub(super) fn next(&mut self) -> Option<NonNull<Span>> {
        if self.left == 0 {
            return None;
        }
        let span = NonNull::new(self.at)?;
        self.left -= 1;
        // SAFETY: members are valid, and under the lock of the class.
        self.at = unsafe { (*self.at).ring_next };
        Some(span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::size_class::CLASS;

    #[test]
    fn a_span_moves_when_it_must() {
        for of in CLASS.iter().skip(1) {
            let blocks = usize::from(of.blocks);
            let list = |free: usize| (free * (FULLNESS - 1) / blocks) as u8;
            for free in 1..=blocks {
                let next = usize::from(stays(list(free), of));
                assert!((free..next.min(blocks + 1)).all(|free| list(free) == list(next - 1)));
                assert!(next > free && (next > blocks || list(next) > list(free)));
            }
        }
    }
}
