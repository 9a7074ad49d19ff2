//! Each kind of error that a command can end with, for a real cause: its name, its code, exit status 1, nothing printed.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{NOWHERE, Place};
use serde_json::Value;
use vdsmstore_core::ErrorKind;

/// Kinds that no command ends with, and why.
const NEVER: &[(&str, &str)] = &[
    ("RepositoryIdInUse", "a name that is given twice is wrong usage"),
    ("MountFailed", "localfs mounts nothing"),
    ("UnsupportedOperation", "what is not built is no command and no option"),
    ("StaleHandle", "only network file systems have it"),
    ("LeaseLost", "the locks of a local file system are not lost"),
    ("TaskNotFound", "tasks are of one process"),
    ("TaskIdInUse", "tasks are of one process"),
    ("Closed", "a command closes its store at its end"),
    ("ForkedProcess", "a command does not fork"),
    ("Internal", "a bug of ours"),
    ("TooManyVolumes", "takes hundreds of commands; the end-to-end tests do it in one process"),
];
/// Kinds that have a test of their own: here, and for interrupted commands in `images.rs`.
const ELSEWHERE: [&str; 5] = ["Conflict", "NoSpace", "PermissionDenied", "Stopped", "VerificationFailed"];

/// What the errors are counted by.
struct Errors<'a> {
    place: &'a Place,
    seen: BTreeMap<String, u32>,
}

impl Errors<'_> {
    /// The command ends with this error, and says nothing else.
    fn expect(&mut self, kind: ErrorKind, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let ran = self.place.run(&all);
        assert_eq!(ran.code, 1, "{arguments:?}: {}", ran.err);
        assert!(ran.out.is_empty(), "{arguments:?}: {:?}", String::from_utf8_lossy(&ran.out));
        let error: Value = serde_json::from_str(&ran.err).unwrap();
        let error = error["error"].clone();
        assert_eq!(
            (error["kind"].as_str(), error["code"].as_i64()),
            (Some(kind.name()), Some(kind.code().into()))
        );
        // For people: one line.
        let plain = self.place.run(arguments);
        assert_eq!((plain.code, plain.out.len(), plain.err.lines().count()), (1, 0, 1), "{}", plain.err);
        *self.seen.entry(kind.name().to_owned()).or_default() += 1;
        error
    }
}

/// A disk with data on a snapshot, and one that is only intended.
fn images(place: &Place) -> [String; 3] {
    let disk = place.id(&["image", "create", "A", "1M"]);
    place.write(&disk, "0", &vec![1; 65536]);
    let snapshot = place.id(&["image", "snapshot", "A", &disk]);
    let broken = place.id(&["image", "create", "A", "1M", "--no-wait"]);
    [disk, snapshot, broken]
}

/// The newest record of an image.
fn record(place: &Path, id: &str) -> std::path::PathBuf {
    let names = fs::read_dir(place.join("images").join(&id[..3])).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.to_str().unwrap().contains(id)).max().unwrap()
}

fn descriptor(place: &Path, change: impl Fn(&mut Value)) {
    let mut names = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path());
    let path = names.find(|path| path.to_str().unwrap().contains("descriptor")).unwrap();
    let mut document: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut document);
    fs::write(path, document.to_string()).unwrap();
}

#[test]
fn every_kind() {
    use ErrorKind as Kind;
    let place = Place::new();
    let [disk, snapshot, broken] = &images(&place);
    let mut errors = Errors { place: &place, seen: BTreeMap::new() };
    let file = |name: &str, bytes: &[u8]| {
        fs::write(place.path(name), bytes).unwrap();
        name.to_owned()
    };

    errors.expect(Kind::InvalidParameter, &["image", "info", "A", "../.."]);
    errors.expect(Kind::RepositoryNotFound, &["image", "list", "nowhere"]);
    errors.expect(Kind::RepositoryExists, &["repo", "format", "A"]);
    errors.expect(Kind::ImageNotFound, &["image", "measure", "A", NOWHERE, "-f", "raw"]);
    errors.expect(Kind::ImageExists, &["image", "create", "A", "1M", "--image-id", disk]);
    errors.expect(Kind::ImageBroken, &["image", "diff", "A", broken]);
    errors.expect(Kind::NotADisk, &["image", "resize", "A", snapshot, "2M"]);
    errors.expect(Kind::NotADisk, &["image", "snapshot", "A", snapshot]);
    errors.expect(Kind::NotASnapshot, &["image", "create", "B", "--base", disk]);
    errors.expect(Kind::ReadOnlyImage, &["image", "write", "A", snapshot]);
    errors.expect(Kind::InvalidSize, &["image", "resize", "A", disk, "512"]);
    errors.expect(Kind::Timeout, &["image", "wait", "A", broken, "--optimized", "--timeout", "0"]);
    errors.expect(Kind::CorruptImage, &["image", "import", "A", &file("text", &[1; 512]), "-f", "qcow2"]);
    let long = "x".repeat(255);
    errors.expect(Kind::IoError, &["image", "export", "A", disk, &long, "-f", "raw"]);

    let connect = |errors: &mut Errors<'_>, kind, format: &str, name: &str| {
        let repo = format!("C={format}:{}", place.path(name).display());
        errors.expect(kind, &["--repo", &repo, "image", "list", "C"])
    };
    connect(&mut errors, Kind::FormatUnsupported, "zfs-1.0", "A");
    connect(&mut errors, Kind::VersionTooNew, "localfs-9.0", "A");
    connect(&mut errors, Kind::ConnectionFailed, "localfs-1.0", "missing");
    connect(&mut errors, Kind::NotARepository, "localfs-1.0", "");
    let repo = format!("C=localfs-1.0:{}", place.folder.path().display());
    errors.expect(Kind::NotEmpty, &["--repo", &repo, "repo", "format", "C"]);
    // Somebody else is formatting it.
    fs::create_dir(place.path("fresh")).unwrap();
    let lock = File::open(place.path("fresh")).unwrap();
    lock.lock().unwrap();
    let repo = format!("C=localfs-1.0:{}", place.path("fresh").display());
    errors.expect(Kind::CannotLock, &["--repo", &repo, "repo", "format", "C"]);
    drop(lock);

    // A fix that is for another repository.
    let fixes = place.ok(&["--json", "repo", "check", "A"]);
    file("fixes", fixes.as_bytes());
    errors.expect(Kind::FixRefused, &["repo", "fix", "B", "fixes"]);

    // The disk is prepared by a host that lives.
    place.ok(&["image", "prepare", "A", disk, "--host-id", "elsewhere"]);
    errors.expect(Kind::ImageInUse, &["image", "resize", "A", disk, "2M"]);
    place.ok(&["image", "teardown", "A", disk, "--host-id", "elsewhere"]);

    fs::write(record(&place.path("A"), disk), "x").unwrap();
    errors.expect(Kind::CorruptRecord, &["image", "info", "A", disk]);
    descriptor(&place.path("B"), |document| document["readonlyCompatible"] = serde_json::json!(["more"]));
    errors.expect(Kind::ReadOnlyRepository, &["image", "create", "B", "1M"]);
    descriptor(&place.path("B"), |document| document["format"] = "nfs".into());
    errors.expect(Kind::WrongFormat, &["image", "list", "B"]);

    println!("{} kinds", errors.seen.len());
    for kind in ErrorKind::ALL {
        let name = kind.name();
        let caused = errors.seen.contains_key(name) || ELSEWHERE.contains(&name);
        assert_ne!(caused, NEVER.iter().any(|(never, _)| *never == name), "{name}");
    }
}

