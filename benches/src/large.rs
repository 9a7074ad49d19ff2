//! A repository of any number of images, made fast: a few images are made by the engine, and their files repeated with
//! other ids, in the documented layout.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use uuid::Uuid;
use vdsmstore_core::options::{CheckOptions, CreateOptions, ListOptions};

use crate::scene::{MIB, Result, connect, disk, format, store};

/// The size of each image.
pub const SIZE: u64 = MIB;
/// The length of an id as text.
const ID: usize = 36;

/// A repository and what was put into it.
#[derive(Debug)]
pub struct Large {
    /// Where it is.
    pub path: PathBuf,
    /// Disks without a base: image and volume.
    pub plain: Vec<(Uuid, Uuid)>,
    /// Snapshots with one disk on each.
    pub pairs: Vec<Pair>,
}

/// A disk on a snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    /// The snapshot.
    pub snapshot: Uuid,
    /// What it lies on.
    pub lower: Uuid,
    /// The disk.
    pub disk: Uuid,
    /// What it lies on: an overlay.
    pub upper: Uuid,
}

/// A file of a template, cut at the ids.
struct Part {
    room: String,
    name: Cut,
    /// Where the bytes lie that are not zero.
    bytes: Vec<(u64, Cut)>,
    length: u64,
}

/// Text with ids in it: what is between them, and which they are.
struct Cut {
    pieces: Vec<Vec<u8>>,
    ids: Vec<usize>,
}

/// Files that belong together.
struct Template {
    parts: Vec<Part>,
    /// Those that are to become others, in the order in which they are numbered.
    ids: Vec<Uuid>,
}

impl Large {
    /// Makes one of that many images, a tenth of them disks on snapshots, and has the engine check it.
    pub fn make(path: &Path, images: usize) -> Result<Large> {
        let pairs = images / 10;
        let mut large = Large { path: path.to_owned(), plain: Vec::new(), pairs: Vec::new() };
        format(path)?;
        for room in ["images", "volumes", "children", "holders"] {
            for shard in 0..4096 {
                if images >= 4096 {
                    fs::create_dir(path.join(room).join(format!("{shard:03x}")))?;
                }
            }
        }
        let (plain, pair) =
            (Template::plain(&beside(path, "plain"))?, Template::pair(&beside(path, "pair"))?);
        for ids in plain.repeat(path, images - 2 * pairs)? {
            large.plain.push((ids[0], ids[1]));
        }
        for ids in pair.repeat(path, pairs)? {
            large.pairs.push(Pair { snapshot: ids[0], lower: ids[1], disk: ids[2], upper: ids[3] });
        }
        // What was written must not be written back while something is being measured.
        crate::scene::tool("sync", &["-f", crate::scene::text(path)?])?;
        large.judge(images)?;
        Ok(large)
    }

    /// One that was made before.
    pub fn load(path: &Path) -> Result<Large> {
        let mut large = Large { path: path.to_owned(), plain: Vec::new(), pairs: Vec::new() };
        let store = store()?;
        connect(&store, "R", path)?;
        for id in store.list_images("R", &ListOptions::default())? {
            let disk = id.to_string().parse()?;
            let (_, image) = record(path, "images", disk)?;
            if image["kind"] != "disk" {
                continue;
            }
            let upper = volume_of(path, disk)?;
            match record(path, "volumes", upper)?.1["backing"]["image"].as_str() {
                None => large.plain.push((disk, upper)),
                Some(snapshot) => {
                    let snapshot = snapshot.parse()?;
                    large.pairs.push(Pair { snapshot, lower: volume_of(path, snapshot)?, disk, upper });
                }
            }
        }
        Ok(large)
    }

    /// How many images it was made with.
    pub fn images(&self) -> usize {
        self.plain.len() + 2 * self.pairs.len()
    }

    /// It is a repository like any other.
    fn judge(&self, images: usize) -> Result<()> {
        let store = store()?;
        connect(&store, "R", &self.path)?;
        let found = store.list_images("R", &ListOptions::default())?.len();
        let fixes = store.check_storage_repository("R", &CheckOptions::default())?;
        if found != images || !fixes.is_empty() {
            return Err(format!("{found} images instead of {images}, and {fixes:#?}").into());
        }
        Ok(())
    }
}

fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{what}"));
    path.with_file_name(name)
}

impl Template {
    /// A disk without a base: its image and its volume.
    fn plain(path: &Path) -> Result<Template> {
        format(path)?;
        let store = store()?;
        connect(&store, "T", path)?;
        let disk = disk(&store, "T", SIZE)?.parse()?;
        store.close()?;
        Template::read(path, &[disk, volume_of(path, disk)?])
    }

    /// A disk on a snapshot.
    fn pair(path: &Path) -> Result<Template> {
        format(path)?;
        let store = store()?;
        connect(&store, "T", path)?;
        let disk = disk(&store, "T", SIZE)?;
        let snapshot = store.create_snapshot("T", &disk, "{}", &CreateOptions::default())?;
        store.close()?;
        let (snapshot, disk): (Uuid, Uuid) = (snapshot.to_string().parse()?, disk.parse()?);
        Template::read(path, &[snapshot, volume_of(path, snapshot)?, disk, volume_of(path, disk)?])
    }

