//! Prints what libc and the kernel say about restartable sequences, what follows from it, and whether a second thread
//! can use them too. Run it with `GLIBC_TUNABLES=glibc.pthread.rseq=0`, under a debugger, in a container: it explains
//! why rseq is used or is not.

use rseq_sys::{ensure_thread, membarrier, mode, probe::Probe};

fn main() {
    let probe = Probe::take();
    println!("probe:  {probe}");
    println!("plan:   {:?}", probe.plan());
    match mode() {
        Ok(mode) => println!("mode:   {mode}"),
        Err(reason) => println!("mode:   none, {reason}"),
    }
    let describe = |answer| match answer {
        Ok(()) => "registered".to_string(),
        Err(reason) => format!("{reason}"),
    };
    println!("thread: {}", describe(ensure_thread()));
    let second = std::thread::spawn(ensure_thread).join().expect("the thread does not panic");
    println!("second: {}", describe(second));
    match membarrier::fence() {
        Ok(()) => println!("fence:  works"),
        Err(errno) => println!("fence:  {errno}"),
    }
}
