//! What the kernel says about this process.

use std::fs;
use std::io;

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

/// Resident memory now, in KiB, counted exactly
/// ([proc_pid_smaps(5)](https://man7.org/linux/man-pages/man5/proc_pid_smaps.5.html)).
///
/// # Errors
///
/// If `/proc` cannot be read.
pub fn rss_kib() -> io::Result<u64> {
    field("/proc/self/smaps_rollup", "Rss:")
}

fn field(file: &str, name: &str) -> io::Result<u64> {
    fs::read_to_string(file)?
        .lines()
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
