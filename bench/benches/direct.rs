//! `cargo bench -p bench`: criterion's samples of the loops, each allocator called directly.
//!
//! They are in the package bench-direct, which has the peers as features, and are run here in the two builds that
//! matter: the default release profile, and fat LTO with constant layouts, where an allocator in Rust is part of the
//! loop. What stands after `--` goes on to criterion, for instance `-- pairs/64`.

use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    // Cargo says it when it is `cargo bench` and not a test run of all targets.
    if !arguments.iter().any(|argument| argument == "--bench") {
        println!("direct: only for cargo bench");
        return ExitCode::SUCCESS;
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    for (profile, layouts) in [("release", "at run time"), ("lto", "constant")] {
        println!("direct: profile {profile}, layouts {layouts}");
        let status = Command::new(&cargo)
            .args(["bench", "--locked", "--package", "bench-direct", "--features", "peers", "--profile", profile])
            .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"), "--"])
            .args(arguments.iter().filter(|argument| *argument != "--bench"))
            .env("BENCH_BUILD", profile)
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("direct: profile {profile}: {status}");
                return ExitCode::FAILURE;
            }
            Err(error) => {
                eprintln!("direct: cannot run {}: {error}", cargo.display());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
