//! Every operation on simulated storage, its host losing power after every single step: another host then finds each
//! image as it was before or as it was to become, or broken with its intent readable. Nothing that was whole is lost.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::needless_range_loop,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, ListOptions, RemoveOptions, ResizeOptions,
    Strategy,
};
use vdsmstore_core::repository::{HostIdentity, RecordKey};
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{ErrorKind, Result, Status, Store, StoreOptions};

const SIZE: u64 = 640 * 1024;
const CLUSTER: usize = 64 * 1024;

/// The two repositories of a scene, and what each image must contain.
#[derive(Clone)]
struct Scene {
    worlds: [SimWorld; 2],
    /// By repository and id.
    model: BTreeMap<(usize, String), Vec<u8>>,
}

const NAMES: [&str; 2] = ["A", "B"];

fn host(name: &str) -> HostIdentity {
    HostIdentity { host_id: name.into(), incarnation: Incarnation::random(), boot_id: name.into() }
}

fn join(scene: &Scene, name: &str) -> (Store, HostIdentity) {
    let mut options = StoreOptions::default();
    options.host_id = Some(name.into());
    options.threads = Some(0);
    let store = Store::new(options).unwrap();
    let identity = host(name);
    for (world, repo) in scene.worlds.iter().zip(NAMES) {
        store.connect_driver(repo, world.connect(identity.clone())).unwrap();
    }
    (store, identity)
}

fn pattern(seed: u8) -> Vec<u8> {
    let mut data = vec![0; SIZE as usize];
    for (index, block) in data.chunks_mut(CLUSTER).enumerate() {
        if (index + usize::from(seed)) % 3 != 0 {
            block.fill(seed.wrapping_mul(17).wrapping_add(index as u8) | 1);
        }
    }
    data
}

fn fill(store: &Store, repo: &str, id: &str, data: &[u8]) {
    let image = store.open_image(repo, id, true).unwrap();
    for (index, block) in data.chunks(CLUSTER).enumerate() {
        if block.iter().any(|byte| *byte != 0) {
            image.write((index * CLUSTER) as i64, block).unwrap();
        } else {
            image.write_zeroes((index * CLUSTER) as i64, block.len() as i64).unwrap();
        }
    }
    image.close().unwrap();
}

/// The first bytes of an image, as many as all images began with; what a resize added must be zeroes.
fn read(store: &Store, repo: &str, id: &str) -> Result<Vec<u8>> {
    let image = store.open_image(repo, id, false)?;
    let mut data = vec![0; image.size()? as usize];
    image.read(0, &mut data)?;
    assert!(data[SIZE as usize..].iter().all(|byte| *byte == 0), "the new bytes of {id} are not zeroes");
    data.truncate(SIZE as usize);
    Ok(data)
}

/// What a call was to make: an id that it chose beforehand, in a repository, with this content. None: nothing new.
type Made = Option<(usize, String, Vec<u8>)>;

struct Operation {
    name: &'static str,
    /// Runs the verb; may fail when the power goes.
    run: fn(&Store, &Ids) -> Result<()>,
    made: fn(&Ids, &Scene) -> Made,
    /// The images that it removes.
    removes: fn(&Ids) -> Vec<(usize, String)>,
}

/// The images of the scene, and the id for a new one.
struct Ids {
    disk: String,
    snapshot: String,
    child: String,
    copy: String,
    new: String,
}

fn content(scene: &Scene, repo: usize, id: &str) -> Vec<u8> {
    scene.model[&(repo, id.to_owned())].clone()
}

fn chosen(ids: &Ids) -> CreateOptions {
    CreateOptions { image_id: Some(ids.new.clone()), ..CreateOptions::default() }
}

fn chosen_copy(ids: &Ids) -> CopyOptions {
    CopyOptions { image_id: Some(ids.new.clone()), ..CopyOptions::default() }
}

