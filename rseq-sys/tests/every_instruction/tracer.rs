//! The other side: a program that is traced, its memory and registers, and the way to its second thread.
//!
//! Source: [ptrace(2)](https://man7.org/linux/man-pages/man2/ptrace.2.html).

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The instruction that stops, and where in `NT_PRSTATUS` the program counter is.
#[cfg(target_arch = "x86_64")]
const BREAKPOINT: (&[u8], usize) = (&[0xcc], 16);
#[cfg(target_arch = "aarch64")]
const BREAKPOINT: (&[u8], usize) = (&0xd420_0000u32.to_le_bytes(), 32);
/// As many words as `NT_PRSTATUS` has on either architecture.
const REGISTERS: usize = 34;
const NT_PRSTATUS: usize = 1;

/// The program's first thread, which is traced. Its tracer is the thread that started it.
pub(crate) struct Traced {
    program: Child,
    to: ChildStdin,
    from: ChildStdout,
    /// What is to be added to an address of ours to get theirs.
    pub(crate) shift: usize,
}

/// Why a traced thread does not run.
#[derive(Debug, PartialEq)]
pub(crate) enum Stop {
    Signal(i32),
    Exited(i32),
    Killed(i32),
}

impl Traced {
    /// Starts `command` and lets it run to its first instruction.
    pub(crate) fn start(mut command: Command) -> std::io::Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // SAFETY: ptrace is a plain system call.
        let command = unsafe {
            command.pre_exec(|| match libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            })
        };
        let mut program = command.spawn()?;
        let (to, from) = (program.stdin.take().expect("piped"), program.stdout.take().expect("piped"));
        let mut traced = Traced { program, to, from, shift: 0 };
        assert_eq!(traced.wait(), Stop::Signal(libc::SIGTRAP), "stopped by exec");
        traced.request(libc::PTRACE_SETOPTIONS as i64, 0, libc::PTRACE_O_EXITKILL as usize);
        // SAFETY: a question.
        let ours = unsafe { libc::getauxval(libc::AT_PHDR) } as usize;
        traced.shift = traced.program_headers().wrapping_sub(ours);
        Ok(traced)
    }

    fn pid(&self) -> libc::pid_t {
        self.program.id() as libc::pid_t
    }

    /// Address of the program's headers.
    fn program_headers(&self) -> usize {
        let words = std::fs::read(format!("/proc/{}/auxv", self.pid())).expect("/proc is there");
        let words: Vec<u64> =
            words.chunks_exact(8).map(|word| u64::from_ne_bytes(word.try_into().expect("8 bytes"))).collect();
        let entry = words.chunks_exact(2).find(|entry| entry[0] == libc::AT_PHDR);
        entry.expect("every program has headers")[1] as usize
    }

    /// Lets the thread go on until something stops it again.
    pub(crate) fn go_on(&mut self) -> Stop {
        self.request(libc::PTRACE_CONT as i64, 0, 0);
        loop {
            match self.wait() {
                Stop::Signal(signal) if ![libc::SIGTRAP, libc::SIGSTOP].contains(&signal) => {
                    self.request(libc::PTRACE_CONT as i64, 0, signal as usize);
                }
                stop => return stop,
            }
        }
    }

    fn wait(&self) -> Stop {
        let mut status = 0;
        // SAFETY: waits for our own child.
        assert_eq!(unsafe { libc::waitpid(self.pid(), &mut status, 0) }, self.pid());
        if libc::WIFSTOPPED(status) {
            Stop::Signal(libc::WSTOPSIG(status))
        } else if libc::WIFEXITED(status) {
            Stop::Exited(libc::WEXITSTATUS(status))
        } else {
            Stop::Killed(libc::WTERMSIG(status))
        }
    }

    /// A request that must succeed.
    fn request(&self, request: i64, address: usize, data: usize) -> i64 {
        // SAFETY: a request about our own child, which is stopped; the callers pass what it wants.
        let answer = unsafe { libc::ptrace(request as _, self.pid(), address, data) };
        assert_ne!(answer, -1, "ptrace {request}: {}", std::io::Error::last_os_error());
        answer
    }

    /// The word at `address`, one of ours.
    pub(crate) fn read(&self, address: usize) -> u64 {
        let mut word = 0u64;
        let theirs = address.wrapping_add(self.shift);
        let to = libc::iovec { iov_base: (&raw mut word).cast(), iov_len: 8 };
        let from = libc::iovec { iov_base: std::ptr::without_provenance_mut(theirs), iov_len: 8 };
        // SAFETY: writes one local word.
        let read = unsafe { libc::process_vm_readv(self.pid(), &to, 1, &from, 1, 0) };
        assert_eq!(read, 8, "{}", std::io::Error::last_os_error());
        word
    }

    /// Writes a word to `address`, one of ours; also where the program may not write.
    pub(crate) fn write(&self, address: usize, word: u64) {
        self.request(libc::PTRACE_POKEDATA as i64, address.wrapping_add(self.shift), word as usize);
    }

    /// Runs into the instruction at `address`, one of ours, without executing it.
    ///
    /// # Errors
    /// What happened instead.
    pub(crate) fn run_to(&mut self, address: usize) -> Result<(), Stop> {
        let (trap, counter) = BREAKPOINT;
        let before = self.read(address);
        let mut bytes = before.to_le_bytes();
        bytes[..trap.len()].copy_from_slice(trap);
        self.write(address, u64::from_le_bytes(bytes));
        let stop = self.go_on();
        if matches!(stop, Stop::Exited(_) | Stop::Killed(_)) {
            return Err(stop);
        }
        self.write(address, before);
        if stop != Stop::Signal(libc::SIGTRAP) {
            return Err(stop);
        }
        let mut registers = [0u64; REGISTERS];
        let length = self.registers(libc::PTRACE_GETREGSET as i64, &mut registers);
        let theirs = address.wrapping_add(self.shift) as u64;
        // x86-64 stops behind the breakpoint, aarch64 at it.
        let at = registers[counter];
        assert!(at == theirs || at == theirs + 1, "stopped at {at:#x} and not at {theirs:#x}");
        registers[counter] = theirs;
        self.registers(libc::PTRACE_SETREGSET as i64, &mut registers[..length]);
        Ok(())
    }

    /// Gets or sets the general registers; returns how many there are.
    fn registers(&self, request: i64, registers: &mut [u64]) -> usize {
        let mut room = libc::iovec { iov_base: registers.as_mut_ptr().cast(), iov_len: size_of_val(registers) };
        self.request(request, NT_PRSTATUS, (&raw mut room).expose_provenance());
        room.iov_len / size_of::<u64>()
    }

    /// Lets the second thread do its work, and waits for it. False if the program died of it.
    pub(crate) fn disturb(&mut self) -> bool {
        self.to.write_all(&[1]).is_ok() && self.from.read_exact(&mut [0]).is_ok()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.program.kill();
        _ = self.program.wait();
    }
}
