//! What is interrupted: an operation, with the scene that it needs.

use vdsmstore_core::options::{AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions};
use vdsmstore_core::{ErrorKind, Result, Store};

use crate::scene::{CLUSTER, NAMES, SIZE, Scene, Storage, dot, named_copy, pattern, write};

pub struct Operation {
    pub name: &'static str,
    pub storages: &'static [Storage],
    /// Makes what it needs, by a store of an own host that is closed after.
    pub setup: fn(&Store, &mut Scene),
    /// May fail when the power goes.
    pub run: fn(&Store, &Scene) -> Result<()>,
    /// Images that it removes.
    pub removes: &'static [(usize, &'static str)],
}

pub const ALL: &[Storage] = &[Storage::Overlays, Storage::Clones];
pub const COPIES: &[Storage] = &[Storage::Overlays, Storage::Clones, Storage::Doubts];
pub const DOUBTS: &[Storage] = &[Storage::Overlays, Storage::Doubts];
pub const OVERLAYS: &[Storage] = &[Storage::Overlays];

/// A disk in A with this content.
pub fn disk(store: &Store, scene: &mut Scene, repo: usize, name: &'static str, data: Vec<u8>) {
    let id = store.create_virtual_disk(NAMES[repo], Some(SIZE as i64), None, "{}", &CreateOptions::default());
    let id = id.unwrap().to_string();
    write(store, NAMES[repo], &id, &vec![0; SIZE], &data);
    scene.keep(repo, name, id, data);
}

pub fn snapshot(store: &Store, scene: &mut Scene, repo: usize, name: &'static str, of: &str) {
    let data = scene.data(repo, of);
    let id = store.create_snapshot(NAMES[repo], scene.id(of), r#"{"s":1}"#, &CreateOptions::default());
    scene.keep(repo, name, id.unwrap().to_string(), data);
}

/// The disk goes on with other content.
pub fn rewrite(store: &Store, scene: &mut Scene, repo: usize, name: &'static str, data: Vec<u8>) {
    let id = scene.id(name).to_owned();
    write(store, NAMES[repo], &id, &scene.data(repo, name), &data);
    scene.keep(repo, name, id, data);
}

pub fn copy(store: &Store, scene: &mut Scene, name: &'static str, of: &str, base: Option<&str>) {
    let data = scene.data(0, of);
    let base = base.map(|base| scene.id(base).to_owned());
    let id = store.copy_image("B", scene.id(of), base.as_deref(), "{}", &CopyOptions::default());
    store.run_tasks();
    scene.keep(1, name, id.unwrap().to_string(), data);
}

/// A disk, a snapshot of it, and a disk on the snapshot.
pub fn family(store: &Store, scene: &mut Scene) {
    disk(store, scene, 0, "disk", pattern(1));
    snapshot(store, scene, 0, "snapshot", "disk");
    let id = scene.id("snapshot").to_owned();
    let child =
        store.create_virtual_disk("A", None, Some(&id), "{}", &CreateOptions::default()).unwrap().to_string();
    scene.keep(0, "child", child, pattern(1));
    rewrite(store, scene, 0, "child", pattern(2));
    rewrite(store, scene, 0, "disk", pattern(3));
}

/// All that a check lists, until nothing is listed; the first fix that fails ends it.
pub fn repair(store: &Store, repo: &str) -> Result<()> {
    for _ in 0..4 {
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

pub fn remove(store: &Store, repo: usize, scene: &Scene, name: &str) -> Result<()> {
    store.remove_image(NAMES[repo], scene.id(name), &RemoveOptions::default())?;
    store.run_tasks();
    Ok(())
}

pub fn remove_later(store: &Store, repo: usize, scene: &Scene, name: &str) -> Result<()> {
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image(NAMES[repo], scene.id(name), &options)
}

pub fn copy_to_b(store: &Store, scene: &Scene, of: &str, base: Option<&str>, new: &str) -> Result<()> {
    let base = base.map(|base| scene.id(base));
    // A snapshot keeps its id.
    let options = if of == new { CopyOptions::default() } else { named_copy(scene, new) };
    store.copy_image("B", scene.id(of), base, r#"{"c":1}"#, &options)?;
    store.run_tasks();
    Ok(())
}

/// A disk on two snapshots, the upper of which was removed; `large`: what is above it is more than it has itself.
pub fn chain(store: &Store, scene: &mut Scene, large: bool) {
    disk(store, scene, 0, "disk", dot(1));
    snapshot(store, scene, 0, "lower", "disk");
    rewrite(store, scene, 0, "disk", if large { dot(2) } else { pattern(4) });
    snapshot(store, scene, 0, "upper", "disk");
    rewrite(store, scene, 0, "disk", if large { pattern(5) } else { changed(&pattern(4), 0, 9) });
}

/// Another disk on a snapshot, with less of its own than that has.
pub fn chain_too(store: &Store, scene: &mut Scene) {
    disk(store, scene, 0, "top", pattern(7));
    snapshot(store, scene, 0, "base", "top");
    rewrite(store, scene, 0, "top", {
        let mut data = pattern(7);
        data[..100].fill(8);
        data
    });
}

fn changed(data: &[u8], cluster: usize, byte: u8) -> Vec<u8> {
    let mut data = data.to_vec();
    data[cluster * CLUSTER..(cluster + 1) * CLUSTER].fill(byte);
    data
}

/// A disk on three snapshots; `large`: what is above them is more than they have themselves.
pub fn line(store: &Store, scene: &mut Scene, large: bool) {
    let first = if large { dot(1) } else { pattern(4) };
    let second = changed(&first, 5, 21);
    let third = changed(&second, 5, 22);
    // One cluster of them shows.
    let top = if large { changed(&pattern(5), 5, 22) } else { changed(&third, 0, 23) };
    disk(store, scene, 0, "disk", first);
    snapshot(store, scene, 0, "first", "disk");
    rewrite(store, scene, 0, "disk", second);
    snapshot(store, scene, 0, "second", "disk");
    rewrite(store, scene, 0, "disk", third);
    snapshot(store, scene, 0, "third", "disk");
    rewrite(store, scene, 0, "disk", top);
}

/// All snapshots of [`line`] go.
pub fn remove_line(store: &Store, scene: &Scene) -> Result<()> {
    for name in ["second", "third", "first"] {
        remove_later(store, 0, scene, name)?;
    }
    repair(store, "A")
}
