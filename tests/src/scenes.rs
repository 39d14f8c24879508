//! Scenes: what has to happen in a process that did nothing else before. A binary names its scenes; a check runs one of
//! them in a child, this binary again, with its own options in the environment.

use std::time::Duration;

use crate::child::{self, Finished};

/// Names the scene that a child plays.
const SCENE: &str = "INTEGRATION_SCENE";

/// Less than the watchdog of a check has, so that it is the child that is reported as hung.
const LIMIT: Duration = Duration::from_secs(115);

/// Names, and what happens.
pub type Scenes = [(&'static str, fn())];

/// To be called first in `main`: in a child that [`run`] has started, plays its scene and ends the process.
pub fn enter(scenes: &Scenes) {
    let Ok(scene) = std::env::var(SCENE) else { return };
    let (_, play) = scenes.iter().find(|(name, _)| *name == scene).unwrap_or_else(|| panic!("no such scene: {scene}"));
    play();
    std::process::exit(0);
}

/// Plays a scene with these options, prints what it prints, and fails where it fails.
pub fn run(scene: &str, options: &str) -> Finished {
    let mut again = child::again();
    again.env(SCENE, scene).env("RSEQ_ALLOC", options);
    // A backtrace takes memory that a limit may refuse; and so may the C library's malloc, which would reserve 64 MiB for
    // each thread (https://man7.org/linux/man-pages/man3/mallopt.3.html).
    again.env("RUST_BACKTRACE", "0").env("MALLOC_ARENA_MAX", "1");
    let finished = child::run(&mut again, LIMIT);
    finished.expect_success(&format!("{scene} with {options:?}"));
    print!("{}", finished.stdout);
    finished
}
