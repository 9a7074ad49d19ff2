//! The layout that a fill starts from.

use std::sync::Arc;

use vdsmstore_io::{Device, Layer, qcow2, without};

use crate::graph::{add, chain, impossible_size, lock_image, merge};
use crate::id::VolumeId;
use crate::record::{Backing, Fill, How, Kind, VolumeFormat, VolumeRecord, VolumeState};
use crate::repo::Repo;
use crate::repository::{Access, OpenVolume};
use crate::{Error, ErrorKind, Result};

/// Creates the data object and gives it the layout that the fill starts from.
pub(super) fn lay_out(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<OpenVolume> {
    if fill.how == How::Clone {
        let disk = match &fill.source {
            Some(source) => repo.image(source.image)?.filter(|image| image.kind == Kind::Disk),
            None => None,
        };
        let disk = disk.filter(|_| !without!("layout.lock"));
        let _order = disk.map(|disk| lock_image(repo, disk.id())).transpose()?;
        return lay_out_clone(repo, volume, fill);
    }
    let opened = repo.driver.create_volume(volume.id())?;
    if opened.device.len()? > 0 {
        // Now that nobody else has it: who lost it meanwhile finds it complete, and somebody else's.
        let now = repo.volume(volume.id())?.filter(|now| {
            let ours = repo.owns(&now.header) && now.header.epoch == volume.header.epoch;
            ours && now.state == VolumeState::Filling
        });
        now.ok_or_else(|| add::displaced(repo, volume.id()))?;
        opened.device.set_len(0)?;
        opened.device.flush()?;
    }
    match volume.format {
        VolumeFormat::Raw => {
            opened.device.set_len(volume.size)?;
            if fill.preallocate {
                opened.device.allocate(0, volume.size).or_else(|error| {
                    // What was had of a space that does not suffice is given back.
                    opened.device.set_len(0)?;
                    Err(error)
                })?;
            }
        }
        VolumeFormat::Qcow2 => {
            let name = match &volume.backing {
                Some(backing) => chain::mirror_of(repo, backing.image)?,
                None => None,
            };
            match longer_base(repo, volume)? {
                Some(backing) => create_hiding(repo, &opened, volume, backing, name)?,
                None => create_qcow2(&*opened.device, volume, name)?,
            }
            volume.mirror = name.map(|(id, _)| id);
        }
    }
    Ok(opened)
}

/// What the volume is built on, if that is shorter, and on a volume of which more would show: one whose growth was broken off
/// is longer than its image, and programs may have written there. Of what is not complete here yet nothing more can show.
fn longer_base<'a>(repo: &Repo, volume: &'a VolumeRecord) -> Result<Option<&'a Backing>> {
    let Some(backing) = volume.backing.as_ref().filter(|backing| backing.size < volume.size) else {
        return Ok(None);
    };
    if without!("layout.hide") {
        return Ok(None);
    }
    let Some((base, format)) = chain::mirror_of(repo, backing.image)? else { return Ok(None) };
    // Only its length is looked at.
    let device = match repo.driver.open_volume(base, Access::Moment) {
        Ok(opened) => opened.device,
        Err(error) if error.kind() == ErrorKind::ImageBroken => return Ok(None),
        Err(error) => return Err(error),
    };
    let length = match format {
        VolumeFormat::Raw => device.len()?,
        VolumeFormat::Qcow2 => qcow2::info(&*device)?.size,
    };
    Ok((length > backing.size).then_some(backing))
}

