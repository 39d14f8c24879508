//! The real text that some workloads read: what every machine that builds this has.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use bench_workloads::workloads::{json, regexes};
use serde_json::Value;

use crate::programs::manifest;

/// Enough that no cache holds all of it.
const SOURCES: usize = 4 << 20;

/// Writes the files into `folder`: what `cargo metadata` prints, and the Rust sources of the packages it names.
pub(crate) fn write(folder: &Path) -> Result<(), String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(&cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(manifest())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
    if !output.status.success() {
        return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    let mut sources = String::new();
    let packages = metadata.get("packages").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    for package in packages {
        let manifest = package.get("manifest_path").and_then(Value::as_str).map(Path::new);
        if let Some(folder) = manifest.and_then(Path::parent) {
            append(&folder.join("src"), &mut sources);
        }
        if sources.len() > SOURCES {
            break;
        }
    }
    if sources.is_empty() {
        return Err("there are no sources to read".to_owned());
    }
    let write = |name: &str, text: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
    };
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    write(json::FILE, &output.stdout)?;
    write(regexes::FILE, sources.as_bytes())
}

/// Appends all Rust sources below `folder`, in the order of their names. What cannot be read is left out.
fn append(folder: &Path, text: &mut String) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            append(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs")
            && let Ok(source) = fs::read_to_string(&path)
        {
            text.push_str(&source);
        }
        if text.len() > SOURCES {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_crate_has_sources() {
        let mut text = String::new();
        append(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        assert!(text.contains("fn this_crate_has_sources()"));
    }
}
