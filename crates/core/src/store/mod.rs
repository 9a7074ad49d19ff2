//! The verbs of the API.

mod create;
mod prepare;
mod repair;
mod transfer;
mod validate;

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde_json::{Map, Value};
use vdsmstore_io::without;

use crate::graph::mend::{Clean, Mend};
use crate::graph::search::Search;
use crate::graph::{self, add, chain, lease, pin, view};
use crate::id::{ImageId, Incarnation};
use crate::image::{Handle, Image};
use crate::job::{Job, Pool, TaskRequest};
use crate::options::{
    AutoFix, CopyOptions, CreateOptions, ForceOptions, FormatOptions, ImageKind, ListOptions, PrepareOptions,
    RemoveOptions, WaitOptions, WaitStatus,
};
use crate::record::{ImageRecord, Kind, OpenMode};
use crate::repo::{Change, Repo};
use crate::repository::{self, Access, Driver, Guard, HostIdentity};
use crate::types::{GraphNode, ImageInfo, ImageStatus, PreparedImage, RepositoryInfo, Status, TaskInfo};
use crate::{Error, ErrorKind, Result, machine};

use prepare::PreparedHere;

/// How long close and disconnect wait for work to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(2);
/// An open image may take this part of the memory that was given.
const SHARES: u64 = 16;
/// Pause between two looks at an image that another host works on.
const POLL: Duration = Duration::from_millis(200);

/// How a store is opened.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct StoreOptions {
    /// A label for this host; default: the machine's name.
    pub host_id: Option<String>,
    /// How many jobs run at once; default 2. 0: none by itself ([`Store::run_tasks`]).
    pub threads: Option<u32>,
    /// Bytes that the caches of all open images may take together while there are 16 or fewer, those that tasks have
    /// open included: each gets a sixteenth, at most 16 MiB and at least 1 MiB. Default: 16 MiB each.
    pub memory: Option<u64>,
}

