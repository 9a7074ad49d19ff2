//! A store that is closed: every verb says so, and does nothing.

use vdsmstore_core::ErrorKind::Closed;
use vdsmstore_core::Result;
use vdsmstore_core::options::{
    CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, ForceOptions, FormatOptions,
    ListOptions, PrepareOptions, RemoveOptions, Strategy, WaitOptions,
};
use vdsmstore_tests::at;
use vdsmstore_tests::scene::{MIB, SIZE};

use super::bad_input_common::Images;
use super::{diff, grow, measure};

type Call<'a> = (&'static str, Box<dyn Fn() -> Result<()> + 'a>);

#[test]
fn a_store_that_is_closed() {
    let images = Images::new();
    let (disk, snapshot, fix) = (images.disk.as_str(), images.snapshot.as_str(), images.some_fix());
    let store = images.scene.another();
    let image = store.open_image("A", disk, true).unwrap();
    store.close().unwrap();
    store.close().unwrap();
    let copy = CopyOptions::default();
    let create = CreateOptions::default();
    let place = at(&images.files);
    let format = FormatOptions::default();
    let read_only = PrepareOptions { read_only: true };
    let calls: Vec<Call<'_>> = vec![
        ("connect", Box::new(|| store.connect_storage_repository("C", "localfs-1.0", &place))),
        ("disconnect", Box::new(|| store.disconnect_storage_repository("A", &ForceOptions::default()))),
        ("format", Box::new(|| store.format_storage_repository("localfs-1.0", &place, &format))),
        ("repositories", Box::new(|| store.list_storage_repositories().map(drop))),
        ("repository", Box::new(|| store.get_storage_repository_info("A").map(drop))),
        ("create", Box::new(|| store.create_virtual_disk("A", Some(MIB), None, "{}", &create).map(drop))),
        ("snapshot", Box::new(|| store.create_snapshot("A", disk, "{}", &create).map(drop))),
        ("copy", Box::new(|| store.copy_image("B", disk, None, "{}", &copy).map(drop))),
        ("import", Box::new(|| store.import_image("A", "/x", "raw", "{}", &create).map(drop))),
        ("remove", Box::new(|| store.remove_image("A", disk, &RemoveOptions::default()))),
        ("status", Box::new(|| store.get_image_status("A", disk).map(drop))),
        ("info", Box::new(|| store.get_image_info("A", disk).map(drop))),
        ("list", Box::new(|| store.list_images("A", &ListOptions::default()).map(drop))),
        ("infos", Box::new(|| store.list_image_infos("A", &ListOptions::default()).map(drop))),
        ("user data", Box::new(|| store.set_image_user_data("A", disk, "{}"))),
        ("strategy", Box::new(|| store.set_image_strategy("A", disk, Strategy::Space))),
        ("resize", Box::new(|| grow(&store, "A", disk, 2 * SIZE))),
        ("open", Box::new(|| store.open_image("A", disk, false).map(drop))),
        ("prepare", Box::new(|| store.prepare_image("A", disk, &read_only).map(drop))),
        ("teardown", Box::new(|| store.teardown_image("A", disk, &ForceOptions::default()))),
        ("diff", Box::new(|| diff(&store, "A", snapshot, None))),
        (
            "export",
            Box::new(|| {
                let options = ExportOptions::default();
                store.export_image("A", snapshot, &images.file("out"), "raw", &options).map(drop)
            }),
        ),
        ("measure", Box::new(|| measure(&store, "A", snapshot, None))),
        ("check", Box::new(|| store.check_storage_repository("A", &CheckOptions::default()).map(drop))),
        ("fix", Box::new(|| store.fix_storage_repository("A", &fix, &FixOptions::default()).map(drop))),
        ("stop", Box::new(|| store.stop_image_task("A", disk))),
        ("stop task", Box::new(|| store.stop_task("x"))),
        ("wait", Box::new(|| store.wait_image("A", disk, None, &WaitOptions::default()).map(drop))),
        ("wait task", Box::new(|| store.wait_task("x", None))),
        ("tasks", Box::new(|| store.list_tasks().map(drop))),
        ("graph", Box::new(|| store.graph("A").map(drop))),
        ("read", Box::new(|| image.read(0, &mut [0; 512]))),
        ("write", Box::new(|| image.write(0, &[0; 512]))),
        ("zeroes", Box::new(|| image.write_zeroes(0, 512))),
        ("discard", Box::new(|| image.discard(0, 512))),
        ("flush", Box::new(|| image.flush())),
        ("extents", Box::new(|| image.extents(0, 1).map(drop))),
        ("size", Box::new(|| image.size().map(drop))),
    ];
    for (what, call) in calls {
        images.refused(what, Closed, "closed", call);
    }
}
