//! The least that a program does. With an argument it also tells its peak of resident memory in KiB.

use bench_child::{ALLOCATOR, Allocator};
use bench_workloads::usage;

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() {
    println!("hello, world");
    if std::env::args().len() > 1 {
        match usage::peak_rss_kib() {
            Ok(kib) => println!("{kib}"),
            Err(error) => eprintln!("hello: {error}"),
        }
    }
}
