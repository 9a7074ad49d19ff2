//! What exists beside the records, without generations: markers, progress, blobs.

use std::collections::BTreeSet;

use rustix::io::Errno;
use uuid::Uuid;
use vdsmstore_io::without;

use super::layout::{Dir, MAX_BLOB, MAX_RECORD, Room, parse_id, parse_pair, parse_shard, wrong};
use super::tree::Tree;
use crate::id::{BlobId, ImageId};
use crate::repository::{Marker, shard_of};
use crate::{Error, ErrorKind, Result};

/// What of a progress says that it is a last word.
#[derive(serde::Deserialize)]
struct Telling {
    error: Option<serde::de::IgnoredAny>,
}

/// The room of a marker, the id that decides its shard, and the other.
fn place(marker: Marker) -> (Room, Uuid, Uuid) {
    match marker {
        Marker::Child(image, volume) => (Room::Children, image.0, volume.0),
        Marker::Holder(volume, image) => (Room::Holders, volume.0, image.0),
    }
}

fn pair(first: Uuid, second: Uuid) -> String {
    format!("{}.{}", first.hyphenated(), second.hyphenated())
}

impl Tree {
    pub(super) fn mark(&self, marker: Marker) -> Result<()> {
        let (room, first, second) = place(marker);
        let (shard, name) = (self.make_shard(room, shard_of(first))?, pair(first, second));
        if shard.stat(&name)?.is_none() {
            match self.create(&shard, &name) {
                Ok(_) => {}
                Err(error)
                    if error
                        .details()
                        .get("errno")
                        .is_some_and(|errno| *errno == Errno::EXIST.raw_os_error()) => {}
                Err(error) => return Err(error),
            }
        }
        // Also if it was there: somebody else may have made it just now.
        if without!("localfs.flush.marker") { Ok(()) } else { shard.sync() }
    }

    pub(super) fn unmark(&self, marker: Marker) -> Result<()> {
        let (room, first, second) = place(marker);
        self.remove(room, first, &pair(first, second))
    }

    pub(super) fn marked(&self, room: Room, first: Uuid) -> Result<Vec<Uuid>> {
        match self.shard(room, shard_of(first))? {
            Some(shard) => seconds(&shard, first),
            None => Ok(Vec::new()),
        }
    }

    /// The shards that exist in any of the rooms, in order.
    pub(super) fn shards(&self, rooms: &[Room]) -> Result<Vec<u16>> {
        let mut shards = BTreeSet::new();
        for room in rooms {
            self.room(*room).each_name(|name| shards.extend(parse_shard(name)))?;
        }
        Ok(shards.into_iter().collect())
    }

    /// The names of two ids in a shard.
    pub(super) fn list_pairs(&self, room: Room, shard: u16) -> Result<Vec<(Uuid, Uuid)>> {
        let mut pairs = Vec::new();
        if let Some(dir) = self.shard(room, shard)? {
            dir.each_name(|name| {
                pairs.extend(parse_pair(name).filter(|(first, _)| shard_of(*first) == shard));
            })?;
        }
        Ok(pairs)
    }

    pub(super) fn list_progress(&self, shard: u16) -> Result<Vec<ImageId>> {
        let names = self.shard(Room::Progress, shard)?.map_or_else(|| Ok(Vec::new()), |dir| dir.names())?;
        let ids = names.iter().filter_map(|name| parse_id(name));
        Ok(ids.filter(|id| shard_of(*id) == shard).map(ImageId).collect())
    }

    pub(super) fn put_progress(&self, image: ImageId, bytes: &[u8]) -> Result<()> {
        check_length(bytes, MAX_RECORD)?;
        let shard = self.make_shard(Room::Progress, shard_of(image.0))?;
        let put = || self.replace(&shard, &image.to_string(), bytes);
        // Why work ended is said also on a full file system, which is the most likely reason.
        let tells = serde_json::from_slice::<Telling>(bytes).is_ok_and(|progress| progress.error.is_some());
        if tells { self.with_reserve(put) } else { put() }
    }

    pub(super) fn get_progress(&self, image: ImageId) -> Result<Option<Vec<u8>>> {
        match self.shard(Room::Progress, shard_of(image.0))? {
            Some(shard) => shard.read(&image.to_string(), MAX_RECORD),
            None => Ok(None),
        }
    }

    pub(super) fn delete_progress(&self, image: ImageId) -> Result<()> {
        self.remove(Room::Progress, image.0, &image.to_string())
    }

    pub(super) fn put_blob(&self, owner: ImageId, blob: BlobId, bytes: &[u8]) -> Result<()> {
        check_length(bytes, MAX_BLOB)?;
        let shard = self.make_shard(Room::Blobs, shard_of(owner.0))?;
        self.replace(&shard, &pair(owner.0, blob.0), bytes)
    }

    pub(super) fn get_blob(&self, owner: ImageId, blob: BlobId) -> Result<Vec<u8>> {
        let found = match self.shard(Room::Blobs, shard_of(owner.0))? {
            Some(shard) => shard.read(&pair(owner.0, blob.0), MAX_BLOB)?,
            None => None,
        };
        found.ok_or_else(|| {
            wrong(
                ErrorKind::CorruptRecord,
                &self.root.path,
                &format!("blob {blob} of image {owner} is not there"),
            )
        })
    }

    pub(super) fn delete_blob(&self, owner: ImageId, blob: BlobId) -> Result<()> {
        self.remove(Room::Blobs, owner.0, &pair(owner.0, blob.0))
    }

    /// Not synced: what is removed here is garbage already, and may come back as such after a power failure.
    fn remove(&self, room: Room, first: Uuid, name: &str) -> Result<()> {
        match self.shard(room, shard_of(first))? {
            // Some file systems need space to remove.
            Some(shard) => self.with_reserve(|| shard.unlink(name)).map(|_| ()),
            None => Ok(()),
        }
    }
}

/// The second ids of the names whose first is `first`.
fn seconds(shard: &Dir, first: Uuid) -> Result<Vec<Uuid>> {
    let prefix = format!("{}.", first.hyphenated());
    let mut seconds = Vec::new();
    shard.each_name(|name| seconds.extend(name.strip_prefix(&prefix).and_then(parse_id)))?;
    Ok(seconds)
}

fn check_length(bytes: &[u8], limit: u64) -> Result<()> {
    if bytes.len() as u64 <= limit {
        return Ok(());
    }
    let message =
        format!("{} bytes are too many to be stored in one piece, the limit is {limit}", bytes.len());
    Err(Error::new(ErrorKind::Internal, message))
}
