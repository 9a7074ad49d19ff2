//! Prepare and teardown: an image handed to a program outside, by path.

use std::fmt::Write;
use std::sync::Arc;

use serde_json::{Value, json};
use vdsmstore_io::{Format, without};

use crate::graph::chain::{self, Chain, OpenChain};
use crate::graph::{in_use, lease, mirror};
use crate::id::ImageId;
use crate::record::{Kind, OpenMode};
use crate::repo::Repo;
use crate::repository::{Access, Read};
use crate::types::PreparedImage;
use crate::{Error, ErrorKind, Result};

use super::{Inner, locked};

/// An image that this store has prepared, with the locks that it holds for as long as it lives.
#[derive(Debug)]
pub(super) struct PreparedHere {
    repo: Arc<Repo>,
    image: ImageId,
    read_only: bool,
    chain: OpenChain,
}

impl PreparedHere {
    fn is(&self, repo: &Arc<Repo>, image: ImageId) -> bool {
        Arc::ptr_eq(&self.repo, repo) && self.image == image
    }
}

impl Inner {
    /// The images of the repository that are prepared here.
    pub(super) fn prepared_here(&self, repo: &Arc<Repo>) -> Vec<ImageId> {
        let prepared = locked(&self.prepared);
        prepared.iter().filter(|entry| Arc::ptr_eq(&entry.repo, repo)).map(|entry| entry.image).collect()
    }

    /// Lets the locks go; what is recorded stays, because the program that uses it may live on.
    pub(super) fn forget_prepared(&self, repo: &Arc<Repo>) {
        locked(&self.prepared).retain(|entry| !Arc::ptr_eq(&entry.repo, repo));
    }

    pub(super) fn prepare(&self, repo: &Arc<Repo>, id: ImageId, read_only: bool) -> Result<PreparedImage> {
        let mut prepared = locked(&self.prepared);
        if let Some(entry) = prepared.iter().find(|entry| entry.is(repo, id)) {
            if entry.read_only != read_only {
                let how = if entry.read_only { "reading" } else { "writing" };
                return Err(in_use(repo, id, &format!("it is prepared here for {how}")));
            }
            return describe(repo, &entry.chain.chain, read_only);
        }
        let record = repo.visible_image(id)?;
        if !read_only && record.kind != Kind::Disk {
            let message =
                format!("image {id} in repository {:?} is a snapshot and cannot be written", repo.id);
            return Err(Error::new(ErrorKind::ReadOnlyImage, message).with("imageId", id.to_string()));
        }
        let read = chain::whole(repo, record.clone(), Read::Fresh)?;
        describe(repo, &read, read_only)?;
        if !without!("prepare.mirrors") {
            correct_mirrors(repo, &read)?;
        }
        let chain = if read_only {
            super::open_for_reading(repo, id)?
        } else {
            lease::take(repo, id, OpenMode::Prepare)?
        };
        let described = describe(repo, &chain.chain, read_only)?;
        prepared.push(PreparedHere { repo: Arc::clone(repo), image: id, read_only, chain });
        Ok(described)
    }

    pub(super) fn teardown(&self, repo: &Arc<Repo>, id: ImageId, force: bool) -> Result<()> {
        let mut prepared = locked(&self.prepared);
        let record = repo.visible_image(id)?;
        let here = prepared.iter().position(|entry| entry.is(repo, id));
        if let Some(entry) = here.and_then(|index| prepared.get(index))
            && entry.read_only
        {
            prepared.retain(|entry| !entry.is(repo, id));
            return Ok(());
        }
        let Some(open) = record.open.clone().filter(|open| open.mode == OpenMode::Prepare) else {
            return Ok(());
        };
        if !force {
            if repo.driver.qemu_use(record.volume)?.open && !without!("prepare.look.qemu") {
                return Err(in_use(repo, id, "a QEMU process has it open"));
            }
            if here.is_none() {
                if open.host != self.host_id && !without!("prepare.compare.host") {
                    return Err(lease::held(repo, id, &open));
                }
                // Another process of this host prepared it: it must be gone.
                let access = if without!("prepare.lock") { Access::Moment } else { Access::Lease };
                let lock = repo.driver.open_volume(record.volume, access);
                drop(lock.map_err(|e| e.context(format_args!("image {id} in repository {:?}", repo.id)))?);
            }
        }
        lease::clear(repo, id, |now| *now == open || without!("prepare.compare.open"))?;
        prepared.retain(|entry| !entry.is(repo, id));
        Ok(())
    }
}

/// Headers must name the volumes that the records mean before QEMU reads them.
fn correct_mirrors(repo: &Repo, chain: &Chain) -> Result<()> {
    for link in &chain.links {
        if !mirror::is_current(repo, &link.volume)? && !mirror::correct(repo, link.volume.id())? {
            let what = "a volume that it is spread over must be corrected, and somebody has it open";
            return Err(in_use(repo, chain.top().image.id(), what));
        }
    }
    Ok(())
}

fn describe(repo: &Repo, chain: &Chain, read_only: bool) -> Result<PreparedImage> {
    let mut files = Vec::with_capacity(chain.links.len());
    for link in &chain.links {
        let path = repo.driver.path(link.volume.id()).ok_or_else(|| {
            let message = format!("repository {:?} has no paths that QEMU could open", repo.id);
            Error::new(ErrorKind::UnsupportedOperation, message)
        })?;
        files.push((path.to_string_lossy().into_owned(), Format::from(link.volume.format)));
    }
    let format = Format::from(chain.top().volume.format).to_string();
    Ok(PreparedImage {
        path: files.first().map(|(path, _)| path.clone()).unwrap_or_default(),
        format,
        read_only,
        blockdev: blockdev(&files, chain.top().image.size, read_only),
        libvirt: libvirt(&files, read_only),
    })
}

/// QEMU's block nodes, the backing ones nested.
fn blockdev(files: &[(String, Format)], size: u64, read_only: bool) -> Value {
    let mut below = Value::Null;
    for (index, (path, format)) in files.iter().enumerate().rev() {
        let read_only = read_only || index > 0;
        let file = json!({"driver": "file", "filename": path, "read-only": read_only});
        let mut node = json!({"driver": format.to_string(), "read-only": read_only, "file": file});
        match format {
            Format::Qcow2 => node["backing"] = below,
            Format::Raw if index == 0 => node["size"] = size.into(),
            Format::Raw => {}
        }
        below = node;
    }
    below
}

fn libvirt(files: &[(String, Format)], read_only: bool) -> String {
    let mut xml = String::from("<disk type='file' device='disk'>");
    for (index, (path, format)) in files.iter().enumerate() {
        let path = escape(path);
        // Writing to a String cannot fail.
        let _ = match index {
            0 => write!(xml, "<driver name='qemu' type='{format}'/><source file='{path}'/>"),
            _ => write!(xml, "<backingStore type='file'><format type='{format}'/><source file='{path}'/>"),
        };
    }
    xml.push_str("<backingStore/>");
    xml.push_str(&"</backingStore>".repeat(files.len().saturating_sub(1)));
    if read_only {
        xml.push_str("<readonly/>");
    }
    xml.push_str("</disk>");
    xml
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&apos;")
}
