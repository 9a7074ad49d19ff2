//! A connected repository with typed records.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use uuid::Uuid;
use vdsmstore_io::without;

use crate::id::{BlobId, ImageId, VolumeId};
use crate::record::{
    Header, ImageRecord, Owner, Progress, REMEMBERED, Record, SCHEMA, UserDataRef, VolumeRecord,
};
use crate::repository::{
    Driver, HostIdentity, Put, Read, RecordKey, RecordKind, SHARDS, Versioned, shard_of,
};
use crate::{Error, ErrorKind, Result, machine};

/// How often user data is read again that others keep replacing.
const READ_TRIES: u32 = 64;
/// How often a compare-and-set is tried again when others keep winning.
const CAS_TRIES: u32 = 64;
/// How often a put is tried whose outcome the storage does not tell, while nobody else changes the record.
const UNKNOWN_TRIES: u32 = 3;

/// A connected repository.
pub(crate) struct Repo {
    /// The caller's name for it.
    pub id: String,
    /// The storage.
    pub driver: Arc<dyn Driver>,
    /// Bytes that the caches of each open image may take, if that is said.
    pub memory: Option<u64>,
}

impl fmt::Debug for Repo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repo")
            .field("id", &self.id)
            .field("location", &self.driver.location())
            .finish_non_exhaustive()
    }
}

/// A record with the key it is stored under.
pub(crate) trait Keyed: Record {
    fn key(&self) -> RecordKey;
}

impl Keyed for ImageRecord {
    fn key(&self) -> RecordKey {
        RecordKey::Image(self.id())
    }
}

impl Keyed for VolumeRecord {
    fn key(&self) -> RecordKey {
        RecordKey::Volume(self.id())
    }
}

/// What an update function wants done.
pub(crate) enum Change {
    /// Write the record as it is now.
    Put,
    /// As `Put`, and become its owner.
    Claim,
    /// Leave it as it was.
    Keep,
}

impl Repo {
    fn host(&self) -> &HostIdentity {
        self.driver.host()
    }

    /// The image record as it is now, and durable.
    pub fn image(&self, id: ImageId) -> Result<Option<ImageRecord>> {
        let read = if without!("repo.fresh.image") { Read::Relaxed } else { Read::Fresh };
        self.fetch(RecordKey::Image(id), read)
    }

    /// The volume record as it is now, and durable.
    pub fn volume(&self, id: VolumeId) -> Result<Option<VolumeRecord>> {
        let read = if without!("repo.fresh.volume") { Read::Relaxed } else { Read::Fresh };
        self.fetch(RecordKey::Volume(id), read)
    }

    /// The volume record, read as asked.
    pub fn volume_with(&self, id: VolumeId, read: Read) -> Result<Option<VolumeRecord>> {
        self.fetch(RecordKey::Volume(id), read)
    }

    /// The image record, read as asked.
    pub fn image_with(&self, id: ImageId, read: Read) -> Result<Option<ImageRecord>> {
        self.fetch(RecordKey::Image(id), read)
    }

    fn fetch<R: Record>(&self, key: RecordKey, read: Read) -> Result<Option<R>> {
        let id = match key {
            RecordKey::Image(id) => id.0,
            RecordKey::Volume(id) => id.0,
        };
        self.driver.get(key, read)?.map(|versioned| parse(id, &versioned)).transpose()
    }

    /// The image record of an image that callers see.
    pub fn visible_image(&self, id: ImageId) -> Result<ImageRecord> {
        match self.image(id)? {
            Some(record) if record.visible() => Ok(record),
            _ => Err(self.image_not_found(id)),
        }
    }

    /// The error for an id that names no image here.
    pub fn image_not_found(&self, id: ImageId) -> Error {
        Error::new(ErrorKind::ImageNotFound, format!("repository {:?} has no image {id}", self.id))
            .with("imageId", id.to_string())
            .with("repoId", self.id.clone())
    }

    /// A header for a new record, owned by this store.
    pub fn header(&self, id: Uuid) -> Header {
        let HostIdentity { host_id, incarnation, .. } = self.host();
        Header {
            schema: SCHEMA,
            id,
            generation: 0,
            epoch: 1,
            nonce: machine::random_uuid(),
            before: Vec::new(),
            owner: Owner { host: host_id.clone(), incarnation: *incarnation },
        }
    }

    /// Whether this store owns the record.
    pub fn owns(&self, header: &Header) -> bool {
        header.owner.incarnation == self.host().incarnation
    }

    /// Creates a record that must not exist. False: it does.
    pub fn create<R: Keyed>(&self, record: &mut R) -> Result<bool> {
        self.put(record, None)
    }

