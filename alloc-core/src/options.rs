//! Options: a `const` builder on the static, and one environment variable.
//!
//! They are read once, by the first allocation. The environment wins over the builder, so that an
//! operator can change what was compiled in. A value that makes no sense is named in a line on file descriptor 2 and
//! ignored. Programs that run with other privileges than their caller's (`AT_SECURE`) ignore the environment.

use crate::fatal::Line;
use crate::limit::{self, Limit};
use crate::os::huge::{self, HugePages};
use crate::os::topology::Places;
use crate::{background, decay, depot, shard};
use core::ffi::CStr;

/// What the caches are indexed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum IndexChoice {
    /// The kernel's concurrency id if it fills one, else the CPU number, else arenas.
    #[default]
    Auto,
    /// The concurrency id; the CPU number where the kernel fills none, as `Auto` does.
    MmCid,
    /// The CPU number.
    CpuId,
    /// Arenas by thread, without rseq.
    Arenas,
}

/// See the builder methods of [`crate::RseqAlloc`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) index: IndexChoice,
    pub(crate) decay_ms: u64,
    pub(crate) shard_budget: usize,
    /// `None`: what suits the CPUs that the process may use.
    pub(crate) cache_limit: Option<usize>,
    pub(crate) background: bool,
    pub(crate) soft_limit: Limit,
    pub(crate) hard_limit: Limit,
    pub(crate) huge_pages: HugePages,
    /// Whether the first blocks may come from [`crate::early`].
    pub(crate) early: bool,
    /// For tests only; the environment has no name for it.
    pub(crate) places: Option<Places>,
}

/// Free memory goes back to the operating system over this time: long enough for a load that comes in waves.
pub(crate) const DEFAULT_DECAY_MS: u64 = 10_000;

/// The environment variable.
const VARIABLE: &CStr = c"RSEQ_ALLOC";

impl Options {
    /// The defaults.
    pub(crate) const fn new() -> Self {
        Self {
            index: IndexChoice::Auto,
            decay_ms: DEFAULT_DECAY_MS,
            shard_budget: shard::DEFAULT_BUDGET,
            cache_limit: None,
            background: false,
            soft_limit: Limit::None,
            hard_limit: Limit::None,
            huge_pages: HugePages::System,
            early: true,
            places: None,
        }
    }

    /// These options with what the environment says about them.
    pub(crate) fn with_environment(mut self) -> Self {
        // SAFETY: always sound. <https://man7.org/linux/man-pages/man3/getauxval.3.html>
        if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
            return self;
        }
        // SAFETY: a valid name. As for every reader of the environment, a program that changes it while another thread
        // is at its first allocation is at fault.
        let value = unsafe { libc::getenv(VARIABLE.as_ptr()) };
        if !value.is_null() {
            // SAFETY: getenv returns a C string. <https://man7.org/linux/man-pages/man3/getenv.3.html>
            for part in parts(unsafe { CStr::from_ptr(value) }.to_bytes()) {
                match setting(part) {
                    Ok(setting) => self.set(setting),
                    Err(expected) => warn(part, " in RSEQ_ALLOC: ", expected),
                }
            }
        }
        self
    }

    fn set(&mut self, setting: Setting) {
        match setting {
            Setting::Index(index) => self.index = index,
            Setting::Decay(ms) => self.decay_ms = ms,
            Setting::Budget(bytes) => self.shard_budget = bytes,
            Setting::Cache(bytes) => self.cache_limit = Some(bytes),
            Setting::Background(on) => self.background = on,
            Setting::SoftLimit(limit) => self.soft_limit = limit,
            Setting::HardLimit(limit) => self.hard_limit = limit,
            Setting::HugePages(choice) => self.huge_pages = choice,
        }
    }

    /// Puts in force what has to be so before any memory is taken.
    pub(crate) fn apply_limits(&self) {
        limit::set_soft(self.soft_limit);
        limit::set_hard(self.hard_limit);
        huge::set(self.huge_pages);
    }

    /// Hands the layers all else, in a process that may use so many CPUs.
    pub(crate) fn apply(&self, cpus: usize) {
        set_decay_ms(self.decay_ms);
        shard::set_budget(self.shard_budget);
        shard::bound::set(self.cache_limit.unwrap_or_else(|| shard::bound::default(cpus)));
        background::set(self.background);
    }
}

