//! Tests of the search on small pieces of code, put together by hand or at random.

use crate::graph::{Graph, arms, loads};
use crate::image::{Image, Sequence};
use crate::paths::{HitPaths, Verdict, judge};

const BASE: u64 = 0x1000;
/// `mov ecx, 0x9000` loads this descriptor.
const DESCRIPTOR: u64 = 0x9000;

const LOAD: &[u8] = &[0xb9, 0x00, 0x90, 0x00, 0x00]; // mov ecx, 0x9000
const ARM: &[u8] = &[0x64, 0x48, 0x89, 0x48, 0x08]; // mov fs:[rax+8], rcx
const TEST: &[u8] = &[0x48, 0x85, 0xd2]; // test rdx, rdx
const COMMIT: &[u8] = &[0x48, 0x89, 0x17]; // mov [rdi], rdx
const RET: &[u8] = &[0xc3];
const NOP: &[u8] = &[0x90];
const PUSH: &[u8] = &[0x50];
const CALL: &[u8] = &[0xe8, 0x00, 0x00, 0x00, 0x00];
const LOCKED: &[u8] = &[0xf0, 0x48, 0xff, 0x07]; // lock inc qword ptr [rdi]
/// je over a `nop`.
const SKIP_NOP: &[u8] = &[0x74, 0x01];

/// The address of the part `part`.
fn address(parts: &[&[u8]], part: usize) -> u64 {
    BASE + parts[..part].iter().map(|bytes| bytes.len() as u64).sum::<u64>()
}

/// Puts `parts` together; the section runs from the part `start` to before the part `end`.
fn judge_parts(parts: &[&[u8]], start: usize, end: usize) -> Verdict {
    let code = parts.concat();
    let sequence = Sequence { descriptor: DESCRIPTOR, start: address(parts, start), end: address(parts, end) };
    judge(&Image::of_code(BASE, &code, vec![sequence]), BASE)
}

fn hit(parts: &[&[u8]], start: usize, end: usize) -> HitPaths {
    match judge_parts(parts, start, end) {
        Verdict::Hit(paths) => paths,
        other => panic!("no hit path: {other:?}"),
    }
}

#[test]
fn a_straight_hit_path_is_counted_with_its_ret() {
    let path = hit(&[LOAD, ARM, TEST, COMMIT, RET], 2, 4).longest;
    assert_eq!(path.instructions.len(), 5);
    assert_eq!((path.armed, path.start, path.commit), (1, 2, 3));
}

#[test]
fn a_branch_around_the_commit_is_not_a_hit() {
    // je over the commit, straight to the ret.
    let paths = hit(&[LOAD, ARM, TEST, &[0x74, 0x03], COMMIT, RET], 2, 5);
    assert_eq!(paths.describe(), "one path");
    assert_eq!(paths.longest.instructions.len(), 6);
}

#[test]
fn the_longest_of_several_hit_paths_is_judged() {
    let paths = hit(&[TEST, SKIP_NOP, NOP, LOAD, ARM, COMMIT, RET], 5, 6);
    assert_eq!(paths.describe(), "2 paths of 6 to 7");
    assert_eq!(paths.longest.instructions.len(), 7);
    assert_eq!(paths.ways.longest.counted, 7);
}

#[test]
fn what_belongs_to_the_frame_makes_no_path_the_longest() {
    // jne over two pushes; or else over a nop, which counts.
    let parts: &[&[u8]] = &[TEST, &[0x75, 0x04], PUSH, PUSH, &[0xeb, 0x01], NOP, LOAD, ARM, COMMIT, RET];
    let paths = hit(parts, 8, 9);
    // Both have seven that count: the jump on one, the nop on the other; the pushes only decide which is listed.
    assert_eq!(paths.describe(), "2 paths of 7 to 7");
    assert_eq!(paths.longest.instructions.len(), 9);
    // Another nop makes the other way the longer one, though it has fewer instructions in all.
    let parts: &[&[u8]] = &[TEST, &[0x75, 0x04], PUSH, PUSH, &[0xeb, 0x02], NOP, NOP, LOAD, ARM, COMMIT, RET];
    let paths = hit(parts, 9, 10);
    assert_eq!(paths.describe(), "2 paths of 7 to 8");
    assert_eq!((paths.longest.instructions.len(), paths.ways.longest.counted), (8, 8));
}

