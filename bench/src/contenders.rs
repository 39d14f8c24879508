//! Who takes part: a program and its environment, whatever the allocator.

use std::path::PathBuf;

use bench_workloads::outcome::Description;

/// Which comparison a contender belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// Compiled into the program.
    Crates,
    /// Loaded before the C library.
    Preloaded,
    /// This allocator, told what to index its caches by.
    Forced,
}

/// What its figures are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// What is judged.
    Ours,
    /// What it is judged against.
    Peer,
    /// Printed beside the others.
    Shown,
}

/// One of them.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) group: Group,
    pub(crate) role: Role,
    /// The feature of bench-child that its program is built with; none for the C library's.
    pub(crate) feature: Option<&'static str>,
    pub(crate) environment: Vec<(&'static str, &'static str)>,
    /// The library that is loaded in place of the C library's functions.
    pub(crate) preload: Option<Library>,
    /// How its description has to begin, and its mode if it has one: a library that was not loaded, or a mode that was
    /// not taken, would go unnoticed.
    expected: (&'static str, Option<&'static str>),
}

/// Where a library to preload comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Library {
    /// Built here.
    Own,
    /// A Debian package, and the file's name.
    Debian { package: &'static str, file: &'static str },
}

impl Library {
    /// The file, if it is there. `own` is where this allocator's library is built.
    pub(crate) fn find(self, own: &std::path::Path) -> Result<PathBuf, String> {
        let Library::Debian { package, file } = self else { return Ok(own.to_owned()) };
        // Debian's folder for libraries is named after the machine.
        let folders = [format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH), "/usr/lib".to_owned()];
        let paths = folders.iter().map(|folder| PathBuf::from(folder).join(file));
        paths
            .into_iter()
            .find(|path| path.is_file())
            .ok_or_else(|| format!("{file} is not there; ci/install-peers.sh installs it (Debian's package {package})"))
    }
}

