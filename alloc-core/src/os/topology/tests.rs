//! Promises held here: real systems are read as what they are; what is missing or makes no sense is one node and one
//! cache, or no worse; more nodes and caches than are told apart are folded evenly, and none gets a number beyond.

use super::*;
use proptest::prelude::*;
extern crate std;
use std::boxed::Box;
use std::collections::BTreeMap;
use std::format;
use std::ops::Range;
use std::string::{String, ToString};
use std::vec::Vec;

/// The files of a system, by their names below the root. The process may run on the CPUs in `cpu/online`.
#[derive(Default)]
struct Files(BTreeMap<String, String>);

impl Files {
    fn new(files: &[(&str, &str)]) -> Self {
        Self(files.iter().map(|(name, text)| (name.to_string(), format!("{text}\n"))).collect())
    }

    fn put(&mut self, name: &str, text: &str) {
        self.0.insert(name.to_string(), format!("{text}\n"));
    }

    /// Three levels as every x86-64 processor has them, the last of which `cpus` share.
    fn put_cache(&mut self, cpus: &[usize]) {
        for cpu in cpus {
            for index in 0..4 {
                let own = if index == 3 { list(cpus) } else { cpu.to_string() };
                self.put(&format!("cpu/cpu{cpu}/cache/index{index}/shared_cpu_list"), &own);
            }
        }
    }

    /// Reads them in pieces of three bytes.
    fn read(&self) -> (Found, Box<Topology>) {
        let topology = Box::new(Topology::new());
        (self.read_into(&topology), topology)
    }

    fn read_into(&self, topology: &Topology) -> Found {
        let mut allowed = CpuSet([0; CPUS / 64]);
        let text = |_: &CStr, each: &mut dyn FnMut(&[u8])| {
            self.0.get("cpu/online").map(|text| each(text.as_bytes())).is_some()
        };
        for_each_number(&text, &Path::new(), |cpu| allowed.0[cpu / 64] |= 1 << (cpu % 64));
        topology.read(&allowed, &|name, each| {
            let name = name.to_str().unwrap().strip_prefix("/sys/devices/system/").unwrap();
            let Some(text) = self.0.get(name) else { return false };
            text.as_bytes().chunks(3).for_each(each);
            true
        })
    }
}

/// As the kernel writes it.
fn list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges.into_iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    texts.collect::<Vec<_>>().join(",")
}

fn both(first: Range<usize>, second: Range<usize>) -> Vec<usize> {
    first.chain(second).collect()
}

/// `sockets` sockets of `cores` cores with two threads, a cache for each `cores_of_cache` of them, numbered as the
/// kernel does: the second threads follow after the first ones of all.
fn sockets(sockets: usize, cores: usize, cores_of_cache: usize, nodes_of_socket: usize) -> Files {
    let (all, cores_of_node) = (sockets * cores, cores / nodes_of_socket);
    let mut files = Files::default();
    files.put("cpu/online", &format!("0-{}", 2 * all - 1));
    files.put("node/online", &list(&(0..sockets * nodes_of_socket).collect::<Vec<_>>()));
    for node in 0..sockets * nodes_of_socket {
        let (from, to) = (node * cores_of_node, (node + 1) * cores_of_node);
        files.put(&format!("node/node{node}/cpulist"), &list(&both(from..to, from + all..to + all)));
    }
    for from in (0..all).step_by(cores_of_cache) {
        let to = from + cores_of_cache;
        files.put_cache(&both(from..to, from + all..to + all));
    }
    files
}

fn found(nodes: usize, caches: usize) -> Found {
    Found { nodes, caches }
}

#[test]
fn lists() {
    let numbers = |text: &str| {
        let files = Files::new(&[("node/online", text)]);
        let mut numbers = Vec::new();
        let read = |_: &CStr, each: &mut dyn FnMut(&[u8])| {
            files.0["node/online"].as_bytes().chunks(1).for_each(each);
            true
        };
        for_each_number(&read, &Path::new(), |number| numbers.push(number));
        numbers
    };
    assert_eq!(numbers("0"), [0]);
    assert_eq!(numbers("0-3,8-11"), [0, 1, 2, 3, 8, 9, 10, 11]);
    assert_eq!(numbers("1,3,5-6,127"), [1, 3, 5, 6, 127]);
    assert_eq!(numbers(""), []);
    assert_eq!(numbers("8190-9999,10000,99999999999999999999999"), [8190, 8191]);
    assert_eq!(numbers("-"), []);
    assert_eq!(numbers("5-3,7"), [7]);
    assert_eq!(numbers("x,2-,4"), [4]);
}

