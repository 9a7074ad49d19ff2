//! Two simulated repositories with a few images, and what each must hold.

use std::collections::BTreeMap;

use serde_json::Value;
use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::{CheckOptions, CopyOptions, CreateOptions, FixOptions, ListOptions};
use vdsmstore_core::repository::{HostIdentity, Read, RecordKey};
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{ErrorKind, Result, Store, StoreOptions};

pub const SIZE: u64 = 640 * 1024;
pub const CLUSTER: usize = 64 * 1024;

/// The two repositories of a scene, and what each image must contain.
#[derive(Clone)]
pub struct Scene {
    pub worlds: [SimWorld; 2],
    /// By repository and id.
    pub model: BTreeMap<(usize, String), Vec<u8>>,
}

impl Scene {
    /// One of its own that is equal to this one now.
    #[allow(dead_code, reason = "only some tests need it")]
    pub fn copy(&self) -> Scene {
        Scene { worlds: self.worlds.clone().map(|world| world.snapshot()), ..self.clone() }
    }
}

pub const NAMES: [&str; 2] = ["A", "B"];

pub fn host(name: &str) -> HostIdentity {
    HostIdentity { host_id: name.into(), incarnation: Incarnation::random(), boot_id: name.into() }
}

pub fn join(scene: &Scene, name: &str) -> (Store, HostIdentity) {
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

pub fn pattern(seed: u8) -> Vec<u8> {
    let mut data = vec![0; SIZE as usize];
    for (index, block) in data.chunks_mut(CLUSTER).enumerate() {
        if (index + usize::from(seed)) % 3 != 0 {
            block.fill(seed.wrapping_mul(17).wrapping_add(index as u8) | 1);
        }
    }
    data
}

pub fn fill(store: &Store, repo: &str, id: &str, data: &[u8]) {
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
pub fn read(store: &Store, repo: &str, id: &str) -> Result<Vec<u8>> {
    let image = store.open_image(repo, id, false)?;
    let mut data = vec![0; image.size()? as usize];
    image.read(0, &mut data)?;
    assert!(data[SIZE as usize..].iter().all(|byte| *byte == 0), "the new bytes of {id} are not zeroes");
    data.truncate(SIZE as usize);
    Ok(data)
}

/// The images of the scene, and the id for a new one.
pub struct Ids {
    pub disk: String,
    pub snapshot: String,
    pub child: String,
    pub copy: String,
    pub new: String,
    /// Snapshots of `disk`, oldest first, where there are more of them.
    #[allow(dead_code, reason = "only some tests need them")]
    pub line: Vec<String>,
}

/// What an image of the scene holds.
pub fn content(scene: &Scene, repo: usize, id: &str) -> Vec<u8> {
    scene.model[&(repo, id.to_owned())].clone()
}

/// A disk with data, a snapshot of it, a disk on the snapshot with data of its own; in B a copy of the first disk.
pub fn scene(reflink: bool) -> (Scene, Ids) {
    scene_on(SimOptions { reflink, ..SimOptions::default() })
}

/// The same on other storage.
#[allow(dead_code, reason = "only some tests need it")]
pub fn scene_on(options: SimOptions) -> (Scene, Ids) {
    let worlds = [(); 2].map(|()| SimWorld::new(options));
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
    (scene, Ids { disk, snapshot, child, copy, new, line: Vec::new() })
}

/// One round of what a check lists; the first fix that fails ends it.
pub fn repair(store: &Store, repo: &str) -> Result<()> {
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
#[allow(dead_code, reason = "only some tests need it")]
pub type Loss = (&'static str, fn(u64) -> Box<dyn FnMut() -> bool>);

#[allow(dead_code, reason = "only some tests need it")]
pub const LOSSES: &[Loss] = &[
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

/// All fixes of both repositories, until nothing is left to do; then nothing is left over.
pub fn recover(scene: &Scene, store: &Store, what: &str) {
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
        // Two snapshots that were announced of one moment share a volume.
        assert!(shown == volumes || shown == volumes + 1, "{what}: images and volumes of {repo}");
        let named = images.iter().filter(|info| info.user_data.get() != "{}").count();
        let most = named + shown - images.len() + hashed(world);
        assert!(world.blobs().len() <= most, "{what}: blobs of {repo}");
    }
}

/// All records, as they are stored.
pub fn documents(world: &SimWorld) -> Vec<(RecordKey, Value)> {
    let driver = world.connect(host("looks"));
    let found = world.records().into_iter().filter_map(|key| {
        let found = driver.get(key, Read::Relaxed).unwrap()?;
        Some((key, serde_json::from_slice(&found.bytes).unwrap()))
    });
    let found = found.collect();
    driver.close().unwrap();
    found
}

/// How many images have hashes.
fn hashed(world: &SimWorld) -> usize {
    let has = |(key, record): &(RecordKey, Value)| {
        matches!(key, RecordKey::Image(_)) && record["manifest"].is_object()
    };
    documents(world).iter().filter(|document| has(document)).count()
}
