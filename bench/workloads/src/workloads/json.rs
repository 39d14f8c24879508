//! Models a service that speaks JSON: a document is parsed into a tree of values and written back. The documents are
//! real: what cargo says about each package that this workspace depends on, some kilobytes each. The trees of the
//! last 64 documents are kept, as in a cache.
//!
//! Counted: documents.

use std::collections::VecDeque;
use std::fs;

use serde_json::Value;

use super::{Outcome, Settings};
use crate::crew;

/// The output of `cargo metadata`.
pub const FILE: &str = "metadata.json";

/// Trees that are kept.
const KEPT: usize = 64;

pub(super) fn run(settings: &Settings) -> Outcome {
    let path = settings.texts.join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let whole: Value = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let packages = whole.get("packages").and_then(Value::as_array).filter(|packages| !packages.is_empty());
    let Some(packages) = packages else { return Err(format!("{}: no packages", path.display())) };
    let documents: Vec<String> = packages.iter().map(Value::to_string).collect();
    drop((text, whole));
    let mut next = documents.iter().cycle();
    let mut kept = VecDeque::with_capacity(KEPT);
    let mut failed = None;
    let pace = crew::alone(settings.span, || {
        let Some(document) = next.next() else { return 0 };
        match serde_json::from_str::<Value>(document) {
            Ok(tree) => {
                if tree.to_string().len() != document.len() {
                    failed = Some("a document came back changed".to_owned());
                }
                if kept.len() == KEPT {
                    kept.pop_front();
                }
                kept.push_back(tree);
            }
            Err(error) => failed = Some(error.to_string()),
        }
        1
    });
    failed.map_or(Ok(pace.into()), Err)
}