/// A verified import was changed behind the engine's back.
#[test]
fn verification_failed() {
    let place = Place::new();
    let content: Vec<u8> = (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(place.path("imported"), &content).unwrap();
    let disk = place.id(&["image", "import", "A", "imported", "--format", "raw", "--verify"]);
    let data = fs::read_dir(place.path("A").join("data")).unwrap().map(|entry| entry.unwrap().path());
    let data: Vec<_> = data.filter(|path| fs::read(path).unwrap() == content).collect();
    let [data] = &data[..] else { panic!("{data:?}") };
    File::options().write(true).open(data).unwrap().write_all_at(b"xx", 0).unwrap();
    let error = place.error(1, &["image", "copy", "B", &disk]);
    assert_eq!(error["kind"], "VerificationFailed", "{error}");
}

/// The file of an import was changed while the work was left to somebody else.
#[test]
fn conflict() {
    let place = Place::new();
    fs::write(place.path("file"), [1; 4096]).unwrap();
    place.id(&["image", "import", "A", "file", "-f", "raw", "--no-wait"]);
    File::options().write(true).open(place.path("file")).unwrap().write_all_at(&[2; 8192], 0).unwrap();
    fs::write(place.path("fixes"), place.ok(&["--json", "repo", "check", "A"])).unwrap();
    let error = place.error(1, &["repo", "fix", "A", "fixes"]);
    assert_eq!(error["kind"], "Conflict", "{error}");
}

#[test]
fn permission_denied() {
    use std::os::unix::process::CommandExt;
    let place = Place::new();
    if fs::set_permissions(place.folder.path(), fs::Permissions::from_mode(0o755)).is_err() || !is_root() {
        return println!("not root: nothing is tested");
    }
    fs::set_permissions(place.path("A"), fs::Permissions::from_mode(0o700)).unwrap();
    let program = place.path("program");
    fs::copy(env!("CARGO_BIN_EXE_vdsmstore"), &program).unwrap();
    let mut command = Command::new(&program);
    command.args(["--json", "image", "list", "A"]).env("VDSMSTORE_CONFIG", place.path("config.toml"));
    let ran = common::ended(command.current_dir("/").uid(65534).gid(65534).output().unwrap());
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((ran.code, error["error"]["kind"].as_str()), (1, Some("PermissionDenied")), "{error}");
}

#[test]
fn no_space() {
    if !is_root() {
        return println!("not root: nothing is tested");
    }
    let place = Place::new();
    let mount = place.path("mount");
    fs::create_dir(&mount).unwrap();
    let program = |name: &str, arguments: &[&str]| {
        assert!(Command::new(name).args(arguments).status().unwrap().success(), "{name} {arguments:?}");
    };
    let path = mount.to_str().unwrap();
    program("mount", &["-t", "tmpfs", "-o", "size=2m", "tmpfs", path]);
    let repo = format!("C=localfs-1.0:{path}");
    let formatted = place.run(&["--repo", &repo, "repo", "format", "C"]);
    let large = ["--repo", &repo, "--json", "image", "create", "C", "64M", "--strategy", "performance"];
    let ran = place.run(&large);
    program("umount", &["--lazy", path]);
    assert_eq!((formatted.code, formatted.err.as_str()), (0, ""));
    let error: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!((ran.code, error["error"]["kind"].as_str()), (1, Some("NoSpace")), "{error}");
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