#[test]
fn names_of_files() {
    let name = shared_by(8191, 4);
    assert_eq!(name.c_str().to_str(), Ok("/sys/devices/system/cpu/cpu8191/cache/index4/shared_cpu_list"));
    assert_eq!(Path::new().number(100).number(0).c_str().to_str(), Ok("/sys/devices/system/1000"));
    assert_eq!(Path::new().text(&[b'x'; 200]).c_str().to_bytes().len(), Path::LEN - 1);
}

#[test]
fn one_node_with_one_cache_touches_no_table() {
    for files in [sockets(1, 8, 8, 1), sockets(1, 1, 1, 1)] {
        let (one, topology) = files.read();
        assert!(one.is_one());
        assert!(topology.places.iter().all(|place| place.load(Ordering::Relaxed) == 0));
    }
}

#[test]
fn missing_files_are_one_node_and_one_cache() {
    assert!(Files::default().read().0.is_one());
    // A guest without caches to be seen; and files that cannot be read.
    let mut files = Files::new(&[("node/online", "0"), ("cpu/online", "0-7")]);
    assert!(files.read().0.is_one());
    files.put("node/online", "0-1");
    assert!(files.read().0.is_one(), "nodes of which nothing is known");
    files.put("cpu/online", "?");
    assert!(files.read().0.is_one());
}

#[test]
fn two_sockets() {
    let (two, topology) = sockets(2, 14, 14, 1).read();
    assert_eq!(two, found(2, 2));
    for (cpu, place) in
        [(0, (0, 0)), (13, (0, 0)), (14, (1, 1)), (28, (0, 0)), (41, (0, 0)), (42, (1, 1)), (55, (1, 1))]
    {
        assert_eq!(topology.place(cpu), place, "{cpu}");
    }
    assert_eq!(topology.place(56), (0, 0), "there is none");
    assert_eq!([0, 1].map(|node| topology.ids[node].load(Ordering::Relaxed)), [1, 2]);
    assert_eq!([0, 1].map(|cache| topology.near[cache].load(Ordering::Relaxed)), [1, 2]);
}

/// CPUs numbered by turns, as some firmware does: the lists are longer than a buffer.
#[test]
fn two_sockets_by_turns() {
    let of = |node: usize| (node..1024).step_by(2).collect::<Vec<_>>();
    let mut files = Files::new(&[("node/online", "0-1"), ("cpu/online", "0-1023")]);
    for node in [0, 1] {
        files.put(&format!("node/node{node}/cpulist"), &list(&of(node)));
        files.put_cache(&of(node));
    }
    let (two, topology) = files.read();
    assert_eq!(two, found(2, 2));
    assert!((0..1024).all(|cpu| topology.place(cpu) == (cpu % 2, cpu % 2)));
}

/// EPYC 7742: two sockets of 64 cores, a cache for each four; EPYC 7763: eight. EPYC 9654: twelve for each socket.
#[test]
fn many_caches_for_each_socket() {
    let (all, topology) = sockets(2, 64, 8, 1).read();
    assert_eq!(all, found(2, 16));
    assert_eq!(
        [0, 7, 8, 63, 64, 127].map(|cpu| topology.place(cpu)),
        [(0, 0), (0, 0), (0, 1), (0, 7), (1, 8), (1, 15)]
    );
    assert_eq!((topology.place(128 + 9), topology.place(255)), ((0, 1), (1, 15)));
    assert_eq!([0, 15].map(|cache| topology.near[cache].load(Ordering::Relaxed)), [0x00ff, 0xff00]);

    let (folded, topology) = sockets(2, 64, 4, 1).read();
    assert_eq!(folded, found(2, 16), "two of 32 for each");
    assert_eq!([0, 4, 7, 8, 64].map(|cpu| topology.place(cpu).1), [0, 0, 0, 1, 8]);

    let (uneven, topology) = sockets(2, 96, 8, 1).read();
    assert_eq!(uneven, found(2, 12), "two of 24 for each");
    assert_eq!([0, 16, 95, 96, 191].map(|cpu| topology.place(cpu)), [(0, 0), (0, 1), (0, 5), (1, 6), (1, 11)]);

    // A single socket, and four nodes in each of two.
    assert_eq!(sockets(1, 64, 8, 1).read().0, found(1, 8));
    assert_eq!(sockets(2, 64, 8, 4).read().0, found(8, 16));
}

