//! Questions to the index: documents that contain all of some words.
//!
//! Documents are ranked by tf-idf: a word counts for more in a document the more often it stands there, with
//! diminishing returns, and for more altogether the fewer documents have it.

use crate::inverted::{Entry, Index, Posting, words};

/// A document that answers a query.
pub(crate) struct Hit {
    pub(crate) document: u32,
    pub(crate) score: f64,
    /// The first line with the rarest of the words.
    pub(crate) line: u32,
}

/// All documents with every word of `text`, best first. A query without words has no answer.
pub(crate) fn answer(index: &Index, text: &str) -> Vec<Hit> {
    let Some(mut entries) = words(text).map(|word| index.find(&word)).collect::<Option<Vec<&Entry>>>() else {
        return Vec::new();
    };
    // The rarest word first: it bounds the answer.
    entries.sort_by_key(|entry| entry.documents());
    let Some((rarest, others)) = entries.split_first() else { return Vec::new() };

    let mut hits: Vec<Hit> = rarest
        .postings()
        .iter()
        .filter_map(|posting| {
            let mut score = weight(rarest, posting);
            for other in others {
                let place = other.postings().binary_search_by_key(&posting.document, |other| other.document).ok()?;
                score += weight(other, &other.postings()[place]);
            }
            Some(Hit { document: posting.document, score, line: posting.lines.first().copied().unwrap_or(1) })
        })
        .collect();
    hits.sort_by(|left, right| right.score.total_cmp(&left.score).then(left.document.cmp(&right.document)));
    hits
}

fn weight(entry: &Entry, posting: &Posting) -> f64 {
    (1.0 + (posting.lines.len() as f64).ln()) / (1.0 + (entry.documents() as f64).ln())
}

/// Queries made of frequent words, for a run without any: pairs that are likely to meet in many documents.
pub(crate) fn built_in(index: &Index) -> Vec<String> {
    let top: Vec<&str> = index.top(60).into_iter().map(|(word, _)| word).filter(|word| word.len() > 3).collect();
    let mut queries: Vec<String> = top.chunks_exact(2).take(2).map(|pair| pair.join(" ")).collect();
    if let [first, .., middle, last] = top[..] {
        queries.push(format!("{first} {middle} {last}"));
    }
    queries
}
