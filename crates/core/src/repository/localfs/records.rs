//! Records: files named by their generation, made with `link`, which is the compare-and-set.

use rustix::fs::AtFlags;
use rustix::io::Errno;
use serde::Deserialize;
use uuid::Uuid;
use vdsmstore_io::without;

use super::layout::{
    Dir, MAX_RECORD, Room, TRIES, failed, file_id, parse_generation, parse_record, record_name, wrong,
};
use super::tree::{Temporary, Tree};
use crate::repository::{Generation, Put, Read, RecordKey, RecordKind, Versioned, shard_of};
use crate::{Error, ErrorKind, Result};

/// The two fields that this layer looks at.
#[derive(Debug, Default, Deserialize)]
struct Sketch {
    #[serde(default)]
    tombstone: bool,
    #[serde(default)]
    state: String,
}

impl Sketch {
    /// Of what cannot be understood: the content of a record is the business of who reads it.
    fn of(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_default()
    }

    /// Whether such a record is on its way out, so that writing it must succeed on a full file system.
    fn leaving(&self) -> bool {
        self.tombstone || matches!(self.state.as_str(), "removed" | "doomed")
    }
}

fn room_of(kind: RecordKind) -> Room {
    match kind {
        RecordKind::Image => Room::Images,
        RecordKind::Volume => Room::Volumes,
    }
}

fn place(key: RecordKey) -> (Room, Uuid) {
    match key {
        RecordKey::Image(id) => (Room::Images, id.0),
        RecordKey::Volume(id) => (Room::Volumes, id.0),
    }
}

/// The highest generation of one record now.
fn highest(shard: &Dir, id: Uuid) -> Result<Option<Generation>> {
    let prefix = format!("{}.", id.hyphenated());
    let mut highest = None;
    shard.each_name(|name| {
        highest = highest.max(name.strip_prefix(&prefix).and_then(parse_generation));
    })?;
    Ok(highest)
}

/// The records in a listing, each with its highest generation, in order.
fn listed(dir: &Dir, shard: u16) -> Result<Vec<(Uuid, Generation)>> {
    let mut found = Vec::new();
    dir.each_name(|name| found.extend(parse_record(name).filter(|(id, _)| shard_of(*id) == shard)))?;
    // The highest generation of each id comes first and stays.
    found.sort_unstable_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
    found.dedup_by_key(|(id, _)| *id);
    Ok(found)
}

/// The generations of one record in a listing, unordered.
fn generations(names: &[String], id: Uuid) -> impl Iterator<Item = Generation> {
    let prefix = format!("{}.", id.hyphenated());
    names.iter().filter_map(move |name| parse_generation(name.strip_prefix(&prefix)?))
}

/// What a record must be for a put to happen.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// Its highest generation is this one.
    Generation(Generation),
    /// There is none, or it was deleted.
    Nothing,
}

impl Tree {
    pub(super) fn get_record(&self, key: RecordKey, read: Read) -> Result<Option<Versioned>> {
        let (room, id) = place(key);
        let Some(shard) = self.shard(room, shard_of(id))? else { return Ok(None) };
        if let Some(known) = self.known(room, id)
            && let Some(bytes) = unchanged(&shard, id, known.generation)?
            && known.is(&bytes, read == Read::Relaxed)
        {
            return Ok(alive(bytes, known.generation));
        }
        let Some(Newest { generation, bytes }) = newest(&shard, id)? else { return Ok(None) };
        if read == Read::Fresh && !self.is_durable(room, id, generation) && !without!("localfs.flush.fresh") {
            // Its writer may not have come to this yet. That does for all that are listed.
            let found = listed(&shard, shard_of(id))?;
            match shard.sync() {
                Ok(()) => self.are_durable(room, found.into_iter().chain([(id, generation)])),
                Err(error) if error.kind() == ErrorKind::ReadOnlyRepository => {}
                Err(error) => return Err(error),
            }
        }
        self.has_seen(room, id, generation, &bytes);
        Ok(alive(bytes, generation))
    }

    pub(super) fn put_record(&self, key: RecordKey, expect: Option<Generation>, bytes: &[u8]) -> Result<Put> {
        if bytes.len() as u64 > MAX_RECORD {
            let message = format!("a record of {} bytes is longer than {MAX_RECORD}", bytes.len());
            return Err(Error::new(ErrorKind::Internal, message));
        }
        let expect = expect.map_or(Expect::Nothing, Expect::Generation);
        let put = || self.compare_and_set(key, expect, bytes);
        if Sketch::of(bytes).leaving() { self.with_reserve(put) } else { put() }
    }

    /// Generation 0: a tombstone where nothing is, which fences a writer that saw nothing.
    pub(super) fn delete_record(&self, key: RecordKey, expect: Generation) -> Result<Put> {
        let expect = if expect == 0 { Expect::Nothing } else { Expect::Generation(expect) };
        let (_, id) = place(key);
        let bytes = format!("{{\"tombstone\":true,\"id\":\"{}\"}}", id.hyphenated());
        self.with_reserve(|| self.compare_and_set(key, expect, bytes.as_bytes()))
    }

    pub(super) fn list_records(&self, kind: RecordKind, shard: u16) -> Result<Vec<(Uuid, Generation)>> {
        match self.shard(room_of(kind), shard)? {
            Some(dir) => listed(&dir, shard),
            None => Ok(Vec::new()),
        }
    }