/// A cache that the nodes of a socket share is one in each of them.
#[test]
fn nodes_that_share_a_cache() {
    let (all, topology) = sockets(2, 16, 16, 2).read();
    assert_eq!(all, found(4, 4));
    assert_eq!([0, 7, 8, 15, 16, 31].map(|cpu| topology.place(cpu).1), [0, 0, 1, 1, 2, 3]);
}

/// CPUs 2, 6 and 7 are offline, and so are all of the second node but two.
#[test]
fn holes() {
    let mut files = Files::new(&[
        ("node/online", "0,2"),
        ("cpu/online", "0-1,3-5,12,15"),
        ("node/node0/cpulist", "0-1,3-5"),
        ("node/node2/cpulist", "12,15"),
    ]);
    files.put_cache(&[0, 1, 3]);
    files.put_cache(&[4, 5]);
    files.put_cache(&[12]);
    files.put_cache(&[15]);
    let (two, topology) = files.read();
    assert_eq!(two, found(2, 2));
    let places = [0, 3, 4, 12, 15, 2].map(|cpu| topology.place(cpu));
    assert_eq!(places, [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (0, 0)]);
    assert_eq!([0, 1].map(|node| topology.ids[node].load(Ordering::Relaxed)), [1, 3]);
}

/// Memory on a node of its own, behind a bus.
#[test]
fn nodes_without_cpus() {
    let mut files = sockets(1, 8, 8, 1);
    files.put("node/online", "0-1");
    files.put("node/node1/cpulist", "");
    assert!(files.read().0.is_one());
    let mut files = sockets(2, 8, 8, 1);
    files.put("node/online", "0-3");
    files.put("node/node2/cpulist", "");
    files.put("node/node3/cpulist", "");
    assert_eq!(files.read().0, found(2, 2));
}

/// The second level is the last, and each core has its own: nothing is shared.
#[test]
fn caches_of_single_cores_do_not_count() {
    let mut files = Files::new(&[("node/online", "0"), ("cpu/online", "0-79")]);
    for cpu in 0..80 {
        files.put(&format!("cpu/cpu{cpu}/cache/index2/shared_cpu_list"), &cpu.to_string());
    }
    assert!(files.read().0.is_one());
    // Some do share one.
    for cpu in 40..80 {
        files.put(&format!("cpu/cpu{cpu}/cache/index2/shared_cpu_list"), if cpu < 60 { "40-59" } else { "60-79" });
    }
    let (two, topology) = files.read();
    assert_eq!(two, found(1, 2));
    assert_eq!([0, 39, 40, 59, 60].map(|cpu| topology.place(cpu).1), [0, 0, 0, 0, 1]);
}

#[test]
fn many_nodes_are_folded() {
    let (folded, topology) = sockets(12, 8, 8, 1).read();
    assert_eq!(folded, found(8, 12));
    assert_eq!([0, 63, 64, 95].map(|cpu| topology.place(cpu).0), [0, 7, 0, 3]);
    assert_eq!([0, 3, 4].map(|node| topology.ids[node].load(Ordering::Relaxed)), [NO_ID, NO_ID, 5]);
}

/// Of two sockets with eight caches each, the process may use one socket, one cache, or some CPUs of three.
#[test]
fn only_what_the_process_may_use_counts() {
    let mut files = sockets(2, 64, 8, 1);
    for (cpus, expected) in [
        ("64-127,192-255", found(1, 8)),
        ("8-15,136-143", found(1, 1)),
        ("8-11", found(1, 1)),
        ("0-3,8-11,64-67", found(2, 3)),
        ("0,8,16,24", found(1, 1)),
        ("0,64", found(2, 2)),
        ("5", found(1, 1)),
        ("", found(1, 1)),
    ] {
        files.put("cpu/online", cpus);
        assert_eq!(files.read().0, expected, "{cpus}");
    }
}

