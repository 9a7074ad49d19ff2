//! Repositories that are full: what the newer verbs make of it.

use vdsmstore_core::ErrorKind::NoSpace;
use vdsmstore_core::Status;
use vdsmstore_core::options::{
    CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, Strategy,
};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::scene::{MIB, fails, off, performance, read};
use vdsmstore_tests::{new_repo, scratch, settle, store, write};

use super::{diff, grow, measure};

#[test]
fn work_that_does_not_fit() {
    if !can_mount() {
        return println!("not root: nothing is tested");
    }
    let (mounted, root) = (Mounted::new("ext4", 64), scratch());
    let store = store("here");
    new_repo(&store, mounted.path(), "A");
    new_repo(&store, root.path(), "B");
    let options = performance();
    let disk = store.create_virtual_disk("A", Some(8 * MIB), None, "{}", &options).unwrap().to_string();
    settle(&store, "A", &disk);
    write(&store, "A", &disk, |image| image.write(0, &vec![5; 4 << 20]));
    let mut expected = vec![5; 4 << 20];
    expected.resize(8 << 20, 0);

    // A resize that reserves: refused, and the disk is as it was.
    let error = fails(NoSpace, grow(&store, "A", &disk, 512 * MIB));
    assert!(error.message().contains(mounted.path().to_str().unwrap()), "{error:?}");
    assert_eq!(store.get_image_info("A", &disk).unwrap().size, 8 << 20);
    assert!(read(&store, "A", &disk) == expected);
    grow(&store, "A", &disk, 12 * MIB).unwrap();
    expected.resize(12 << 20, 0);
    assert!(read(&store, "A", &disk) == expected);

    // A thin one takes nothing, and is there.
    let thin = CreateOptions { strategy: Strategy::Space, ..CreateOptions::default() };
    let thin = store.create_virtual_disk("A", Some(MIB), None, "{}", &thin).unwrap().to_string();
    settle(&store, "A", &thin);
    grow(&store, "A", &thin, 512 * MIB).unwrap();
    diff(&store, "A", &thin, Some(&disk)).unwrap();
    measure(&store, "A", &thin, Some(&disk)).unwrap();

    // A fix whose work does not fit fails with that, and is listed again.
    let large = store.create_virtual_disk("B", Some(100 * MIB), None, "{}", &CreateOptions::default());
    let large = large.unwrap().to_string();
    write(&store, "B", &large, |image| (0..100).try_for_each(|i| image.write(i * MIB, &vec![7; 1 << 20])));
    let later = CopyOptions { auto_fix: off().auto_fix, ..CopyOptions::default() };
    let copy = store.copy_image("A", &large, None, "{}", &later).unwrap().to_string();
    let fixes = || store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    for round in 0..2 {
        let [fix] = &fixes()[..] else { panic!("{:?}", fixes()) };
        let task = store.fix_storage_repository("A", fix, &FixOptions::default()).unwrap();
        fails(NoSpace, store.wait_task(&task, None));
        let status = store.get_image_status("A", &copy).unwrap();
        assert_eq!(status.status, Status::Broken, "round {round}");
        assert!(status.last_error.is_some_and(|text| text.contains("space")), "round {round}");
    }
    // What is told of the rest, and its data, are as before; also where there is no room for anything.
    assert!(read(&store, "A", &disk) == expected);
    let file = root.path().join("out");
    let task =
        store.export_image("A", &disk, file.to_str().unwrap(), "raw", &ExportOptions::default()).unwrap();
    store.wait_task(&task, None).unwrap();
    assert!(std::fs::read(&file).unwrap() == expected);
}
