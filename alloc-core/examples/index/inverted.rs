//! The index itself: read, merged, sorted.
//!
//! A word's hash decides its shard. While reading, each thread collects the words of some documents in one map per
//! shard, then puts the maps into the shards' inboxes and merges the inboxes of all shards that no other thread is
//! working on. Postings arrive at a shard in any order; sorting them by document at the end makes the result the same
//! whoever came first.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{mem, thread};

use crate::Error;
use crate::corpus::{Corpus, Skipped};

/// Enough that some shard is always free for a thread that wants to merge; a power of two.
const SHARDS: usize = 64;
/// A thread hands its maps over after this much text, so that they stay within the second-level cache or near it.
const BATCH_BYTES: usize = 256 << 10;
/// Words longer than this are encoded data; they are cut, not left out.
const LONGEST_WORD: usize = 48;

/// Where a word stands in one document.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Posting {
    pub(crate) document: u32,
    /// One line number, counted from 1, for each occurrence, in order.
    pub(crate) lines: Vec<u32>,
}

/// The postings of one word, by document once the index is sorted.
#[derive(Debug, Default)]
pub(crate) struct Entry(Vec<Posting>);

impl Entry {
    pub(crate) fn postings(&self) -> &[Posting] {
        &self.0
    }

    pub(crate) fn documents(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn occurrences(&self) -> u64 {
        self.0.iter().map(|posting| posting.lines.len() as u64).sum()
    }
}

/// FNV-1a, by Fowler, Noll and Vo: short, and the same in every process, so that both allocators get the same work.
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

pub(crate) type Words = HashMap<String, Entry, BuildHasherDefault<Fnv>>;

fn shard_of(word: &str) -> usize {
    // Bits from the middle: the hash table uses the lowest and the highest ones.
    (BuildHasherDefault::<Fnv>::default().hash_one(word) >> 32) as usize % SHARDS
}

/// What the reading threads did and could not do.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) documents: u64,
    pub(crate) bytes: u64,
    pub(crate) words: u64,
    pub(crate) not_text: u64,
    pub(crate) too_large: u64,
    pub(crate) unreadable: u64,
}

impl Read {
    fn add(&mut self, other: &Read) {
        self.documents += other.documents;
        self.bytes += other.bytes;
        self.words += other.words;
        self.not_text += other.not_text;
        self.too_large += other.too_large;
        self.unreadable += other.unreadable;
    }
}

/// A part of the index that one thread at a time works on.
#[derive(Default)]
struct Shard {
    /// Maps that reading threads left here.
    inbox: Mutex<Vec<Words>>,
    words: Mutex<Words>,
}

impl Shard {
    /// Merges everything in the inbox, unless another thread is at it.
    fn merge(&self) {
        let Ok(mut words) = self.words.try_lock() else { return };
        let waiting = mem::take(&mut *lock(&self.inbox));
        for arrived in waiting {
            for (word, entry) in arrived {
                words.entry(word).or_default().0.extend(entry.0);
            }
        }
    }
}

/// A poisoned lock means that another thread panicked; the scope that joins it passes that on.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// The index after reading, not yet merged to the end.
pub(crate) struct Built {
    shards: Vec<Shard>,
    pub(crate) read: Read,
}

/// Reads and indexes all documents.
pub(crate) fn build(corpus: &Corpus, threads: usize) -> Result<Built, Error> {
    let shards: Vec<Shard> = (0..SHARDS).map(|_| Shard::default()).collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Read::default());
    on_threads(threads, |thread| {
        let mut reader = Reader::new(&shards, thread);
        loop {
            let document = next.fetch_add(1, Ordering::Relaxed);
            if document >= corpus.len() {
                break;
            }
            reader.read(corpus, document as u32);
        }
        reader.hand_over();
        lock(&total).add(&reader.read);
    })?;
    let read = total.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    Ok(Built { shards, read })
}

/// What one thread has collected since it last handed over.
struct Reader<'a> {
    shards: &'a [Shard],
    /// The shard this thread starts with when it merges; different for neighbours.
    first: usize,
    maps: Vec<Words>,
    collected: usize,
    read: Read,
}

impl<'a> Reader<'a> {
    fn new(shards: &'a [Shard], thread: usize) -> Self {
        let maps = (0..SHARDS).map(|_| Words::default()).collect();
        Reader { shards, first: thread * 7 % SHARDS, maps, collected: 0, read: Read::default() }
    }

    fn read(&mut self, corpus: &Corpus, document: u32) {
        let text = match corpus.text(document) {
            Ok(text) => text,
            Err(Skipped::NotText) => return self.read.not_text += 1,
            Err(Skipped::TooLarge) => return self.read.too_large += 1,
            Err(Skipped::Unreadable) => return self.read.unreadable += 1,
        };
        self.read.documents += 1;
        self.read.bytes += text.len() as u64;
        for (number, line) in (1..).zip(text.lines()) {
            for word in words(line) {
                self.read.words += 1;
                self.add(word, document, number);
            }
        }
        self.collected += text.len();
        if self.collected >= BATCH_BYTES {
            self.hand_over();
        }
    }