/// A disk with data, a snapshot of it, a disk on the snapshot with data of its own; in B a copy of the first disk.
fn scene(reflink: bool) -> (Scene, Ids) {
    let worlds = [
        SimWorld::new(SimOptions { reflink, ..SimOptions::default() }),
        SimWorld::new(SimOptions { reflink, ..SimOptions::default() }),
    ];
    let mut scene = Scene { worlds, model: BTreeMap::new() };
    let (store, _) = join(&scene, "setup");
    let plain = CreateOptions::default();
    let disk = store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &plain).unwrap().to_string();
    fill(&store, "A", &disk, &pattern(1));
    let snapshot = store.create_snapshot("A", &disk, r#"{"name":"s"}"#, &plain).unwrap().to_string();
    let child = store.create_virtual_disk("A", None, Some(&snapshot), "{}", &plain).unwrap().to_string();
    fill(&store, "A", &child, &pattern(2));
    let copy = store.copy_image("B", &disk, None, "{}", &CopyOptions::default()).unwrap().to_string();
    store.run_tasks();
    fill(&store, "A", &disk, &pattern(3));
    for (repo, id, data) in
        [(0, &disk, pattern(3)), (0, &snapshot, pattern(1)), (0, &child, pattern(2)), (1, &copy, pattern(1))]
    {
        assert_eq!(read(&store, NAMES[repo], id).unwrap(), data);
        scene.model.insert((repo, id.clone()), data);
    }
    store.close().unwrap();
    let new = "12345678-1234-4234-8234-123456789abc".to_owned();
    (scene, Ids { disk, snapshot, child, copy, new })
}

fn none(_: &Ids, _: &Scene) -> Made {
    None
}

