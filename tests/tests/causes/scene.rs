//! Two simulated repositories, the images in them, and what each of these must contain.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use uuid::Uuid;
use vdsmstore_core::id::{ImageId, Incarnation, VolumeId};
use vdsmstore_core::options::{AutoFix, CopyOptions, CreateOptions};
use vdsmstore_core::repository::{Access, Driver, HostIdentity, Liveness, Read, RecordKey};
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{Result, Store, StoreOptions};

use crate::raw::{Raw, text};

pub const CLUSTER: usize = 64 * 1024;
pub const CLUSTERS: usize = 6;
pub const SIZE: usize = CLUSTERS * CLUSTER;
pub const NAMES: [&str; 2] = ["A", "B"];

/// What an image must read as.
#[derive(Clone)]
pub struct Want {
    pub data: Vec<u8>,
    /// It is not whole to begin with, or only a call that is interrupted makes it: until all fixes were run.
    pub unfinished: bool,
    /// What it needs was lost: only the call brings it back, if it returns.
    pub lost: bool,
}

impl Want {
    pub fn unfinished(data: Vec<u8>) -> Want {
        Want { data, unfinished: true, lost: false }
    }
}

/// The kinds of storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Storage {
    Overlays,
    Clones,
    /// Nobody can tell for certain that a host is dead.
    Doubts,
}

#[derive(Clone)]
pub struct Scene {
    pub worlds: [SimWorld; 2],
    /// By repository and id.
    pub wants: BTreeMap<(usize, String), Want>,
    /// The images by the names that the operations give them.
    pub ids: BTreeMap<&'static str, String>,
}

impl Scene {
    pub fn new(storage: Storage) -> Scene {
        let reflink = storage == Storage::Clones;
        let death = if storage == Storage::Doubts { Liveness::LikelyDead } else { Liveness::CertainlyDead };
        let worlds = [(); 2].map(|()| SimWorld::new(SimOptions { reflink, death, ..SimOptions::default() }));
        Scene { worlds, wants: BTreeMap::new(), ids: BTreeMap::new() }
    }

    /// The same once more, for something that changes it.
    pub fn copy(&self) -> Scene {
        Scene { worlds: self.worlds.clone().map(|world| world.snapshot()), ..self.clone() }
    }

    /// A store on both, of a host of its own, which does its work when it is told to.
    pub fn join(&self, name: &str) -> (Store, Incarnation) {
        let identity =
            HostIdentity { host_id: name.into(), incarnation: Incarnation::random(), boot_id: name.into() };
        let mut options = StoreOptions::default();
        options.host_id = Some(name.into());
        options.threads = Some(0);
        let store = Store::new(options).unwrap();
        for (world, repo) in self.worlds.iter().zip(NAMES) {
            store.connect_driver(repo, world.connect(identity.clone())).unwrap();
        }
        (store, identity.incarnation)
    }

    /// A connection without a store.
    pub fn driver(&self, repo: usize) -> Arc<dyn Driver> {
        let incarnation = Incarnation::random();
        self.worlds[repo].connect(HostIdentity { host_id: "raw".into(), incarnation, boot_id: "raw".into() })
    }

    /// What is stored. It is read from a copy: another thread may copy this scene meanwhile, and would find the reader in it
    /// as a host that never leaves.
    pub fn raw(&self, repo: usize) -> Raw {
        let copy = self.copy();
        Raw::read(&copy.worlds[repo], &*copy.driver(repo))
    }

    pub fn id(&self, name: &str) -> &str {
        &self.ids[name]
    }

    /// Remembers an image that is there, and what it must contain.
    pub fn keep(&mut self, repo: usize, name: &'static str, id: String, data: Vec<u8>) {
        self.wants.insert((repo, id.clone()), Want { data, unfinished: false, lost: false });
        self.ids.insert(name, id);
    }

    /// Says that an image is to be made by the interrupted call: its id is chosen now.
    pub fn expect(&mut self, repo: usize, name: &'static str, data: Vec<u8>) -> String {
        let id = ImageId::random().to_string();
        self.wants.insert((repo, id.clone()), Want::unfinished(data));
        self.ids.insert(name, id.clone());
        id
    }

    pub fn data(&self, repo: usize, name: &str) -> Vec<u8> {
        self.wants[&(repo, self.id(name).to_owned())].data.clone()
    }

    /// A fault of the storage: the data object of an image is gone.
    pub fn lose_object(&mut self, repo: usize, name: &str) {
        let volume = self.volume(repo, name);
        let driver = self.driver(repo);
        let opened = driver.open_volume(volume, Access::Write).unwrap();
        driver.delete_volume(volume, opened).unwrap();
        driver.close().unwrap();
        self.doubt(repo, name, false);
    }

    /// A fault of the storage: the record of an image's volume is gone.
    pub fn lose_volume_record(&mut self, repo: usize, name: &str) {
        let volume = self.volume(repo, name);
        let driver = self.driver(repo);
        let key = RecordKey::Volume(volume);
        let stored = driver.get(key, Read::Fresh).unwrap().unwrap();
        driver.delete(key, stored.generation).unwrap();
        driver.close().unwrap();
        self.doubt(repo, name, true);
    }