#[test]
fn calls_and_lock_prefixes_are_refused_and_named() {
    for (blemish, name) in [(CALL, "call"), (LOCKED, "lock")] {
        for parts in [[blemish, LOAD, ARM, COMMIT, RET], [LOAD, ARM, COMMIT, blemish, RET]] {
            let commit = parts.iter().position(|part| *part == COMMIT).expect("every case commits");
            let Verdict::Blemished(reason) = judge_parts(&parts, commit, commit + 1) else {
                panic!("{name} was not refused");
            };
            assert!(reason.contains(name), "{reason}");
        }
    }
}

#[test]
fn a_section_that_is_never_armed_is_missing() {
    assert!(matches!(judge_parts(&[LOAD, TEST, COMMIT, RET], 1, 3), Verdict::Missing(_)));
    assert!(matches!(judge_parts(&[TEST, ARM, COMMIT, RET], 2, 3), Verdict::Missing(_)));
}

#[test]
fn code_without_a_section_is_missing() {
    let code = [TEST, RET].concat();
    assert!(matches!(judge(&Image::of_code(BASE, &code, Vec::new()), BASE), Verdict::Missing(_)));
}

#[test]
fn a_second_section_makes_it_another_path() {
    assert!(matches!(judge_parts(&[LOAD, ARM, ARM, COMMIT, RET], 3, 4), Verdict::Missing(_)));
    assert!(matches!(judge_parts(&[LOAD, ARM, COMMIT, ARM, RET], 2, 3), Verdict::Missing(_)));
}

#[test]
fn two_to_the_forty_paths_are_counted_and_the_longest_is_found() {
    let mut parts: Vec<&[u8]> = [TEST, SKIP_NOP, NOP].repeat(40);
    parts.extend([LOAD, ARM, COMMIT, RET]);
    let paths = hit(&parts, 122, 123);
    assert_eq!(paths.ways.number, 1 << 40);
    assert_eq!((paths.ways.shortest.all, paths.ways.longest.all), (84, 124));
    assert_eq!(paths.longest.instructions.len(), 124);
    assert_eq!((paths.longest.armed, paths.longest.start, paths.longest.commit), (121, 122, 122));
}

#[test]
fn two_to_the_forty_paths_that_are_no_hit_are_left_alone() {
    // A second store to the area, behind all the branches: what a slow path looks like that was inlined.
    let mut parts: Vec<&[u8]> = vec![LOAD, ARM];
    parts.extend([TEST, SKIP_NOP, NOP].repeat(40));
    parts.extend([ARM, COMMIT, RET]);
    assert!(matches!(judge_parts(&parts, 123, 124), Verdict::Missing(_)));
    // With a call on every way, the shortest is found all the same, to say so.
    let mut parts: Vec<&[u8]> = [TEST, SKIP_NOP, NOP].repeat(40);
    parts.extend([LOAD, ARM, COMMIT, CALL, RET]);
    assert!(matches!(judge_parts(&parts, 122, 123), Verdict::Blemished(_)));
}

#[test]
fn a_loop_on_the_hit_path_is_refused() {
    // jne back to the test.
    let Verdict::Unclear(reason) = judge_parts(&[TEST, &[0x75, 0xfb], LOAD, ARM, COMMIT, RET], 4, 5) else {
        panic!("the loop was not refused");
    };
    assert!(reason.contains("loop") && reason.contains("0x1000"), "{reason}");
}

#[test]
fn a_loop_elsewhere_is_no_matter() {
    // jne over the hit path, to a test and a jne that goes back to it.
    let parts: &[&[u8]] = &[TEST, &[0x75, 0x0e], LOAD, ARM, COMMIT, RET, TEST, &[0x75, 0xfb], RET];
    assert_eq!(hit(parts, 4, 5).describe(), "one path");
}

#[test]
fn too_much_code_is_refused() {
    let mut parts: Vec<&[u8]> = vec![NOP; crate::graph::MOST_INSTRUCTIONS];
    parts.extend([LOAD, ARM, COMMIT, RET]);
    let commit = parts.len() - 2;
    assert!(matches!(judge_parts(&parts, commit, commit + 1), Verdict::Unclear(_)));
}

