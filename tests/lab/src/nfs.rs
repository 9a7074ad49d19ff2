//! What several hosts do on one NFS share, with the code of localfs: to learn what a format of its own has to do
//! otherwise. See `docs/decisions/nfs-spike.md`.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vdsmstore_core::id::{ImageId, Incarnation};
use vdsmstore_core::options::{
    Bandwidth, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions,
};
use vdsmstore_core::repository::localfs::LocalFs;
use vdsmstore_core::repository::{Driver, HostIdentity, Put, Read, RecordKey};
use vdsmstore_core::{Error, Result, Status, Store};
use vdsmstore_tests::{at, new_repo, settle, store, write};

use crate::judge::{REPOS, quiet};
use crate::state::{BLOCK, content};

/// Of the disk that is copied: 16 MiB.
const BLOCKS: usize = 4096;
const RACED: &str = "12345678-1234-4234-8234-123456789abc";

pub fn run(words: &[&str]) {
    match *words {
        ["format", root] => {
            let store = store("format");
            for repo in REPOS {
                new_repo(&store, Path::new(root), repo);
            }
            store.close().unwrap();
        }
        ["latency", root] => latency(Path::new(root)),
        ["race", root, host, puts] => race(Path::new(root), host, puts.parse().unwrap()),
        ["raced", one, other] => raced([one, other]),
        ["make", root] => println!("{}", make(&joined(Path::new(root), "make"))),
        ["hold", root, host, id] => hold(&joined(Path::new(root), host), id),
        ["take", root, host, id, seconds] => {
            take(&joined(Path::new(root), host), id, seconds.parse().unwrap());
        }
        ["copy", root, host, id, to] => copy(&joined(Path::new(root), host), id, to),
        ["finish", root, host, id, to] => finish(&joined(Path::new(root), host), id, to),
        _ => panic!("nfs {words:?}?"),
    }
}

pub fn joined(root: &Path, host: &str) -> Store {
    let store = store(host);
    for repo in REPOS {
        store.connect_storage_repository(repo, "localfs-1.0", &at(&root.join(repo))).unwrap();
    }
    store
}

pub fn say(text: &str) {
    println!("{text}");
    std::io::stdout().flush().unwrap();
}

pub fn short(error: &Error) -> String {
    let text = format!("{error:?}");
    format!("{:?}: {}", error.kind(), &text[..text.len().min(300)])
}

/// A disk with data in every block.
fn make(store: &Store) -> String {
    let size = Some((BLOCKS * BLOCK) as i64);
    let id = store.create_virtual_disk("A", size, None, "{}", &CreateOptions::default()).unwrap().to_string();
    settle(store, "A", &id);
    write(store, "A", &id, |image| {
        for first in (0..BLOCKS).step_by(256) {
            let data: Vec<u8> = (first..first + 256).flat_map(|block| content(block, 1)).collect();
            image.write((first * BLOCK) as i64, &data)?;
        }
        Ok(())
    });
    id
}

/// What this machine has asked NFS servers so far.
fn requests() -> u64 {
    let text = fs::read_to_string("/proc/net/rpc/nfs").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("rpc ")).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// Milliseconds of each call and requests to the server, the middle of several.
fn latency(root: &Path) {
    let store = joined(root, "latency");
    let mut times = BTreeMap::<&str, Vec<(f64, u64)>>::new();
    for round in 0..5 {
        let mut time = |name, call: &mut dyn FnMut() -> String| {
            let (start, asked) = (Instant::now(), requests());
            let result = call();
            times.entry(name).or_default().push((start.elapsed().as_secs_f64() * 1e3, requests() - asked));
            result
        };
        let plain = CreateOptions::default();
        let disk = time("create", &mut || {
            let id = store.create_virtual_disk("A", Some(1 << 20), None, "{}", &plain).unwrap().to_string();
            settle(&store, "A", &id);
            id
        });
        time("open, write 64 KiB, flush, close", &mut || {
            write(&store, "A", &disk, |image| {
                image.write(0, &vec![round; 65536])?;
                image.flush()
            });
            String::new()
        });
        let snapshot = time("snapshot", &mut || {
            let id = store.create_snapshot("A", &disk, "{}", &plain).unwrap().to_string();
            settle(&store, "A", &id);
            id
        });
        time("set user data", &mut || {
            store.set_image_user_data("A", &disk, "[1]").unwrap();
            String::new()
        });
        time("status", &mut || format!("{:?}", store.get_image_status("A", &disk).unwrap().status));
        time("copy of 1 MiB to B", &mut || {
            let made = store.copy_image("B", &snapshot, None, "{}", &CopyOptions::default());
            match made {
                Ok(id) => drop(settle(&store, "B", &id.to_string())),
                Err(error) => say(&short(&error)),
            }
            String::new()
        });
        time("check", &mut || {
            let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
            fixes.len().to_string()
        });
        time("remove", &mut || {
            store.remove_image("A", &snapshot, &RemoveOptions::default()).unwrap();
            quiet(&store);
            String::new()
        });
        time("record: get, fresh", &mut || {
            let _ = store.get_image_info("A", &disk);
            String::new()
        });
        time("connect and close", &mut || {
            joined(root, "other").close().unwrap();
            String::new()
        });
    }
    for (name, mut times) in times {
        times.sort_by(|one, other| one.0.total_cmp(&other.0));
        let (time, asked) = times[times.len() / 2];
        say(&format!("{time:8.1} ms, {asked:4} requests: {name}"));
    }
    store.close().unwrap();
}

