//! The sealed protocol: taking magazines out of shards whose owners do not stop and pay nothing for it.
//!
//! ```text
//!   seal the shards
//!   fence 1       every slow commit that did not see the seal has ended; from here on the lists are ours
//!   exchange each header with "no magazine"
//!   fence 2       every pop or push that had read the old top has committed or was aborted
//!   a header that still says so: what the exchange returned is ours alone
//!   any other: a commit in flight came after the exchange and put the magazine back; leave it
//!   unseal
//! ```
//!
//! Why it is sound. A section that read the old top before the exchange either commits before fence 2, and then its
//! plain store overwrites what we put there, and the last step sees it; or it is aborted. A section that starts after the
//! exchange finds no magazine, so it goes to the slow path, which looks at the seal inside its section. Sections with
//! the seal unseen have ended at fence 1, so after it no header changes by a replacement, and after fence 2 a header
//! without a magazine stays so until we unseal. A slow path that takes a magazine away without putting another in its place
//! has to see the seal, too (`drain_own` does not, but has the drainer's lock), so a header that loses its magazine between
//! the fences loses it by our hand. One fence serves all shards of a batch.
//!
//! A magazine comes with its chain. Sections that follow one write the way back into the neighbour that they move to;
//! one that is aborted after that has changed nothing that is read, and fence 2 ends it before the drainer looks.
//!
//! With a single fence the exchange and a commit in flight race: the drainer would take a magazine that a section still
//! owns. A first fence that fails ends the drain before anything was changed. A second one that fails, which takes a
//! filter installed in between, leaves the magazines out of use: a leak, no corruption.
//!
//! This file stands alone: it knows neither shards nor magazines but only their words, and what a fence is comes from
//! outside. So the model checker of the integration tests compiles this very file.

use core::sync::atomic::{AtomicUsize, Ordering};

/// A word of a shard.
pub(crate) trait Word {
    /// Reads it.
    fn load(&self) -> usize;
    /// Writes it.
    fn store(&self, value: usize);
    /// Writes it and returns what it held, in one step.
    fn swap(&self, value: usize) -> usize;
}

impl Word for AtomicUsize {
    #[inline]
    fn load(&self) -> usize {
        AtomicUsize::load(self, Ordering::SeqCst)
    }
    #[inline]
    fn store(&self, value: usize) {
        AtomicUsize::store(self, value, Ordering::SeqCst);
    }
    #[inline]
    fn swap(&self, value: usize) -> usize {
        AtomicUsize::swap(self, value, Ordering::SeqCst)
    }
}

/// The words of a shard that take part.
pub(crate) trait Place {
    /// What its words are.
    type Word: Word;
    /// Not 0 while slow commits have to stay away. Every slow commit compares it inside its section.
    fn seal(&self) -> &Self::Word;
    /// The headers: tops of magazines that pops and pushes use.
    fn headers(&self) -> impl Iterator<Item = &Self::Word>;
    /// The heads of the lists, which only slow commits change; 0 for an empty list.
    fn lists(&self) -> impl Iterator<Item = &Self::Word>;
}

/// What a drain hands over.
pub(crate) enum Taken {
    /// The head of a list, which belongs to the drainer.
    List(usize),
    /// The top of a magazine that belongs to the drainer, with its whole chain.
    Top(usize),
}

/// Takes all magazines out of `places` and gives them to `take`. False if there was no fence, and then nothing was
/// changed. `old` has room for the headers of each place; `none` is
/// what a header holds that has no magazine.
pub(crate) fn drain<P: Place, const HEADERS: usize>(
    places: &[&P],
    old: &mut [[usize; HEADERS]],
    none: usize,
    mut fence: impl FnMut() -> bool,
    mut take: impl FnMut(&P, Taken),
) -> bool {
    for place in places {
        place.seal().store(1);
    }
    let fenced = fence();
    if fenced {
        for place in places {
            for list in place.lists() {
                match list.swap(0) {
                    0 => {}
                    head => take(place, Taken::List(head)),
                }
            }
        }
        for (place, old) in places.iter().zip(old.iter_mut()) {
            for (header, old) in place.headers().zip(old) {
                // Most headers of most shards have never been used; those cost a load.
                *old = if header.load() == none { none } else { header.swap(none) };
            }
        }
        if cfg!(rseq_fault = "drain_once") || fence() {
            for (place, old) in places.iter().zip(old.iter()) {
                for (header, &old) in place.headers().zip(old) {
                    if old != none && header.load() == none {
                        take(place, Taken::Top(old));
                    }
                }
            }
        }
    }
    for place in places {
        place.seal().store(0);
    }
    fenced
}
