//! The memory limit of the process' cgroup.
//!
//! ```text
//! /proc/self/cgroup      4:memory:/jobs/a                     version 1, the hierarchy with the memory controller
//!                        0::/jobs/a                           version 2
//! /proc/self/mountinfo   35 31 0:32 /jobs /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
//!                                   root  mount point               type       options
//! ```
//!
//! The group's directory is the mount point and what remains of its path without the root of the mount. A path that is
//! not below the root (a container that sees its own mount and the host's path) leads to the mount point itself. A
//! limit holds for all groups below, so the least counts of those from the group up to the mount point.
//!
//! Sources: [cgroups(7)](https://man7.org/linux/man-pages/man7/cgroups.7.html),
//! [proc_pid_mountinfo(5)](https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html),
//! [`memory.max`](https://docs.kernel.org/admin-guide/cgroup-v2.html),
//! [`memory.limit_in_bytes`](https://docs.kernel.org/admin-guide/cgroup-v1/memory.html).

use crate::os::file::{LINE, for_each_line};
use core::ffi::CStr;

/// From here on a number is version 1's way to say that there is no limit.
const UNLIMITED: usize = 1 << 62;

/// In bytes; `None` if there is no limit, or no cgroup to be found.
pub(super) fn limit() -> Option<usize> {
    limit_from(c"/proc/self/cgroup", c"/proc/self/mountinfo")
}

/// For how many CPUs the process' cgroup gives time, rounded up; `None` if as many as there are, or if that is not to be
/// found. Asked at the set-up of processes on larger machines, so this looks only where a container sees its own group:
/// at the root of the hierarchy. Source:
/// [`cpu.max`](https://docs.kernel.org/admin-guide/cgroup-v2.html),
/// [`cpu.cfs_quota_us`](https://docs.kernel.org/scheduler/sched-bwc.html).
pub(crate) fn cpus() -> Option<usize> {
    cpus_from(
        c"/sys/fs/cgroup/cpu.max",
        [c"/sys/fs/cgroup/cpu/cpu.cfs_quota_us", c"/sys/fs/cgroup/cpu/cpu.cfs_period_us"],
    )
}

/// [`cpus`], by files of these names.
fn cpus_from(two: &CStr, one: [&CStr; 2]) -> Option<usize> {
    let (mut quota, mut period) = (None, None);
    for_each_line(two, |line| {
        let mut words = line.split(|&byte| byte == b' ').map(number);
        (quota, period) = (words.next().flatten(), words.next().flatten());
    });
    let [quota, period] = if period.is_some() { [quota, period] } else { one.map(number_in) };
    Some(quota?.div_ceil(period.filter(|&period| period > 0)?).max(1))
}

/// [`limit`], by files of these names.
fn limit_from(cgroup: &CStr, mountinfo: &CStr) -> Option<usize> {
    let mut least: Option<usize> = None;
    for version in [Version::One, Version::Two] {
        let mut group = None;
        for_each_line(cgroup, |line| {
            if let Some(path) = version.group(line) {
                group = Path::of(path);
            }
        });
        let Some(group) = group else { continue };
        for_each_line(mountinfo, |line| {
            if let Some(limit) = version.mount(line).and_then(|mount| version.limit(&group, &mount)) {
                least = Some(least.map_or(limit, |least| least.min(limit)));
            }
        });
    }
    least
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A line of mountinfo: the directory in the hierarchy that is mounted, and where.
struct Mount {
    root: Path,
    point: Path,
}

impl Version {
    /// The group's path, if the line of `/proc/self/cgroup` has it.
    fn group(self, line: &[u8]) -> Option<&[u8]> {
        let mut parts = line.splitn(3, |&byte| byte == b':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = match self {
            Self::One => has(controllers, b"memory"),
            Self::Two => number == b"0" && controllers.is_empty(),
        };
        ours.then_some(path)
    }

    /// What a line of mountinfo mounts, if that is the hierarchy.
    fn mount(self, line: &[u8]) -> Option<Mount> {
        let mut fields = line.split(|&byte| byte == b' ');
        let (root, point) = (fields.nth(3)?, fields.next()?);
        fields.find(|field| *field == b"-")?;
        let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
        let ours = match self {
            Self::One => kind == b"cgroup" && has(options, b"memory"),
            Self::Two => kind == b"cgroup2",
        };
        if !ours {
            return None;
        }
        Some(Mount { root: Path::unescaped(root)?, point: Path::unescaped(point)? })
    }

    /// The least limit from the group up to the mount point.
    fn limit(self, group: &Path, mount: &Mount) -> Option<usize> {
        let name: &[u8] = match self {
            Self::One => b"/memory.limit_in_bytes",
            Self::Two => b"/memory.max",
        };
        let mut directory = Path::of(mount.point.bytes())?;
        directory.push(below(group.bytes(), mount.root.bytes()))?;
        let mut least: Option<usize> = None;
        loop {
            let len = directory.bytes().len();
            directory.push(name)?;
            if let Some(limit) = directory.c_str().and_then(number_in) {
                least = Some(least.map_or(limit, |least| least.min(limit)));
            }
            directory.cut(len);
            let parent = directory.bytes().iter().rposition(|&byte| byte == b'/')?;
            if parent < mount.point.bytes().len() {
                return least;
            }
            directory.cut(parent);
        }
    }
}

/// Whether a list with commas has a word.
fn has(list: &[u8], word: &[u8]) -> bool {
    list.split(|&byte| byte == b',').any(|part| part == word)
}

/// What remains of a path below a root, with the slash in front; nothing if it is not below it.
fn below<'a>(path: &'a [u8], root: &[u8]) -> &'a [u8] {
    let root = root.strip_suffix(b"/").unwrap_or(root);
    match path.strip_prefix(root) {
        // A namespace shows groups outside of it by `..`.
        Some(rest) if rest.starts_with(b"/..") => b"",
        Some(rest) if rest.starts_with(b"/") => rest.strip_suffix(b"/").unwrap_or(rest),
        _ => b"",
    }
}