/// Puts to one record as fast as it goes, against whoever does the same: who won which generation.
fn race(root: &Path, host: &str, puts: u64) {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let identity = HostIdentity { host_id: host.to_owned(), incarnation: Incarnation::random(), boot_id };
    let driver = LocalFs::connect(&at(&root.join("A")), identity).unwrap();
    let key = RecordKey::Image(ImageId::parse(RACED).unwrap());
    let (mut done, mut conflicts, mut unknown, mut failed) = (Vec::new(), 0_u64, 0_u64, BTreeMap::new());
    let start = Instant::now();
    let mut worst = Duration::ZERO;
    let mut high = 0;
    while high < puts {
        let began = Instant::now();
        let outcome = (|| -> Result<Put> {
            let found = driver.get(key, Read::Fresh)?;
            let expect = found.as_ref().map(|found| found.generation);
            high = high.max(expect.unwrap_or(0));
            let bytes = serde_json::to_vec(&json!({ "host": host, "after": expect })).unwrap();
            driver.put(key, expect, &bytes)
        })();
        worst = worst.max(began.elapsed());
        match outcome {
            Ok(Put::Done(generation)) => done.push(generation),
            Ok(Put::Conflict) => conflicts += 1,
            Ok(Put::Unknown) => unknown += 1,
            Err(error) => *failed.entry(short(&error)).or_insert(0_u64) += 1,
        }
    }
    driver.close().unwrap();
    let result = json!({
        "host": host, "done": done, "conflicts": conflicts, "unknown": unknown, "failed": failed,
        "seconds": start.elapsed().as_secs_f64(), "worst": worst.as_secs_f64(),
    });
    say(&result.to_string());
}

/// Nobody won what another has won, and every generation was won.
fn raced(files: [&str; 2]) {
    let results = files.map(|file| {
        let text = fs::read_to_string(file).unwrap();
        serde_json::from_str::<serde_json::Value>(text.lines().last().unwrap()).unwrap()
    });
    let mut won = BTreeMap::<u64, Vec<&str>>::new();
    let mut conflicts = 0;
    for result in &results {
        let done = result["done"].as_array().unwrap();
        assert!(!done.is_empty(), "one host never won");
        for generation in done {
            won.entry(generation.as_u64().unwrap()).or_default().push(result["host"].as_str().unwrap());
        }
        conflicts += result["conflicts"].as_u64().unwrap();
        say(&format!(
            "{} won {}, {} conflicts, {} unknown, failed {}, {:.1} s, longest {:.2} s",
            result["host"],
            done.len(),
            result["conflicts"],
            result["unknown"],
            result["failed"],
            result["seconds"].as_f64().unwrap(),
            result["worst"].as_f64().unwrap()
        ));
    }
    let twice: Vec<_> = won.iter().filter(|(_, hosts)| hosts.len() > 1).collect();
    assert!(twice.is_empty(), "won twice: {twice:?}");
    let unknown = results.iter().map(|result| result["unknown"].as_u64().unwrap()).sum::<u64>();
    let (last, _) = won.last_key_value().unwrap();
    assert!(last - won.len() as u64 <= unknown, "generations that nobody won");
    assert!(conflicts > 0, "they never met");
}

