//! Intrusive doubly linked lists of huge pages.
//!
//! A huge page has two pairs of links, so it can be in two lists at once: one that says where allocations find it and
//! one that says when its free pages go back to the OS. The lists are circular behind a single head pointer, which
//! gives both ends for one word and makes an empty list all zero bits.
//!
//! Invariant: a huge page is in at most one list per pair of links, and whoever removes it knows which list
//! that is. All of it happens under the lock of the page heap.

use core::ptr;

use super::huge_page::HugePage;

/// One pair of links. Null while in no list.
#[repr(C)]
pub(super) struct Links {
    next: *mut HugePage,
    prev: *mut HugePage,
}

impl Links {
    pub(super) const fn new() -> Self {
        Self { next: ptr::null_mut(), prev: ptr::null_mut() }
    }
}

/// A list that uses the pair of links number `PAIR`.
pub(super) struct List<const PAIR: usize> {
    head: *mut HugePage,
}

impl<const PAIR: usize> List<PAIR> {
    pub(super) const fn new() -> Self {
        Self { head: ptr::null_mut() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.head.is_null()
    }

    /// The first member, or null.
    pub(super) fn first(&self) -> *mut HugePage {
        self.head
    }

    /// The last member, or null.
    ///
    /// # Safety
    ///
    /// The lock that guards the list is held.
    pub(super) unsafe fn last(&self) -> *mut HugePage {
        if self.head.is_null() {
            return ptr::null_mut();
        }
        // SAFETY: members of a list are live huge pages.
        unsafe { (*Self::links(self.head)).prev }
    }

    /// Makes `page` the first member.
    ///
    /// # Safety
    ///
    /// The lock is held, and `page` is a live huge page in no list of this pair.
    pub(super) unsafe fn push_first(&mut self, page: *mut HugePage) {
        // SAFETY: passed on.
        unsafe { self.push_last(page) };
        self.head = page;
    }

    /// Makes `page` the last member.
    ///
    /// # Safety
    ///
    /// As for [`push_first`](Self::push_first).
    pub(super) unsafe fn push_last(&mut self, page: *mut HugePage) {
        let links = Self::links(page);
        if self.head.is_null() {
            // SAFETY: the page is live and its links are unused.
            unsafe {
                (*links).next = page;
                (*links).prev = page;
            }
            self.head = page;
            return;
        }
        let first = Self::links(self.head);
        // SAFETY: as above, and members are live; the last one's `next` comes back to the first.
        unsafe {
            let last = (*first).prev;
            (*links).next = self.head;
            (*links).prev = last;
            (*Self::links(last)).next = page;
            (*first).prev = page;
        }
    }

    /// Takes `page` out.
    ///
    /// # Safety
    ///
    /// The lock is held, and `page` is a member of this very list.
    pub(super) unsafe fn remove(&mut self, page: *mut HugePage) {
        let links = Self::links(page);
        // SAFETY: the page and its neighbours are members, hence live.
        unsafe {
            let Links { next, prev } = links.read();
            if next == page {
                self.head = ptr::null_mut();
            } else {
                (*Self::links(next)).prev = prev;
                (*Self::links(prev)).next = next;
                if self.head == page {
                    self.head = next;
                }
            }
            links.write(Links::new());
        }
    }

    fn links(page: *mut HugePage) -> *mut Links {
        const { assert!(PAIR < HugePage::PAIRS) };
        // Only the place is computed; it is inside the huge page's descriptor.
        page.cast::<Links>().wrapping_add(PAIR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;
    use std::collections::VecDeque;
    use std::vec::Vec;

    #[test]
    fn behaves_as_a_deque() {
        let mut pages: Vec<HugePage> = (0..8).map(|_| HugePage::new(ptr::null_mut())).collect();
        let base = pages.as_mut_ptr();
        let at = |index: usize| base.wrapping_add(index);
        let mut list = List::<1>::new();
        let mut model: VecDeque<usize> = VecDeque::new();
        let mut random = 1234567u64;
        for _ in 0..20_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let index = (random >> 8) as usize % 8;
            // SAFETY: the pages live as long as the list, and the model says which are members.
            unsafe {
                if let Some(place) = model.iter().position(|&member| member == index) {
                    list.remove(at(index));
                    model.remove(place);
                } else if random & 1 == 0 {
                    list.push_first(at(index));
                    model.push_front(index);
                } else {
                    list.push_last(at(index));
                    model.push_back(index);
                }
                let end = |member: Option<&usize>| member.map_or(ptr::null_mut(), |&i| at(i));
                assert_eq!(list.first(), end(model.front()));
                assert_eq!(list.last(), end(model.back()));
            }
            assert_eq!(list.is_empty(), model.is_empty());
        }
    }
}
