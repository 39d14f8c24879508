//! What different tables of size classes would waste inside the blocks of real programs.
//!
//! ```console
//! $ cargo run --release -p alloc-core --example size_classes -- index.sizes:8 redis.sizes:16
//! ```
//!
//! A file has a line for each size, "size calls live": how often it was asked for, and how many such blocks were live when
//! most bytes were. The number behind the colon is the least alignment of the program's blocks: C is promised 16 whatever
//! it asks for, Rust says what it needs, mostly 8. `ci/size-classes.sh` records such files and runs this.
//!
//! Only requests that a class serves are looked at, up to 1 MiB; the larger ones have mappings of their own.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;

/// The largest request that is served by a class, and by bins of 8 bytes each, as in `size_class`.
const MEDIUM_MAX: usize = 1 << 20;
const SMALL_MAX: usize = 1 << 10;

/// How far classes lie apart.
#[derive(Clone, Copy)]
enum Steps {
    /// Multiples of so many bytes.
    Of(usize),
    /// So many, evenly spread, between a power of two and the next.
    PerDoubling(usize),
}

/// The steps that tables are made of, in the order in which sizes meet them.
const STEPS: [Steps; 4] = [Steps::Of(8), Steps::Of(16), Steps::PerDoubling(8), Steps::PerDoubling(4)];

/// A table of classes.
struct Table {
    name: &'static str,
    /// Up to which size the first three of [`STEPS`] go; where one ends as the one before it does, there is none. The last
    /// goes up to `MEDIUM_MAX`.
    up_to: [usize; 3],
}

const fn table(name: &'static str, up_to: [usize; 3]) -> Table {
    Table { name, up_to }
}

/// The allocator's own.
const OURS: Table = table("8 to 64, 16 to 1 KiB, eight steps to 16 KiB, four above", [64, SMALL_MAX, 16 << 10]);

/// A class for each size that the alignment leaves: what remains no table can save.
const ALL: Table = table("all multiples of 8: what alignment alone wastes", [MEDIUM_MAX; 3]);

const TABLES: [Table; 9] = [
    ALL,
    OURS,
    table("the same, four steps from 1 KiB", [64, SMALL_MAX, SMALL_MAX]),
    table("the same, eight steps to 64 KiB", [64, SMALL_MAX, 64 << 10]),
    table("the same, eight steps to 256 KiB", [64, SMALL_MAX, 256 << 10]),
    table("8 to 128, then as ours", [128, SMALL_MAX, 16 << 10]),
    table("8 to 128, eight steps above", [128, 128, MEDIUM_MAX]),
    table("8, 16 to 128, four steps above (as jemalloc)", [8, 128, 128]),
    table("8 to 64, four steps above (as mimalloc)", [64; 3]),
];

impl Table {
    /// Bytes of the block that serves a request of 1 to `MEDIUM_MAX` bytes.
    fn block(&self, size: usize) -> usize {
        let part = self.up_to.iter().position(|&up_to| size <= up_to).unwrap_or(self.up_to.len());
        size.next_multiple_of(match STEPS[part] {
            Steps::Of(bytes) => bytes,
            Steps::PerDoubling(steps) => (1 << (size - 1).ilog2()) / steps,
        })
    }

    /// Bytes of the blocks of all classes.
    fn classes(&self) -> Vec<usize> {
        let next = |&last: &usize| (last < MEDIUM_MAX).then(|| self.block(last + 1));
        std::iter::successors(Some(self.block(1)), next).collect()
    }

    /// Bins: one for each multiple of 8 up to `SMALL_MAX`, then one for each class.
    fn bins(&self) -> usize {
        SMALL_MAX / 8 + self.classes().iter().filter(|&&block| block > SMALL_MAX).count()
    }
}

/// A size that a program asks for.
#[derive(Clone, Copy)]
struct Line {
    size: usize,
    calls: usize,
    live: usize,
}

/// What a program asks for.
struct Histogram {
    name: String,
    align: usize,
    lines: Vec<Line>,
}

impl Histogram {
    /// From the text of a file; the error is the line that is wrong.
    fn parse(name: String, align: usize, text: &str) -> Result<Self, String> {
        let line = |line: &str| {
            let numbers = line.split_whitespace().map(str::parse).collect::<Result<Vec<usize>, _>>();
            match numbers.as_deref() {
                Ok(&[size, calls, live]) => Ok(Line { size, calls, live }),
                _ => Err(line.to_owned()),
            }
        };
        Ok(Histogram { name, align, lines: text.lines().map(line).collect::<Result<_, _>>()? })
    }

    /// From `FILE:ALIGN`.
    fn read(argument: &str) -> Result<Self, String> {
        let (path, align) = argument.rsplit_once(':').ok_or("an alignment is missing")?;
        let align: usize = align.parse().map_err(|error| format!("{error}"))?;
        if !align.is_power_of_two() {
            return Err("an alignment is a power of two".to_owned());
        }
        let text = std::fs::read_to_string(path).map_err(|error| format!("{error}"))?;
        let name = Path::new(path).file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Self::parse(name, align, &text).map_err(|line| format!("no line of a histogram: {line}"))
    }

