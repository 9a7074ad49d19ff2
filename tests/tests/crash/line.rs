//! Lines of removed images above each other, merged in one pass.

use std::collections::BTreeMap;

use vdsmstore_core::options::{AutoFix, CreateOptions, RemoveOptions};
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{Result, Store};

use vdsmstore_io::device::sim::hosts;

use crate::crash_each;
use crate::operation::{Operation, chosen, none};
use crate::scene::{CLUSTER, Ids, SIZE, Scene, content, fill, join, pattern, read, recover, repair};

/// A disk on a line of five snapshots; `small`: what is above the lowest of them is less than that has itself.
fn line(small: bool) -> (Scene, Ids) {
    let worlds = [(); 2].map(|()| SimWorld::new(SimOptions::default()));
    let mut scene = Scene { worlds, model: BTreeMap::new() };
    let (store, _) = join(&scene, "setup");
    let plain = CreateOptions::default();
    let disk = store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &plain).unwrap().to_string();
    let mut data = vec![0; SIZE as usize];
    let mut write = |clusters: &[usize], seed: u8| {
        let image = store.open_image("A", &disk, true).unwrap();
        for cluster in clusters {
            let bytes = cluster * CLUSTER..(cluster + 1) * CLUSTER;
            data[bytes.clone()].fill(seed.wrapping_add(*cluster as u8));
            image.write(bytes.start as i64, &data[bytes]).unwrap();
        }
        // A cluster that becomes zeroes again.
        let zeroes = usize::from(seed) % 3 * CLUSTER..(usize::from(seed) % 3 + 1) * CLUSTER;
        data[zeroes.clone()].fill(0);
        image.write_zeroes(zeroes.start as i64, CLUSTER as i64).unwrap();
        image.close().unwrap();
        data.clone()
    };
    let all: Vec<usize> = (0..SIZE as usize / CLUSTER).collect();
    let mut line = Vec::new();
    for (clusters, seed) in [
        (if small { &all[..] } else { &all[2..5] }, 20),
        (&[1, 7], 40),
        (&[1, 8], 61),
        (&[2], 81),
        (&[8, 9], 100),
    ] {
        let data = write(clusters, seed);
        let id = store.create_snapshot("A", &disk, "{}", &plain).unwrap().to_string();
        scene.model.insert((0, id.clone()), data);
        line.push(id);
    }
    let data = write(if small { &[3] } else { &all[..8] }, 120);
    scene.model.insert((0, disk.clone()), data);
    for ((_, id), data) in &scene.model {
        assert!(read(&store, "A", id).unwrap() == *data);
    }
    store.close().unwrap();
    let unused = String::new;
    let new = "12345678-1234-4234-8234-123456789abc".to_owned();
    (scene, Ids { disk, snapshot: unused(), child: unused(), copy: unused(), new, line })
}

/// These snapshots of the line go, and one merge takes them all.
fn merge_line(store: &Store, ids: &[String]) -> Result<()> {
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    for id in ids {
        store.remove_image("A", id, &options)?;
    }
    repair(store, "A")
}

fn in_a(ids: &[String]) -> Vec<(usize, String)> {
    ids.iter().map(|id| (0, id.clone())).collect()
}

/// On a scene of their own.
const LINES: &[(bool, Operation)] = &[
    (
        true,
        Operation {
            name: "remove four snapshots in a row and merge them down",
            run: |store, ids| merge_line(store, &ids.line[..4]),
            made: none,
            removes: |ids| in_a(&ids.line[..4]),
        },
    ),
    (
        false,
        Operation {
            name: "remove four snapshots in a row and merge them up",
            run: |store, ids| merge_line(store, &ids.line[1..]),
            made: none,
            removes: |ids| in_a(&ids.line[1..]),
        },
    ),
    (
        false,
        Operation {
            name: "remove five snapshots in a row and merge them up",
            run: |store, ids| merge_line(store, &ids.line),
            made: none,
            removes: |ids| in_a(&ids.line),
        },
    ),
];

#[test]
fn lines() {
    for (small, operation) in LINES {
        let (start, ids) = hosts::alone(0, || line(*small));
        crash_each(&start, &ids, [operation].into_iter(), "overlay");
    }
}

/// Wherever a merge was broken off, in whatever direction: the disk on the line can be frozen before anybody goes on with
/// the merge, and what was merged half stays what it was beneath it.
#[test]
fn a_snapshot_above_an_interrupted_merge() {
    for small in [true, false] {
        let (start, ids) = line(small);
        let data = content(&start, 0, &ids.disk);
        let mut points = 0;
        for after in 0.. {
            let scene = start.copy();
            let (store, me) = join(&scene, "victim");
            let power = scene.worlds[0].power(me.incarnation);
            power.cut_after(Some(after));
            let _ = merge_line(&store, &ids.line);
            let finished = power.is_off();
            scene.worlds[0].crash(me.incarnation, &mut || true);
            let (store, _) = join(&scene, "next");
            let what = format!("small {small}, cut after {after}");
            store.create_snapshot("A", &ids.disk, "{}", &chosen(&ids)).unwrap();
            store.run_tasks();
            for id in [&ids.disk, &ids.new] {
                let now = read(&store, "A", id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
                assert!(now == data, "{what}: {id}");
            }
            fill(&store, "A", &ids.disk, &pattern(9));
            let mut scene = scene;
            scene.model.clear();
            for id in &ids.line {
                // Those that were not removed yet stay.
                let _ = store.remove_image("A", id, &RemoveOptions::default());
                store.run_tasks();
            }
            recover(&scene, &store, &what);
            assert!(read(&store, "A", &ids.new).unwrap() == data, "{what}: the snapshot after all fixes");
            assert!(read(&store, "A", &ids.disk).unwrap() == pattern(9), "{what}: the disk after all fixes");
            assert_eq!(store.graph("A").unwrap().len(), 2, "{what}");
            points += 1;
            if !finished {
                break;
            }
        }
        println!("small {small}: {points} interruptions");
        assert!(points > 20);
    }
}
