//! What the measurements share: scratch repositories, tools, noise.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Map, Value};
use vdsmstore_core::options::{AutoFix, CreateOptions, FormatOptions, RemoveOptions};
use vdsmstore_core::{Store, StoreOptions};

/// What every measurement returns.
pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// A store as a caller opens it.
pub fn store() -> Result<Store> {
    Ok(Store::new(StoreOptions::default())?)
}

/// The parameters of a local repository.
pub fn at(path: &Path) -> Result<Map<String, Value>> {
    let mut parameters = Map::new();
    parameters.insert("path".into(), text(path)?.into());
    Ok(parameters)
}

/// Makes an empty repository in a new directory.
pub fn format(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path)?;
    store()?.format_storage_repository("localfs-1.0", &at(path)?, &FormatOptions::default())?;
    Ok(())
}

/// Connects a repository.
pub fn connect(store: &Store, name: &str, path: &Path) -> Result<()> {
    store.connect_storage_repository(name, "localfs-1.0", &at(path)?)?;
    Ok(())
}

/// A new blank disk.
pub fn disk(store: &Store, repo: &str, size: u64) -> Result<String> {
    let options = CreateOptions::default();
    Ok(store.create_virtual_disk(repo, Some(size.try_into()?), None, "{}", &options)?.to_string())
}

/// Removes an image, and only marks it.
pub fn mark_removed(store: &Store, repo: &str, image: &str) -> Result<()> {
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    Ok(store.remove_image(repo, image, &options)?)
}

/// Waits until nothing runs in the store; what failed is an error.
pub fn settle(store: &Store) -> Result<()> {
    while let Some(task) = store.list_tasks()?.first() {
        store.wait_task(&task.task_id, None)?;
    }
    Ok(())
}

/// Runs a program that must succeed.
pub fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program} {arguments:?} failed").into()) }
}

/// A path for a program's arguments.
pub fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "a path that is no text".into())
}

/// Never the same twice, never compressible.
pub fn noise(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

/// Fills a buffer with noise.
pub fn fill_with_noise(buffer: &mut [u8], seed: &mut u64) {
    for word in buffer.chunks_mut(8) {
        word.copy_from_slice(&noise(seed).to_le_bytes()[..word.len()]);
    }
}