    /// Bytes that blocks of a table have beyond what was asked for, in percent of that; `blocks` says how many of each
    /// size count.
    fn waste(&self, table: &Table, blocks: fn(&Line) -> usize) -> f64 {
        let (mut asked, mut wasted) = (0, 0);
        for line in self.lines.iter().filter(|line| line.size <= MEDIUM_MAX) {
            let block = table.block(line.size.max(1).next_multiple_of(self.align));
            asked += blocks(line) * line.size;
            wasted += blocks(line) * (block - line.size);
        }
        100.0 * wasted as f64 / asked as f64
    }

    /// MiB live at the peak in sizes that are, or are not, served by a class.
    fn mib(&self, by_class: bool) -> f64 {
        let lines = self.lines.iter().filter(|line| (line.size <= MEDIUM_MAX) == by_class);
        lines.map(|line| line.live * line.size).sum::<usize>() as f64 / (1 << 20) as f64
    }
}

/// A line of a table of results.
fn print(first: &str, numbers: [&dyn Display; 2], cells: impl Iterator<Item = String>) {
    print!("{first:<56}{:>8}{:>8}", numbers[0], numbers[1]);
    cells.for_each(|cell| print!("{cell:>10}"));
    println!();
}

fn main() -> ExitCode {
    let mut histograms = Vec::new();
    for argument in std::env::args().skip(1) {
        match Histogram::read(&argument) {
            Ok(histogram) => histograms.push(histogram),
            Err(error) => {
                eprintln!("size_classes: {argument}: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    if histograms.is_empty() {
        eprintln!("usage: size_classes FILE:ALIGN...");
        return ExitCode::FAILURE;
    }
    let live: fn(&Line) -> usize = |line| line.live;
    let calls: fn(&Line) -> usize = |line| line.calls;
    for (title, blocks) in [("waste, % of bytes live at the peak", live), ("waste, % of bytes of all calls", calls)] {
        print(title, [&"classes", &"bins"], histograms.iter().map(|histogram| histogram.name.clone()));
        for table in &TABLES {
            let cell = |histogram: &Histogram| format!("{:.1}", histogram.waste(table, blocks));
            print(table.name, [&table.classes().len(), &table.bins()], histograms.iter().map(cell));
        }
        println!();
    }
    for (title, by_class) in [("MiB live at the peak", true), ("and in blocks that no class serves", false)] {
        print(title, [&"", &""], histograms.iter().map(|histogram| format!("{:.1}", histogram.mib(by_class))));
    }
    let all = |histogram: &Histogram| format!("{:.1}", histogram.lines.iter().map(calls).sum::<usize>() as f64 / 1e6);
    print("million calls", [&"", &""], histograms.iter().map(all));
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waste(table: &Table, align: usize, text: &str) -> [f64; 2] {
        let histogram = Histogram::parse("test".to_owned(), align, text).expect("a histogram");
        [histogram.waste(table, |line| line.live), histogram.waste(table, |line| line.calls)]
    }

    #[test]
    fn waste_is_what_blocks_have_beyond_the_sizes() {
        assert_eq!(waste(&OURS, 8, "8 5 1\n64 5 1"), [0.0, 0.0]);
        // Blocks of 112; the live one counts once, the calls twice, and those for 1 MiB and a byte not at all.
        assert_eq!(waste(&OURS, 8, "100 2 1\n1048577 9 9"), [12.0, 12.0]);
        // A block of 1152 for 1025 bytes, and no other was live.
        assert_eq!(waste(&OURS, 8, "1025 1 1\n1152 1 0"), [100.0 * 127.0 / 1025.0, 100.0 * 127.0 / 2177.0]);
        // An alignment of 16 makes 32 of 24.
        assert_eq!(waste(&OURS, 16, "24 1 3"), [100.0 / 3.0, 100.0 / 3.0]);
        assert_eq!(waste(&ALL, 8, "1025 1 1"), [100.0 * 7.0 / 1025.0; 2]);
        assert_eq!(waste(&TABLES[2], 8, "1025 1 1"), [100.0 * 255.0 / 1025.0; 2]);
    }

    #[test]
    fn wrong_lines_are_refused() {
        for text in ["8 1", "8 1 1 1", "8 -1 1", "x 1 1"] {
            assert_eq!(Histogram::parse("test".to_owned(), 8, text).err().as_deref(), Some(text));
        }
    }

    #[test]
    fn classes_hold_what_they_serve() {
        for table in &TABLES {
            let classes = table.classes();
            assert!(classes.is_sorted() && classes.last() == Some(&MEDIUM_MAX), "{}", table.name);
            for size in 1..=MEDIUM_MAX {
                let class = classes.partition_point(|&block| block < size);
                assert_eq!(table.block(size), classes[class], "{} {size}", table.name);
            }
        }
    }

    #[test]
    fn ours_is_what_the_allocator_does() {
        for size in (1..MEDIUM_MAX).step_by(13) {
            let block = alloc_core::c::allocate(size);
            assert_eq!(alloc_core::c::usable_size(block), OURS.block(size.next_multiple_of(16)), "{size}");
            // SAFETY: a block of this heap that nobody else has.
            unsafe { alloc_core::c::free(block) };
        }
    }
}
