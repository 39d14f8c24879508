//! Builds the programs that are started, through cargo, and finds them again.
//!
//! All builds of bench-child leave their programs under the same names, so each is copied to a folder of its own below
//! `bench/programs` of the target folder as soon as it is built.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::contenders::{Contender, Group};
use crate::progress::Progress;

/// Which of the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Program {
    /// Throughput, in the default release profile.
    Child,
    /// The time of every call.
    Latency,
    /// Bytes that are live; only on the C library.
    Live,
    /// Loops with constant layouts and fat LTO.
    Constant,
    /// A dynamic hello-world.
    Hello,
    /// A static one.
    StaticHello,
}

/// The folder of a build: the feature's name, or this.
const SYSTEM: &str = "system";

/// What was built.
#[derive(Debug)]
pub(crate) struct Programs {
    folder: PathBuf,
    target: PathBuf,
}

/// What is to be built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    /// Whether loops with constant layouts are measured.
    pub(crate) constant: bool,
    /// Whether the time of calls and live bytes are, which have programs of their own.
    pub(crate) workloads: bool,
    /// Whether hello-worlds are started.
    pub(crate) hello: bool,
}

impl Programs {
    /// The path of a contender's program.
    pub(crate) fn path(&self, contender: &Contender, program: Program) -> PathBuf {
        self.folder.join(contender.feature.unwrap_or(SYSTEM)).join(program.file())
    }

    /// This allocator as a library for C programs.
    pub(crate) fn library(&self) -> PathBuf {
        self.target.join("release/librseqalloc.so")
    }

    /// The programs' target folder: the one that this program stands in.
    pub(crate) fn below(target: &Path) -> Self {
        Programs { folder: target.join("bench/programs"), target: target.to_owned() }
    }

    /// Builds what the contenders need. What fails is left out of the contenders, with the reason.
    pub(crate) fn build(
        &self,
        contenders: &mut Vec<Contender>,
        wanted: Wanted,
        progress: &Progress,
    ) -> Vec<(String, String)> {
        let mut failed: BTreeMap<&str, String> = BTreeMap::new();
        let mut builds: Vec<Option<&'static str>> = Vec::new();
        for contender in &*contenders {
            if !builds.contains(&contender.feature) {
                builds.push(contender.feature);
            }
        }
        for feature in builds {
            if let Err(error) = self.build_for(feature, wanted, progress) {
                failed.insert(feature.unwrap_or(SYSTEM), error);
            }
        }
        if contenders.iter().any(|each| each.group == Group::Preloaded && each.is_ours()) {
            progress.line("building librseqalloc.so");
            if let Err(error) = self.cargo(&["build", "--release", "-p", "alloc-c"], &[]) {
                failed.insert("librseqalloc", error);
            }
        }
        let reason = |contender: &Contender| {
            let build = contender.feature.unwrap_or(SYSTEM);
            failed.get(build).or_else(|| failed.get(contender.name)).cloned()
        };
        let missing = contenders.iter().filter_map(|each| Some((each.name.to_owned(), reason(each)?))).collect();
        contenders.retain(|each| reason(each).is_none());
        missing
    }

    fn build_for(&self, feature: Option<&str>, wanted: Wanted, progress: &Progress) -> Result<(), String> {
        let build = feature.unwrap_or(SYSTEM);
        let folder = self.folder.join(build);
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let features = feature.map_or_else(Vec::new, |feature| vec!["--features", feature]);
        let mut release = vec![Program::Child];
        if wanted.workloads {
            release.push(Program::Latency);
            if feature.is_none() {
                release.push(Program::Live);
            }
        }
        if wanted.hello {
            release.push(Program::Hello);
        }
        progress.line(&format!("building for {build}"));
        self.build_programs("release", &release, &features, &folder)?;
        if wanted.constant {
            progress.line(&format!("building for {build}, with LTO"));
            self.build_programs("lto", &[Program::Constant], &features, &folder)?;
        }
        if wanted.hello {
            progress.line(&format!("building for {build}, static"));
            let mut arguments = vec!["rustc", "--release", "-p", "bench-child", "--bin", "hello"];
            arguments.extend(&features);
            if feature == Some("rseq") {
                // Cargo gives the flag below to the last crate alone. What this one would learn from it, if it were given
                // to all, this tells it: that libc's registration is to be found by weak references.
                arguments.extend(["--features", "alloc-core/weak-libc-symbols"]);
            }
            let search = format!("native={}", self.static_libraries()?.display());
            self.cargo(&arguments, &["-C", "target-feature=+crt-static", "-L", &search])?;
            copy(&self.target.join("release/hello"), &folder.join(Program::StaticHello.file()))?;
        }
        Ok(())
    }