/// A set of connections and tasks. Cheap to clone; `Send` and `Sync`.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    host_id: String,
    boot_id: String,
    repos: Arc<RwLock<Vec<Arc<Repo>>>>,
    /// Held while a repository is being connected, so that a name is not taken twice.
    connecting: Mutex<()>,
    pool: Pool,
    open: Mutex<Vec<Weak<Handle>>>,
    prepared: Mutex<Vec<PreparedHere>>,
    closed: AtomicBool,
    /// Bytes that the caches of each open image may take.
    memory: Option<u64>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("host_id", &self.0.host_id).finish_non_exhaustive()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens a store with nothing connected.
    pub fn new(options: StoreOptions) -> Result<Self> {
        let host_id = match options.host_id {
            Some(host_id) => validate::host_id(host_id)?,
            None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| String::new(), |text| text.trim().to_owned());
        let repos: Arc<RwLock<Vec<Arc<Repo>>>> = Arc::default();
        let shared = Arc::clone(&repos);
        let pool = Pool::new(options.threads.unwrap_or(2).min(64), move || {
            shared.read().unwrap_or_else(PoisonError::into_inner).clone()
        })?;
        Ok(Self(Arc::new(Inner {
            host_id,
            boot_id,
            repos,
            connecting: Mutex::new(()),
            pool,
            open: Mutex::default(),
            prepared: Mutex::default(),
            closed: AtomicBool::new(false),
            memory: options.memory.map(|memory| (memory / SHARES).clamp(1 << 20, 16 << 20)),
        })))
    }

    fn alive(&self) -> Result<()> {
        if self.0.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Closed, "the store is closed"));
        }
        Ok(())
    }

    fn repos(&self) -> Vec<Arc<Repo>> {
        self.0.repos.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn repo(&self, id: &str) -> Result<Arc<Repo>> {
        self.alive()?;
        self.repos().into_iter().find(|repo| repo.id == id).ok_or_else(|| {
            let message = format!("no repository is connected under the name {id:?}");
            Error::new(ErrorKind::RepositoryNotFound, message).with("repoId", id)
        })
    }

    /// A connected repository that can be changed.
    fn writable_repo(&self, id: &str) -> Result<Arc<Repo>> {
        let repo = self.repo(id)?;
        if repo.driver.read_only() {
            let message = format!("repository {id:?} at {} can only be read", repo.driver.location());
            return Err(Error::new(ErrorKind::ReadOnlyRepository, message).with("repoId", id));
        }
        Ok(repo)
    }

    /// Who this store is on a new connection. Each connection counts as a store of its own, so that one place that is
    /// connected twice is locked against itself.
    fn identity(&self) -> HostIdentity {
        HostIdentity {
            host_id: self.0.host_id.clone(),
            incarnation: Incarnation::random(),
            boot_id: self.0.boot_id.clone(),
        }
    }

    /// Connects a repository under the caller's name.
    ///
    /// Raises `InvalidParameter`, `RepositoryIdInUse`, `FormatUnsupported`, `VersionTooNew`, `WrongFormat`,
    /// `NotARepository`, `ConnectionFailed`, `PermissionDenied`.
    pub fn connect_storage_repository(
        &self,
        repo_id: &str,
        format: &str,
        parameters: &Map<String, Value>,
    ) -> Result<()> {
        self.connect(repo_id, || repository::connect(format, parameters, self.identity()))
    }

    /// Connects a driver that a test made.
    #[cfg(feature = "sim")]
    pub fn connect_driver(&self, repo_id: &str, driver: Arc<dyn Driver>) -> Result<()> {
        self.connect(repo_id, || Ok(driver))
    }

    fn connect(&self, repo_id: &str, driver: impl FnOnce() -> Result<Arc<dyn Driver>>) -> Result<()> {
        self.alive()?;
        validate::repo_id(repo_id)?;
        let _connecting = locked(&self.0.connecting);
        if self.repos().iter().any(|repo| repo.id == repo_id) {
            let message = format!("a repository is connected under the name {repo_id:?} already");
            return Err(Error::new(ErrorKind::RepositoryIdInUse, message).with("repoId", repo_id));
        }
        let repo = Arc::new(Repo { id: repo_id.to_owned(), driver: driver()?, memory: self.0.memory });
        self.0.repos.write().unwrap_or_else(PoisonError::into_inner).push(repo);
        Ok(())
    }

    /// Stops what runs on the repository, resumably, and lets it go. Images open or prepared here: `ImageInUse`, unless
    /// forced; then they are closed.
    pub fn disconnect_storage_repository(&self, repo_id: &str, options: &ForceOptions) -> Result<()> {
        let repo = self.repo(repo_id)?;
        let open = self.0.open_images(&repo);
        if !options.force {
            let used =
                open.first().map(|handle| handle.id).or_else(|| self.0.prepared_here(&repo).first().copied());
            if let Some(id) = used {
                return Err(graph::in_use(&repo, id, "it is open or prepared here"));
            }
        }
        if !self.0.pool.stop(|task| task.needs(&repo), machine::now() + STOP_PATIENCE) {
            return Err(Error::new(
                ErrorKind::Timeout,
                format!("work on repository {repo_id:?} does not stop"),
            ));
        }
        for handle in open {
            handle.close()?;
        }
        self.0.forget_prepared(&repo);
        self.0
            .repos
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|other| !Arc::ptr_eq(other, &repo));
        repo.driver.close()
    }

    /// Makes an empty repository; it is not connected. The place must be empty.
    pub fn format_storage_repository(
        &self,
        format: &str,
        parameters: &Map<String, Value>,
        options: &FormatOptions,
    ) -> Result<()> {
        self.alive()?;
        repository::format(format, parameters, options)
    }

    /// The names of the connected repositories, in order of connection.
    pub fn list_storage_repositories(&self) -> Result<Vec<String>> {
        self.alive()?;
        Ok(self.repos().iter().map(|repo| repo.id.clone()).collect())
    }

    /// Space, counts and capabilities.
    pub fn get_storage_repository_info(&self, repo_id: &str) -> Result<RepositoryInfo> {
        let repo = self.repo(repo_id)?;
        let usage = repo.driver.usage()?;
        let (mut disks, mut snapshots) = (0, 0);
        repo.each_image(None, |image| {
            match image.kind {
                Kind::Disk if image.visible() => disks += 1,
                Kind::Snapshot if image.visible() => snapshots += 1,
                _ => {}
            }
            Ok(true)
        })?;
        Ok(RepositoryInfo {
            repo_id: repo.id.clone(),
            format: repo.driver.format().to_owned(),
            location: repo.driver.location(),
            capacity: usage.capacity,
            available: usage.available,
            virtual_disks: disks,
            snapshots,
            read_only: repo.driver.read_only(),
            features: repo.driver.features(),
            capabilities: repo.driver.capabilities(),
        })
    }

    /// A new disk. `size` in bytes; None with a base: the base's. `user_data`: JSON text.
    ///
    /// Raises `InvalidParameter`, `InvalidSize`, `RepositoryNotFound`, `ReadOnlyRepository`, `ImageNotFound`,
    /// `ImageBroken`, `NotASnapshot`, `ImageExists`, `TaskIdInUse`, `NoSpace`, `IoError`.
    pub fn create_virtual_disk(
        &self,
        repo_id: &str,
        size: Option<i64>,
        base_snapshot_id: Option<&str>,
        user_data: &str,
        options: &CreateOptions,
    ) -> Result<ImageId> {
        create::virtual_disk(self, repo_id, size, base_snapshot_id, user_data, options)
    }

    /// A snapshot of a disk; the disk keeps its id and goes on. Its moment is fixed when this returns.
    ///
    /// Raises `InvalidParameter`, `RepositoryNotFound`, `ReadOnlyRepository`, `ImageNotFound`, `ImageBroken`,
    /// `NotADisk`, `ImageInUse`, `ImageExists`, `TooManyVolumes`, `NoSpace`, `IoError`.
    pub fn create_snapshot(
        &self,
        repo_id: &str,
        disk_id: &str,
        user_data: &str,
        options: &CreateOptions,
    ) -> Result<ImageId> {
        create::snapshot(self, repo_id, disk_id, user_data, options)
    }

    /// A copy in the target repository: of a snapshot under its id, of a disk under a new one. With a base, it costs
    /// the difference to it.
    ///
    /// Raises `InvalidParameter`, `RepositoryNotFound`, `ReadOnlyRepository`, `ImageNotFound`, `ImageBroken`,
    /// `ImageInUse`, `ImageExists`, `TaskIdInUse`, `NoSpace`, `IoError`.
    pub fn copy_image(
        &self,
        repo_id: &str,
        image_id: &str,
        base_image_id: Option<&str>,
        user_data: &str,
        options: &CopyOptions,
    ) -> Result<ImageId> {
        create::copy(self, repo_id, image_id, base_image_id, user_data, options)
    }

    /// A new disk from a raw or qcow2 file, which must stay until the image is no longer broken.
    ///
    /// Raises `InvalidParameter`, `InvalidSize`, `CorruptImage`, `UnsupportedOperation`, `ImageInUse`, and what
    /// createVirtualDisk raises.
    pub fn import_image(
        &self,
        repo_id: &str,
        path: &str,
        format: &str,
        user_data: &str,
        options: &CreateOptions,
    ) -> Result<ImageId> {
        create::import(self, repo_id, path, format, user_data, options)
    }

    /// The id is gone at once, its space when nothing needs it.
    ///
    /// Raises `InvalidParameter`, `RepositoryNotFound`, `ReadOnlyRepository`, `ImageNotFound`, `ImageInUse`.
    pub fn remove_image(&self, repo_id: &str, image_id: &str, options: &RemoveOptions) -> Result<()> {
        let repo = self.writable_repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        self.0.pool.check_id(options.task_id.as_deref())?;
        let open = self.0.open_images(&repo).iter().any(|handle| handle.id == id)
            || self.0.prepared_here(&repo).contains(&id);
        self.explained(&repo, id, graph::remove::remove(&repo, id, open))?;
        // What still works on it here need not find out by itself.
        for task in self.0.pool.running() {
            if task.works_on(&repo, id) {
                task.cancel();
            }
        }
        if options.auto_fix != AutoFix::Off {
            let job = Box::new(Clean { repo: Arc::clone(&repo), image: id });
            let id = TaskRequest { id: options.task_id.clone(), kind: "clean", repo, image: Some(id), job };
            self.0.pool.start(id)?;
        }
        Ok(())
    }

    /// Whether it can be used, and what works on it.
    pub fn get_image_status(&self, repo_id: &str, image_id: &str) -> Result<ImageStatus> {
        let repo = self.repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        self.status(&repo, id)
    }

    fn status(&self, repo: &Arc<Repo>, id: ImageId) -> Result<ImageStatus> {
        let image = view::shown(repo, id)?;
        view::status(repo, &image, self.tasks_on(repo, id))
    }

    fn tasks_on(&self, repo: &Arc<Repo>, id: ImageId) -> Vec<TaskInfo> {
        let tasks = self.0.pool.running();
        tasks.iter().filter(|task| task.works_on(repo, id)).map(|task| task.info()).collect()
    }

    /// What it is.
    pub fn get_image_info(&self, repo_id: &str, image_id: &str) -> Result<ImageInfo> {
        let repo = self.repo(repo_id)?;
        let image = view::shown(&repo, ImageId::parse(image_id)?)?;
        view::info(&repo, &image)
    }

    /// Ids in order.
    pub fn list_images(&self, repo_id: &str, options: &ListOptions) -> Result<Vec<ImageId>> {
        Ok(self.list(repo_id, options)?.1.iter().map(ImageRecord::id).collect())
    }

    /// The same with details.
    pub fn list_image_infos(&self, repo_id: &str, options: &ListOptions) -> Result<Vec<ImageInfo>> {
        let (repo, images) = self.list(repo_id, options)?;
        let infos = images.iter().map(|image| view::unless_gone(view::info(&repo, image)));
        infos.filter_map(Result::transpose).collect()
    }

    fn list(&self, repo_id: &str, options: &ListOptions) -> Result<(Arc<Repo>, Vec<ImageRecord>)> {
        let repo = self.repo(repo_id)?;
        let after = options.after.as_deref().map(ImageId::parse).transpose()?;
        let kind = options.kind.map(|kind| match kind {
            ImageKind::Disk => Kind::Disk,
            ImageKind::Snapshot => Kind::Snapshot,
        });
        let limit = options.limit.map_or(usize::MAX, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let mut images = Vec::new();
        if limit > 0 {
            repo.each_image(after, |image| {
                if image.visible() && kind.is_none_or(|kind| image.kind == kind) {
                    images.push(image);
                }
                Ok(images.len() < limit)
            })?;
        }
        Ok((repo, images))
    }

    /// Replaces the user data. Works on images in use, and on snapshots.
    pub fn set_image_user_data(&self, repo_id: &str, image_id: &str, user_data: &str) -> Result<()> {
        let repo = self.writable_repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        validate::user_data(user_data)?;
        let (mut stored, mut former) = (None, None);
        let updated = repo.update_image(id, |now| {
            if !now.visible() {
                return Err(repo.image_not_found(id));
            }
            // Stored once the record was read, and another one each time: who takes it for garbage writes the record before
            // removing it.
            add::drop_user_data(&repo, id, stored);
            stored = repo.store_user_data(id, user_data)?;
            former = now.user_data;
            now.user_data = stored;
            Ok(Change::Put)
        });
        let unneeded = match &updated {
            Ok(Some(_)) => former,
            Ok(None) => stored,
            // The storage failed: the record may be written after all. What nobody needs is garbage that a check finds.
            Err(_) => stored
                .filter(|_| repo.image(id).is_ok_and(|now| now.is_none_or(|now| now.user_data != stored))),
        };
        if let Some(reference) = unneeded {
            repo.driver.delete_blob(id, reference.blob)?;
        }
        updated?.map(drop).ok_or_else(|| repo.image_not_found(id))
    }

    /// Opens for I/O in this process; writing takes the lease.
    ///
    /// Raises `ImageNotFound`, `ImageBroken`, `ImageInUse`, `ReadOnlyImage` (a snapshot opened for writing),
    /// `ReadOnlyRepository`.
    pub fn open_image(&self, repo_id: &str, image_id: &str, writable: bool) -> Result<Image> {
        let repo = if writable { self.writable_repo(repo_id)? } else { self.repo(repo_id)? };
        let id = ImageId::parse(image_id)?;
        let chain = if writable { lease::take(&repo, id, OpenMode::Io) } else { open_for_reading(&repo, id) };
        let chain = self.explained(&repo, id, chain)?;
        let handle = match Handle::new(Arc::clone(&repo), id, chain, writable) {
            Ok(handle) => Arc::new(handle),
            Err(error) => {
                if writable {
                    lease::release(&repo, id)?;
                }
                return Err(error);
            }
        };
        let mut open = locked(&self.0.open);
        open.retain(|handle| handle.strong_count() > 0);
        open.push(Arc::downgrade(&handle));
        Ok(Image(handle))
    }

    /// Makes it ready for QEMU, durably: the lease on a disk outlives this process.
    ///
    /// Raises `ImageNotFound`, `ImageBroken`, `ImageInUse`, `ReadOnlyImage`, `ReadOnlyRepository`.
    pub fn prepare_image(
        &self,
        repo_id: &str,
        image_id: &str,
        options: &PrepareOptions,
    ) -> Result<PreparedImage> {
        let repo = if options.read_only { self.repo(repo_id)? } else { self.writable_repo(repo_id)? };
        let id = ImageId::parse(image_id)?;
        self.explained(&repo, id, self.0.prepare(&repo, id, options.read_only))
    }

    /// Releases a prepared image; one that is not prepared is left alone. `force`: its holder is known to be dead.
    pub fn teardown_image(&self, repo_id: &str, image_id: &str, options: &ForceOptions) -> Result<()> {
        let repo = self.repo(repo_id)?;
        self.0.teardown(&repo, ImageId::parse(image_id)?, options.force)
    }

    /// The status once no task of this store runs on the image; asked for a status, once any host has brought it
    /// there. Raises `Timeout`; not what a task failed with.
    pub fn wait_image(
        &self,
        repo_id: &str,
        image_id: &str,
        timeout: Option<Duration>,
        options: &WaitOptions,
    ) -> Result<ImageStatus> {
        let repo = self.repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        let deadline = timeout.and_then(|timeout| machine::now().checked_add(timeout));
        let late = || {
            let message = format!("image {id} in repository {repo_id:?} is not ready in time");
            Error::new(ErrorKind::Timeout, message).with("imageId", id.to_string())
        };
        loop {
            let tasks = self.0.pool.running();
            if let Some(task) = tasks.iter().find(|task| task.works_on(&repo, id)) {
                if !task.wait(deadline) {
                    return Err(late());
                }
                continue;
            }
            let status = self.status(&repo, id)?;
            if options.status != Some(WaitStatus::Optimized) || status.status == Status::Optimized {
                return Ok(status);
            }
            let left = deadline.map_or(POLL, |deadline| deadline.saturating_duration_since(machine::now()));
            if left.is_zero() {
                return Err(late());
            }
            self.alive()?;
            machine::pause(left.min(POLL));
        }
    }

    /// Waits for a task; its failure is the error. Raises `TaskNotFound`, `Timeout`.
    pub fn wait_task(&self, task_id: &str, timeout: Option<Duration>) -> Result<()> {
        self.alive()?;
        let task = self.0.pool.find(task_id).ok_or_else(|| {
            Error::new(ErrorKind::TaskNotFound, format!("no task {task_id:?} is known"))
                .with("taskId", task_id)
        })?;
        let deadline = timeout.and_then(|timeout| machine::now().checked_add(timeout));
        if !task.wait(deadline) {
            let message = format!("task {task_id:?} has not ended in time");
            return Err(Error::new(ErrorKind::Timeout, message).with("taskId", task_id));
        }
        task.outcome()
    }

    /// What runs.
    pub fn list_tasks(&self) -> Result<Vec<TaskInfo>> {
        self.alive()?;
        Ok(self.0.pool.running().iter().map(|task| task.info()).collect())
    }

    /// Runs all tasks in this thread until they have ended: for stores with no threads.
    pub fn run_tasks(&self) {
        self.0.pool.run_here();
    }

    /// All images and what they are stored on, for people. The inner images that the engine keeps are among them.
    pub fn graph(&self, repo_id: &str) -> Result<Vec<GraphNode>> {
        let repo = self.repo(repo_id)?;
        let mut nodes = Vec::new();
        repo.each_image(None, |image| {
            nodes.extend(view::unless_gone(view::node(&repo, &image))?);
            Ok(true)
        })?;
        Ok(nodes)
    }

    /// Stops tasks resumably within two seconds, frees leases, disconnects. Idempotent.
    pub fn close(&self) -> Result<()> {
        self.0.close();
        Ok(())
    }

    // For the verbs in files of their own.

    /// Tells of a busy image which task of this store keeps it busy, if one does.
    fn explained<T>(&self, repo: &Arc<Repo>, id: ImageId, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let task = self.0.pool.running().into_iter().find(|task| task.concerns(repo, id));
            match task {
                Some(task) if error.kind() == ErrorKind::ImageInUse => {
                    error.with("host", self.0.host_id.clone()).with("taskId", task.id.clone())
                }
                _ => error,
            }
        })
    }

    /// Where images are looked for.
    fn search(&self, options: &CreateOptions) -> Result<Search> {
        let hints = options.image_hints.iter().map(|(id, repo)| Ok((ImageId::parse(id)?, repo.clone())));
        Ok(Search {
            repos: self.repos(),
            hints: hints.collect::<Result<_>>()?,
            participating: options.participating_repositories.clone(),
        })
    }

    /// Starts the completion of an image.
    fn mend(&self, repo: &Arc<Repo>, id: ImageId, task_id: Option<&str>, auto_fix: AutoFix) -> Result<()> {
        self.0.pool.start(mend_request(repo, id, task_id, auto_fix)).map(drop)
    }

    /// Completes an image before this returns.
    fn mend_now(&self, repo: &Arc<Repo>, id: ImageId, task_id: Option<&str>) -> Result<()> {
        self.0.pool.run(mend_request(repo, id, task_id, AutoFix::On))
    }
}

