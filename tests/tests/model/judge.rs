//! The end of every sequence: what the stores and QEMU say must be what the model says.

use vdsmstore_core::options::{CheckOptions, FixOptions, ListOptions, RemoveOptions};
use vdsmstore_core::{ErrorKind, ExtentKind, FixType, Image, Status};
use vdsmstore_tests::tree::tree;
use vdsmstore_tests::{qemu_equal, qemu_equal_but_for_leaks};

use crate::cut::FAST;
use crate::world::State;
use crate::{NAMES, World};

/// The bytes of an open image, and what it says of its extents.
pub fn content(image: &Image, wanted: &[u8], id: &str) {
    assert_eq!(image.size().unwrap(), wanted.len() as u64, "the size of {id}");
    let mut data = vec![0xaa; wanted.len()];
    image.read(0, &mut data).unwrap();
    if data != wanted {
        let first = data.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
        panic!("image {id} differs from byte {first} on: {} instead of {}", data[first], wanted[first]);
    }
    let mut position = 0;
    for extent in image.extents(0, usize::MAX).unwrap() {
        assert_eq!(extent.offset, position, "the extents of {id} leave a gap");
        position += extent.length;
        let bytes = &wanted[extent.offset as usize..position as usize];
        assert!(
            extent.kind == ExtentKind::Data || bytes.iter().all(|b| *b == 0),
            "{id}: {extent:?} has data"
        );
    }
    assert_eq!(position, wanted.len() as u64, "the extents of {id} end early");
}

pub fn everything(world: &mut World) {
    while !world.handles.is_empty() {
        world.close(0);
    }
    world.settle();
    take_announced(world);
    world.settle();
    for (repo, name) in NAMES.iter().enumerate() {
        let ids: Vec<String> = world.model.repos[repo].keys().cloned().collect();
        for store in &world.stores {
            let listed = store.list_images(name, &ListOptions::default()).unwrap();
            assert_eq!(
                listed.iter().map(ToString::to_string).collect::<Vec<_>>(),
                ids,
                "the images of {name}"
            );
        }
        for (index, id) in ids.iter().enumerate() {
            one(world, repo, id, index % 2);
        }
    }
    mend_everything(world);
    for (repo, name) in NAMES.iter().enumerate() {
        for (index, id) in world.model.repos[repo].keys().enumerate() {
            one(world, repo, id, (index + 1) % 2);
        }
        assert_eq!(
            world.stores[0].list_images(name, &ListOptions::default()).unwrap().len(),
            world.model.repos[repo].len()
        );
    }
    remove_everything(world);
}

/// All fixes until none is left that can be done; then everything is as it was, and what was only intended is there.
fn mend_everything(world: &mut World) {
    let store = world.stores[0].clone();
    let mut last = Vec::new();
    for round in 0.. {
        let (mut listed, mut done) = (Vec::new(), 0);
        for name in NAMES {
            for fix in store.check_storage_repository(name, &CheckOptions::default()).unwrap() {
                listed.push(format!("{name}: {fix:?}"));
                let options = FixOptions { bandwidth: Some(FAST), ..FixOptions::default() };
                let task = match store.fix_storage_repository(name, &fix, &options) {
                    Ok(task) => task,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::FixRefused, "{fix:?}: {error:?}");
                        continue;
                    }
                };
                store.run_tasks();
                match store.wait_task(&task, None) {
                    Ok(()) => done += 1,
                    // What it is to be made from is not there.
                    Err(error) => assert_eq!(fix.fix_type, FixType::Mend, "{fix:?}: {error:?}"),
                }
            }
        }
        if done == 0 || listed.is_empty() {
            break;
        }
        assert!(
            round < 30,
            "no end of fixes: {listed:#?}, before {last:#?}, in {:#?}",
            NAMES.map(|name| store.graph(name))
        );
        last = listed;
    }
    for name in NAMES {
        let data = std::fs::read_dir(world.root.path().join(name).join("data")).unwrap().count();
        assert!(data <= store.graph(name).unwrap().len(), "volumes of nobody in {name}");
    }
    world.broken_off = true;
    world.settle();
    world.nothing_unfinished();
    for (repo, name) in NAMES.iter().enumerate() {
        for (id, state) in world.model.states(repo) {
            let announced = matches!(state, State::Announced { .. });
            assert!(!announced, "snapshot {id} in {name} was announced, and never taken: {state:?}");
        }
    }
}

/// With the last image the last volume goes.
fn remove_everything(world: &mut World) {
    for (repo, name) in NAMES.iter().enumerate() {
        for id in world.model.repos[repo].keys() {
            world.stores[1].remove_image(name, id, &RemoveOptions::default()).unwrap();
        }
        world.model.repos[repo].clear();
    }
    world.stores[1].run_tasks();
    mend_everything(world);
    for name in NAMES {
        let fixes = world.stores[0].check_storage_repository(name, &CheckOptions::default()).unwrap();
        assert!(fixes.is_empty(), "{fixes:#?}");
        let left = tree(&world.root.path().join(name));
        let left: Vec<_> = left
            .keys()
            .filter(|path| {
                !path.starts_with("images/") && !path.starts_with("volumes/") && path.contains('/')
            })
            .collect();
        assert!(left.is_empty(), "{name} is empty, but for {left:#?}");
    }
}

/// An announced snapshot is there as soon as its disk has been opened for writing.
fn take_announced(world: &mut World) {
    for (repo, name) in NAMES.iter().enumerate() {
        for id in world.model.repos[repo].keys().cloned().collect::<Vec<_>>() {
            let State::Announced { disk, may, .. } = world.model.repos[repo][&id].state.clone() else {
                continue;
            };
            if world.model.get(repo, &disk).is_none() {
                // Its volume is the snapshot's, as soon as somebody says so.
                continue;
            }
            let status = world.stores[0].get_image_status(name, &id).unwrap().status;
            assert!(may || status == Status::Broken, "{id} was announced only and is {status:?}");
            world.stores[1].open_image(name, &disk, true).unwrap().close().unwrap();
            world.model.complete(repo, &disk);
        }
    }
}

fn one(world: &World, repo: usize, id: &str, store: usize) {
    let (name, store, image) = (NAMES[repo], &world.stores[store], &world.model.repos[repo][id]);
    let info = store.get_image_info(name, id).unwrap();
    assert_eq!((info.mutable, info.size), (image.disk, image.data.len() as u64), "{id}");
    assert_eq!(info.user_data.get(), image.user, "the user data of {id}");
    assert_eq!(info.prepared, None, "{id}");
    let status = store.get_image_status(name, id).unwrap();
    if !world.model.usable(repo, id) {
        assert_eq!(status.status, Status::Broken, "{id}: {:?}", image.state);
        let error = store.open_image(name, id, false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageBroken, "{error:?}");
        return;
    }
    assert_ne!(status.status, Status::Broken, "{id} in {name} is to be {:?}: {status:?}", image.state);
    let open = store.open_image(name, id, false).unwrap();
    content(&open, &image.data, id);
    open.close().unwrap();
    let file = world.root.path().join("expected.raw");
    std::fs::write(&file, &image.data).unwrap();
    if world.hits.killed > 0 {
        qemu_equal_but_for_leaks(store, name, id, &file);
    } else {
        qemu_equal(store, name, id, &file);
    }
}