    fn add(&mut self, word: String, document: u32, line: u32) {
        let entry = self.maps[shard_of(&word)].entry(word).or_default();
        match entry.0.last_mut() {
            Some(posting) if posting.document == document => posting.lines.push(line),
            _ => entry.0.push(Posting { document, lines: vec![line] }),
        }
    }

    fn hand_over(&mut self) {
        self.collected = 0;
        for (map, shard) in self.maps.iter_mut().zip(self.shards) {
            if !map.is_empty() {
                lock(&shard.inbox).push(mem::take(map));
            }
        }
        for step in 0..SHARDS {
            self.shards[(self.first + step) % SHARDS].merge();
        }
    }
}

/// The words of a line in lower case: letters, digits and underscores, at least two.
pub(crate) fn words(line: &str) -> impl Iterator<Item = String> + '_ {
    line.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| word.len() > 1)
        .map(|word| word.chars().take(LONGEST_WORD).flat_map(char::to_lowercase).collect())
}

impl Built {
    /// Merges what is still in the inboxes and returns the shards.
    pub(crate) fn merge(self, threads: usize) -> Result<Vec<Words>, Error> {
        for_each_of(&self.shards, threads, Shard::merge)?;
        let words = self.shards.into_iter().map(|shard| shard.words.into_inner());
        Ok(words.map(|words| words.unwrap_or_else(|poisoned| poisoned.into_inner())).collect())
    }
}

/// The finished index: words in alphabetical order.
pub(crate) struct Index {
    entries: Vec<(String, Entry)>,
}

impl Index {
    /// Sorts the words, and each word's postings by document.
    pub(crate) fn sort(shards: Vec<Words>, threads: usize) -> Result<Self, Error> {
        let shards: Vec<_> = shards.into_iter().map(|words| Mutex::new((words, Vec::new()))).collect();
        for_each_of(&shards, threads, |shard| {
            let mut shard = lock(shard);
            let mut sorted: Vec<(String, Entry)> = mem::take(&mut shard.0).into_iter().collect();
            for (_, entry) in &mut sorted {
                entry.0.sort_unstable_by_key(|posting| posting.document);
                entry.0.shrink_to_fit();
            }
            sorted.sort_unstable_by(|(left, _), (right, _)| left.cmp(right));
            shard.1 = sorted;
        })?;
        let mut entries = Vec::new();
        for shard in shards {
            entries.append(&mut lock(&shard).1);
        }
        // A merge sort, because it makes use of the sorted pieces.
        entries.sort_by(|(left, _), (right, _)| left.cmp(right));
        Ok(Index { entries })
    }

    /// The number of different words.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn postings(&self) -> u64 {
        self.entries.iter().map(|(_, entry)| entry.documents() as u64).sum()
    }

    pub(crate) fn occurrences(&self) -> u64 {
        self.entries.iter().map(|(_, entry)| entry.occurrences()).sum()
    }

    pub(crate) fn find(&self, word: &str) -> Option<&Entry> {
        let position = self.entries.binary_search_by(|(candidate, _)| candidate.as_str().cmp(word)).ok()?;
        Some(&self.entries[position].1)
    }

    /// The `count` most frequent words, the alphabetically first of equals first.
    pub(crate) fn top(&self, count: usize) -> Vec<(&str, &Entry)> {
        let mut all: Vec<_> = self.entries.iter().map(|(word, entry)| (entry.occurrences(), word, entry)).collect();
        all.sort_by(|left, right| right.0.cmp(&left.0).then_with(|| left.1.cmp(right.1)));
        all.into_iter().take(count).map(|(_, word, entry)| (word.as_str(), entry)).collect()
    }

    /// A hash over all words, documents and lines.
    pub(crate) fn checksum(&self) -> u64 {
        let mut hasher = Fnv::default();
        for (word, entry) in &self.entries {
            word.hash(&mut hasher);
            entry.0.hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Runs `work` on `threads` threads; it gets the thread's number.
fn on_threads(threads: usize, work: impl Fn(usize) + Sync) -> Result<(), Error> {
    let work = &work;
    thread::scope(|scope| {
        for number in 0..threads {
            let spawned = thread::Builder::new().spawn_scoped(scope, move || work(number));
            // The threads that do run finish the work between them; only without any is there nobody to do it.
            match spawned {
                Err(error) if number == 0 => return Err(cannot_start(number, &error)),
                Err(error) => {
                    eprintln!("index: {}", cannot_start(number, &error));
                    break;
                }
                Ok(_) => {}
            }
        }
        Ok(())
    })
}

fn cannot_start(number: usize, error: &io::Error) -> Error {
    Error::Message(format!("cannot start thread {}: {error}", number + 1))
}

/// Runs `work` once for each item, on as many threads as there is work for, up to `threads`.
fn for_each_of<T: Sync>(items: &[T], threads: usize, work: impl Fn(&T) + Sync) -> Result<(), Error> {
    let next = AtomicUsize::new(0);
    on_threads(threads.min(items.len()), |_| {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item);
        }
    })
}
