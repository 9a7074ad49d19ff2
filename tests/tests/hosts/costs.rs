//! What a verb costs does not depend on how many images there are (I20).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use vdsmstore_core::options::{CheckOptions, CreateOptions, RemoveOptions};
use vdsmstore_core::{Result, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use crate::scene::{SIZE, Scene, Storage};

/// Steps of each kind.
type Steps = BTreeMap<Act, u64>;

type Verb = fn(&Store) -> Result<()>;

fn create(store: &Store, base: Option<&str>) -> Result<String> {
    let size = base.is_none().then_some(SIZE as i64);
    Ok(store.create_virtual_disk("A", size, base, r#"{"a":1}"#, &CreateOptions::default())?.to_string())
}

fn create_and_remove(store: &Store) -> Result<()> {
    let id = create(store, None)?;
    store.remove_image("A", &id, &RemoveOptions::default())?;
    store.run_tasks();
    Ok(())
}

fn family(store: &Store) -> Result<()> {
    let disk = create(store, None)?;
    let snapshot = store.create_snapshot("A", &disk, "{}", &CreateOptions::default())?.to_string();
    let child = create(store, Some(&snapshot))?;
    store.set_image_user_data("A", &child, r#"{"b":2}"#)?;
    store.open_image("A", &child, true)?.close()?;
    store.get_image_status("A", &child)?;
    for id in [disk, snapshot, child] {
        store.remove_image("A", &id, &RemoveOptions::default())?;
        store.run_tasks();
    }
    Ok(())
}

fn check(store: &Store) -> Result<()> {
    store.check_storage_repository("A", &CheckOptions::default()).map(drop)
}

/// The steps of a verb where there are so many images.
fn steps(images: u64, storage: Storage, verb: Verb) -> Steps {
    let store = hosts::alone(images, || {
        let scene = Scene::new(storage);
        let (store, _) = scene.join("host");
        for _ in 0..images {
            create(&store, None).unwrap();
        }
        store
    });
    let steps: Arc<Mutex<Steps>> = Arc::default();
    let counted = steps.clone();
    let count = Box::new(move |turn: &Turn<'_>| {
        *counted.lock().unwrap().entry(turn.act).or_default() += 1;
        0
    });
    let work: hosts::Work<()> = Box::new(move || verb(&store).unwrap());
    hosts::run(1, vec![work], count);
    Arc::into_inner(steps).map(|steps| steps.into_inner().unwrap()).unwrap_or_default()
}

#[test]
fn verbs_cost_the_same_among_many_images() {
    for storage in [Storage::Overlays, Storage::Clones] {
        for (name, verb) in [("create and remove", create_and_remove as Verb), ("a family", family)] {
            let (few, many) = (steps(10, storage, verb), steps(400, storage, verb));
            println!("{name}, {storage:?}: {few:?}");
            assert!(few[&Act::Read] > 0 && few[&Act::Record] > 0, "{name}: {few:?}");
            assert_eq!(few, many, "{name}, {storage:?}");
        }
    }
    // That it is counted: a check looks at all of them.
    let reads = |images| steps(images, Storage::Overlays, check)[&Act::Read];
    assert!(reads(400) > 20 * reads(10));
}
