//! What cannot be reached from outside: a writer that stood still between its comparison and its write.

use std::cell::RefCell;

use serde_json::json;
use uuid::Uuid;

use super::layout::{Room, parse_generation, parse_id, parse_record, parse_shard, record_name};
use super::*;
use crate::repository::{FormatOptions, shard_of};

thread_local! {
    /// The directories that this thread has synced.
    pub(super) static SYNCED: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// What was synced since the last call, below the repository.
fn synced(place: &Place) -> Vec<String> {
    let below = |path: &PathBuf| path.strip_prefix(place.dir.path()).unwrap().to_str().unwrap().to_owned();
    SYNCED.take().iter().map(below).collect()
}

struct Place {
    driver: LocalFs,
    dir: tempfile::TempDir,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let parameters = Map::from_iter([("path".to_owned(), json!(dir.path().to_str().unwrap()))]);
    format(&parameters, &FormatOptions::default()).unwrap();
    let host = HostIdentity { host_id: "h".into(), incarnation: Incarnation::random(), boot_id: "b".into() };
    Place { driver: LocalFs::connect(&parameters, host).unwrap(), dir }
}

impl Place {
    /// Writes the next generations up to `last`, in order.
    fn put_up_to(&self, id: Uuid, last: Generation) {
        let key = RecordKey::Image(ImageId(id));
        let now = self.driver.get(key, Read::Fresh).unwrap().map(|record| record.generation);
        let mut expect = now;
        for generation in now.unwrap_or(0) + 1..=last {
            assert_eq!(self.driver.put(key, expect, b"theirs").unwrap(), Put::Done(generation));
            expect = Some(generation);
        }
    }

    /// The write of who has seen generation `base`.
    fn late_write(&self, id: Uuid, base: Generation) -> Put {
        let shard = self.driver.tree.make_shard(Room::Images, shard_of(id)).unwrap();
        self.driver.tree.link_next(&shard, id, base, b"late").unwrap()
    }

    fn generations(&self, id: Uuid) -> Vec<Generation> {
        let shard = self.dir.path().join(format!("images/{:03x}", shard_of(id)));
        let names = std::fs::read_dir(shard).unwrap().map(|entry| entry.unwrap().file_name());
        let mut found: Vec<_> = names
            .map(|name| parse_record(name.to_str().unwrap()).expect("it is a record"))
            .map(|(_, g)| g)
            .collect();
        found.sort_unstable();
        found
    }

    fn newest(&self, id: Uuid) -> (Generation, Vec<u8>) {
        let found = self.driver.get(RecordKey::Image(ImageId(id)), Read::Fresh).unwrap().unwrap();
        (found.generation, found.bytes)
    }
}

#[test]
fn a_late_writer_never_hides_a_newer_record() {
    for moved_on in 0..6 {
        let (place, id) = (place(), Uuid::new_v4());
        place.put_up_to(id, 5 + moved_on);
        let put = place.late_write(id, 5);
        match moved_on {
            // Nobody was faster: it is no late writer.
            0 => {
                assert_eq!(put, Put::Done(6));
                assert_eq!(place.newest(id), (6, b"late".to_vec()));
                assert_eq!(place.generations(id), [5, 6]);
            }
            // The name is taken, by the winner or by what is kept of it.
            1 | 2 => assert_eq!(put, Put::Conflict),
            // The name is free again; the listing after the write tells.
            _ => assert_eq!(put, Put::Unknown),
        }
        if moved_on > 0 {
            assert_eq!(place.newest(id), (5 + moved_on, b"theirs".to_vec()));
            assert_eq!(place.generations(id), [4 + moved_on, 5 + moved_on], "nothing of it is left");
        }
    }
}

#[test]
fn a_late_writer_does_not_bring_back_a_deleted_record() {
    let (place, id) = (place(), Uuid::new_v4());
    let key = RecordKey::Image(ImageId(id));
    place.put_up_to(id, 3);
    assert_eq!(place.driver.delete(key, 3).unwrap(), Put::Done(4));
    assert_eq!(place.late_write(id, 3), Put::Conflict);
    assert_eq!(place.late_write(id, 1), Put::Unknown);
    assert_eq!(place.driver.get(key, Read::Fresh).unwrap(), None);
    // Nor one who saw nothing, after the record came and went.
    assert_eq!(place.late_write(id, 0), Put::Unknown);
    assert_eq!(place.driver.get(key, Read::Fresh).unwrap(), None);
    assert_eq!(place.driver.put(key, None, b"new").unwrap(), Put::Done(5));
}

#[test]
fn a_writer_whose_record_was_built_upon_at_once_has_succeeded() {
    let (place, id) = (place(), Uuid::new_v4());
    place.put_up_to(id, 1);
    // What the faster one has linked already, before this one comes to its second listing.
    let name = |generation| {
        place.dir.path().join(format!("images/{:03x}/{}", shard_of(id), record_name(id, generation)))
    };
    std::fs::write(name(3), b"theirs").unwrap();
    assert_eq!(place.late_write(id, 1), Put::Done(2));
    assert_eq!(place.newest(id), (3, b"theirs".to_vec()));
    assert_eq!(place.generations(id), [1, 2, 3]);
}

/// A writer that stood still for two puts, and died before it took its name back.
#[test]
fn a_late_record_under_a_name_that_was_known_is_not_believed() {
    let (place, id) = (place(), Uuid::new_v4());
    let key = RecordKey::Image(ImageId(id));
    place.put_up_to(id, 1);
    assert_eq!(place.newest(id), (1, b"theirs".to_vec()));
    let theirs = second(&place);
    for generation in 1..4 {
        assert_eq!(theirs.put(key, Some(generation), b"more").unwrap(), Put::Done(generation + 1));
    }
    let shard = place.dir.path().join(format!("images/{:03x}", shard_of(id)));
    std::fs::write(shard.join(record_name(id, 1)), b"late").unwrap();
    assert_eq!(place.generations(id), [1, 3, 4]);
    for read in [Read::Relaxed, Read::Fresh] {
        let found = place.driver.get(key, read).unwrap().unwrap();
        assert_eq!((found.generation, &*found.bytes), (4, &b"more"[..]), "{read:?}");
    }
}

/// Another store on the same repository.
fn second(place: &Place) -> LocalFs {
    let parameters = Map::from_iter([("path".to_owned(), json!(place.dir.path().to_str().unwrap()))]);
    let host = HostIdentity { incarnation: Incarnation::random(), ..place.driver.host().clone() };
    LocalFs::connect(&parameters, host).unwrap()
}

#[test]
fn what_is_known_to_be_durable_is_not_synced_again() {
    let place = place();
    let id = |shard: u128, n: u128| Uuid::from_u128(shard << 116 | n);
    let key = |id| RecordKey::Image(ImageId(id));
    let (one, two, far) = (id(0xabc, 1), id(0xabc, 2), id(0xdef, 1));
    let mine = &place.driver;
    let theirs = second(&place);
    let read = |id| {
        synced(&place);
        mine.get(key(id), Read::Fresh).unwrap().unwrap();
        synced(&place)
    };
    synced(&place);
    // The own put: the shard's name, then the record's; reading it back needs nothing more.
    assert_eq!(mine.put(key(one), None, b"1").unwrap(), Put::Done(1));
    assert_eq!(synced(&place), ["images", "images/abc"]);
    assert!(read(one).is_empty());
    assert_eq!(mine.put(key(two), None, b"1").unwrap(), Put::Done(1));
    assert_eq!(synced(&place), ["images/abc"]);
    // Each generation of somebody else once; what was listed with it, with it.
    assert_eq!(theirs.put(key(one), Some(1), b"2").unwrap(), Put::Done(2));
    assert_eq!(theirs.put(key(two), Some(1), b"2").unwrap(), Put::Done(2));
    assert_eq!(theirs.put(key(far), None, b"1").unwrap(), Put::Done(1));
    assert_eq!(read(one), ["images/abc"]);
    assert!(read(one).is_empty() && read(two).is_empty());
    assert_eq!(read(far), ["images/def"]);
    assert_eq!(theirs.delete(key(two), 2).unwrap(), Put::Done(3));
    synced(&place);
    assert_eq!(mine.get(key(two), Read::Fresh).unwrap(), None);
    assert_eq!(synced(&place), ["images/abc"], "a tombstone must not go either");
    assert_eq!(mine.get(key(two), Read::Fresh).unwrap(), None);
    assert!(synced(&place).is_empty());
    // A shard that somebody else made is synced once.
    assert_eq!(theirs.put(key(id(0x111, 1)), None, b"1").unwrap(), Put::Done(1));
    synced(&place);
    assert_eq!(mine.put(key(far), Some(1), b"2").unwrap(), Put::Done(2));
    assert_eq!(synced(&place), ["images", "images/def"]);
    assert_eq!(mine.put(key(id(0x111, 2)), None, b"1").unwrap(), Put::Done(1));
    assert_eq!(synced(&place), ["images", "images/111"]);
    assert_eq!(mine.put(key(id(0x111, 3)), None, b"1").unwrap(), Put::Done(1));
    assert_eq!(synced(&place), ["images/111"]);
    // After many of them all that are there are, at one go.
    for shard in 0x200..=0x220 {
        assert_eq!(theirs.put(key(id(shard, 1)), None, b"1").unwrap(), Put::Done(1));
    }
    for shard in 0x200..0x220 {
        assert_eq!(mine.put(key(id(shard, 2)), None, b"1").unwrap(), Put::Done(1));
    }
    synced(&place);
    assert_eq!(mine.put(key(id(0x220, 2)), None, b"1").unwrap(), Put::Done(1));
    assert_eq!(synced(&place), ["images/220"]);
}

#[test]
fn old_generations_go_when_their_successor_is_durable() {
    let (place, id) = (place(), Uuid::new_v4());
    place.put_up_to(id, 4);
    let shard = format!("images/{:03x}", shard_of(id));
    let old = place.dir.path().join(&shard).join(record_name(id, 2));
    std::fs::write(&old, b"old").unwrap();
    std::fs::write(place.dir.path().join(&shard).join(record_name(id, 1)), b"older").unwrap();
    let mut names = Vec::new();
    let visited = place.driver.tree.each_leftover(|_, left| {
        names.extend(left.names.clone());
        Ok(())
    });
    visited.unwrap();
    assert_eq!(names, [record_name(id, 1), record_name(id, 2)], "the lowest first");
    synced(&place);
    place.driver.sweep().unwrap();
    assert!(synced(&place).contains(&shard));
    assert_eq!(place.generations(id), [3, 4]);
    place.driver.sweep().unwrap();
    assert!(!synced(&place).contains(&shard));
}

/// Between making its registration and locking it a store looks dead.
#[test]
fn a_registration_that_is_swept_too_early_is_made_again() {
    let place = place();
    let (hosts, done) = (&place.driver.tree.hosts, AtomicBool::new(false));
    let parameters = Map::from_iter([("path".to_owned(), json!(place.dir.path().to_str().unwrap()))]);
    let connected = std::thread::scope(|scope| {
        // As a sweep does, but without a pause.
        let sweeping = scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                for name in hosts.names().unwrap().iter().filter(|name| name.starts_with(".t.")) {
                    if matches!(place.driver.tree.is_locked_host(name), Ok(Some(false))) {
                        hosts.unlink(name).unwrap();
                    }
                }
            }
        });
        let mut connected = 0;
        while connected < 300 {
            let host = HostIdentity { incarnation: Incarnation::random(), ..place.driver.host().clone() };
            let Ok(store) = LocalFs::connect(&parameters, host) else { break };
            assert_eq!(
                place.driver.liveness(store.host().incarnation).unwrap(),
                crate::repository::Liveness::Alive
            );
            store.close().unwrap();
            connected += 1;
        }
        done.store(true, Ordering::Release);
        sweeping.join().unwrap();
        connected
    });
    assert_eq!(connected, 300);
    assert_eq!(place.driver.leftovers().unwrap(), 0);
}

#[test]
fn names_are_strict() {
    let id = Uuid::new_v4();
    assert_eq!(parse_record(&record_name(id, 1)), Some((id, 1)));
    assert_eq!(parse_record(&record_name(id, u64::MAX)), Some((id, u64::MAX)));
    assert_eq!(parse_record(&record_name(id, 0)), None);
    for wrong in ["", "1", "000000000000000g", "000000000000000A", "+000000000000001", "00000000000000001"] {
        assert_eq!(parse_generation(wrong), None, "{wrong}");
    }
    for wrong in [&id.simple().to_string(), &id.braced().to_string(), &id.to_string().to_uppercase()] {
        // All digits: the upper case is the same.
        assert!(parse_id(wrong).is_none() || *wrong == id.to_string(), "{wrong}");
    }
    assert_eq!((parse_shard("000"), parse_shard("fff")), (Some(0), Some(0xfff)));
    for wrong in ["", "0", "00", "0000", "FFF", "+ff", "1000", "lost+found"] {
        assert_eq!(parse_shard(wrong), None, "{wrong}");
    }
}
