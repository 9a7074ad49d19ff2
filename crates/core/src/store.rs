//! The verbs of the API.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::id::ImageId;
use crate::image::Image;
use crate::options::{
    CopyOptions, CreateOptions, ForceOptions, FormatOptions, ListOptions, PrepareOptions, RemoveOptions,
    WaitOptions,
};
use crate::types::{GraphNode, ImageInfo, ImageStatus, PreparedImage, RepositoryInfo, TaskInfo};
use crate::{Error, ErrorKind, Result};

/// How a store is opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// A label for this host; default: the machine's name.
    pub host_id: Option<String>,
    /// How many jobs run at once; default 2. 0: none by itself ([`Store::run_tasks`]).
    pub threads: Option<u32>,
    /// Budget for caches in bytes.
    pub memory: Option<u64>,
}

/// A set of connections and tasks. Cheap to clone; `Send` and `Sync`.
#[derive(Clone, Debug)]
pub struct Store;

#[allow(unused_variables, clippy::unused_self)]
impl Store {
    /// Opens a store with nothing connected.
    pub fn new(options: StoreOptions) -> Result<Self> {
        Ok(Self)
    }

    /// Connects a repository under the caller's name.
    pub fn connect_storage_repository(
        &self,
        repo_id: &str,
        format: &str,
        parameters: &Map<String, Value>,
    ) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Stops what runs on the repository, resumably, and lets it go.
    pub fn disconnect_storage_repository(&self, repo_id: &str, options: &ForceOptions) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Makes an empty repository; it is not connected.
    pub fn format_storage_repository(
        &self,
        format: &str,
        parameters: &Map<String, Value>,
        options: &FormatOptions,
    ) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// The connected repositories in order of connection.
    pub fn list_storage_repositories(&self) -> Result<Vec<String>> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Space, counts and capabilities.
    pub fn get_storage_repository_info(&self, repo_id: &str) -> Result<RepositoryInfo> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// A new disk. `size` in bytes; None with a base: the base's. `user_data`: JSON text.
    pub fn create_virtual_disk(
        &self,
        repo_id: &str,
        size: Option<i64>,
        base_snapshot_id: Option<&str>,
        user_data: &str,
        options: &CreateOptions,
    ) -> Result<ImageId> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// A snapshot of a disk; the disk keeps its id.
    pub fn create_snapshot(
        &self,
        repo_id: &str,
        disk_id: &str,
        user_data: &str,
        options: &CreateOptions,
    ) -> Result<ImageId> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// A copy in the target repository.
    pub fn copy_image(
        &self,
        repo_id: &str,
        image_id: &str,
        base_image_id: Option<&str>,
        user_data: &str,
        options: &CopyOptions,
    ) -> Result<ImageId> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// A new disk from a raw or qcow2 file.
    pub fn import_image(
        &self,
        repo_id: &str,
        path: &str,
        format: &str,
        user_data: &str,
        options: &CreateOptions,
    ) -> Result<ImageId> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// The id is gone at once.
    pub fn remove_image(&self, repo_id: &str, image_id: &str, options: &RemoveOptions) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Whether it can be used, and what works on it.
    pub fn get_image_status(&self, repo_id: &str, image_id: &str) -> Result<ImageStatus> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// What it is.
    pub fn get_image_info(&self, repo_id: &str, image_id: &str) -> Result<ImageInfo> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Ids in order.
    pub fn list_images(&self, repo_id: &str, options: &ListOptions) -> Result<Vec<ImageId>> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// The same with details.
    pub fn list_image_infos(&self, repo_id: &str, options: &ListOptions) -> Result<Vec<ImageInfo>> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Replaces the user data.
    pub fn set_image_user_data(&self, repo_id: &str, image_id: &str, user_data: &str) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Opens for I/O in this process; writing takes the lease.
    pub fn open_image(&self, repo_id: &str, image_id: &str, writable: bool) -> Result<Image> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Makes it ready for QEMU, durably.
    pub fn prepare_image(
        &self,
        repo_id: &str,
        image_id: &str,
        options: &PrepareOptions,
    ) -> Result<PreparedImage> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Releases a prepared image.
    pub fn teardown_image(&self, repo_id: &str, image_id: &str, options: &ForceOptions) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Waits until no task of this store runs on the image.
    pub fn wait_image(
        &self,
        repo_id: &str,
        image_id: &str,
        timeout: Option<Duration>,
        options: &WaitOptions,
    ) -> Result<ImageStatus> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Waits for a task; its failure is the error.
    pub fn wait_task(&self, task_id: &str, timeout: Option<Duration>) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// What runs.
    pub fn list_tasks(&self) -> Result<Vec<TaskInfo>> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// All images and what they are stored on, for people.
    pub fn graph(&self, repo_id: &str) -> Result<Vec<GraphNode>> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }

    /// Stops tasks resumably within two seconds, frees leases, disconnects. Idempotent.
    pub fn close(&self) -> Result<()> {
        Err(Error::new(ErrorKind::UnsupportedOperation, "stub"))
    }
}