/// All hit paths, one by one: their instructions, and those that count. `None` if one visits an instruction twice.
fn listed_one_by_one(image: &Image<'_>) -> Option<Vec<(usize, usize)>> {
    fn go_on(image: &Image<'_>, graph: &Graph, path: &mut Vec<usize>, found: &mut Vec<(usize, usize)>) -> Option<()> {
        let node = &graph.0[*path.last()?];
        if path.len() > graph.0.len() {
            return None;
        }
        if node.instruction.flow_control() == iced_x86::FlowControl::Return {
            let all: Vec<_> = path.iter().map(|&node| graph.0[node].instruction).collect();
            if is_hit(image, graph, path, &all) {
                found.push((all.len(), all.iter().filter(|i| !crate::graph::is_frame(i)).count()));
            }
        }
        for &next in &node.next {
            path.push(next);
            go_on(image, graph, path, found)?;
            path.pop();
        }
        Some(())
    }
    /// The definition, applied to a finished path.
    fn is_hit(image: &Image<'_>, graph: &Graph, path: &[usize], all: &[iced_x86::Instruction]) -> bool {
        let Some(commit) = path.iter().position(|&node| graph.0[node].commits.is_some()) else { return false };
        let sequence = image.sequences[graph.0[path[commit]].commits.unwrap_or_default()];
        let Some(start) = all.iter().position(|i| i.ip() == sequence.start) else { return false };
        let armed: Vec<usize> = (0..all.len()).filter(|&i| arms(&all[i])).collect();
        let [armed] = armed[..] else { return false };
        armed < start
            && start <= commit
            && all[..armed].iter().any(|i| loads(i, sequence.descriptor))
            && all[start..=commit].iter().all(|i| (sequence.start..sequence.end).contains(&i.ip()))
    }
    let graph = Graph::decode(image, BASE, false).expect("the code is small");
    let mut found = Vec::new();
    go_on(image, &graph, &mut vec![0], &mut found)?;
    Some(found)
}

#[test]
fn the_same_paths_are_found_as_by_listing_them_one_by_one() {
    // xorshift64: the same programs each time.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let (mut hits, mut most, mut missing, mut blemished) = (0, 0, 0, 0);
    for _ in 0..20_000 {
        // Mostly what a hit path is made of, in its order, with other things in between and branches over some of it.
        let mut parts: Vec<Vec<u8>> = Vec::new();
        let mut marks = Vec::new();
        for part in [LOAD, ARM, TEST, COMMIT, LOAD, ARM, TEST, COMMIT, RET] {
            for _ in 0..random(3) {
                let others = [NOP, NOP, NOP, PUSH, PUSH, TEST, TEST, TEST, RET, CALL, LOAD, ARM];
                parts.push(others[random(others.len())].to_vec());
            }
            // A branch whose distance is filled in when the code is complete.
            if random(2) == 0 {
                parts.push(vec![0x74, 0]);
            }
            marks.push(parts.len());
            parts.push(part.to_vec());
        }
        let places: Vec<u64> = {
            let borrowed: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            (0..parts.len()).map(|part| address(&borrowed, part)).collect()
        };
        for part in 0..parts.len() - 1 {
            if parts[part][0] == 0x74 {
                let target = part + 1 + random((parts.len() - part - 1).min(8));
                parts[part][1] = (places[target] - places[part + 1]) as u8;
            }
        }
        let section = |start: usize, end: usize, descriptor| Sequence {
            descriptor,
            start: places[marks[start]],
            end: places[marks[end]] + COMMIT.len() as u64,
        };
        let code = parts.concat();
        let sequences = vec![section(2, 3, DESCRIPTOR), section(6, 7, DESCRIPTOR)];
        let image = Image::of_code(BASE, &code, sequences);
        let listed = listed_one_by_one(&image).expect("branches lead forward only");
        match judge(&image, BASE) {
            Verdict::Hit(paths) => {
                hits += 1;
                most = most.max(listed.len());
                let counted = |extreme: Option<usize>| extreme.expect("there is one");
                assert_eq!(paths.ways.number, listed.len() as u128);
                assert_eq!(paths.ways.longest.counted, counted(listed.iter().map(|&(_, counted)| counted).max()));
                assert_eq!(paths.ways.shortest.counted, counted(listed.iter().map(|&(_, counted)| counted).min()));
                assert!(listed.contains(&(paths.longest.instructions.len(), paths.ways.longest.counted)));
            }
            Verdict::Missing(_) => {
                missing += 1;
                assert_eq!(listed, []);
            }
            Verdict::Blemished(_) => {
                blemished += 1;
                assert_eq!(listed, []);
            }
            Verdict::Unclear(reason) => panic!("{reason}"),
        }
    }
    // The programs are of use only if they show everything.
    assert!(hits > 1_000 && most > 10 && missing > 1_000 && blemished > 100, "{hits} {most} {missing} {blemished}");
}