impl Contender {
    /// Compares what the running program says with what it should be.
    pub(crate) fn check(&self, found: &Description) -> Result<(), String> {
        let (name, mode) = self.expected;
        let text = format!("{} {}", found.name, found.version);
        if !text.starts_with(name) {
            return Err(format!("{} runs on {text}, not on {name}", self.name));
        }
        match (mode, &found.mode) {
            (Some(mode), Some(found)) if found.starts_with(mode) => Ok(()),
            (None, _) => Ok(()),
            (Some(mode), found) => Err(format!("{} runs as {found:?}, not as {mode}", self.name)),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.role == Role::Ours
    }
}

/// The C library's, which all floors run beside, and which is a peer of the preloaded ones as well.
pub(crate) const GLIBC: &str = "glibc";
/// This allocator as a crate.
pub(crate) const OURS: &str = "rseq";
/// This allocator's C library.
pub(crate) const OURS_PRELOADED: &str = "librseqalloc";
pub(crate) const OURS_CPU_ID: &str = "rseq-cpu_id";
pub(crate) const OURS_ARENAS: &str = "rseq-arenas";
/// The peers of a quick run: those whose sources compile in seconds.
const QUICK_PEERS: [&str; 2] = ["mimalloc3", "snmalloc"];

/// All that there are, in the order of the tables.
pub(crate) fn all() -> Vec<Contender> {
    let linked = |name, feature, expected| Contender {
        name,
        group: Group::Crates,
        role: Role::Peer,
        feature: Some(feature),
        environment: Vec::new(),
        preload: None,
        expected: (expected, None),
    };
    let preloaded = |name, library, expected| Contender {
        name,
        group: Group::Preloaded,
        role: Role::Peer,
        feature: None,
        environment: Vec::new(),
        preload: Some(library),
        expected: (expected, None),
    };
    let forced = |name, option, mode| Contender {
        group: Group::Forced,
        role: Role::Ours,
        environment: vec![("RSEQ_ALLOC", option)],
        expected: ("rseq-alloc", Some(mode)),
        ..linked(name, "rseq", "")
    };
    vec![
        Contender { role: Role::Ours, ..linked(OURS, "rseq", "rseq-alloc") },
        linked("jemalloc", "jemalloc", "jemalloc"),
        linked("mimalloc3", "mimalloc3", "mimalloc 3"),
        linked("mimalloc2", "mimalloc2", "mimalloc 2"),
        linked("snmalloc", "snmalloc", "snmalloc"),
        // Where glibc has registered rseq, tcmalloc's own registration fails, and it does without.
        linked("tcmalloc", "tcmalloc", "tcmalloc"),
        Contender {
            role: Role::Shown,
            environment: vec![("GLIBC_TUNABLES", "glibc.pthread.rseq=0")],
            expected: ("tcmalloc", Some("per-CPU")),
            ..linked("tcmalloc-percpu", "tcmalloc", "")
        },
        linked("rpmalloc", "rpmalloc", "rpmalloc"),
        Contender { feature: None, ..linked(GLIBC, "", "glibc") },
        Contender { role: Role::Ours, ..preloaded(OURS_PRELOADED, Library::Own, "librseqalloc") },
        preloaded(
            "gperftools",
            Library::Debian { package: "libtcmalloc-minimal4", file: "libtcmalloc_minimal.so.4" },
            "gperftools",
        ),
        preloaded(
            "mimalloc-deb",
            Library::Debian { package: "libmimalloc2.0", file: "libmimalloc.so.2.0" },
            "mimalloc 2",
        ),
        forced(OURS_CPU_ID, "index=cpu_id", "cpu_id"),
        forced(OURS_ARENAS, "index=arenas", "arenas"),
    ]
}

/// Those of a trial, or of a run with these peers.
pub(crate) fn chosen(quick: bool, peers: Option<&[String]>) -> Result<Vec<Contender>, String> {
    if quick { selected(Some(&QUICK_PEERS.map(str::to_owned))) } else { selected(peers) }
}

/// Those that a run has: all of this allocator's, and of the peers those that are named, or all.
fn selected(peers: Option<&[String]>) -> Result<Vec<Contender>, String> {
    let all = all();
    let Some(peers) = peers else { return Ok(all) };
    if let Some(unknown) = peers.iter().find(|name| !all.iter().any(|each| !each.is_ours() && each.name == **name)) {
        let known: Vec<_> = all.iter().filter(|each| !each.is_ours()).map(|each| each.name).collect();
        return Err(format!("there is no peer {unknown}; there are {}", known.join(", ")));
    }
    // Floors run on glibc's program, so it is there in any case.
    let named = |each: &Contender| each.is_ours() || each.name == GLIBC || peers.iter().any(|name| name == each.name);
    Ok(all.into_iter().filter(named).collect())
}

/// An error unless the C library's programs are there.
pub(crate) fn need_floors(contenders: &[Contender]) -> Result<(), String> {
    let there = contenders.iter().any(|each| each.name == GLIBC);
    let missing = || "the programs for the C library are not there, and every floor runs on them".to_owned();
    there.then_some(()).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_selected_by_name() {
        let names = |peers: &[&str]| {
            let peers: Vec<String> = peers.iter().map(|name| (*name).to_owned()).collect();
            selected(Some(&peers)).map(|all| all.iter().map(|each| each.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&["snmalloc"]).unwrap(), [OURS, "snmalloc", GLIBC, OURS_PRELOADED, OURS_CPU_ID, OURS_ARENAS]);
        assert!(names(&["rseq"]).is_err() && names(&["snmaloc"]).unwrap_err().contains("snmalloc"));
        assert!(QUICK_PEERS.iter().all(|quick| all().iter().any(|each| each.name == *quick)));
    }

    #[test]
    fn a_library_that_was_not_loaded_is_noticed() {
        let all = all();
        let find = |name| all.iter().find(|each| each.name == name).unwrap();
        let said = |name: &str, version: &str, mode: Option<&str>| Description {
            name: name.to_owned(),
            version: version.to_owned(),
            mode: mode.map(str::to_owned),
            metadata: None,
        };
        assert!(find("gperftools").check(&said("glibc", "2.36", None)).is_err());
        assert!(find("gperftools").check(&said("gperftools", "2.10", None)).is_ok());
        assert!(find("mimalloc2").check(&said("mimalloc", "3.3.2", None)).is_err());
        assert!(find(OURS_CPU_ID).check(&said("rseq-alloc", "0.1.0", Some("mm_cid, …"))).is_err());
        assert!(find(OURS_CPU_ID).check(&said("rseq-alloc", "0.1.0", Some("cpu_id, …"))).is_ok());
        assert!(find("tcmalloc-percpu").check(&said("tcmalloc", "crate 0.1.14", Some("per-thread"))).is_err());
    }
}
