//! One allocator configuration as a test binary.
//!
//! [`configuration!`](crate::configuration!) expands to the `#[global_allocator]`, a constructor that allocates before
//! `main`, and a `main` that enters the configuration (some need the process to be executed again under another
//! environment or filter), then runs its part of the shared body and the configuration's own checks.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use alloc_core::{IndexKind, Mode};

use crate::harness::Check;
use crate::{body, child, harness};

/// Names the part a re-executed child plays instead of running checks.
pub const ROLE: &str = "INTEGRATION_ROLE";

/// What distinguishes one configuration.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Name, for messages.
    pub name: &'static str,
    /// Brings the process into the configuration; may execute it again and then does not return the first time.
    pub enter: fn(),
    /// Says what is wrong with the reported mode, if anything.
    pub promise: fn(&Mode) -> Result<(), String>,
    /// What it runs of the shared body.
    pub body: &'static [&'static [Check]],
    /// Checks beyond the shared body.
    pub checks: &'static [Check],
}

/// Defines a binary's global allocator, its constructor before `main`, and `main`.
#[macro_export]
macro_rules! configuration {
    ($allocator:expr, $configuration:expr) => {
        #[global_allocator]
        static GLOBAL: alloc_core::RseqAlloc = $allocator;

        // The C library calls the functions of this section before main
        // (https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.dynamic.html#init_fini).
        #[used]
        #[unsafe(link_section = ".init_array")]
        static BEFORE_MAIN: extern "C" fn() = $crate::body::before_main;

        fn main() -> std::process::ExitCode {
            static CONFIGURATION: $crate::configuration::Configuration = $configuration;
            $crate::configuration::main(&CONFIGURATION)
        }
    };
}

static CURRENT: std::sync::OnceLock<&'static Configuration> = std::sync::OnceLock::new();

/// The `main` of a configuration.
pub fn main(configuration: &'static Configuration) -> ExitCode {
    (configuration.enter)();
    CURRENT.get_or_init(|| configuration);
    if let Ok(role) = std::env::var(ROLE) {
        return body::play(&role);
    }
    println!("configuration {}: {}", configuration.name, alloc_core::mode());
    let promised: &[Check] = &[Check::new("mode_is_what_was_promised", mode)];
    let code = harness::main(&[&[promised], configuration.body, &[configuration.checks]].concat());
    println!("{}", alloc_core::stats());
    code
}

/// Promise: `mode()` says what this configuration is for, and it says it again after the body has run.
fn mode() {
    let configuration = CURRENT.get().expect("set by main");
    let mode = alloc_core::mode();
    if let Err(complaint) = (configuration.promise)(&mode) {
        panic!("configuration {}: {complaint}; the mode is: {mode}", configuration.name);
    }
}

/// Runs the configuration's promise again; checks call it from children and at the end.
pub fn still_promised() {
    mode();
}

/// Executes this binary again with one variable set, unless it is set to that already.
pub fn execute_with(variable: &str, value: &str) {
    if std::env::var(variable).is_ok_and(|current| current == value) {
        return;
    }
    let error = child::again().args(std::env::args_os().skip(1)).env(variable, value).exec();
    panic!("executing this binary again: {error}");
}

/// Set to the call and the errno in a process that [`execute_with_refusal`] has executed again.
const REFUSED: &str = "INTEGRATION_REFUSED";

/// A system call that a filter takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// `rseq`: the C library's registration at start fails, and everybody else's.
    Rseq,
    /// [membarrier(2)](https://man7.org/linux/man-pages/man2/membarrier.2.html).
    Membarrier,
}

impl Call {
    fn number(self) -> libc::c_long {
        match self {
            Self::Rseq => libc::SYS_rseq,
            Self::Membarrier => libc::SYS_membarrier,
        }
    }

    /// What it answers when asked for something harmless; 0 if it is willing.
    fn answer(self) -> i32 {
        if self == Self::Rseq {
            return rseq_answer();
        }
        // SAFETY: the question which commands there are has no effect.
        let result = unsafe { libc::syscall(libc::SYS_membarrier, 0, 0, 0) };
        if result >= 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
    }
}

/// Installs a seccomp filter under which `call` answers `errno`, and executes this binary again, so that the C
/// library meets it too.
///
/// The filter stays over execve ([seccomp(2)](https://man7.org/linux/man-pages/man2/seccomp.2.html)). A mark in the
/// environment says that it is there: the answer alone does not, since rseq may answer EINVAL by itself.
pub fn execute_with_refusal(call: Call, errno: i32) {
    let mark = format!("{call:?}:{errno}");
    if std::env::var(REFUSED).is_ok_and(|current| current == mark) {
        assert_eq!(call.answer(), errno, "the filter is in force");
        return;
    }
    let filter = seccompiler::SeccompFilter::new(
        [(call.number(), Vec::new())].into_iter().collect(),
        seccompiler::SeccompAction::Allow,
        seccompiler::SeccompAction::Errno(errno.unsigned_abs()),
        std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows"),
    )
    .expect("a valid filter");
    let program: seccompiler::BpfProgram = filter.try_into().expect("a filter that compiles");
    seccompiler::apply_filter(&program).expect("seccomp is available");
    let error = child::again().args(std::env::args_os().skip(1)).env(REFUSED, mark).exec();
    panic!("executing this binary again: {error}");
}

