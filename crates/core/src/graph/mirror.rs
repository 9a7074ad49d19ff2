//! The backing name in a qcow2 header mirrors the records, for QEMU.

use vdsmstore_io::{Device, qcow2, without};

use crate::id::{ImageId, VolumeId};
use crate::record::{VolumeFormat, VolumeRecord, VolumeState};
use crate::repo::{Change, Repo};
use crate::repository::Access;
use crate::{ErrorKind, Result};

use super::chain::mirror_of;
use super::in_place;

/// Whether the header of the volume names what the records say.
pub(crate) fn is_current(repo: &Repo, volume: &VolumeRecord) -> Result<bool> {
    let Some(backing) = &volume.backing else { return Ok(true) };
    let wanted = mirror_of(repo, backing.image)?;
    Ok(wanted.is_some() && volume.mirror == wanted.map(|(id, _)| id))
}

/// Corrects the header of one volume. False: it is in use, or its base is not here.
pub(crate) fn correct(repo: &Repo, id: VolumeId) -> Result<bool> {
    let Some(volume) = repo.volume(id)? else { return Ok(true) };
    let Some(backing) = &volume.backing else { return Ok(true) };
    if volume.state != VolumeState::Ready && !without!("mirror.compare.ready") {
        return Ok(true);
    }
    let Some((wanted, format)) = mirror_of(repo, backing.image)? else { return Ok(false) };
    if volume.mirror == Some(wanted) {
        return Ok(true);
    }
    let opened = match repo.driver.open_volume(id, Access::Write) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::ImageInUse => return Ok(false),
        Err(error) => return Err(error),
    };
    match in_place::begin(repo, id) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ImageInUse => return Ok(false),
        Err(error) => return Err(error),
    }
    write(&*opened.device, Some((wanted, format)))?;
    let me = repo.driver.host().incarnation;
    repo.update_volume(id, |now| {
        now.mirror = Some(wanted);
        now.writer = now.writer.filter(|writer| *writer != me);
        Ok(Change::Put)
    })?;
    Ok(true)
}

/// Makes a header name this volume, or none.
pub(crate) fn write(device: &dyn Device, name: Option<(VolumeId, VolumeFormat)>) -> Result<()> {
    let backing = name.map(|(id, format)| qcow2::Backing { name: id.to_string(), format: format.into() });
    Ok(qcow2::set_backing(device, backing.as_ref())?)
}

/// Corrects the headers of all volumes that are built on the image. Those in use are left to whoever prepares them.
pub(crate) fn correct_children(repo: &Repo, base: ImageId) -> Result<()> {
    for child in repo.driver.children(base)? {
        let built_on = repo
            .volume(child)?
            .and_then(|volume| volume.backing)
            .is_some_and(|backing| backing.image == base);
        if built_on {
            correct(repo, child)?;
        }
    }
    Ok(())
}
