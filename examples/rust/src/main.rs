//! A repository, a disk, a snapshot, and a disk from the snapshot:
//!
//!     cargo run -p vdsmstore-example -- /tmp/images

use std::process::ExitCode;

use serde_json::{Map, json};
use vdsmstore_core::options::{CreateOptions, FormatOptions, WaitOptions};
use vdsmstore_core::{Result, Store, StoreOptions};

fn main() -> ExitCode {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: vdsmstore-example DIRECTORY");
        return ExitCode::from(2);
    };
    match run(&path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdsmstore-example: {error} ({})", error.kind().name());
            ExitCode::FAILURE
        }
    }
}

fn run(path: &str) -> Result<()> {
    let mut parameters = Map::new();
    parameters.insert("path".to_owned(), json!(path));

    let store = Store::new(StoreOptions::default())?;
    store.format_storage_repository("localfs-1.0", &parameters, &FormatOptions::default())?;
    store.connect_storage_repository("images", "localfs-1.0", &parameters)?;

    // A verb returns once what is wanted is durable; the data follows.
    let options = CreateOptions::default();
    let disk = store.create_virtual_disk("images", Some(1 << 30), None, r#"{"name": "golden"}"#, &options)?;
    let disk = disk.to_string();
    store.wait_image("images", &disk, None, &WaitOptions::default())?;

    let image = store.open_image("images", &disk, true)?;
    image.write(0, b"Hello")?;
    image.flush()?;
    image.close()?;

    let snapshot = store.create_snapshot("images", &disk, "{}", &options)?.to_string();
    let clone =
        store.create_virtual_disk("images", None, Some(&snapshot), r#"{"name": "clone"}"#, &options)?;
    let clone = clone.to_string();
    let status = store.wait_image("images", &clone, None, &WaitOptions::default())?;

    let mut buffer = [0; 5];
    let image = store.open_image("images", &clone, false)?;
    image.read(0, &mut buffer)?;
    image.close()?;
    println!("{clone} is {:?} and says {:?}", status.status, String::from_utf8_lossy(&buffer));
    store.close()
}
