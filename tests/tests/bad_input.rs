//! Wrong arguments: refused with a kind, a message that names the object, and details; and nothing has changed.

#![allow(
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

mod bad_input_common;

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use vdsmstore_core::ErrorKind::{
    CorruptImage, FormatUnsupported, InvalidParameter, InvalidSize, UnsupportedOperation, VersionTooNew,
};
use vdsmstore_core::options::{
    AutoFix, CopyOptions, CreateOptions, ForceOptions, FormatOptions, ListOptions, PrepareOptions,
    RemoveOptions, WaitOptions, parse,
};
use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_tests::scene::SIZE;
use vdsmstore_tests::tree::unchanged;
use vdsmstore_tests::{at, run};

use bad_input_common::{Images, NOWHERE};

fn plain() -> CreateOptions {
    CreateOptions::default()
}

type Call<'a> = (&'static str, Box<dyn Fn(&str) -> Result<()> + 'a>);

/// Every verb that takes the id of an image.
fn with_id(images: &Images) -> Vec<Call<'_>> {
    let store = images.store();
    let wait = WaitOptions::default();
    vec![
        (
            "base of a disk",
            Box::new(|id| store.create_virtual_disk("A", None, Some(id), "{}", &plain()).map(drop)),
        ),
        ("snapshot", Box::new(|id| store.create_snapshot("A", id, "{}", &plain()).map(drop))),
        ("copy", Box::new(|id| store.copy_image("B", id, None, "{}", &CopyOptions::default()).map(drop))),
        (
            "base of a copy",
            Box::new(|id| {
                store.copy_image("A", &images.disk, Some(id), "{}", &CopyOptions::default()).map(drop)
            }),
        ),
        ("remove", Box::new(|id| store.remove_image("A", id, &RemoveOptions::default()))),
        ("status", Box::new(|id| store.get_image_status("A", id).map(drop))),
        ("info", Box::new(|id| store.get_image_info("A", id).map(drop))),
        ("user data", Box::new(|id| store.set_image_user_data("A", id, "{}"))),
        ("open", Box::new(|id| store.open_image("A", id, false).map(drop))),
        ("open rw", Box::new(|id| store.open_image("A", id, true).map(drop))),
        (
            "prepare",
            Box::new(|id| store.prepare_image("A", id, &PrepareOptions { read_only: true }).map(drop)),
        ),
        (
            "prepare rw",
            Box::new(|id| store.prepare_image("A", id, &PrepareOptions { read_only: false }).map(drop)),
        ),
        ("teardown", Box::new(|id| store.teardown_image("A", id, &ForceOptions::default()))),
        ("wait", Box::new(move |id| store.wait_image("A", id, Some(Duration::ZERO), &wait).map(drop))),
    ]
}

#[test]
fn ids_that_are_no_uuids() {
    let images = Images::new();
    let id = images.disk.as_str();
    let bare = id.replace('-', "");
    let bad = [
        String::new(),
        "../..".into(),
        "../../../../../../../../../etc/passwd".into(),
        "\0".into(),
        format!("{}\0", &id[..35]),
        format!("{{{id}}}"),
        format!("urn:uuid:{id}"),
        bare.clone(),
        format!("{bare}    "),
        format!("{id} "),
        format!(" {id}"),
        format!("{id}\n"),
        id[..35].into(),
        format!("{}g", &id[..35]),
        format!("{}/", &id[..35]),
        "x".repeat(100_000),
        "００００００００-0000-0000-0000-000000000000".into(),
    ];
    for bad in &bad {
        for (what, call) in with_id(&images) {
            images.refused(&format!("{what} {bad:?}"), InvalidParameter, "", || call(bad));
        }
        let chosen = CreateOptions { image_id: Some(bad.clone()), ..plain() };
        images.refused(bad, InvalidParameter, "", || {
            images.store().create_virtual_disk("A", Some(SIZE), None, "{}", &chosen)
        });
        let after = ListOptions { after: Some(bad.clone()), ..ListOptions::default() };
        images.refused(bad, InvalidParameter, "", || images.store().list_images("A", &after));
    }
    let upper = images.disk.to_uppercase();
    assert_eq!(images.store().get_image_info("A", &upper).unwrap().image_id.to_string(), images.disk);
}