    pub(super) fn scan_records(
        &self,
        kind: RecordKind,
        shard: u16,
        after: Option<Uuid>,
        visit: &mut dyn FnMut(Uuid, Result<Versioned>) -> bool,
    ) -> Result<bool> {
        let Some(dir) = self.shard(room_of(kind), shard)? else { return Ok(true) };
        let found = listed(&dir, shard)?.into_iter().filter(|(id, _)| after.is_none_or(|after| *id > after));
        for (id, generation) in found {
            let read = match dir.read(&record_name(id, generation), MAX_RECORD) {
                Ok(Some(bytes)) => Ok(alive(bytes, generation)),
                // Gone: two more puts have happened since.
                Ok(None) => {
                    newest(&dir, id).map(|found| found.and_then(|found| alive(found.bytes, found.generation)))
                }
                Err(error) => Err(error),
            };
            if let Some(read) = read.transpose()
                && !visit(id, read)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn compare_and_set(&self, key: RecordKey, expect: Expect, bytes: &[u8]) -> Result<Put> {
        let (room, id) = place(key);
        let shard = self.make_shard(room, shard_of(id))?;
        let base = match expect {
            Expect::Generation(expect) => match highest(&shard, id)? {
                Some(highest) if highest == expect || without!("localfs.compare.generation") => highest,
                _ => {
                    // Else a generation that no writer of ours made would be read past, and conflict, for ever.
                    self.forget(room, id);
                    return Ok(Put::Conflict);
                }
            },
            Expect::Nothing => match newest(&shard, id)? {
                None => 0,
                Some(newest) if is_tombstone(&newest.bytes) => newest.generation,
                Some(_) => return Ok(Put::Conflict),
            },
        };
        let put = self.link_next(&shard, id, base, bytes)?;
        if let Put::Done(generation) = put {
            self.are_durable(room, std::iter::once((id, generation)));
            self.has_seen(room, id, generation, bytes);
        }
        Ok(put)
    }

    /// The write after the comparison with `base`; between the two, any time may have passed.
    pub(super) fn link_next(&self, shard: &Dir, id: Uuid, base: Generation, bytes: &[u8]) -> Result<Put> {
        let Some(next) = base.checked_add(1) else {
            let path = shard.path.join(record_name(id, base));
            return Err(wrong(ErrorKind::CorruptRecord, &path, "there is no generation after this one"));
        };
        let temporary = self.written(shard, bytes)?;
        let name = record_name(id, next);
        match rustix::fs::linkat(shard, &temporary.name, shard, &name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                if !is(shard, &name, &temporary)? && !without!("localfs.compare.exists") {
                    return Ok(Put::Conflict);
                }
            }
            // Whether it is there now, nobody can say.
            Err(Errno::IO | Errno::STALE | Errno::TIMEDOUT | Errno::INTR) => return Ok(Put::Unknown),
            Err(e) => return Err(failed("cannot link", shard.path.join(&name), e)),
        }
        if !without!("localfs.flush.record") && shard.sync().is_err() {
            return Ok(Put::Unknown);
        }
        let Ok(names) = shard.names() else { return Ok(Put::Unknown) };
        let highest = generations(&names, id).max().unwrap_or(0);
        if highest < next {
            return Ok(Put::Unknown);
        }
        if highest - next > 1 && !without!("localfs.reread") {
            // Either the name was free because our successors had removed it, then this put never counted; or two
            // others built on it since. It looks the same. In both cases the name is of no use any more.
            if is(shard, &name, &temporary).unwrap_or(false) {
                let _ = shard.unlink(&name);
            }
            return Ok(Put::Unknown);
        }
        drop(temporary);
        // `base` stays for those who have listed but not opened yet. One that cannot be removed keeps those after it, so
        // that the highest is what has no next one (`unchanged`).
        let mut old: Vec<_> = generations(&names, id).filter(|&generation| generation < base).collect();
        old.sort_unstable();
        for old in old {
            if shard.unlink(&record_name(id, old)).is_err() {
                break;
            }
        }
        self.sweep(shard, &names);
        Ok(Put::Done(next))
    }
}

/// Whether the name is that file.
fn is(shard: &Dir, name: &str, temporary: &Temporary<'_>) -> Result<bool> {
    Ok(shard.stat(name)?.is_some_and(|stat| file_id(&stat) == temporary.id))
}

/// A record as it was found, tombstones included.
struct Newest {
    generation: Generation,
    bytes: Vec<u8>,
}

/// A tombstone is no record.
fn alive(bytes: Vec<u8>, generation: Generation) -> Option<Versioned> {
    (!is_tombstone(&bytes)).then_some(Versioned { bytes, generation })
}

/// Whether the document says that it is one; most do not even have the word, nor a way to hide it.
fn is_tombstone(bytes: &[u8]) -> bool {
    let suspicious =
        memchr::memchr(b'\\', bytes).is_some() || memchr::memmem::find(bytes, b"tombstone").is_some();
    suspicious && Sketch::of(bytes).tombstone
}

/// The document of a generation, if it is there and the next one is not: found without a listing, it is the highest then.
/// (The next one was not there yet, then this was the highest; or not any more, then this one would have gone before it.)
/// Unless it is another document: a writer that stood still for two puts linked it, and has not taken it back.
fn unchanged(shard: &Dir, id: Uuid, generation: Generation) -> Result<Option<Vec<u8>>> {
    match generation.checked_add(1) {
        Some(next) if shard.stat(&record_name(id, next))?.is_none() => {
            shard.read(&record_name(id, generation), MAX_RECORD)
        }
        _ => Ok(None),
    }
}

/// The highest generation.
fn newest(shard: &Dir, id: Uuid) -> Result<Option<Newest>> {
    for _ in 0..TRIES {
        let Some(generation) = highest(shard, id)? else { return Ok(None) };
        // Gone: two more puts have happened since it was listed.
        if let Some(bytes) = shard.read(&record_name(id, generation), MAX_RECORD)? {
            return Ok(Some(Newest { generation, bytes }));
        }
    }
    Err(wrong(ErrorKind::IoError, &shard.path, &format!("the record {id} changes too fast to be read")))
}