/// Sets the interval of all that decays.
pub(crate) fn set_decay_ms(ms: u64) {
    shard::idle::set_decay_ms(ms);
    depot::set_decay_ms(ms);
    decay::set_ms(ms);
}

/// Something of `name=value,name=value` made no sense, or came too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// Applies what can change while the process runs, `decay`, `budget`, `cache`, `background` and the limits, in the form that the
/// environment variable has.
/// Parts that make no sense or come too late are named in a line on file descriptor 2 and ignored.
pub(crate) fn change(text: &[u8]) -> Result<(), Refused> {
    let mut result = Ok(());
    for part in parts(text) {
        let problem = match setting(part) {
            Ok(Setting::Decay(ms)) => {
                set_decay_ms(ms);
                continue;
            }
            Ok(Setting::Budget(bytes)) => {
                shard::set_budget(bytes);
                continue;
            }
            Ok(Setting::Cache(bytes)) => {
                shard::bound::set(bytes);
                continue;
            }
            Ok(Setting::Background(on)) => {
                background::set(on);
                continue;
            }
            Ok(Setting::SoftLimit(limit)) => {
                limit::set_soft(limit);
                continue;
            }
            Ok(Setting::HardLimit(limit)) => {
                limit::set_hard(limit);
                continue;
            }
            Ok(Setting::Index(_) | Setting::HugePages(_)) => "the first allocation has decided that",
            Err(expected) => expected,
        };
        warn(part, ": ", problem);
        result = Err(Refused);
    }
    result
}

/// One option with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Setting {
    Index(IndexChoice),
    Decay(u64),
    Budget(usize),
    Cache(usize),
    SoftLimit(Limit),
    HardLimit(Limit),
    HugePages(HugePages),
    Background(bool),
}

/// The parts of `name=value,name=value`.
fn parts(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b',').filter(|part| !part.is_empty())
}

/// What `name=value` means, or what was expected instead.
fn setting(part: &[u8]) -> Result<Setting, &'static str> {
    let mut halves = part.splitn(2, |&byte| byte == b'=');
    let (name, value) = (halves.next().unwrap_or_default(), halves.next());
    let value = value.ok_or("expected name=value")?;
    match name {
        b"index" => match value {
            b"auto" => Ok(Setting::Index(IndexChoice::Auto)),
            b"mm_cid" => Ok(Setting::Index(IndexChoice::MmCid)),
            b"cpu_id" => Ok(Setting::Index(IndexChoice::CpuId)),
            b"arenas" => Ok(Setting::Index(IndexChoice::Arenas)),
            _ => Err("expected auto, mm_cid, cpu_id or arenas"),
        },
        b"decay" => match (value, number(value)) {
            (b"never", _) => Ok(Setting::Decay(u64::MAX)),
            (_, Some(ms)) => Ok(Setting::Decay(ms as u64)),
            _ => Err("expected milliseconds or never"),
        },
        b"budget" => match bytes(value) {
            Some(bytes) => Ok(Setting::Budget(bytes)),
            None => Err("expected a number of bytes, which may end in K, M or G"),
        },
        b"cache" => match (value, bytes(value)) {
            (b"none", _) => Ok(Setting::Cache(usize::MAX)),
            (_, Some(bytes)) => Ok(Setting::Cache(bytes)),
            _ => Err("expected a number of bytes, which may end in K, M or G, or none"),
        },
        b"soft_limit" => limit(value).map(Setting::SoftLimit),
        b"hard_limit" => limit(value).map(Setting::HardLimit),
        b"thp" => match value {
            b"system" => Ok(Setting::HugePages(HugePages::System)),
            b"on" => Ok(Setting::HugePages(HugePages::On)),
            b"off" => Ok(Setting::HugePages(HugePages::Off)),
            _ => Err("expected system, on or off"),
        },
        b"background" => match value {
            b"on" => Ok(Setting::Background(true)),
            b"off" => Ok(Setting::Background(false)),
            _ => Err("expected on or off"),
        },
        _ => Err("unknown name; there are index, decay, budget, cache, soft_limit, hard_limit, thp and background"),
    }
}

