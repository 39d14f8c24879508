//! What the kernel says about this process.

use std::fs::{self, File};
use std::io::{self, Read};

/// A reading of [getrusage(2)](https://man7.org/linux/man-pages/man2/getrusage.2.html).
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Page faults, minor and major.
    pub faults: u64,
    /// Time in the kernel, in microseconds.
    pub system_micros: u64,
}

impl Usage {
    /// Of this process, until now.
    pub fn now() -> Self {
        // SAFETY: all zeroes are a value of this plain structure.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is valid for writes. The call cannot fail with these arguments.
        unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut usage) };
        let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        Usage { faults: (usage.ru_minflt + usage.ru_majflt) as u64, system_micros: micros(usage.ru_stime) }
    }

    /// From an earlier reading to this one.
    pub fn since(self, earlier: Usage) -> Usage {
        Usage {
            faults: self.faults - earlier.faults,
            system_micros: self.system_micros.saturating_sub(earlier.system_micros),
        }
    }
}

/// The most resident memory so far, in KiB: `VmHWM` of
/// [proc_pid_status(5)](https://man7.org/linux/man-pages/man5/proc_pid_status.5.html). The kernel keeps it by counters
/// that may lag behind by some dozen pages for each CPU.
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn peak_rss_kib() -> io::Result<u64> {
    field("/proc/self/status", "VmHWM:")
}

/// Resident memory, counted exactly by walking the page tables
/// ([proc_pid_smaps(5)](https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html)).
#[derive(Clone, Copy, Debug, Default)]
pub struct Resident {
    /// All of it, in KiB.
    pub rss_kib: u64,
    /// What of it is anonymous memory in transparent huge pages, in KiB.
    pub huge_kib: u64,
}

impl Resident {
    /// That of this process, now. Allocates nothing, so that it can be asked while an idle heap is watched.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn now() -> io::Result<Self> {
        const FILE: &str = "/proc/self/smaps_rollup";
        let mut file = File::open(FILE)?;
        // It has about 25 short lines.
        let mut text = [0; 4096];
        let mut length = 0;
        loop {
            match file.read(&mut text[length..])? {
                0 => break,
                read => length += read,
            }
        }
        let text = str::from_utf8(&text[..length]).unwrap_or_default();
        Ok(Resident { rss_kib: value(text, FILE, "Rss:")?, huge_kib: value(text, FILE, "AnonHugePages:")? })
    }
}

/// Resident memory now, in KiB; see [`Resident`].
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn rss_kib() -> io::Result<u64> {
    Resident::now().map(|resident| resident.rss_kib)
}

fn field(file: &str, name: &str) -> io::Result<u64> {
    value(&fs::read_to_string(file)?, file, name)
}

fn value(text: &str, file: &str, name: &str) -> io::Result<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("no {name} in {file}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touched_memory_is_seen() {
        const MIB: usize = 64;
        let usage = Usage::now();
        let memory = vec![1_u8; MIB << 20];
        assert!(rss_kib().unwrap() >= (MIB as u64) * 1024);
        assert!(Usage::now().since(usage).faults > 0);
        drop(std::hint::black_box(memory));
        // The counters may lag behind.
        assert!(peak_rss_kib().unwrap() >= (MIB as u64 - 4) * 1024);
    }
}