    /// Writes back a record that was read. False: somebody else wrote it first.
    pub fn replace<R: Keyed>(&self, record: &mut R) -> Result<bool> {
        let expect = record.header().generation;
        self.put(record, Some(expect))
    }

    /// As [`Repo::replace`], becoming the owner: the epoch rises, which displaces whoever worked on it.
    pub fn claim<R: Keyed>(&self, record: &mut R) -> Result<bool> {
        let HostIdentity { host_id, incarnation, .. } = self.host().clone();
        let header = record.header_mut();
        if !without!("repo.epoch") {
            header.epoch = header.epoch.checked_add(1).ok_or_else(|| used_up(header.id))?;
        }
        header.owner = Owner { host: host_id, incarnation };
        self.replace(record)
    }

    fn put<R: Keyed>(&self, record: &mut R, expect: Option<u64>) -> Result<bool> {
        let header = record.header_mut();
        if expect.is_some() {
            header.before.insert(0, header.nonce);
            header.before.truncate(REMEMBERED);
        }
        header.nonce = machine::random_uuid();
        let next = expect.unwrap_or(0).checked_add(1).ok_or_else(|| used_up(header.id))?;
        header.generation = next;
        let nonce = header.nonce;
        let bytes = to_json(record)?;
        for attempt in 0..UNKNOWN_TRIES {
            match self.driver.put(record.key(), expect, &bytes)? {
                Put::Done(generation) => {
                    record.header_mut().generation = generation;
                    return Ok(true);
                }
                Put::Conflict if attempt == 0 => return Ok(false),
                // With whom, if an attempt before may have been done after all?
                Put::Conflict | Put::Unknown => {}
            }
            // Only what is there now tells.
            match self.fetch::<R>(record.key(), Read::Fresh)?.as_ref().map(Record::header) {
                _ if without!("repo.compare.unknown") => return Ok(true),
                Some(now)
                    if now.nonce == nonce && !without!("repo.compare.nonce")
                        || now.before.contains(&nonce) && !without!("repo.compare.before") =>
                {
                    return Ok(true);
                }
                now if now.map(|now| now.generation) == expect => {}
                _ => return Ok(false),
            }
        }
        Err(self.not_told(record.key()))
    }

    /// The error for a storage that cannot say what became of a put, again and again, while nobody else changes the
    /// record.
    fn not_told(&self, key: RecordKey) -> Error {
        let location = self.driver.location();
        let message = format!("repository {:?}: {key:?} cannot be written: {location} failed", self.id);
        Error::new(ErrorKind::IoError, message).with("path", location)
    }