#[test]
fn ids_of_nothing() {
    let images = Images::new();
    for (what, call) in with_id(&images) {
        images.refused(what, ErrorKind::ImageNotFound, NOWHERE, || call(NOWHERE));
    }
}

#[test]
fn images_of_the_wrong_kind_or_broken() {
    let images = Images::new();
    let Images { disk, snapshot, broken, .. } = &images;
    let store = images.store();
    let rw = PrepareOptions { read_only: false };
    images.refused("open", ErrorKind::ReadOnlyImage, snapshot, || store.open_image("A", snapshot, true));
    images.refused("prepare", ErrorKind::ReadOnlyImage, snapshot, || store.prepare_image("A", snapshot, &rw));
    images.refused("snapshot", ErrorKind::NotADisk, snapshot, || {
        store.create_snapshot("A", snapshot, "{}", &plain())
    });
    for repo in ["A", "B"] {
        images.refused("base", ErrorKind::NotASnapshot, disk, || {
            store.create_virtual_disk(repo, None, Some(disk), "{}", &plain())
        });
    }
    images.refused("own base", InvalidParameter, snapshot, || {
        store.copy_image("A", snapshot, Some(snapshot), "{}", &CopyOptions::default())
    });
    let renamed = CopyOptions { image_id: Some(NOWHERE.into()), ..CopyOptions::default() };
    images.refused("another id", InvalidParameter, snapshot, || {
        store.copy_image("B", snapshot, None, "{}", &renamed)
    });
    for (what, call) in with_id(&images) {
        if !["status", "info", "user data", "remove", "teardown", "wait"].contains(&what) {
            images.refused(what, ErrorKind::ImageBroken, broken, || call(broken));
        }
    }
    let read_only = store.open_image("A", disk, false).unwrap();
    images.refused("write", ErrorKind::ReadOnlyImage, disk, || read_only.write(0, &[1]));
    images.refused("zeroes", ErrorKind::ReadOnlyImage, disk, || read_only.write_zeroes(0, 1));
    images.refused("discard", ErrorKind::ReadOnlyImage, disk, || read_only.discard(0, 1));
}

#[test]
fn sizes() {
    let images = Images::new();
    let store = images.store();
    for size in [0, -1, -512, 1, 511, 513, 1 << 53, (1 << 53) - 511, i64::MAX, i64::MIN] {
        images.refused(&size.to_string(), InvalidSize, &size.to_string(), || {
            store.create_virtual_disk("A", Some(size), None, "{}", &plain())
        });
    }
    images.refused("none", InvalidParameter, "size", || {
        store.create_virtual_disk("A", None, None, "{}", &plain())
    });
    for size in [512, SIZE - 512] {
        images.refused("smaller", InvalidParameter, &size.to_string(), || {
            store.create_virtual_disk("A", Some(size), Some(&images.snapshot), "{}", &plain())
        });
    }
    // As large as can be: made, or refused for what the storage cannot do, and then nothing is left.
    let largest = (1 << 53) - 512;
    match store.create_virtual_disk("A", Some(largest), None, "{}", &plain()) {
        Ok(id) => {
            assert_eq!(store.get_image_info("A", &id.to_string()).unwrap().size, largest.unsigned_abs());
        }
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::IoError | InvalidSize),
                "{error:?}"
            );
            assert_eq!(store.list_images("A", &ListOptions::default()).unwrap().len(), 3);
        }
    }
}

#[test]
fn ranges() {
    let images = Images::new();
    let open = images.store().open_image("A", &images.disk, true).unwrap();
    let mut buffer = [0; 1024];
    for (offset, length) in
        [(-1, 1), (SIZE, 1), (SIZE - 1, 2), (i64::MAX, 1024), (i64::MIN, 1), (SIZE - 1023, 1024)]
    {
        let what = format!("{length} at {offset}");
        let invalid = InvalidParameter;
        let bytes = usize::try_from(length).unwrap();
        images.refused(&what, invalid, &images.disk, || open.read(offset, &mut buffer[..bytes]));
        images.refused(&what, invalid, &images.disk, || open.write(offset, &vec![1; bytes]));
        images.refused(&what, invalid, &images.disk, || open.write_zeroes(offset, length));
        images.refused(&what, invalid, &images.disk, || open.discard(offset, length));
    }
    for length in [-1, i64::MIN, i64::MAX, SIZE + 1] {
        images.refused("length", InvalidParameter, "", || open.write_zeroes(0, length));
        images.refused("length", InvalidParameter, "", || open.discard(0, length));
    }
    for offset in [-1, SIZE + 1, i64::MAX] {
        images.refused("extents", InvalidParameter, &images.disk, || open.extents(offset, 1));
    }
    // Nothing at the end is nothing wrong.
    open.read(SIZE, &mut []).unwrap();
    open.write(SIZE, &[]).unwrap();
    open.discard(SIZE, 0).unwrap();
    assert!(open.extents(SIZE, 1).unwrap().is_empty());
}