/// [`execute_with_refusal`] of rseq.
pub fn execute_with_rseq_answering(errno: i32) {
    execute_with_refusal(Call::Rseq, errno);
}

/// What the system call rseq answers to arguments that are never valid (EINVAL where it exists unfiltered).
fn rseq_answer() -> i32 {
    // SAFETY: a null area with length 0 is refused by every kernel and changes nothing.
    let result = unsafe { libc::syscall(libc::SYS_rseq, std::ptr::null_mut::<u8>(), 0_u32, 0, 0_u32) };
    if result == 0 { 0 } else { std::io::Error::last_os_error().raw_os_error().unwrap_or(0) }
}

/// The feature size that the kernel reports, 20 if it reports none
/// (`AT_RSEQ_FEATURE_SIZE`, [getauxval(3)](https://man7.org/linux/man-pages/man3/getauxval.3.html)).
pub fn kernels_feature_size() -> u32 {
    const AT_RSEQ_FEATURE_SIZE: libc::c_ulong = 27;
    // SAFETY: no preconditions; an unknown type answers 0.
    let size = unsafe { libc::getauxval(AT_RSEQ_FEATURE_SIZE) };
    if size == 0 { 20 } else { u32::try_from(size).expect("a small number") }
}

/// The index that the automatic choice must arrive at on this kernel: mm_cid ends at byte 28 of `struct rseq`. None where
/// rseq does not exist, and where it does not abort what it should.
pub fn best_index() -> Option<IndexKind> {
    if rseq_answer() == libc::ENOSYS || rseq_sys::mode() == Err(rseq_sys::Unavailable::NoAborts) {
        None
    } else if kernels_feature_size() >= 28 {
        Some(IndexKind::MmCid)
    } else {
        Some(IndexKind::CpuId)
    }
}

/// What the mode must name as the reason where [`best_index`] is none.
pub fn why_no_index() -> &'static str {
    if rseq_answer() == libc::ENOSYS { "ENOSYS" } else { "does not abort" }
}

/// The value of a `u32` symbol of the C library, if it has it; `None` in a statically linked program, where dlsym finds
/// nothing.
pub fn libc_symbol(name: &std::ffi::CStr) -> Option<u32> {
    // SAFETY: the name is a C string; the handle is one of the constants.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    // SAFETY: the symbols asked for (`__rseq_size`, `__rseq_flags`) are constants of type unsigned int.
    unsafe { symbol.cast::<u32>().as_ref() }.copied()
}

/// Whether the C library registers threads in this process. Found by another way than the allocator's, where there is
/// one.
pub fn libc_registers() -> bool {
    let size = if cfg!(target_feature = "crt-static") {
        rseq_sys::probe::Probe::take().libc.map(|symbols| symbols.size)
    } else {
        libc_symbol(c"__rseq_size")
    };
    size.is_some_and(|size| size > 0)
}

/// Promise: an rseq mode with this index and this registrar, and a text that says so.
///
/// # Errors
///
/// What is different.
pub fn expect_index(mode: &Mode, index: IndexKind, registrar: &str) -> Result<(), String> {
    let text = mode.to_string();
    if mode.is_arenas() || mode.index() != Some(index) {
        return Err(format!("expected the index {index}"));
    }
    if !text.starts_with(&index.to_string()) {
        return Err(format!("expected the text to start with {index}"));
    }
    if !text.contains(registrar) {
        return Err(format!("expected \"{registrar}\" in the text"));
    }
    // A C library from before 2.41 registers 32 bytes, whatever the kernel has.
    let sizes = [kernels_feature_size(), kernels_feature_size().min(32)];
    if !sizes.iter().any(|size| text.contains(&format!("feature size {size}"))) {
        return Err(format!("expected a feature size of {sizes:?} in the text, from the auxiliary vector"));
    }
    Ok(())
}

/// Promise: arenas, and a text that gives the reason.
///
/// # Errors
///
/// What is different.
pub fn expect_arenas(mode: &Mode, reason: &str) -> Result<(), String> {
    let text = mode.to_string();
    if !mode.is_arenas() || mode.index().is_some() {
        return Err("expected arenas".to_owned());
    }
    if !text.starts_with("arenas: ") || !text.contains(reason) {
        return Err(format!("expected \"arenas: \" and \"{reason}\" in the text"));
    }
    Ok(())
}
