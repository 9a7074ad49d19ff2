//! Resize: a disk grows. Crash at any point: the old size is served, and the same call again converges.

use std::sync::Arc;

use vdsmstore_io::{Image, Layer, without};

use crate::id::ImageId;
use crate::options::Strategy;
use crate::record::{Kind, VolumeFormat, VolumeRecord};
use crate::repo::{Change, Repo};
use crate::repository::{Access, OpenVolume};
use crate::{Error, ErrorKind, Result};

use super::chain::OpenChain;
use super::{add, chain, impossible_size, in_place, in_use, lease, lock_image, switch};

/// Makes the disk larger; the new bytes read as zeroes.
pub(crate) fn grow_disk(repo: &Repo, id: ImageId, size: u64) -> Result<()> {
    let _order = (!without!("resize.lock")).then(|| lock_image(repo, id)).transpose()?;
    let record = repo.visible_image(id)?;
    if record.kind != Kind::Disk {
        let message = format!("image {id} in repository {:?} is a snapshot, not a virtual disk", repo.id);
        return Err(Error::new(ErrorKind::NotADisk, message).with("imageId", id.to_string()));
    }
    if size < record.size {
        let message = format!(
            "image {id} in repository {:?} has {} bytes and cannot shrink to {size}",
            repo.id, record.size
        );
        return Err(Error::new(ErrorKind::InvalidSize, message)
            .with("imageId", id.to_string())
            .with("parameter", "size"));
    }
    if !without!("resize.lease") {
        lease::ensure_free(repo, &record)?;
    }
    if !record.freeze.is_empty() && !without!("resize.freeze") {
        switch::complete(repo, id)?;
    }
    if record.next.is_some() && !without!("resize.next") {
        lease::drop_next(repo, id)?;
    }
    let opened = chain::open(repo, id, Access::Write)?;
    let link = opened.chain.top();
    if size == link.image.size {
        return Ok(());
    }
    let mut volume = in_place::begin(repo, link.volume.id())?;
    let outcome = grow_opened(repo, &opened, &mut volume, size);
    // What was not written by now is not written any more.
    let ended = in_place::end(repo, volume.id());
    outcome.and(ended)
}

fn grow_opened(repo: &Repo, opened: &OpenChain, volume: &mut VolumeRecord, size: u64) -> Result<()> {
    let link = opened.chain.top();
    let id = link.image.id();
    let image = opened.image(true)?;
    // Bytes of the volume beyond the image may be old ones.
    let hidden = volume.size.min(size);
    if hidden > link.image.size && !without!("resize.zero") {
        let whole = top_layer(
            repo,
            &opened.volumes[0],
            volume,
            volume.size,
            opened.chain.layers(&opened.volumes).split_off(1),
        )?;
        whole.write_zeroes(link.image.size, hidden - link.image.size)?;
        if !without!("resize.flush.zero") {
            whole.flush()?;
        }
    }
    if size > volume.size {
        image.grow(size).map_err(|error| impossible_size(size, error))?;
        set_size(repo, volume, size)?;
    }
    if volume.format == VolumeFormat::Raw && link.image.strategy == Strategy::Performance {
        // Also what a resize that was broken off had grown already.
        let device = &opened.volumes[0].device;
        let (end, more) = (link.image.size, size - link.image.size);
        // What did not fit has taken all that there was: it goes back.
        device.allocate(end, more).inspect_err(|_| drop(device.write_zeroes(end, more)))?;
        if !without!("resize.flush.reserved") {
            device.flush()?;
        }
    }
    let grown = repo.update_image(id, |now| {
        if now.volume != volume.id() && !without!("resize.compare.volume")
            || !without!("resize.compare.held") && lease::is_held(repo, now)?
            || !now.freeze.is_empty() && !without!("resize.compare.freeze")
            // It would be too small.
            || now.next.is_some() && !without!("resize.compare.next")
        {
            return Err(in_use(repo, id, "it changed meanwhile"));
        }
        now.size = if without!("resize.compare.size") { size } else { now.size.max(size) };
        // A merge that lost its locks before would put the image on a volume that is too small.
        Ok(Change::Claim)
    })?;
    grown.map(drop).ok_or_else(|| repo.image_not_found(id))
}

/// Makes a volume that a merge writes into so large, with zeroes also where a longer image shows through it.
pub(crate) fn grow_volume(
    repo: &Repo,
    volume: &mut VolumeRecord,
    opened: &OpenVolume,
    size: u64,
) -> Result<()> {
    let below = match &volume.backing {
        None => Vec::new(),
        Some(backing) => chain::layers_of(repo, volume.id(), backing)?,
    };
    top_layer(repo, opened, volume, volume.size, below)?.grow(size)?;
    if size == volume.size { Ok(()) } else { set_size(repo, volume, size) }
}

fn top_layer(
    repo: &Repo,
    opened: &OpenVolume,
    volume: &VolumeRecord,
    size: u64,
    below: Vec<Layer>,
) -> Result<Image> {
    let mut layers = vec![Layer { device: Arc::clone(&opened.device), format: volume.format.into(), size }];
    layers.extend(below);
    chain::open_layers(layers, true, repo.memory)
}

fn set_size(repo: &Repo, volume: &mut VolumeRecord, size: u64) -> Result<()> {
    let id = volume.id();
    let grown = repo.update_volume(id, |now| {
        now.size = now.size.max(size);
        Ok(Change::Claim)
    })?;
    *volume = grown.ok_or_else(|| add::displaced(repo, id))?;
    Ok(())
}
