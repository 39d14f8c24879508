//! The figures: what is mapped is the sum of its parts, at any time when nothing is on its way.

use super::{Blocks, MIB, MODES, settled_stats};
use integration::random::Random;
use integration::scenes;

/// Promise: `mapped` is what the program has, what caches and free pages hold, what was given back, metadata, and a
/// waste that is small; and the limits count all of it but what was given back.
pub(super) fn add_up() {
    for mode in MODES {
        for decay in ["decay=0", "decay=200", "decay=never"] {
            scenes::run("accounts", &format!("{mode},{decay}"));
        }
    }
}

/// A size of any class, or of a large block.
fn size(random: &mut Random) -> usize {
    if random.below(50) == 0 { MIB + random.below(6 * MIB) } else { random.size(MIB) }
}

pub(super) fn play() {
    let start = settled_stats();
    let mut kept: Vec<Blocks> = Vec::new();
    for round in 0..6 {
        let live: Vec<Blocks> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3)
                .map(|thread| {
                    scope.spawn(move || {
                        let mut random = Random::from_environment(10 * round + thread);
                        let mut blocks = Blocks::default();
                        for _ in 0..3000 {
                            assert!(blocks.add(size(&mut random)));
                        }
                        blocks.retain(|_| random.below(3) == 0);
                        blocks
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().expect("no thread fails")).collect()
        });
        kept.extend(live);
        let before = settled_stats();
        let asked: usize = kept.iter().map(Blocks::bytes).sum();
        let held = before.allocated - start.allocated;
        assert!((asked..asked + asked / 4 + MIB).contains(&held), "{held} bytes for {asked}: {before}");
        assert!(before.waste < held / 8 + MIB, "{before}");
        let given_back = alloc_core::purge();
        let after = settled_stats();
        assert_eq!(after.allocated, before.allocated);
        assert_eq!((after.cached_shards, after.cached_depot, after.cached_pages, after.cached_large), (0, 0, 0, 0));
        let fewer = before.counted - after.counted;
        // Without decay pages go back while they are freed, before it is their turn.
        let at_once = std::env::var("RSEQ_ALLOC").is_ok_and(|options| options.contains("decay=0"));
        // Spans that become free with every other OS page returned give back the rest of these without telling.
        let same = (given_back..=given_back + given_back / 1000).contains(&fewer);
        assert!(same || (at_once && fewer > given_back), "{given_back} given back, {fewer} fewer: {before}\n{after}");
        if round % 2 == 1 {
            // Freed by this thread, allocated by others.
            kept.drain(..2);
            settled_stats();
        }
        if round == 3 {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
    }
    println!("{}", settled_stats());
    kept.clear();
    alloc_core::purge();
    let end = settled_stats();
    assert_eq!(end.allocated, start.allocated, "{end}");
    assert!(end.cached_central < MIB && end.waste == 0, "{end}");
}
