//! Single calls, as a program would make them: in a store that is connected, or in a process of their own.

use std::path::Path;
use std::process::{Command, Stdio};

use vdsmstore_core::Store;
use vdsmstore_core::options::{
    CopyOptions, CreateOptions, ForceOptions, ListOptions, PrepareOptions, RemoveOptions, WaitOptions,
};

use crate::scene::{MIB, Result, connect, disk, settle, store, text};

/// A call to be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A blank disk.
    Create,
    /// A snapshot of a disk.
    Snapshot,
    /// An image goes, with its data.
    Remove,
    /// Whether it can be used.
    Status,
    /// What it is.
    Info,
    /// 20 bytes of JSON.
    UserData,
    /// Made ready for QEMU, and given back.
    Prepare,
    /// 64 KiB of it.
    Read,
    /// A small snapshot comes from another repository.
    Copy,
    /// The next four ids after the middle.
    List,
}

impl Verb {
    /// In the order in which they are measured.
    pub const ALL: [Verb; 10] = [
        Verb::Create,
        Verb::Snapshot,
        Verb::Remove,
        Verb::Status,
        Verb::Info,
        Verb::UserData,
        Verb::Prepare,
        Verb::Read,
        Verb::Copy,
        Verb::List,
    ];

    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Create => "create",
            Verb::Snapshot => "snapshot",
            Verb::Remove => "remove",
            Verb::Status => "status",
            Verb::Info => "info",
            Verb::UserData => "user-data",
            Verb::Prepare => "prepare-teardown",
            Verb::Read => "open-read",
            Verb::Copy => "copy-snapshot",
            Verb::List => "list-4",
        }
    }

    /// The verb of that name.
    pub fn parse(name: &str) -> Option<Verb> {
        Verb::ALL.into_iter().find(|verb| verb.name() == name)
    }

    /// Does it in the repository R, to an image, and waits until all of it is done. The id of what it made, if anything.
    pub fn call(self, store: &Store, image: &str) -> Result<String> {
        let create = CreateOptions::default();
        match self {
            Verb::Create => return disk(store, "R", MIB),
            Verb::Snapshot => return Ok(store.create_snapshot("R", image, "{}", &create)?.to_string()),
            Verb::Remove => {
                store.remove_image("R", image, &RemoveOptions::default())?;
                settle(store)?;
            }
            Verb::Status => drop(store.get_image_status("R", image)?),
            Verb::Info => drop(store.get_image_info("R", image)?),
            Verb::UserData => store.set_image_user_data("R", image, r#"{"purpose":"bench"}"#)?,
            Verb::Prepare => {
                store.prepare_image("R", image, &PrepareOptions::default())?;
                store.teardown_image("R", image, &ForceOptions::default())?;
            }
            Verb::Read => {
                let open = store.open_image("R", image, false)?;
                open.read(0, &mut vec![0; 64 << 10])?;
                open.close()?;
            }
            Verb::Copy => {
                let id = store.copy_image("R", image, None, "{}", &CopyOptions::default())?.to_string();
                store.wait_image("R", &id, None, &WaitOptions::default())?;
                return Ok(id);
            }
            Verb::List => {
                let after = Some("80000000-0000-4000-8000-000000000000".to_owned());
                let options = ListOptions { after, limit: Some(4), ..ListOptions::default() };
                store.list_images("R", &options)?;
            }
        }
        Ok(String::new())
    }

    /// The same in a process of its own, which connects before and disconnects after.
    pub fn spawn(self, repo: &Path, other: &Path, image: &str) -> Result<String> {
        let arguments = ["once", self.name(), text(repo)?, text(other)?, image];
        let output = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        if !output.status.success() {
            return Err(format!("{arguments:?} failed").into());
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }
}

/// What the process does that [`Verb::spawn`] starts.
pub fn once(arguments: &[String]) -> Result<()> {
    let [name, repo, other, image] = arguments else { return Err("four arguments are needed".into()) };
    let verb = Verb::parse(name).ok_or("no such verb")?;
    let store = store()?;
    connect(&store, "R", Path::new(repo))?;
    if verb == Verb::Copy {
        connect(&store, "S", Path::new(other))?;
    }
    println!("{}", verb.call(&store, image)?);
    store.disconnect_storage_repository("R", &ForceOptions::default())?;
    Ok(store.close()?)
}