    /// Reads a repository that holds nothing else, and removes it. `first`: the ids that come first.
    fn read(path: &Path, first: &[Uuid]) -> Result<Template> {
        let mut template = Template { parts: Vec::new(), ids: first.to_vec() };
        for room in ["images", "volumes", "children", "holders"] {
            for shard in fs::read_dir(path.join(room))? {
                for file in fs::read_dir(shard?.path())? {
                    template.add(room, &file?.path())?;
                }
            }
        }
        for file in fs::read_dir(path.join("data"))? {
            template.add("data", &file?.path())?;
        }
        fs::remove_dir_all(path)?;
        Ok(template)
    }

    fn add(&mut self, room: &str, file: &Path) -> Result<()> {
        let name = file.file_name().unwrap_or_default().as_encoded_bytes();
        let content = fs::read(file)?;
        let mut bytes = Vec::new();
        let block = 4096;
        for (index, block_bytes) in content.chunks(block).enumerate() {
            if block_bytes.iter().any(|byte| *byte != 0) {
                bytes.push(((index * block) as u64, self.cut(block_bytes)));
            }
        }
        let (name, length) = (self.cut(name), content.len() as u64);
        self.parts.push(Part { room: room.to_owned(), name, bytes, length });
        Ok(())
    }

    fn cut(&mut self, text: &[u8]) -> Cut {
        let mut cut = Cut { pieces: Vec::new(), ids: Vec::new() };
        let (mut from, mut at) = (0, 0);
        while at + ID <= text.len() {
            let id = std::str::from_utf8(&text[at..at + ID]).ok().filter(|text| text.as_bytes()[8] == b'-');
            if let Some(id) = id.and_then(|text| Uuid::try_parse(text).ok()) {
                let index = self.ids.iter().position(|known| *known == id).unwrap_or_else(|| {
                    self.ids.push(id);
                    self.ids.len() - 1
                });
                cut.pieces.push(text[from..at].to_vec());
                cut.ids.push(index);
                at += ID;
                from = at;
            } else {
                at += 1;
            }
        }
        cut.pieces.push(text[from..].to_vec());
        cut
    }

    /// Writes it so many times, each time with other ids; returns these.
    fn repeat(&self, path: &Path, times: usize) -> Result<Vec<Vec<Uuid>>> {
        let next = AtomicUsize::new(0);
        let work = || -> std::io::Result<Vec<Vec<Uuid>>> {
            let mut made = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < times {
                let ids: Vec<Uuid> = self.ids.iter().map(|_| Uuid::new_v4()).collect();
                for part in &self.parts {
                    part.write(path, &ids)?;
                }
                made.push(ids);
            }
            Ok(made)
        };
        thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            let mut made = Vec::with_capacity(times);
            for worker in workers {
                made.extend(worker.join().map_err(|_| "a thread panicked")??);
            }
            Ok(made)
        })
    }
}

impl Part {
    fn write(&self, path: &Path, ids: &[Uuid]) -> std::io::Result<()> {
        let name = String::from_utf8_lossy(&self.name.join(ids)).into_owned();
        let mut target = path.join(&self.room);
        if self.room != "data" {
            target.push(&name[..3]);
        }
        target.push(&name);
        let new = || fs::OpenOptions::new().write(true).create_new(true).open(&target);
        let mut file = match new() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                fs::create_dir_all(target.parent().unwrap_or(path))?;
                new()?
            }
            other => other?,
        };
        match &self.bytes[..] {
            [(0, all)] if self.length < 4096 => file.write_all(&all.join(ids))?,
            blocks => {
                file.set_len(self.length)?;
                for (offset, block) in blocks {
                    file.write_all_at(&block.join(ids), *offset)?;
                }
            }
        }
        Ok(())
    }
}

impl Cut {
    fn join(&self, ids: &[Uuid]) -> Vec<u8> {
        let mut text = Vec::new();
        for (index, piece) in self.pieces.iter().enumerate() {
            text.extend_from_slice(piece);
            if let Some(id) = self.ids.get(index) {
                text.extend_from_slice(ids[*id].hyphenated().to_string().as_bytes());
            }
        }
        text
    }
}

/// The newest generation of a record, and where it is.
pub fn record(repo: &Path, room: &str, id: Uuid) -> Result<(PathBuf, serde_json::Value)> {
    let id = id.hyphenated().to_string();
    let mut generations = BTreeMap::new();
    for entry in fs::read_dir(repo.join(room).join(&id[..3]))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(&id) {
            generations.insert(name, path);
        }
    }
    let (_, path) = generations.pop_last().ok_or("no such record")?;
    let value = serde_json::from_slice(&fs::read(&path)?)?;
    Ok((path, value))
}

/// The volume that an image points at.
pub fn volume_of(repo: &Path, image: Uuid) -> Result<Uuid> {
    let (_, record) = record(repo, "images", image)?;
    Ok(record["volume"].as_str().ok_or("an image without a volume")?.parse()?)
}