#[test]
fn user_data() {
    let images = Images::new();
    let store = images.store();
    let long = format!("\"{}\"", "x".repeat((1 << 20) - 1));
    let deep = "[".repeat(200_000);
    let bad = [
        "",
        " ",
        "{",
        "{}x",
        "{} {}",
        "NaN",
        "Infinity",
        "{'a':1}",
        "[1,]",
        "{\"a\":1,}",
        "nul",
        "01",
        "+1",
        "\"\n\"",
        "\"\\x\"",
        &long,
        &deep,
    ];
    for text in bad {
        let what = text.chars().take(20).collect::<String>();
        let invalid = InvalidParameter;
        images.refused(&what, invalid, "user data", || {
            store.create_virtual_disk("A", Some(SIZE), None, text, &plain())
        });
        images.refused(&what, invalid, "user data", || {
            store.create_snapshot("A", &images.disk, text, &plain())
        });
        images.refused(&what, invalid, "user data", || {
            store.copy_image("B", &images.disk, None, text, &CopyOptions::default())
        });
        images.refused(&what, invalid, "user data", || store.set_image_user_data("A", &images.disk, text));
    }
    // Nested deeply, but right: kept, or refused; never the end of the process.
    for depth in [100, 1000, 100_000] {
        let text = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        match store.set_image_user_data("A", &images.disk, &text) {
            Ok(()) => assert_eq!(store.get_image_info("A", &images.disk).unwrap().user_data.get(), text),
            Err(error) => assert!(error.kind() == InvalidParameter && depth > 100, "{error:?}"),
        }
    }
    let twice = r#"{"a":1,"a":2}"#;
    store.set_image_user_data("A", &images.disk, twice).unwrap();
    assert_eq!(store.get_image_info("A", &images.disk).unwrap().user_data.get(), twice);
}

#[test]
fn task_ids() {
    let images = Images::new();
    let store = images.store();
    let file = images.scene.root.path().join("file");
    std::fs::write(&file, [1; 512]).unwrap();
    let long = "x".repeat(129);
    for bad in ["", " ", "a b", "a/b", "ä", "a\0", "a\n", long.as_str()] {
        let task_id = Some(bad.to_owned());
        let create = CreateOptions { task_id: task_id.clone(), ..plain() };
        let copy = CopyOptions { task_id: task_id.clone(), ..CopyOptions::default() };
        let remove = RemoveOptions { task_id: task_id.clone(), ..RemoveOptions::default() };
        let invalid = InvalidParameter;
        images.refused(bad, invalid, "task", || {
            store.create_virtual_disk("A", Some(SIZE), None, "{}", &create)
        });
        images.refused(bad, invalid, "task", || store.create_snapshot("A", &images.disk, "{}", &create));
        images.refused(bad, invalid, "task", || store.copy_image("B", &images.disk, None, "{}", &copy));
        images.refused(bad, invalid, "task", || store.remove_image("A", &images.disk, &remove));
        images.refused(bad, invalid, "task", || {
            store.import_image("A", file.to_str().unwrap(), "raw", "{}", &create)
        });
        images.refused(bad, ErrorKind::TaskNotFound, "task", || store.wait_task(bad, None));
    }
    let longest = CreateOptions { task_id: Some("Az09._:-".repeat(16)), ..plain() };
    store.create_virtual_disk("A", Some(SIZE), None, "{}", &longest).unwrap();
}

