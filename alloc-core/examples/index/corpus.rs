//! The documents: which files are indexed, and their text.
//!
//! Links are not followed, except where one was named on the command line, so a walk cannot run in circles. Left out
//! are `.git` and every directory that carries a [cache tag](https://bford.info/cachedir/), as cargo's `target` does.
//! Files are sorted by path and numbered in that order: document numbers do not depend on the threads.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::Error;

/// Files above this size are data more often than text.
const LARGEST_FILE: u64 = 4 << 20;

/// All files to be indexed.
pub(crate) struct Corpus {
    files: Vec<PathBuf>,
}

/// Why a file is not part of the index.
pub(crate) enum Skipped {
    NotText,
    TooLarge,
    Unreadable,
}

impl Corpus {
    /// Finds the files below `roots`, or below the default directories if there are none.
    pub(crate) fn find(roots: &[PathBuf]) -> Result<Self, Error> {
        let roots = if roots.is_empty() { default_roots() } else { roots.to_vec() };
        let mut files = Vec::new();
        for root in &roots {
            // Canonical names, so that a file below two of the roots is one document.
            let root = fs::canonicalize(root).map_err(|error| format!("{}: {error}", root.display()))?;
            walk(root, &mut files)?;
        }
        files.sort_unstable();
        files.dedup();
        if files.is_empty() {
            let roots: Vec<_> = roots.iter().map(|root| root.display().to_string()).collect();
            return Err(Error::Message(format!("no files below {}", roots.join(", "))));
        }
        if u32::try_from(files.len()).is_err() {
            return Err(Error::Message(format!("{} files are more than this index can number", files.len())));
        }
        Ok(Corpus { files })
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    pub(crate) fn path(&self, document: u32) -> &Path {
        &self.files[document as usize]
    }

    /// The text of a document.
    pub(crate) fn text(&self, document: u32) -> Result<String, Skipped> {
        let file = fs::File::open(self.path(document)).map_err(|_| Skipped::Unreadable)?;
        let size = file.metadata().map_err(|_| Skipped::Unreadable)?.len();
        if size > LARGEST_FILE {
            return Err(Skipped::TooLarge);
        }
        let mut bytes = Vec::with_capacity(size as usize);
        // The file may grow under our hands; the limit holds all the same.
        file.take(LARGEST_FILE).read_to_end(&mut bytes).map_err(|_| Skipped::Unreadable)?;
        String::from_utf8(bytes).map_err(|_| Skipped::NotText)
    }
}

/// The workspace this example belongs to (or the current directory, if that is gone) and cargo's registry, if any.
fn default_roots() -> Vec<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut roots = vec![if workspace.is_dir() { workspace } else { PathBuf::from(".") }];
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::home_dir().map(|home| home.join(".cargo")));
    roots.extend(cargo_home.map(|home| home.join("registry/src")).filter(|sources| sources.is_dir()));
    roots
}

/// Adds `root`, if it is a file, or all files below it. A directory that cannot be read is an error only as a root;
/// below it, it is left out with a warning.
fn walk(root: PathBuf, files: &mut Vec<PathBuf>) -> Result<(), Error> {
    if root.is_file() {
        files.push(root);
        return Ok(());
    }
    if !root.is_dir() {
        return Err(Error::Message(format!("{}: neither a file nor a directory", root.display())));
    }
    let mut waiting = vec![(root, true)];
    while let Some((directory, is_root)) = waiting.pop() {
        if !is_root && directory.join("CACHEDIR.TAG").exists() {
            continue;
        }
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if is_root => return Err(format!("{}: {error}", directory.display()).into()),
            Err(error) => {
                eprintln!("index: leaving out {}: {error}", directory.display());
                continue;
            }
        };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && entry.file_name() != ".git" => waiting.push((entry.path(), false)),
                Ok(kind) if kind.is_file() => files.push(entry.path()),
                _ => {}
            }
        }
    }
    Ok(())
}
