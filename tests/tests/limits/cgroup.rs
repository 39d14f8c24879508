//! A percentage of the cgroup's limit, in a real cgroup where one can be made. How its files are found is tested with
//! files of all kinds in `alloc-core` itself.

use super::{MIB, print_limits};
use integration::scenes;
use std::path::{Path, PathBuf};

/// Names the group that the child enters.
const GROUP: &str = "LIMITS_GROUP";

/// A group below this process' own, removed with this.
struct Group(PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            println!("{} stays: {error}", self.0.display());
        }
    }
}

/// A group with that limit, where the system lets us make one.
fn group(bytes: usize) -> Result<Group, String> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").expect("procfs");
    let path = |prefix: &str| groups.lines().find_map(|line| line.split_once(prefix)).map(|(_, path)| path.to_owned());
    let (base, file) = match (path(":memory:/"), path("0::/")) {
        (Some(path), _) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
        (None, Some(path)) => (Path::new("/sys/fs/cgroup").join(path), "memory.max"),
        (None, None) => return Err("no cgroup".to_owned()),
    };
    let directory = base.join(format!("rseq-alloc-{}", std::process::id()));
    std::fs::create_dir(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let group = Group(directory);
    std::fs::write(group.0.join(file), bytes.to_string()).map_err(|error| format!("{file}: {error}"))?;
    Ok(group)
}

/// Promise: the limits follow the cgroup's. Without a limit there, or a cgroup, there is none.
pub(super) fn percent_of_the_group() {
    match group(256 * MIB) {
        Ok(group) => {
            // SAFETY: no other thread of this process runs.
            unsafe { std::env::set_var(GROUP, &group.0) };
            let finished = scenes::run("cgroup", "soft_limit=50%,hard_limit=75%");
            assert_eq!(finished.stdout, format!("soft {} hard {}\n", 128 * MIB, 192 * MIB));
        }
        Err(reason) => println!("skipped: no cgroup can be made here: {reason}"),
    }
}

pub(super) fn play() {
    let group = PathBuf::from(std::env::var_os(GROUP).expect("the group"));
    std::fs::write(group.join("cgroup.procs"), std::process::id().to_string()).expect("entering a group of our own");
    print_limits();
}