fn keeps(_: &Ids) -> Vec<(usize, String)> {
    Vec::new()
}

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "create",
        run: |store, ids| {
            store.create_virtual_disk("A", Some(SIZE as i64), None, r#"{"a":1}"#, &chosen(ids)).map(drop)
        },
        made: |ids, _| Some((0, ids.new.clone(), vec![0; SIZE as usize])),
        removes: keeps,
    },
    Operation {
        name: "create on a snapshot",
        run: |store, ids| {
            store.create_virtual_disk("A", None, Some(&ids.snapshot), "{}", &chosen(ids)).map(drop)
        },
        made: |ids, scene| Some((0, ids.new.clone(), content(scene, 0, &ids.snapshot))),
        removes: keeps,
    },
    Operation {
        name: "create on a snapshot of another repository",
        run: |store, ids| {
            store.create_virtual_disk("B", None, Some(&ids.snapshot), "{}", &chosen(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.snapshot))),
        removes: keeps,
    },
    Operation {
        name: "snapshot",
        run: |store, ids| store.create_snapshot("A", &ids.disk, "{}", &chosen(ids)).map(drop),
        made: |ids, scene| Some((0, ids.new.clone(), content(scene, 0, &ids.disk))),
        removes: keeps,
    },
    Operation {
        name: "snapshot announced, then the disk opened",
        run: |store, ids| {
            let options = CreateOptions { auto_fix: AutoFix::Off, ..chosen(ids) };
            store.create_snapshot("A", &ids.child, "{}", &options)?;
            store.open_image("A", &ids.child, true)?.close()
        },
        made: |ids, scene| Some((0, ids.new.clone(), content(scene, 0, &ids.child))),
        removes: keeps,
    },
    Operation {
        name: "copy of a disk",
        run: |store, ids| {
            store.copy_image("B", &ids.child, None, "{}", &chosen_copy(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.child))),
        removes: keeps,
    },
    Operation {
        name: "copy of a disk with a disk as base",
        run: |store, ids| {
            store.copy_image("B", &ids.disk, Some(&ids.copy), "{}", &chosen_copy(ids))?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.new.clone(), content(scene, 0, &ids.disk))),
        removes: keeps,
    },
    Operation {
        name: "copy of a snapshot",
        run: |store, ids| {
            store.copy_image("B", &ids.snapshot, None, "{}", &CopyOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        made: |ids, scene| Some((1, ids.snapshot.clone(), content(scene, 0, &ids.snapshot))),
        removes: keeps,
    },
    Operation {
        name: "remove a snapshot that a disk is built on",
        run: |store, ids| {
            store.remove_image("A", &ids.snapshot, &RemoveOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        made: none,
        removes: |ids| vec![(0, ids.snapshot.clone())],
    },
    Operation {
        name: "remove a disk",
        run: |store, ids| {
            store.remove_image("A", &ids.child, &RemoveOptions::default())?;
            store.run_tasks();
            Ok(())
        },
        made: none,
        removes: |ids| vec![(0, ids.child.clone())],
    },
    Operation {
        name: "remove a snapshot and merge",
        run: |store, ids| {
            store.remove_image("A", &ids.snapshot, &RemoveOptions::default())?;
            repair(store, "A")
        },
        made: none,
        removes: |ids| vec![(0, ids.snapshot.clone())],
    },
    Operation {
        name: "remove the disk on a snapshot, then the snapshot, and merge",
        run: |store, ids| {
            store.remove_image("A", &ids.child, &RemoveOptions::default())?;
            store.run_tasks();
            store.remove_image("A", &ids.snapshot, &RemoveOptions::default())?;
            store.run_tasks();
            repair(store, "A")
        },
        made: none,
        removes: |ids| vec![(0, ids.child.clone()), (0, ids.snapshot.clone())],
    },
    Operation {
        name: "give a disk a volume of its own",
        run: |store, ids| {
            store.set_image_strategy("A", &ids.child, Strategy::Performance)?;
            repair(store, "A")
        },
        made: none,
        removes: keeps,
    },
    Operation {
        name: "give a snapshot a volume of its own",
        run: |store, ids| {
            store.set_image_strategy("A", &ids.snapshot, Strategy::Performance)?;
            repair(store, "A")
        },
        made: none,
        removes: keeps,
    },
    Operation {
        name: "resize",
        run: |store, ids| {
            store.resize_virtual_disk("A", &ids.child, 2 * SIZE as i64, &ResizeOptions::default())
        },
        made: none,
        removes: keeps,
    },
    Operation {
        name: "set user data",
        run: |store, ids| store.set_image_user_data("A", &ids.disk, r#"{"new":true}"#),
        made: none,
        removes: keeps,
    },
];

/// One round of what a check lists; the first fix that fails ends it.
fn repair(store: &Store, repo: &str) -> Result<()> {
    for _ in 0..3 {
        for fix in store.check_storage_repository(repo, &CheckOptions::default())? {
            match store.fix_storage_repository(repo, &fix, &FixOptions::default()) {
                Err(error) if error.kind() == ErrorKind::FixRefused => {}
                Err(error) => return Err(error),
                Ok(task) => {
                    store.run_tasks();
                    store.wait_task(&task, None)?;
                }
            }
        }
    }
    Ok(())
}

/// What is kept of what was not durable.
type Loss = (&'static str, fn(u64) -> Box<dyn FnMut() -> bool>);

const LOSSES: &[Loss] = &[
    ("all lost", |_| Box::new(|| false)),
    ("all kept", |_| Box::new(|| true)),
    ("some lost", |seed| {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Box::new(move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state & 1 == 0
        })
    }),
];

/// Judges what another host finds. `returned`: the call had come back, so what it made must be there.
fn judge(scene: &Scene, operation: &Operation, ids: &Ids, returned: bool, what: &str) -> Status {
    let (store, _) = join(scene, "next");
    let made = (operation.made)(ids, scene);
    let removes = (operation.removes)(ids);
    for ((repo, id), data) in &scene.model {
        let gone = removes.contains(&(*repo, id.clone()));
        match store.get_image_status(NAMES[*repo], id) {
            Err(error) if gone && error.kind() == ErrorKind::ImageNotFound => continue,
            status => {
                assert!(!(gone && returned), "{what}: {id} is still there");
                let status = status.unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
                assert_ne!(status.status, Status::Broken, "{what}: {id} was whole before");
            }
        }
        let now = read(&store, NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
        assert!(now == *data, "{what}: the data of {id} in {} changed", NAMES[*repo]);
        store.get_image_info(NAMES[*repo], id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
    }
    // Whatever else is listed can be asked about, and is right if it is said to be whole.
    let mut found = None;
    for (index, repo) in NAMES.iter().enumerate() {
        for id in store.list_images(repo, &ListOptions::default()).unwrap() {
            let id = id.to_string();
            let status = store.get_image_status(repo, &id).unwrap();
            store.get_image_info(repo, &id).unwrap();
            if scene.model.contains_key(&(index, id.clone())) {
                continue;
            }
            match &made {
                Some((at, new, data)) if (*at, new) == (index, &id) => {
                    found = Some(status.status);
                    if status.status != Status::Broken {
                        assert!(
                            read(&store, repo, &id).unwrap() == *data,
                            "{what}: {id} is not what was to be made"
                        );
                    }
                }
                // The base that was brought along.
                _ if id == ids.snapshot => {
                    if status.status != Status::Broken {
                        assert!(
                            read(&store, repo, &id).unwrap() == content(scene, 0, &id),
                            "{what}: the base is wrong"
                        );
                    }
                }
                _ => panic!("{what}: {id} in {repo} is nobody's"),
            }
        }
    }
    if returned && made.is_some() {
        assert!(found.is_some(), "{what}: an id that was returned is lost");
    }
    recover(scene, &store, what);
    if let (Some((at, new, data)), Some(_)) = (&made, found) {
        match store.get_image_status(NAMES[*at], new) {
            // What no call had returned may vanish.
            Err(error) => assert!(!returned && error.kind() == ErrorKind::ImageNotFound, "{what}: {error:?}"),
            Ok(status) => {
                assert_ne!(status.status, Status::Broken, "{what}: {new} is broken after all fixes");
                assert!(
                    read(&store, NAMES[*at], new).unwrap() == *data,
                    "{what}: {new} is wrong after all fixes"
                );
            }
        }
    }
    for ((repo, id), data) in &scene.model {
        if !removes.contains(&(*repo, id.clone())) {
            assert!(read(&store, NAMES[*repo], id).unwrap() == *data, "{what}: the fixes changed {id}");
        }
    }
    store.close().unwrap();
    found.unwrap_or(Status::Optimized)
}

/// All fixes of both repositories, until nothing is left to do; then nothing is left over.
fn recover(scene: &Scene, store: &Store, what: &str) {
    for round in 0.. {
        let mut clean = true;
        for repo in NAMES {
            for fix in store.check_storage_repository(repo, &CheckOptions::default()).unwrap() {
                clean = false;
                assert!(round < 10, "{what}: round {round} still lists {fix:?}");
                let task = match store.fix_storage_repository(repo, &fix, &FixOptions::default()) {
                    Ok(task) => task,
                    // A fix before it changed what this one is about.
                    Err(error) if error.kind() == ErrorKind::FixRefused => continue,
                    Err(error) => panic!("{what}: {fix:?}: {error:?}"),
                };
                store.run_tasks();
                if let Err(error) = store.wait_task(&task, None) {
                    assert!(round < 9, "{what}: {fix:?} fails: {error:?}");
                }
            }
        }
        if clean {
            break;
        }
    }
    for (world, repo) in scene.worlds.iter().zip(NAMES) {
        let images = store.list_image_infos(repo, &ListOptions::default()).unwrap();
        let volumes = world.records().iter().filter(|key| matches!(key, RecordKey::Volume(_))).count();
        let shown = store.graph(repo).unwrap().len();
        assert_eq!(world.objects().len(), volumes, "{what}: objects and volumes of {repo}");
        assert_eq!(shown, volumes, "{what}: images and volumes of {repo}");
        let named = images.iter().filter(|info| info.user_data.get() != "{}").count();
        assert!(world.blobs().len() <= named + shown - images.len(), "{what}: blobs of {repo}");
    }
}

fn crash_everywhere(reflink: bool) {
    let (start, ids) = scene(reflink);
    for operation in OPERATIONS {
        let (mut points, mut broken, mut whole) = (0, 0, 0);
        for cut in 0..2 {
            for after in 0.. {
                let mut finished = false;
                for (loss, keep) in LOSSES {
                    let scene =
                        Scene { worlds: start.worlds.clone().map(|world| world.snapshot()), ..start.clone() };
                    let (store, me) = join(&scene, "victim");
                    let power = scene.worlds[cut].power(me.incarnation);
                    power.cut_after(Some(after));
                    let returned = (operation.run)(&store, &ids).is_ok();
                    finished = !power.is_off();
                    for world in &scene.worlds {
                        world.crash(me.incarnation, &mut *keep(after));
                    }
                    let what = format!(
                        "{}, reflink {reflink}, {} cut after {after}, {loss}",
                        operation.name, NAMES[cut]
                    );
                    match judge(&scene, operation, &ids, returned, &what) {
                        Status::Broken => broken += 1,
                        _ => whole += 1,
                    }
                    points += 1;
                    drop(Arc::new(store));
                }
                if finished {
                    break;
                }
            }
        }
        println!("{}: {points} crashes, {broken} with a broken image, {whole} without", operation.name);
        assert!(points > 6, "{}: the power was never cut", operation.name);
    }
}

#[test]
fn overlays() {
    crash_everywhere(false);
}

#[test]
fn clones() {
    crash_everywhere(true);
}