    /// An image of which nobody knows before the fixes were run, or if it is `lost`, before the call has returned.
    pub fn doubt(&mut self, repo: usize, name: &str, lost: bool) {
        let key = (repo, self.id(name).to_owned());
        if let Some(want) = self.wants.get_mut(&key) {
            (want.unfinished, want.lost) = (true, lost);
        }
    }

    /// A deleter of an image stopped between its flag and its look, as another came to build on the image.
    pub fn flag(&mut self, repo: usize, name: &str) {
        self.stop_deleter(repo, RecordKey::Image(ImageId::parse(self.id(name)).unwrap()), "absorbed");
    }

    /// A deleter of the image's volume stopped between its flag and its look, as the image came to point at it.
    pub fn doom(&mut self, repo: usize, name: &str) {
        self.stop_deleter(repo, RecordKey::Volume(self.volume(repo, name)), "doomed");
        self.doubt(repo, name, false);
    }

    /// That deleter has looked, and keeps the volume, which is still to be filled.
    #[allow(dead_code, reason = "only one of the tests needs it")]
    pub fn keep_volume(&self, repo: usize, name: &str) {
        self.stop_deleter(repo, RecordKey::Volume(self.volume(repo, name)), "filling");
    }

    fn stop_deleter(&self, repo: usize, key: RecordKey, flag: &str) {
        let driver = self.driver(repo);
        let stored = driver.get(key, Read::Fresh).unwrap().unwrap();
        let mut document: Value = serde_json::from_slice(&stored.bytes).unwrap();
        document["state"] = flag.into();
        let bytes = serde_json::to_vec(&document).unwrap();
        driver.put(key, Some(stored.generation), &bytes).unwrap();
        driver.close().unwrap();
    }

    /// Keeps all snapshots that are there.
    pub fn all_snapshots(&mut self, repo: usize, data: &[u8]) {
        for (id, image) in self.raw(repo).images {
            if image["kind"] == "snapshot" {
                self.wants.insert((repo, id), Want { data: data.to_vec(), unfinished: false, lost: false });
            }
        }
    }

    pub fn volume(&self, repo: usize, name: &str) -> VolumeId {
        let raw = self.raw(repo);
        VolumeId(Uuid::parse_str(text(&raw.images[self.id(name)]["volume"])).unwrap())
    }

    /// Lets hosts that lose power after ever more steps do something, until one leaves what is wanted.
    pub fn interrupted(
        &mut self,
        cut: usize,
        run: fn(&Store, &Scene) -> Result<()>,
        wanted: impl Fn(&Scene) -> bool,
    ) {
        for after in 0..1000 {
            let scene = self.copy();
            let finished = crash(&scene, cut, after, run, true).finished;
            if wanted(&scene) {
                self.worlds = scene.worlds;
                return;
            }
            assert!(!finished, "no step leaves what the scene needs");
        }
    }
}

/// What became of a host that lost power.
pub struct Crash {
    pub returned: bool,
    /// The power was never cut before the end.
    pub finished: bool,
}

/// A host does something and loses the power of one repository after so many steps.
pub fn crash(
    scene: &Scene,
    cut: usize,
    after: u64,
    run: fn(&Store, &Scene) -> Result<()>,
    keep: bool,
) -> Crash {
    let (store, me) = scene.join("victim");
    let power = scene.worlds[cut].power(me);
    power.cut_after(Some(after));
    let returned = run(&store, scene).is_ok();
    let finished = !power.is_off();
    for world in &scene.worlds {
        world.crash(me, &mut || keep);
    }
    Crash { returned, finished }
}

/// Bytes that differ from cluster to cluster and from seed to seed; some clusters are zeroes.
pub fn pattern(seed: u8) -> Vec<u8> {
    let mut data = vec![0; SIZE];
    for (index, block) in data.chunks_mut(CLUSTER).enumerate() {
        if (index + usize::from(seed)) % 3 != 0 {
            block.fill(seed.wrapping_mul(17).wrapping_add(index as u8) | 1);
        }
    }
    data
}

/// Bytes in one cluster only.
pub fn dot(seed: u8) -> Vec<u8> {
    let mut data = vec![0; SIZE];
    data[CLUSTER..2 * CLUSTER].fill(seed);
    data
}

/// Writes the clusters of `data` that are not those of `before`.
pub fn write(store: &Store, repo: &str, id: &str, before: &[u8], data: &[u8]) {
    let image = store.open_image(repo, id, true).unwrap();
    let clusters = before.chunks(CLUSTER).zip(data.chunks(CLUSTER)).enumerate();
    for (index, (before, block)) in clusters {
        if before != block {
            image.write((index * CLUSTER) as i64, block).unwrap();
        }
    }
    image.close().unwrap();
}

pub fn read(store: &Store, repo: &str, id: &str) -> Result<Vec<u8>> {
    let image = store.open_image(repo, id, false)?;
    let mut data = vec![0; image.size()? as usize];
    image.read(0, &mut data)?;
    Ok(data)
}

pub fn off() -> CreateOptions {
    CreateOptions { auto_fix: AutoFix::Off, ..CreateOptions::default() }
}

pub fn named(scene: &Scene, name: &str) -> CreateOptions {
    CreateOptions { image_id: Some(scene.id(name).to_owned()), ..CreateOptions::default() }
}

pub fn named_copy(scene: &Scene, name: &str) -> CopyOptions {
    CopyOptions { image_id: Some(scene.id(name).to_owned()), ..CopyOptions::default() }
}
