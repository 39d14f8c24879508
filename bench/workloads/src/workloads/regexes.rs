//! Models log processing: every line of a text is matched against an expression, and the words, numbers and strings that
//! it finds are copied out; after every 2000 lines the expression is compiled anew, which is a few thousand small
//! allocations. The text is real: the Rust sources of what this workspace depends on.
//!
//! Counted: lines.

use std::fs;
use std::hint::black_box;

use regex::Regex;

use super::{Outcome, Settings};
use crate::crew;

/// The sources, one after the other.
pub const FILE: &str = "sources.txt";

const EXPRESSION: &str = r#"(?x) (?<string>"[^"]*") | (?<number>\b[0-9][0-9_]*\b) | (?<call>\b[a-z_]+)\( "#;
const LINES: usize = 2000;

pub(super) fn run(settings: &Settings) -> Outcome {
    let path = settings.texts.join(FILE);
    let text = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let compiled = || Regex::new(EXPRESSION).map_err(|error| error.to_string());
    let mut expression = compiled()?;
    let mut lines = text.lines().cycle();
    let mut since = 0;
    let mut found = 0;
    let pace = crew::alone(settings.span, || {
        if since == LINES {
            since = 0;
            if let Ok(again) = compiled() {
                expression = again;
            }
        }
        since += 1;
        let Some(line) = lines.next() else { return 0 };
        let words: Vec<(String, usize)> = expression
            .captures_iter(line)
            .filter_map(|captures| captures.get(0))
            .map(|word| (word.as_str().to_owned(), word.start()))
            .collect();
        found += black_box(words).len();
        1
    });
    if found == 0 { Err(format!("{}: nothing matched", path.display())) } else { Ok(pace.into()) }
}