/// One warning line.
#[cold]
fn warn(part: &[u8], place: &str, problem: &str) {
    let mut line = Line::new();
    line.text("ignored '").bytes(part.get(..64).unwrap_or(part)).text("'").text(place).text(problem);
    line.write();
}

/// A decimal number.
fn number(text: &[u8]) -> Option<usize> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0usize, |sum, byte| {
        let digit = byte.checked_sub(b'0').filter(|digit| *digit < 10)?;
        sum.checked_mul(10)?.checked_add(usize::from(digit))
    })
}

/// A number of bytes, a percentage, or `none`.
fn limit(value: &[u8]) -> Result<Limit, &'static str> {
    let limit = match value.strip_suffix(b"%") {
        Some(percent) => number(percent).and_then(|percent| u8::try_from(percent).ok()).map(Limit::CgroupPercent),
        None if value == b"none" => Some(Limit::None),
        None => bytes(value).map(Limit::Bytes),
    };
    match limit {
        None | Some(Limit::Bytes(0) | Limit::CgroupPercent(0 | 101..)) => {
            Err("expected bytes (K, M or G), 1% to 100% of the cgroup's limit, or none")
        }
        Some(limit) => Ok(limit),
    }
}

/// A decimal number of bytes with an optional unit.
fn bytes(text: &[u8]) -> Option<usize> {
    let (digits, shift) = match text.split_last() {
        Some((b'k' | b'K', digits)) => (digits, 10),
        Some((b'm' | b'M', digits)) => (digits, 20),
        Some((b'g' | b'G', digits)) => (digits, 30),
        _ => (text, 0),
    };
    number(digits)?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;
    extern crate std;

    fn parsed(text: &str) -> (Options, usize) {
        let mut warnings = 0;
        let mut options = Options::new();
        for part in parts(text.as_bytes()) {
            match setting(part) {
                Ok(setting) => options.set(setting),
                Err(_) => warnings += 1,
            }
        }
        (options, warnings)
    }

    #[test]
    fn good_values() {
        let (options, warnings) = parsed("index=cpu_id,decay=250,budget=3M,background=on,");
        let expected = Options {
            index: IndexChoice::CpuId,
            decay_ms: 250,
            shard_budget: 3 << 20,
            background: true,
            ..Options::new()
        };
        assert_eq!(options, expected);
        assert_eq!(warnings, 0);
        assert_eq!(parsed("decay=never").0.decay_ms, u64::MAX);
        assert_eq!(
            (parsed("cache=64M").0.cache_limit, parsed("cache=none").0.cache_limit),
            (Some(64 << 20), Some(usize::MAX))
        );
        assert_eq!(parsed(""), (Options::new(), 0));
        let (options, warnings) = parsed("soft_limit=80%,hard_limit=2G,thp=off");
        assert_eq!((options.soft_limit, options.hard_limit), (Limit::CgroupPercent(80), Limit::Bytes(2 << 30)));
        assert_eq!((options.huge_pages, warnings), (HugePages::Off, 0));
        let (options, warnings) = parsed("soft_limit=7,soft_limit=none,hard_limit=100%,thp=on,thp=system");
        assert_eq!((options.soft_limit, options.hard_limit), (Limit::None, Limit::CgroupPercent(100)));
        assert_eq!((options.huge_pages, warnings), (HugePages::System, 0));
    }

    #[test]
    fn wrong_values_are_named_and_change_nothing() {
        for text in [
            "index=cpus",
            "decay=",
            "decay=-1",
            "budget=1T",
            "budget=99999999999G",
            "cache=",
            "cache=all",
            "colour=red",
            "index",
            "=",
        ] {
            assert_eq!(parsed(text), (Options::new(), 1), "{text}");
        }
        for text in [
            "soft_limit=",
            "hard_limit=0",
            "soft_limit=0%",
            "hard_limit=101%",
            "soft_limit=%",
            "soft_limit=-1",
            "thp=always",
            "background=1",
        ] {
            assert_eq!(parsed(text), (Options::new(), 1), "{text}");
        }
        assert_eq!(parsed("index=x,decay=7").0.decay_ms, 7);
    }
}