fn mend_request(repo: &Arc<Repo>, id: ImageId, task_id: Option<&str>, auto_fix: AutoFix) -> TaskRequest {
    let job: Box<dyn Job> = Box::new(Mend::new(repo, id, auto_fix == AutoFix::Optimized));
    TaskRequest { id: task_id.map(str::to_owned), kind: "mend", repo: Arc::clone(repo), image: Some(id), job }
}

impl Inner {
    /// Images of the repository that are open here.
    fn open_images(&self, repo: &Arc<Repo>) -> Vec<Arc<Handle>> {
        let open = locked(&self.open);
        let handles = open.iter().filter_map(Weak::upgrade);
        handles.filter(|handle| Arc::ptr_eq(&handle.repo, repo) && handle.is_open()).collect()
    }

    fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.pool.close(STOP_PATIENCE);
        // What cannot be released now is found by whoever comes next.
        let open: Vec<_> = locked(&self.open).drain(..).collect();
        for handle in open.iter().filter_map(Weak::upgrade) {
            let _ = handle.close();
        }
        locked(&self.prepared).clear();
        let repos = std::mem::take(&mut *self.repos.write().unwrap_or_else(PoisonError::into_inner));
        for repo in repos {
            let _ = repo.driver.close();
        }
    }
}

/// Opens an image for reading: its bytes do not change while it is open.
fn open_for_reading(repo: &Repo, id: ImageId) -> Result<chain::OpenChain> {
    let record = repo.visible_image(id)?;
    if !without!("read.lease") {
        lease::ensure_free(repo, &record)?;
    }
    let access = if record.kind == Kind::Disk { Access::ReadStill } else { Access::Read };
    let reader = reader_of(repo, id)?;
    let opened = chain::open(repo, id, access)?;
    Ok(chain::OpenChain { reader: Some(reader), ..opened })
}

/// As [`open_for_reading`], for who wants one moment: of a disk, where that is possible, a pin, which is in nobody's way.
fn open_moment(repo: &Repo, id: ImageId) -> Result<chain::OpenChain> {
    if repo.visible_image(id)?.kind != Kind::Disk || !pin::is_possible(repo) {
        return open_for_reading(repo, id);
    }
    let reader = reader_of(repo, id)?;
    let (opened, _) = pin::open(repo, id)?;
    Ok(chain::OpenChain { reader: Some(reader), ..opened })
}

fn reader_of(repo: &Repo, id: ImageId) -> Result<Box<dyn Guard>> {
    let alone = without!("read.lock");
    let id = if alone { ImageId::random() } else { id };
    repo.driver.lock_use(id, false)?.ok_or_else(|| graph::in_use(repo, id, "it is being removed"))
}