/// The number in the first line of a file, if it is a limit.
fn number_in(path: &CStr) -> Option<usize> {
    let (mut number, mut first) = (None, true);
    for_each_line(path, |line| {
        if core::mem::take(&mut first) {
            number = self::number(line);
        }
    });
    number.filter(|&number| number < UNLIMITED)
}

/// A decimal number alone in a text.
fn number(text: &[u8]) -> Option<usize> {
    core::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// A path without allocation, with room for the 0 at its end.
struct Path {
    bytes: [u8; LINE],
    len: usize,
}

impl Path {
    /// A copy; `None` if it is too long.
    fn of(text: &[u8]) -> Option<Self> {
        let mut path = Self { bytes: [0; LINE], len: 0 };
        path.push(text)?;
        Some(path)
    }

    /// A copy with what mountinfo writes as `\` and three octal digits put back.
    fn unescaped(text: &[u8]) -> Option<Self> {
        let mut path = Self { bytes: [0; LINE], len: 0 };
        let mut rest = text;
        while let Some((&byte, after)) = rest.split_first() {
            rest = after;
            let code = match after {
                [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', more @ ..] if byte == b'\\' => {
                    rest = more;
                    ((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0')
                }
                _ => byte,
            };
            path.push(&[code])?;
        }
        Some(path)
    }

    fn push(&mut self, text: &[u8]) -> Option<()> {
        if self.len + text.len() >= LINE {
            return None;
        }
        for (slot, &byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *slot = byte;
        }
        self.len += text.len();
        Some(())
    }

    /// Shortens it to `len` bytes.
    fn cut(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    fn c_str(&mut self) -> Option<&CStr> {
        *self.bytes.get_mut(self.len)? = 0;
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;
    extern crate std;
    use std::ffi::CString;
    use std::path::PathBuf;
    use std::string::String;

    /// Files below a directory of the test's own.
    struct Files(PathBuf);

    impl Files {
        fn new(name: &str) -> Self {
            let base = std::env::temp_dir().join(std::format!("rseq-alloc {name} {}", std::process::id()));
            std::fs::create_dir_all(&base).unwrap();
            Self(base)
        }

        fn write(&self, path: &str, text: &str) -> CString {
            let path = self.0.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            CString::new(path.to_str().unwrap()).unwrap()
        }

        /// The directory as mountinfo writes it.
        fn escaped(&self) -> String {
            self.0.to_str().unwrap().replace(' ', "\\040")
        }

        fn limit(&self, cgroup: &str, mountinfo: &str) -> Option<usize> {
            let mountinfo = mountinfo.replace("BASE", &self.escaped());
            limit_from(&self.write("cgroup", cgroup), &self.write("mountinfo", &mountinfo))
        }
    }

    impl Drop for Files {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    const OTHERS: &str = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        37 31 0:34 / BASE/cpu rw - cgroup cgroup rw,cpu,memoryless\n";

    #[test]
    fn version_one() {
        let files = Files::new("one");
        files.write("memory/jobs/a/memory.limit_in_bytes", "300000000\n");
        files.write("memory/jobs/memory.limit_in_bytes", "9223372036854771712\n");
        files.write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        files.write("cpu/jobs/a/memory.limit_in_bytes", "1\n");
        let mounts = std::format!("{OTHERS}35 31 0:32 / BASE/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n");
        let groups = "9:name=systemd:/x\n4:memory:/jobs/a\n1:cpu:/jobs\n0::/y\n";
        assert_eq!(files.limit(groups, &mounts), Some(300_000_000));
        // The group around it allows less.
        files.write("memory/jobs/memory.limit_in_bytes", "200000000\n");
        assert_eq!(files.limit(groups, &mounts), Some(200_000_000));
        // Beside it nothing is limited.
        assert_eq!(files.limit("4:memory:/other\n", &mounts), None);
        assert_eq!(files.limit("1:cpu:/jobs/a\n", &mounts), None);
        assert_eq!(files.limit("", ""), None);
    }

    #[test]
    fn version_two() {
        let files = Files::new("two");
        files.write("unified/jobs/a/memory.max", "max\n");
        files.write("unified/jobs/memory.max", "123456789\n");
        let mounts = std::format!("{OTHERS}41 31 0:38 / BASE/unified rw - cgroup2 cgroup2 rw,nsdelegate\n");
        assert_eq!(files.limit("0::/jobs/a\n", &mounts), Some(123_456_789));
        files.write("unified/jobs/a/memory.max", "1000\n");
        assert_eq!(files.limit("0::/jobs/a\n", &mounts), Some(1000));
        assert_eq!(files.limit("0::/\n", &mounts), None);
        // A group that is gone still lies below others.
        assert_eq!(files.limit("0::/jobs/b (deleted)\n", &mounts), Some(123_456_789));
        files.write("unified/jobs/memory.max", "not a number\n");
        assert_eq!(files.limit("0::/jobs\n", &mounts), None);
    }

    #[test]
    fn a_container_sees_its_own_mount() {
        let files = Files::new("container");
        files.write("mine/memory.max", "5000\n");
        files.write("mine/inner/memory.max", "4000\n");
        let mount = |root: &str| std::format!("41 31 0:38 {root} BASE/mine rw - cgroup2 cgroup rw\n");
        // The mount is the group, whose path is the host's.
        assert_eq!(files.limit("0::/host/c1\n", &mount("/host/c1")), Some(5000));
        assert_eq!(files.limit("0::/host/c1/inner\n", &mount("/host/c1")), Some(4000));
        assert_eq!(files.limit("0::/elsewhere\n", &mount("/host/c1")), Some(5000));
        assert_eq!(files.limit("0::/host/c12\n", &mount("/host/c1")), Some(5000));
        // A namespace, and one that does not contain the group.
        assert_eq!(files.limit("0::/inner\n", &mount("/")), Some(4000));
        assert_eq!(files.limit("0::/../other\n", &mount("/")), Some(5000));
    }

    #[test]
    fn quotas_are_cpus() {
        let files = Files::new("quota");
        let absent = files.write("absent", "");
        let two = |text: &str| cpus_from(&files.write("cpu.max", text), [&absent, &absent]);
        assert_eq!(two("200000 100000\n"), Some(2));
        assert_eq!(two("150000 100000\n"), Some(2));
        assert_eq!(two("1000 100000\n"), Some(1));
        assert_eq!([two("max 100000\n"), two("max\n"), two(""), two("1 0\n"), two("x y\n")], [None; 5]);
        let one = |quota: &str| {
            let period = files.write("period", "50000\n");
            cpus_from(&absent, [&files.write("quota", quota), &period])
        };
        assert_eq!((one("400000\n"), one("-1\n"), one("")), (Some(8), None, None));
    }

    #[test]
    fn the_system_s_own_files_can_be_read() {
        assert!(cpus().is_none_or(|cpus| cpus > 0));
        // Whatever they say, it is a limit or none.
        assert!(limit().is_none_or(|bytes| (1..UNLIMITED).contains(&bytes)));
    }
}
