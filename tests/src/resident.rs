//! How much memory of the process is resident.

/// Resident bytes ([proc_pid_statm(5)](https://man7.org/linux/man-pages/man5/proc_pid_statm.5.html)), read without
/// allocating: that would be activity.
pub fn resident() -> usize {
    let mut text = [0_u8; 128];
    // SAFETY: a valid path.
    let file = unsafe { libc::open(c"/proc/self/statm".as_ptr(), libc::O_RDONLY) };
    assert!(file >= 0, "procfs");
    // SAFETY: the buffer is valid for its length.
    let len = unsafe { libc::read(file, text.as_mut_ptr().cast(), text.len()) };
    // SAFETY: opened above.
    unsafe { libc::close(file) };
    let text = std::str::from_utf8(&text[..len as usize]).expect("ASCII");
    let pages: usize = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("a number of pages");
    // SAFETY: no preconditions.
    pages * unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize
}