    /// Reads, changes and writes a record until nobody interferes. None: it does not exist.
    pub fn update<R: Keyed>(
        &self,
        key: RecordKey,
        mut change: impl FnMut(&mut R) -> Result<Change>,
    ) -> Result<Option<R>> {
        for _ in 0..CAS_TRIES {
            let Some(mut record) = self.fetch::<R>(key, Read::Fresh)? else { return Ok(None) };
            let written = match change(&mut record)? {
                Change::Keep => true,
                Change::Put => self.replace(&mut record)?,
                Change::Claim => self.claim(&mut record)?,
            };
            if written {
                return Ok(Some(record));
            }
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!("repository {:?}: {key:?} changes all the time", self.id),
        ))
    }

    /// [`Repo::update`] of an image.
    pub fn update_image(
        &self,
        id: ImageId,
        change: impl FnMut(&mut ImageRecord) -> Result<Change>,
    ) -> Result<Option<ImageRecord>> {
        self.update(RecordKey::Image(id), change)
    }

    /// [`Repo::update`] of a volume.
    pub fn update_volume(
        &self,
        id: VolumeId,
        change: impl FnMut(&mut VolumeRecord) -> Result<Change>,
    ) -> Result<Option<VolumeRecord>> {
        self.update(RecordKey::Volume(id), change)
    }

    /// Turns a record into a tombstone. False: somebody else wrote it first.
    pub fn delete<R: Keyed>(&self, record: &R) -> Result<bool> {
        let expect = record.header().generation;
        for attempt in 0..UNKNOWN_TRIES {
            match self.driver.delete(record.key(), expect)? {
                Put::Done(_) => return Ok(true),
                Put::Conflict if attempt == 0 => return Ok(false),
                Put::Conflict | Put::Unknown => {}
            }
            match self.driver.get(record.key(), Read::Fresh)? {
                _ if without!("repo.compare.deleted") => return Ok(true),
                None => return Ok(true),
                Some(now) if now.generation == expect => {}
                Some(_) => return Ok(false),
            }
        }
        Err(self.not_told(record.key()))
    }

    /// The caller's JSON of an image.
    pub fn user_data(&self, record: &ImageRecord) -> Result<Box<RawValue>> {
        let mut newest = record.clone();
        for _ in 0..READ_TRIES {
            let error = match self.read_user_data(&newest) {
                Ok(text) => return Ok(text),
                Err(error) => error,
            };
            // It may have been replaced since the record was read.
            match self.image(record.id())? {
                Some(now) if now.user_data != newest.user_data => newest = now,
                Some(_) => return Err(error),
                // The record goes first, then what it had.
                None => return Err(self.image_not_found(record.id())),
            }
        }
        self.read_user_data(&newest)
    }

    fn read_user_data(&self, record: &ImageRecord) -> Result<Box<RawValue>> {
        let text = match record.user_data {
            None => "{}".to_owned(),
            Some(UserDataRef { blob, .. }) => {
                let bytes = self.driver.get_blob(record.id(), blob)?;
                String::from_utf8(bytes).map_err(|_| self.corrupt_user_data(record.id()))?
            }
        };
        RawValue::from_string(text).map_err(|_| self.corrupt_user_data(record.id()))
    }

    fn corrupt_user_data(&self, id: ImageId) -> Error {
        let message = format!("repository {:?}: the user data of image {id} is no JSON", self.id);
        Error::new(ErrorKind::CorruptRecord, message)
    }

    /// Stores the caller's JSON for an image that is about to refer to it.
    pub fn store_user_data(&self, id: ImageId, text: &str) -> Result<Option<UserDataRef>> {
        if text == "{}" {
            return Ok(None);
        }
        let blob = self.store_blob(id, text.as_bytes())?;
        Ok(Some(UserDataRef { blob, length: text.len() as u64 }))
    }

    /// Stores a blob for an image that is about to refer to it.
    pub fn store_blob(&self, id: ImageId, bytes: &[u8]) -> Result<BlobId> {
        let blob = BlobId::random();
        self.driver.put_blob(id, blob, bytes)?;
        Ok(blob)
    }

    /// The last persisted progress of an image.
    pub fn progress(&self, id: ImageId) -> Result<Option<Progress>> {
        Ok(self.driver.get_progress(id)?.and_then(|bytes| Progress::parse(&bytes)))
    }

    /// Replaces the progress of an image.
    pub fn put_progress(&self, id: ImageId, progress: &Progress) -> Result<()> {
        self.driver.put_progress(id, &to_json(progress)?)
    }

    /// Walks over the images after `after`, in order, until `visit` says "enough" by false. Those whose records cannot be
    /// understood are passed over. What it costs is in proportion to the images that are visited.
    pub fn each_image(
        &self,
        after: Option<ImageId>,
        mut visit: impl FnMut(ImageRecord) -> Result<bool>,
    ) -> Result<()> {
        let mut outcome = Ok(());
        let mut scan = |shard| {
            self.driver.scan(RecordKind::Image, shard, after.map(|after| after.0), &mut |id, read| {
                let going_on = match read.and_then(|versioned| parse::<ImageRecord>(id, &versioned)) {
                    Ok(image) => visit(image),
                    Err(error) if error.is_bad_record() => Ok(true),
                    Err(error) => Err(error),
                };
                going_on.unwrap_or_else(|error| {
                    outcome = Err(error);
                    false
                })
            })
        };
        // In a large repository the next page is near; in a small one, most shards are not there.
        let first = after.map_or(0, |after| shard_of(after.0));
        let near = first.saturating_add(NEAR).min(SHARDS);
        let mut going_on = true;
        for shard in first..near {
            going_on = going_on && scan(shard)?;
        }
        if going_on {
            let far = self.driver.shards(Some(RecordKind::Image))?.into_iter().filter(|shard| *shard >= near);
            for shard in far {
                if !scan(shard)? {
                    break;
                }
            }
        }
        outcome
    }
}

/// So many shards are looked at without asking which ones there are.
const NEAR: u16 = 16;

/// What a driver has read under that id.
pub(crate) fn parse<R: Record>(id: Uuid, versioned: &Versioned) -> Result<R> {
    let mut record = R::parse(id, &versioned.bytes)?;
    // The name decides; what the document says of its generation is for people.
    record.header_mut().generation = versioned.generation;
    Ok(record)
}

/// The error for a record whose numbers no honest writer can have reached.
fn used_up(id: Uuid) -> Error {
    Error::new(ErrorKind::CorruptRecord, format!("record {id}: its generation or epoch cannot be raised"))
        .with("record", id.to_string())
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|error| Error::new(ErrorKind::Internal, format!("a record cannot be written: {error}")))
}