#[test]
fn image_ids_that_are_taken() {
    let images = Images::new();
    let store = images.store();
    for id in [&images.disk, &images.snapshot, &images.broken] {
        let create = CreateOptions { image_id: Some(id.to_uppercase()), ..plain() };
        let copy = CopyOptions { image_id: Some(id.clone()), ..CopyOptions::default() };
        images.refused("create", ErrorKind::ImageExists, id, || {
            store.create_virtual_disk("A", Some(SIZE), None, "{}", &create)
        });
        images.refused("snapshot", ErrorKind::ImageExists, id, || {
            store.create_snapshot("A", &images.disk, "{}", &create)
        });
        images.refused("copy", ErrorKind::ImageExists, id, || {
            store.copy_image("A", &images.disk, None, "{}", &copy)
        });
    }
}

#[test]
fn options_from_text() {
    fn invalid(parsed: impl Fn(&str) -> Option<Error>, texts: &[&str]) {
        for text in texts {
            let error = parsed(text).unwrap_or_else(|| panic!("{text}: not refused"));
            assert_eq!(error.kind(), InvalidParameter, "{text}: {error:?}");
            assert!(error.details().contains_key("parameter"), "{text}: {error:?}");
        }
    }
    let common = [
        "[]",
        "1",
        "{",
        "{}{}",
        r#"{"x":1}"#,
        r#"{"autofix":true}"#,
        r#"{"":null,"y":0}"#,
        "\"\"",
        "{\"a\":1}",
    ];
    invalid(|text| parse::<CreateOptions>(text).err(), &common);
    invalid(|text| parse::<CopyOptions>(text).err(), &common);
    invalid(|text| parse::<RemoveOptions>(text).err(), &common);
    invalid(|text| parse::<ListOptions>(text).err(), &common);
    invalid(|text| parse::<ForceOptions>(text).err(), &common);
    invalid(|text| parse::<PrepareOptions>(text).err(), &common);
    invalid(|text| parse::<WaitOptions>(text).err(), &common);
    invalid(
        |text| parse::<CreateOptions>(text).err(),
        &[
            r#"{"AutoFix":"Optimized"}"#,
            r#"{"AutoFix":1}"#,
            r#"{"AutoFix":[]}"#,
            r#"{"strategy":"Space"}"#,
            r#"{"strategy":""}"#,
            r#"{"participatingRepositories":"A"}"#,
            r#"{"participatingRepositories":[1]}"#,
            r#"{"imageHints":[]}"#,
            r#"{"imageHints":{"x":1}}"#,
            r#"{"imageId":1}"#,
            r#"{"taskId":1}"#,
            r#"{"mutable":true}"#,
        ],
    );
    invalid(|text| parse::<CopyOptions>(text).err(), &[r#"{"mutable":"yes"}"#, r#"{"partial":1}"#]);
    invalid(
        |text| parse::<RemoveOptions>(text).err(),
        &[r#"{"AutoFix":"later"}"#, r#"{"strategy":"space"}"#],
    );
    invalid(
        |text| parse::<ListOptions>(text).err(),
        &[r#"{"kind":"template"}"#, r#"{"limit":-1}"#, r#"{"limit":1.5}"#, r#"{"details":1}"#],
    );
    invalid(|text| parse::<PrepareOptions>(text).err(), &[r#"{"readOnly":"yes"}"#]);
    invalid(|text| parse::<WaitOptions>(text).err(), &[r#"{"status":"broken"}"#]);
    for text in ["", "null", "{}", " {} ", r#"{"AutoFix":null,"strategy":null}"#] {
        assert_eq!(parse::<CreateOptions>(text).unwrap(), plain(), "{text}");
    }
    assert_eq!(parse::<CreateOptions>(r#"{"AutoFix":"optimized"}"#).unwrap().auto_fix, AutoFix::Optimized);
    invalid(
        |text| parse::<CopyOptions>(text).err(),
        &[r#"{"bandwidth":0}"#, r#"{"bandwidth":-1}"#, r#"{"bandwidth":"fast"}"#, r#"{"bandwidth":[]}"#],
    );
    assert!(parse::<CopyOptions>(r#"{"bandwidth":1000000}"#).unwrap().bandwidth.is_some());
    assert!(parse::<CopyOptions>(r#"{"verify":true}"#).unwrap().verify);
}

#[test]
fn hints_that_are_none() {
    let images = Images::new();
    let store = images.store();
    for key in ["", "x", "../.."] {
        let options = CreateOptions { image_hints: [(key.to_owned(), "A".to_owned())].into(), ..plain() };
        images.refused(key, InvalidParameter, "", || {
            store.create_virtual_disk("B", None, Some(&images.snapshot), "{}", &options)
        });
    }
}

#[test]
fn files_that_cannot_be_imported() {
    let images = Images::new();
    let (store, root) = (images.store(), images.scene.root.path().join("files"));
    std::fs::create_dir(&root).unwrap();
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let create = |name: &str, arguments: &[&str]| {
        let file = path(name);
        let mut all = vec!["create", "-q"];
        all.extend(arguments);
        all.extend([file.as_str(), "1M"]);
        run("qemu-img", &all);
    };
    create("good", &["-f", "qcow2"]);
    create("backing", &["-f", "qcow2", "-b", &path("good"), "-F", "qcow2"]);
    create("data-file", &["-f", "qcow2", "-o", &format!("data_file={}", path("data"))]);
    let secret = [
        "--object",
        "secret,id=s,data=abc",
        "-f",
        "qcow2",
        "-o",
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10",
    ];
    create("encrypted", &secret);
    create("vmdk", &["-f", "vmdk"]);
    let good = std::fs::read(path("good")).unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(path(name), bytes).unwrap();
    let patched = |at: usize, bytes: &[u8]| {
        let mut data = good.clone();
        data[at..at + bytes.len()].copy_from_slice(bytes);
        data
    };
    write("empty", &[]);
    write("raw", &[1; 4096]);
    write("magic", &good[..4]);
    write("header", &good[..60]);
    write("version", &patched(4, &99_u32.to_be_bytes()));
    write("clusters", &patched(20, &40_u32.to_be_bytes()));
    write("size", &patched(24, &u64::MAX.to_be_bytes()));
    write("l1 size", &patched(36, &u32::MAX.to_be_bytes()));
    write("l1 offset", &patched(40, &0xffff_ffff_ffff_0000_u64.to_be_bytes()));
    write("feature", &patched(72, &(1_u64 << 50).to_be_bytes()));
    std::fs::create_dir(path("directory")).unwrap();
    run("mkfifo", &[&path("fifo")]);
    std::os::unix::fs::symlink(path("missing"), path("dangling")).unwrap();
    let import = |file: &str, format: &str| store.import_image("A", file, format, "{}", &plain());
    let table = [
        ("backing", "qcow2", vec![InvalidParameter]),
        ("data-file", "qcow2", vec![InvalidParameter]),
        ("encrypted", "qcow2", vec![InvalidParameter, UnsupportedOperation]),
        ("vmdk", "vmdk", vec![InvalidParameter]),
        ("good", "QCOW2", vec![InvalidParameter]),
        ("good", "", vec![InvalidParameter]),
        ("good", "auto", vec![InvalidParameter]),
        ("empty", "raw", vec![InvalidSize]),
        ("empty", "qcow2", vec![CorruptImage]),
        ("raw", "qcow2", vec![CorruptImage]),
        ("vmdk", "qcow2", vec![CorruptImage]),
        ("magic", "qcow2", vec![CorruptImage]),
        ("header", "qcow2", vec![CorruptImage]),
        ("version", "qcow2", vec![CorruptImage, UnsupportedOperation]),
        ("clusters", "qcow2", vec![CorruptImage, UnsupportedOperation]),
        ("size", "qcow2", vec![CorruptImage, InvalidSize]),
        ("l1 size", "qcow2", vec![CorruptImage, UnsupportedOperation]),
        ("l1 offset", "qcow2", vec![CorruptImage]),
        ("feature", "qcow2", vec![UnsupportedOperation]),
        ("directory", "raw", vec![InvalidParameter]),
        ("fifo", "raw", vec![InvalidParameter]),
        ("missing", "raw", vec![InvalidParameter]),
        ("dangling", "raw", vec![InvalidParameter]),
    ];
    for (name, format, kinds) in table {
        let what = format!("{name} as {format}");
        let kind = import_kind(&images, &what, || import(&path(name), format), &path(name), format);
        assert!(kinds.contains(&kind), "{what}: {kind:?}, not one of {kinds:?}");
    }
    for file in ["", "files/good", "./good", "/dev/null", "/proc/self/mem\0"] {
        let error = images.refused(file, InvalidParameter, "", || import(file, "raw"));
        assert!(
            error.details().contains_key("path") || error.details().contains_key("parameter"),
            "{error:?}"
        );
    }
}

fn import_kind<T: Debug>(
    images: &Images,
    what: &str,
    call: impl FnOnce() -> Result<T>,
    file: &str,
    format: &str,
) -> ErrorKind {
    let Err(error) = unchanged(&images.scene.repo("A"), what, call) else { panic!("{what}: not refused") };
    let named = error.message().contains(file) || error.message().contains(format);
    assert!(
        named && (error.details().contains_key("path") || error.details().contains_key("parameter")),
        "{what}: {error:?}"
    );
    error.kind()
}

#[test]
fn repositories_that_are_not_connected() {
    let images = Images::new();
    let store = images.store();
    let long = "x".repeat(10_000);
    for name in ["", "C", "a", "A\0", "../A", long.as_str()] {
        let not_found = ErrorKind::RepositoryNotFound;
        let id = images.disk.as_str();
        let check = |what: &str, call: &dyn Fn() -> Result<()>| images.refused(what, not_found, "", call);
        check("create", &|| store.create_virtual_disk(name, Some(SIZE), None, "{}", &plain()).map(drop));
        check("snapshot", &|| store.create_snapshot(name, id, "{}", &plain()).map(drop));
        check("copy", &|| store.copy_image(name, id, None, "{}", &CopyOptions::default()).map(drop));
        check("remove", &|| store.remove_image(name, id, &RemoveOptions::default()));
        check("import", &|| store.import_image(name, "/x", "raw", "{}", &plain()).map(drop));
        check("status", &|| store.get_image_status(name, id).map(drop));
        check("info", &|| store.get_image_info(name, id).map(drop));
        check("list", &|| store.list_images(name, &ListOptions::default()).map(drop));
        check("repository", &|| store.get_storage_repository_info(name).map(drop));
        check("open", &|| store.open_image(name, id, false).map(drop));
        check("prepare", &|| store.prepare_image(name, id, &PrepareOptions { read_only: true }).map(drop));
        check("teardown", &|| store.teardown_image(name, id, &ForceOptions::default()));
        check("user data", &|| store.set_image_user_data(name, id, "{}"));
        check("wait", &|| store.wait_image(name, id, None, &WaitOptions::default()).map(drop));
        check("disconnect", &|| store.disconnect_storage_repository(name, &ForceOptions::default()));
    }
}

#[test]
fn names_and_formats_of_repositories() {
    let images = Images::new();
    let store = images.store();
    let place = at(&images.scene.repo("A"));
    let connect = |name: &str, format: &str| store.connect_storage_repository(name, format, &place);
    let format = |format: &str| store.format_storage_repository(format, &place, &FormatOptions::default());
    images.refused("in use", ErrorKind::RepositoryIdInUse, "\"A\"", || connect("A", "localfs-1.0"));
    let long = "x".repeat(256);
    for name in ["", "\0", "a\0", "a\nb", long.as_str()] {
        images.refused(name, InvalidParameter, "name", || connect(name, "localfs-1.0"));
    }
    let table = [
        ("", InvalidParameter),
        ("localfs", InvalidParameter),
        ("localfs-", InvalidParameter),
        ("localfs-1", InvalidParameter),
        ("localfs-1.", InvalidParameter),
        ("localfs-1.0.0", InvalidParameter),
        ("localfs-a.b", InvalidParameter),
        ("localfs--1.0", FormatUnsupported),
        ("localfs-1.1", VersionTooNew),
        ("localfs-2.0", VersionTooNew),
        ("localfs-0.9", FormatUnsupported),
        ("LOCALFS-1.0", FormatUnsupported),
        ("nfs-99.0", FormatUnsupported),
        ("zfs-1.0", FormatUnsupported),
        ("rbd-1.0", UnsupportedOperation),
        ("localfs-99999999999999999999.0", InvalidParameter),
    ];
    for (text, kind) in table {
        images.refused(&format!("connect {text:?}"), kind, text, || connect("C", text));
        images.refused(&format!("format {text:?}"), kind, text, || format(text));
    }
    images.refused("format twice", ErrorKind::RepositoryExists, place["path"].as_str().unwrap(), || {
        format("localfs-1.0")
    });
    assert!(Path::new(place["path"].as_str().unwrap()).exists());
}
