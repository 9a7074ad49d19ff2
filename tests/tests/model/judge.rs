//! The end of every sequence: what the stores and QEMU say must be what the model says.

use vdsmstore_core::options::ListOptions;
use vdsmstore_core::{ErrorKind, ExtentKind, Image, Status};
use vdsmstore_tests::qemu_equal;

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
}

/// An announced snapshot is there as soon as its disk has been opened for writing.
fn take_announced(world: &mut World) {
    for (repo, name) in NAMES.iter().enumerate() {
        for id in world.model.repos[repo].keys().cloned().collect::<Vec<_>>() {
            let State::Announced { disk, may } = world.model.repos[repo][&id].state.clone() else { continue };
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
    qemu_equal(store, name, id, &file);
}
