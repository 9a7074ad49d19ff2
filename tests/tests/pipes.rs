//! Exports to pipes.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use vdsmstore_core::options::{CreateOptions, ExportOptions};
use vdsmstore_core::{ErrorKind, Store};
use vdsmstore_tests::mounts::Mounted;
use vdsmstore_tests::scene::fails;
use vdsmstore_tests::{new_repo, run, scratch, settle, store, write};

const MIB: usize = 1 << 20;
const SIZE: usize = 100 * MIB + 1536;

/// A repository in this place, with a disk on a snapshot, and the bytes that it has.
fn disk(root: &Path) -> (Store, String, Vec<u8>) {
    let store = store("here");
    new_repo(&store, root, "A");
    let mut model = vec![0; SIZE];
    let id =
        store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &CreateOptions::default()).unwrap();
    let id = id.to_string();
    let mut put = |at: usize, length: usize, seed: usize| {
        let bytes: Vec<u8> = (0..length).map(|n| ((n * seed) >> 3) as u8 | 1).collect();
        model[at..at + length].copy_from_slice(&bytes);
        write(&store, "A", &id, |image| image.write(at as i64, &bytes));
    };
    put(3 * MIB, 30 * MIB, 31);
    put(SIZE - 1000, 1000, 7);
    store.create_snapshot("A", &id, "{}", &CreateOptions::default()).unwrap();
    put(10 * MIB + 512, MIB, 13);
    put(60 * MIB, 4096, 17);
    settle(&store, "A", &id);
    (store, id, model)
}

fn pipe(root: &Path) -> PathBuf {
    let path = root.join("pipe");
    run("mkfifo", &[path.to_str().unwrap()]);
    path
}

fn export(store: &Store, id: &str, path: &Path, task: &str) {
    let options = ExportOptions { task_id: Some(task.to_owned()), ..ExportOptions::default() };
    store.export_image("A", id, path.to_str().unwrap(), "raw", &options).unwrap();
}

/// A program that copies the pipe to a file.
fn reader(pipe: &Path, file: &Path) -> Child {
    // Opening waits for the writer.
    let input = File::open(pipe).unwrap();
    Command::new("cat").stdin(input).stdout(File::create(file).unwrap()).spawn().unwrap()
}

fn comes_through(root: &Path) {
    let (store, id, model) = disk(root);
    let (pipe, file) = (pipe(root), root.join("file"));
    export(&store, &id, &pipe, "export");
    let mut cat = reader(&pipe, &file);
    store.wait_task("export", None).unwrap();
    assert!(cat.wait().unwrap().success());
    assert!(std::fs::read(&file).unwrap() == model);
    assert!(std::fs::metadata(&pipe).is_ok(), "the pipe is left alone");
}

#[test]
fn a_disk_comes_through() {
    comes_through(scratch().path());
}

#[test]
fn a_disk_comes_through_past_the_page_cache() {
    comes_through(Mounted::new("ext4", 1024).path());
}

#[test]
fn a_pipe_of_this_process() {
    use std::os::fd::AsRawFd;
    let root = scratch();
    let (store, id, model) = disk(root.path());
    let (mut reader, writer) = std::io::pipe().unwrap();
    export(&store, &id, Path::new(&format!("/dev/fd/{}", writer.as_raw_fd())), "export");
    let read = std::thread::spawn(move || {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).unwrap();
        all
    });
    store.wait_task("export", None).unwrap();
    drop(writer);
    assert!(read.join().unwrap() == model);
}

#[test]
fn nobody_reads() {
    let root = scratch();
    let (store, id, _) = disk(root.path());
    let pipe = pipe(root.path());
    // Neither at all, nor after the first bytes.
    export(&store, &id, &pipe, "first");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(store.list_tasks().unwrap().len(), 1);
    let started = Instant::now();
    store.stop_task("first").unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    fails(ErrorKind::Stopped, store.wait_task("first", None));
    export(&store, &id, &pipe, "second");
    let mut input = File::open(&pipe).unwrap();
    input.read_exact(&mut [0; 1000]).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    store.stop_task("second").unwrap();
    assert!(started.elapsed() < Duration::from_secs(2));
    fails(ErrorKind::Stopped, store.wait_task("second", None));
}

#[test]
fn who_reads_goes_away() {
    let root = scratch();
    let (store, id, _) = disk(root.path());
    let pipe = pipe(root.path());
    export(&store, &id, &pipe, "export");
    let mut input = File::open(&pipe).unwrap();
    input.read_exact(&mut [0; 1000]).unwrap();
    drop(input);
    let error = fails(ErrorKind::IoError, store.wait_task("export", None));
    assert_eq!(error.details()["path"], pipe.to_str().unwrap());
    let qcow2 = store.export_image("A", &id, pipe.to_str().unwrap(), "qcow2", &ExportOptions::default());
    fails(ErrorKind::InvalidParameter, qcow2);
}
