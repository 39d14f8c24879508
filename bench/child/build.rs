//! Tells the programs which versions of the peers' crates they were built with: libraries that cannot say their
//! version are known by these. And sets `linked` where a feature has chosen an allocator.

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(linked)");
    if env::vars().any(|(name, _)| name.starts_with("CARGO_FEATURE_")) {
        println!("cargo::rustc-cfg=linked");
    }
    let folder = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let lock = Path::new(&folder).join("../../Cargo.lock");
    println!("cargo::rerun-if-changed={}", lock.display());
    let text = fs::read_to_string(&lock).unwrap_or_else(|error| panic!("{}: {error}", lock.display()));
    for name in ["snmalloc-sys", "libtcmalloc-sys", "rpmalloc-sys", "libmimalloc-sys", "tikv-jemalloc-sys"] {
        let version = version(&text, name).unwrap_or_else(|| panic!("{} has no {name}", lock.display()));
        println!("cargo::rustc-env=VERSION_{}={version}", name.replace('-', "_"));
    }
}

/// The version of a package in Cargo.lock.
fn version<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let entry = lock.split("[[package]]").find(|entry| entry.contains(&format!("name = \"{name}\"\n")))?;
    entry.lines().find_map(|line| line.strip_prefix("version = \"")?.strip_suffix('"'))
}