#[test]
fn reading_again_finds_the_same() {
    let files = sockets(2, 96, 8, 1);
    let (first, topology) = files.read();
    let places = |topology: &Topology| (0..400).map(|cpu| topology.place(cpu)).collect::<Vec<_>>();
    let before = places(&topology);
    assert_eq!(files.read_into(&topology), first);
    assert_eq!(places(&topology), before);
}

#[test]
fn what_tests_say() {
    let topology = Topology::new();
    assert!(topology.take_from(&[]).is_one());
    assert_eq!(topology.take_from(&[(0, 0), (1, 2), (0, 1), (1, 3)]), found(2, 4));
    assert_eq!([0, 1, 3].map(|cpu| topology.place(cpu)), [(0, 0), (1, 2), (1, 3)]);
    assert_eq!([0, 1, 2, 3].map(|cache| topology.near[cache].load(Ordering::Relaxed)), [3, 3, 12, 12]);
}

#[test]
fn every_node_comes_up_once() {
    assert_eq!(nodes_from(0).collect::<Vec<_>>(), [0], "of this machine's tests there is one");
    assert_eq!(nodes_from(3).collect::<Vec<_>>(), [0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 64 }))]

    /// Whatever the files say, numbers stay below what there is, and each cache belongs to one node.
    #[test]
    fn numbers_stay_in_bounds(
        nodes in proptest::collection::vec("[0-9,-]{0,6}", 0..12),
        caches in proptest::collection::vec("[0-9,-]{0,8}", 0..40),
        online in "[0-9,-]{0,8}",
    ) {
        let mut files = Files::default();
        files.put("cpu/online", &online);
        files.put("node/online", &format!("0-{}", nodes.len()));
        for (node, text) in nodes.iter().enumerate() {
            files.put(&format!("node/node{node}/cpulist"), text);
        }
        for (cpu, text) in caches.iter().enumerate() {
            files.put(&format!("cpu/cpu{cpu}/cache/index3/shared_cpu_list"), text);
        }
        let (found, topology) = files.read();
        prop_assert!((1..=NODES).contains(&found.nodes) && (found.nodes..=CACHES).contains(&found.caches));
        let mut node_of = BTreeMap::new();
        for_each_number(&|_, each| { each(online.as_bytes()); true }, &Path::new(), |cpu| {
            let (node, cache) = topology.place(cpu);
            if found.nodes > 1 {
                assert!(node < found.nodes, "{node}");
            }
            if found.caches > 1 {
                assert!(cache < found.caches);
                assert_eq!(*node_of.entry(cache).or_insert(node), node);
            }
        });
    }
}

/// Whatever this machine is, the files can be read; and what its memory is asked for can be seen.
#[test]
#[cfg_attr(miri, ignore = "reads the system's files")]
fn the_system_s_own() {
    let topology = Box::new(Topology::new());
    let start = std::time::Instant::now();
    let found = topology.read(&CpuSet::allowed(), &file::for_each_piece);
    std::println!("{found:?} after {:?}", start.elapsed());
    assert!((1..=NODES).contains(&found.nodes) && (found.nodes..=CACHES).contains(&found.caches));

    let start = crate::os::mapping::map(64 << 10, 64 << 10).unwrap();
    prefer_id(start, 64 << 10, 5000);
    prefer_id(start, 64 << 10, 0);
    // Where the kernel knows nodes and no filter is in the way.
    let Ok(maps) = std::fs::read_to_string("/proc/self/numa_maps") else { return };
    let line = maps.lines().find(|line| line.starts_with(&format!("{:x} ", start.addr().get())));
    std::println!("{line:?}");
    assert!(line.is_some_and(|line| line.contains(" prefer") && line.contains(":0") || line.contains(" default")));
    // SAFETY: not used.
    assert!(unsafe { crate::os::mapping::unmap(start, 64 << 10) });
}