    fn build_programs(
        &self,
        profile: &str,
        programs: &[Program],
        features: &[&str],
        folder: &Path,
    ) -> Result<(), String> {
        let mut arguments = vec!["build", "--profile", profile, "-p", "bench-child"];
        arguments.extend(features);
        arguments.extend(programs.iter().flat_map(|program| ["--bin", program.file()]));
        self.cargo(&arguments, &[])?;
        let built = self.target.join(profile);
        programs.iter().try_for_each(|program| copy(&built.join(program.file()), &folder.join(program.file())))
    }

    /// A folder with the compiler's library for unwinding under the name of the shared one. snmalloc's crate asks for
    /// that by name, and no static program can have it.
    fn static_libraries(&self) -> Result<PathBuf, String> {
        let folder = self.folder.join("static-libraries");
        let link = folder.join("libgcc_s.a");
        if link.exists() {
            return Ok(folder);
        }
        let asked = Command::new("cc").arg("-print-file-name=libgcc_eh.a").output();
        let printed = asked.map_err(|error| format!("cannot run cc: {error}"))?.stdout;
        let library = PathBuf::from(String::from_utf8_lossy(&printed).trim());
        fs::create_dir_all(&folder)
            .and_then(|()| fs::copy(&library, &link))
            .map_err(|error| format!("copying {} to {}: {error}", library.display(), link.display()))?;
        Ok(folder)
    }

    /// Runs cargo as whoever started this program did, with the versions that Cargo.lock has.
    fn cargo(&self, arguments: &[&str], last: &[&str]) -> Result<(), String> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(&cargo);
        command.args(arguments).args(["--locked", "--quiet", "--target-dir"]).arg(&self.target);
        command.arg("--manifest-path").arg(manifest());
        if !last.is_empty() {
            command.arg("--").args(last);
        }
        let output = command.output().map_err(|error| format!("cannot run {}: {error}", cargo.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr);
        eprintln!("{text}");
        let line = text.lines().find(|line| line.starts_with("error")).unwrap_or("no reason given");
        Err(format!("the build failed: {line}"))
    }
}

impl Program {
    /// Its name as cargo has it; the static one is a second build of another.
    fn file(self) -> &'static str {
        match self {
            Program::Child => "child",
            Program::Latency => "child-latency",
            Program::Live => "child-live",
            Program::Constant => "child-constant",
            Program::Hello => "hello",
            Program::StaticHello => "hello-static",
        }
    }
}

/// The workspace's manifest.
pub(crate) fn manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml")
}

/// The target folder of the build that this program comes from: it stands in the folder of a profile in it.
pub(crate) fn target_folder() -> Result<PathBuf, String> {
    let this = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let target = this.parent().filter(|folder| folder.file_name() != Some(OsStr::new("deps"))).and_then(Path::parent);
    target.map(Path::to_owned).ok_or_else(|| format!("{} is in no target folder", this.display()))
}

/// Copies beside the place and renames, so that a program that still runs is not overwritten.
fn copy(from: &Path, to: &Path) -> Result<(), String> {
    let beside = to.with_extension("new");
    fs::copy(from, &beside)
        .and_then(|_| fs::rename(&beside, to))
        .map_err(|error| format!("copying {} to {}: {error}", from.display(), to.display()))
}