/// Writes a qcow2 image that ends where the image below it does, and grows from there: that hides what the volume below has
/// beyond, which only our own reading knows to leave out.
fn create_hiding(
    repo: &Repo,
    opened: &OpenVolume,
    volume: &VolumeRecord,
    backing: &Backing,
    name: Option<(VolumeId, VolumeFormat)>,
) -> Result<()> {
    let short = VolumeRecord { size: backing.size, ..volume.clone() };
    create_qcow2(&*opened.device, &short, name)?;
    let own = Layer { device: Arc::clone(&opened.device), format: volume.format.into(), size: backing.size };
    let mut layers = vec![own];
    layers.extend(chain::layers_of(repo, volume.id(), backing)?);
    let image = chain::open_layers(layers, true, repo.memory)?;
    image.grow(volume.size).map_err(|error| impossible_size(volume.size, error))?;
    Ok(image.flush()?)
}

/// Whether the image to be cloned still has the representation that the clone was announced with. (One that is not
/// there is for the clone itself to report.)
pub(super) fn can_clone(repo: &Repo, volume: &VolumeRecord, fill: &Fill) -> Result<bool> {
    let Some(source) = &fill.source else { return Ok(true) };
    let Some(image) = repo.image(source.image)? else { return Ok(true) };
    let Some(now) = repo.volume(image.volume)? else { return Ok(true) };
    let same = now.format == volume.format && now.backing == volume.backing;
    Ok(same || without!("layout.compare.announced"))
}

/// The data object as a clone of the source's volume, at this moment if that is a disk: its lock, which the caller
/// holds, keeps merges away.
pub(crate) fn lay_out_clone(repo: &Repo, volume: &mut VolumeRecord, fill: &Fill) -> Result<OpenVolume> {
    let source = fill.source.as_ref().ok_or_else(|| add::displaced(repo, volume.id()))?;
    let is_disk = repo.image(source.image)?.is_some_and(|image| image.kind == Kind::Disk);
    let access = if is_disk { Access::Moment } else { Access::Read };
    let chain = chain::open(repo, source.image, access)?;
    let top = &chain.chain.top().volume;
    if (top.format != volume.format || top.backing != volume.backing) && !without!("layout.compare.locked") {
        let message =
            format!("image {} changed its representation: the clone must be announced anew", source.image);
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let opened =
        repo.driver.clone_volume(&chain.volumes[0], volume.id(), &|| look_at_target(repo, volume))?;
    if let Some(backing) = volume.backing.as_ref().filter(|_| !without!("layout.permit")) {
        merge::permit(repo, backing.image, top.id(), volume.id())?;
    }
    if volume.format == VolumeFormat::Raw {
        let length = opened.device.len()?;
        // What it has beyond the image is none of the image's bytes.
        let shown = chain.chain.top().image.size.min(volume.size);
        if length > shown && !without!("layout.cut") {
            opened.device.set_len(shown)?;
        }
        if length != volume.size || shown != volume.size {
            opened.device.set_len(volume.size)?;
        }
    }
    volume.mirror = top.mirror;
    Ok(opened)
}

/// Whether the volume still is the caller's to fill. Another host may have completed it, and then its disk been written.
pub(crate) fn look_at_target(repo: &Repo, volume: &VolumeRecord) -> Result<()> {
    match repo.volume(volume.id())? {
        _ if without!("layout.look.target") => Ok(()),
        Some(now) if now.state == VolumeState::Filling && now.header.epoch == volume.header.epoch => Ok(()),
        _ => Err(add::displaced(repo, volume.id())),
    }
}

/// Writes an empty qcow2 image; its header names the volume of the backing image, or while that is not here, the image.
pub(crate) fn create_qcow2(
    device: &dyn Device,
    volume: &VolumeRecord,
    name: Option<(VolumeId, VolumeFormat)>,
) -> Result<()> {
    let backing = volume.backing.as_ref().map(|backing| match name {
        Some((id, format)) => qcow2::Backing { name: id.to_string(), format: format.into() },
        None => qcow2::Backing { name: backing.image.to_string(), format: VolumeFormat::Raw.into() },
    });
    let options = qcow2::CreateOptions { size: volume.size, backing, preallocate_metadata: false };
    qcow2::create(device, &options).map_err(|error| impossible_size(volume.size, error))
}
