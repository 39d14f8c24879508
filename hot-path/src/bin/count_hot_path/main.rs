//! Counts the instructions on the allocator's hit path in a finished binary, and fails when there are too many.
//!
//!     count_hot_path BINARY FUNCTION=LIMIT[/SHORTEST]…
//!
//! The hit path of a function is the way from its entry to its `ret` on which a restartable section is armed, entered
//! and left through its commit, and no other section is armed: the magazine had a block, or room for one. It must
//! contain no call and no lock prefix. Nothing is executed; the paths are found in the disassembly (`graph`, `paths`),
//! and the sections by the descriptors that the kernel itself would read (`image`).
//!
//! What sets up and takes down the function's stack frame (`push`, `pop`, `sub rsp`, `add rsp`) is listed but not
//! counted: it belongs to the function that allocates, which keeps it for calls on other paths. `ret` is counted.
//!
//! If several paths qualify, for instance one per way of finding the size class, the one with the most instructions
//! that count is judged and listed; where SHORTEST is given, the one with the fewest is judged by that. A path with a loop on it has no length, and is refused. Only x86-64 is understood.

mod graph;
mod image;
mod paths;
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use iced_x86::{Formatter, IntelFormatter};

use crate::graph::is_frame;
use crate::image::Image;
use crate::paths::{HitPath, Verdict};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(message) => {
            eprintln!("count_hot_path: {message}");
            ExitCode::from(2)
        }
    }
}

/// Whether every function named in `arguments` is within its limit; `Err` for what cannot be judged at all.
fn run(arguments: &[String]) -> Result<bool, String> {
    let [binary, wanted @ ..] = arguments else {
        return Err("usage: count_hot_path BINARY FUNCTION=LIMIT[/SHORTEST]...".to_owned());
    };
    if wanted.is_empty() {
        return Err("no FUNCTION given".to_owned());
    }
    let bytes = std::fs::read(binary).map_err(|error| format!("{binary}: {error}"))?;
    let image = Image::parse(&bytes).map_err(|error| format!("{binary}: {error}"))?;

    let mut rows = Vec::new();
    let mut good = true;
    for argument in wanted {
        let (function, limit, shortest) =
            wish(argument).ok_or_else(|| format!("`{argument}` is not of the form FUNCTION=LIMIT[/SHORTEST]"))?;
        let entry = image.function(function).map_err(|error| format!("{binary}: {error}"))?;
        match paths::judge(&image, entry) {
            Verdict::Hit(found) => {
                print_listing(function, &found.longest);
                let count = found.ways.longest.counted;
                let within = count <= limit && found.ways.shortest.counted <= shortest;
                good &= within;
                rows.push(row(
                    function,
                    &count.to_string(),
                    limit,
                    &format!("{} ({})", if within { "ok" } else { "TOO LONG" }, found.describe()),
                ));
            }
            Verdict::Blemished(reason) | Verdict::Missing(reason) | Verdict::Unclear(reason) => {
                good = false;
                rows.push(row(function, "-", limit, &format!("FAILED: {reason}")));
            }
        }
    }

    println!("hit paths in {binary}, from entry to ret");
    println!("{}", row_of("function", "instructions", "at most", "verdict"));
    for row in rows {
        println!("{row}");
    }
    Ok(good)
}

/// A function, and the most instructions of its longest and its shortest path.
fn wish(argument: &str) -> Option<(&str, usize, usize)> {
    let (name, limits) = argument.split_once('=')?;
    let (limit, shortest) = limits.split_once('/').unwrap_or((limits, limits));
    Some((name, limit.parse().ok()?, shortest.parse().ok()?))
}

fn row(function: &str, count: &str, limit: usize, verdict: &str) -> String {
    row_of(function, count, &limit.to_string(), verdict)
}

fn row_of(function: &str, count: &str, limit: &str, verdict: &str) -> String {
    format!("  {function:<16} {count:>12} {limit:>8}  {verdict}")
}

/// Prints the path as a disassembler would, with the section's boundaries marked.
fn print_listing(function: &str, path: &HitPath) {
    println!("{function}: hit path");
    let mut formatter = IntelFormatter::new();
    for (index, instruction) in path.instructions.iter().enumerate() {
        let mut text = String::new();
        formatter.format(instruction, &mut text);
        let note = if is_frame(instruction) {
            "; the caller's frame, not counted"
        } else if index == path.armed {
            "; armed"
        } else if index == path.start {
            "; section starts"
        } else if index == path.commit {
            "; commit"
        } else {
            ""
        };
        println!("  {:3}  {:#010x}  {text:<44}{note}", index + 1, instruction.ip());
    }
    println!();
}
