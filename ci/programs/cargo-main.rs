//! The program that is built: prints sums over what macro and build script have made, computed in threads.

use std::collections::{BTreeMap, HashMap};
use std::sync::mpsc;

mod tables {
    include!(concat!(env!("OUT_DIR"), "/tables.rs"));
}

macros::shapes!(60);

fn main() {
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..8u64)
        .map(|thread| {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for round in 0..40 {
                    let mut sums: HashMap<String, u64> = HashMap::new();
                    for (text, area) in areas(thread + round % 5) {
                        for word in text.split(' ') {
                            *sums.entry(word.to_owned()).or_default() += area;
                        }
                    }
                    // Freed by another thread.
                    sender.send((thread, round, sums)).expect("main listens");
                }
            })
        })
        .collect();
    drop(sender);
    let mut all: BTreeMap<u64, BTreeMap<String, u64>> = BTreeMap::new();
    for (thread, round, sums) in receiver {
        for (word, sum) in sums {
            *all.entry(thread).or_default().entry(word).or_default() += sum * (round + 1);
        }
    }
    for thread in threads {
        thread.join().expect("no panic");
    }
    for (thread, sums) in &all {
        let sum = sums.iter().fold(0u64, |sum, (word, n)| sum.rotate_left(5) ^ n ^ word.len() as u64);
        println!("{thread}: {} words, {sum:x}", sums.len());
    }
    let tables = [tables::table0::TABLE, tables::table7::TABLE, tables::table11::TABLE];
    println!("{}", tables.iter().flat_map(|table| table.iter()).map(|(name, n)| name.len() as u64 * n).sum::<u64>());
}
