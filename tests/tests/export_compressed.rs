//! Compressed exports: whole, smaller, read by QEMU, and imported again.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::path::Path;

use vdsmstore_core::options::{Bandwidth, CreateOptions, ExportOptions};
use vdsmstore_tests::scene::Scene;
use vdsmstore_tests::{PATIENCE, run, settle, write};

#[test]
fn compressed_exports() {
    let scene = Scene::new();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    // Not a whole number of clusters; the base shows through in parts.
    let size = 5 * (1 << 20) + 512_i64;
    let base = scene.create("A", Some(size), None, &CreateOptions::default());
    let mut model = vec![0; usize::try_from(size).unwrap()];
    for (place, content) in
        [(100_000, vec![3; 400_000]), (3 << 20, vec![9; 1 << 20]), (model.len() - 700, vec![1; 700])]
    {
        write(&scene.store, "A", &base, |image| image.write(i64::try_from(place).unwrap(), &content));
        model[place..place + content.len()].copy_from_slice(&content);
    }
    let snapshot =
        scene.store.create_snapshot("A", &base, "{}", &CreateOptions::default()).unwrap().to_string();
    settle(&scene.store, "A", &snapshot);
    write(&scene.store, "A", &base, |image| image.write(200_000, &vec![5; 50_000]));
    model[200_000..250_000].fill(5);

    for (how, bandwidth) in [("zstd", None), ("deflate", None), ("zstd", Some(Bandwidth(3 << 20)))] {
        let file = scene.root.path().join("out");
        let options = ExportOptions {
            overwrite: true,
            compress: Some(how.to_owned()),
            bandwidth,
            ..ExportOptions::default()
        };
        let task = scene.store.export_image("A", &base, &text(&file), "qcow2", &options).unwrap();
        scene.store.wait_task(&task, Some(PATIENCE)).unwrap();
        run("qemu-img", &["check", "-f", "qcow2", &text(&file)]);
        let raw = scene.root.path().join("raw");
        run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &text(&file), &text(&raw)]);
        assert!(std::fs::read(&raw).unwrap() == model, "{how}");
        let length = std::fs::metadata(&file).unwrap().len();
        println!("{how}: {length} bytes");
        assert!(length < 2 << 20, "{how}: {length} bytes");
        let options = CreateOptions::default();
        let id = scene.store.import_image("A", &text(&file), "qcow2", "{}", &options).unwrap().to_string();
        settle(&scene.store, "A", &id);
        let mut found = vec![0; model.len()];
        scene.store.open_image("A", &id, false).unwrap().read(0, &mut found).unwrap();
        assert!(found == model, "{how}");
    }
}
