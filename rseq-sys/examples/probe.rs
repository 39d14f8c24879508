//! Prints what libc and the kernel say about restartable sequences, what follows from it, and what is in the area of
//! the calling thread. Run it with `GLIBC_TUNABLES=glibc.pthread.rseq=0`, under a debugger, in a container: it explains
//! why rseq is used or is not.
//!
//! The last line begins with `mode: ` and is the one for scripts. The exit status is 0 where rseq can be used and 1
//! where it cannot, or where a second thread cannot use it.

use rseq_sys::probe::{Field, Probe};
use rseq_sys::{IndexKind, Mode, Unavailable, ensure_thread, membarrier, mode};
use std::process::ExitCode;

fn main() -> ExitCode {
    let probe = Probe::take();
    let mode = mode();
    let this = ensure_thread();
    let second = std::thread::spawn(ensure_thread).join().expect("the thread does not panic");

    println!("system");
    row("kernel", kernel());
    row("libc", libc_name());
    raw_values(&probe);
    registration(mode, this, second);
    fields(mode.and_then(|mode| this.map(|()| mode)));

    println!();
    let verdict = match (mode, this, second) {
        (Ok(mode), Ok(()), Ok(())) => Ok(mode),
        (Err(reason), ..) | (_, Err(reason), _) => Err(reason.to_string()),
        (_, _, Err(reason)) => Err(format!("a second thread: {reason}")),
    };
    match verdict {
        Ok(mode) => {
            println!("index: {}", index(&mode));
            println!("mode: {mode}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            println!("index: none, an allocator keeps to locks or thread caches");
            println!("mode: none: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("  {name:<22} {value}");
}

/// Name, release and architecture of the kernel, by [uname(2)](https://man7.org/linux/man-pages/man2/uname.2.html).
fn kernel() -> String {
    // SAFETY: all zero is a valid structure of byte arrays, each of which then ends in zero.
    let mut name: libc::utsname = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for writing.
    if unsafe { libc::uname(&mut name) } != 0 {
        return format!("unknown ({})", std::io::Error::last_os_error());
    }
    // SAFETY: terminated, and alive as long as the structure.
    let text =
        |field: &[libc::c_char]| unsafe { std::ffi::CStr::from_ptr(field.as_ptr()) }.to_string_lossy().into_owned();
    format!("{} {}, {}", text(&name.sysname), text(&name.release), text(&name.machine))
}

/// libc and how it is linked.
fn libc_name() -> String {
    #[cfg(target_env = "gnu")]
    let name = {
        // SAFETY: a constant, terminated string.
        let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
        format!("glibc {}", version.to_string_lossy())
    };
    #[cfg(not(target_env = "gnu"))]
    let name = if cfg!(target_env = "musl") { "musl" } else { "neither glibc nor musl" };
    format!("{name}, linked {}", if cfg!(target_feature = "crt-static") { "statically" } else { "dynamically" })
}

fn raw_values(probe: &Probe) {
    heading("libc's symbols");
    match probe.libc {
        Some(libc) => {
            row("__rseq_offset", libc.offset);
            row("__rseq_size", libc.size);
            row("__rseq_flags", format_args!("{:#x}", libc.flags));
            row("found in", libc.found);
        }
        None => row("none", "this libc does not know rseq"),
    }
    heading("auxiliary vector");
    let or_absent = |value: Option<u32>| value.map_or("absent, as before Linux 6.3".into(), |value| value.to_string());
    row("AT_RSEQ_FEATURE_SIZE", or_absent(probe.auxv.feature_size));
    row("AT_RSEQ_ALIGN", or_absent(probe.auxv.align));
    heading("membarrier");
    match probe.membarrier {
        Ok(_) => {
            for (bit, name) in probe.membarrier_commands() {
                row(&format!("{bit:#x}"), name.unwrap_or("not known to this crate"));
            }
        }
        Err(errno) => row("commands", format_args!("none, the question was answered with {errno}")),
    }
    let fence = membarrier::register().map_or_else(|errno| format!("no: {errno}"), |()| "registered".into());
    row("rseq fence", fence);
}

fn registration(mode: Result<Mode, Unavailable>, this: Result<(), Unavailable>, second: Result<(), Unavailable>) {
    heading("registration");
    let thread = |answer: Result<(), Unavailable>| match (mode, answer) {
        (Ok(mode), Ok(())) => format!("registered by {}", mode.registrar),
        (Err(reason), _) | (_, Err(reason)) => format!("none: {reason}"),
    };
    row("this thread", thread(this));
    row("a second thread", thread(second));
    if let Ok(mode) = mode {
        row("area", format_args!("at the thread pointer {:+}", mode.area_offset()));
        row("registered length", mode.registered_len);
        row("effective feature size", mode.features);
    }
}

fn fields(mode: Result<Mode, Unavailable>) {
    heading("fields of struct rseq");
    println!("  {:<14} {:>6} {:>20}  usable", "field", "offset", "value");
    for field in Field::ALL {
        let value = match (field, field.value()) {
            (_, None) => "-".into(),
            (Field::RseqCs | Field::Flags | Field::SliceCtrl, Some(value)) => format!("{value:#x}"),
            // The ids are all ones or small negative numbers where there is nothing to be had.
            (_, Some(value)) => (value as u32).cast_signed().to_string(),
        };
        let usable = match mode {
            Ok(mode) => match field.usable(mode.features, mode.registered_len) {
                Ok(()) => "yes".into(),
                Err(why) => format!("no: {why}"),
            },
            Err(reason) => format!("no: {reason}"),
        };
        println!("  {field:<14} {:>6} {value:>20}  {usable}", field.offset());
    }
}

/// The index that an allocator would take, and why.
fn index(mode: &Mode) -> String {
    match (mode.default_index(), Field::MmCid.usable(mode.features, mode.registered_len)) {
        (IndexKind::MmCid, _) => {
            format!("mm_cid, which feature size {} holds to its end, {}", mode.features, Field::MmCid.end())
        }
        (IndexKind::CpuId, Err(why)) => format!("cpu_id, since mm_cid is not filled in: {why}"),
        (IndexKind::CpuId, Ok(())) => "cpu_id".into(),
    }
}