/// Has a disk open, and writes and flushes it, a new number every second.
fn hold(store: &Store, id: &str) {
    let image = store.open_image("A", id, true).unwrap();
    for number in 2.. {
        let start = Instant::now();
        let outcome = image.write(0, &content(0, number)).and_then(|()| image.flush());
        let told = match &outcome {
            Ok(()) => "ok".to_owned(),
            Err(error) => short(error),
        };
        say(&format!("{number} {told} after {:.1} s", start.elapsed().as_secs_f64()));
        if outcome.is_err() {
            say(&format!("close: {:?}", image.close().map_err(|error| short(&error))));
            return;
        }
        thread::sleep(Duration::from_secs(1));
    }
}

/// Tries to open a disk for writing until it is let; tells what it finds, and writes.
fn take(store: &Store, id: &str, seconds: u64) {
    let start = Instant::now();
    let mut refused = BTreeMap::<String, u32>::new();
    while start.elapsed().as_secs() < seconds {
        match store.open_image("A", id, true) {
            Ok(image) => {
                let mut first = vec![0; BLOCK];
                image.read(0, &mut first).unwrap();
                let number = u32::from_le_bytes(first[4..8].try_into().unwrap());
                say(&format!(
                    "taken after {:.1} s, holds {number}, whole {}",
                    start.elapsed().as_secs_f64(),
                    first == content(0, number)
                ));
                image.write(0, &content(0, 1_000_000)).and_then(|()| image.flush()).unwrap();
                image.close().unwrap();
                break;
            }
            Err(error) => *refused.entry(short(&error)).or_default() += 1,
        }
        thread::sleep(Duration::from_millis(200));
    }
    for (why, times) in refused {
        say(&format!("refused {times} times: {why}"));
    }
}

/// Copies slowly, to be killed.
fn copy(store: &Store, id: &str, copy: &str) {
    let bandwidth = Some(Bandwidth(1 << 18));
    let options = CopyOptions { image_id: Some(copy.to_owned()), bandwidth, ..CopyOptions::default() };
    match store.copy_image("B", id, None, "{}", &options) {
        Ok(made) => say(&format!("returned {made}")),
        Err(error) => return say(&short(&error)),
    }
    while let Some(task) = store.list_tasks().unwrap().first() {
        say(&format!("done {} of {}", task.bytes_done, task.bytes_total));
        thread::sleep(Duration::from_millis(500));
    }
    say(&format!("ended: {:?}", store.get_image_status("B", copy).unwrap()));
}

/// Runs all fixes until the copy is whole; tells what it met.
fn finish(store: &Store, id: &str, copy: &str) {
    let start = Instant::now();
    let mut met = BTreeMap::<String, u32>::new();
    loop {
        let now = store.get_image_status("B", copy).map(|status| status.status);
        if matches!(now, Ok(Status::Optimized)) || start.elapsed().as_secs() > 120 {
            say(&format!("copy is {now:?} after {:.1} s", start.elapsed().as_secs_f64()));
            break;
        }
        let fixes = match store.check_storage_repository("B", &CheckOptions::default()) {
            Ok(fixes) => fixes,
            Err(error) => {
                *met.entry(format!("check: {}", short(&error))).or_default() += 1;
                continue;
            }
        };
        if fixes.is_empty() {
            *met.entry("nothing listed".to_owned()).or_default() += 1;
        }
        for fix in fixes {
            let options = FixOptions { bandwidth: Some(Bandwidth(1 << 40)), ..FixOptions::default() };
            let task = store.fix_storage_repository("B", &fix, &options);
            let outcome = task.and_then(|task| store.wait_task(&task, None)).map_err(|error| short(&error));
            *met.entry(format!("{:?}: {outcome:?}", fix.fix_type)).or_default() += 1;
        }
        thread::sleep(Duration::from_millis(300));
    }
    for (what, times) in met {
        say(&format!("{times} times {what}"));
    }
    let read = |repo: &str, id: &str| -> Result<Vec<u8>> {
        let image = store.open_image(repo, id, false)?;
        let mut bytes = vec![0; BLOCKS * BLOCK];
        image.read(0, &mut bytes)?;
        Ok(bytes)
    };
    match (read("A", id), read("B", copy)) {
        (Ok(source), Ok(copy)) => say(&format!("equal: {}", source == copy)),
        (source, copy) => say(&format!("{:?} {:?}", source.err(), copy.err())),
    }
    for repo in REPOS {
        let left = store.check_storage_repository(repo, &CheckOptions::default()).unwrap();
        say(&format!("{repo}: {} fixes left: {:?}", left.len(), left.first().map(|fix| &fix.description)));
    }
}
