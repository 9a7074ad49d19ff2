//! Before anything is moved down: the images that go are flagged, and the lowest volume is made fit for what comes.

use vdsmstore_io::{Layer, RunKind, without};

use crate::Result;
use crate::graph::look::{Now, View};
use crate::graph::{chain, resize};
use crate::id::{ImageId, VolumeId};
use crate::record::{ImageRecord, State};
use crate::repo::{Change, Repo};
use crate::repository::{OpenVolume, Read};

use super::Line;

/// Flags the images that go, the topmost first: from its flag on, the data of an image counts only beneath the volume
/// right above it. While some are flagged and others are not yet, all of them still are exact; only when all are, the
/// lowest volume may be written. False: somebody came to need one of them. Those above it keep their flags: nobody but
/// the image above needs them, and a shorter line is merged later.
pub(super) fn all(repo: &Repo, line: &mut Line) -> Result<bool> {
    let count = line.lowers.len();
    for at in 0..count {
        let index = if without!("absorb.order") { at } else { count - 1 - at };
        let above = line.above(index).id();
        let lower = &mut line.lowers[index].image;
        if lower.state == State::Absorbed {
            continue;
        }
        let mut flagged = ImageRecord { state: State::Absorbed, absorbed_by: vec![above], ..lower.clone() };
        if !without!("absorb.flag") && !repo.claim(&mut flagged)? {
            return Ok(false);
        }
        // Who announced itself before the flag is seen now; who comes later sees the flag.
        let built = Now(repo, Read::Fresh).built_on(flagged.id())?;
        if !built.iter().all(|child| child.id() == above) && !without!("absorb.look") {
            let mut back = ImageRecord { state: lower.state, absorbed_by: Vec::new(), ..flagged };
            repo.replace(&mut back)?;
            return Ok(false);
        }
        *lower = flagged;
    }
    Ok(true)
}

/// Whether nothing else reads through an image that goes.
pub(super) fn is_alone(repo: &Repo, line: &Line) -> Result<bool> {
    if without!("absorb.look.seal") {
        return Ok(true);
    }
    for (index, lower) in line.lowers.iter().enumerate() {
        let built = Now(repo, Read::Fresh).built_on(lower.image.id())?;
        if built.iter().any(|child| child.id() != line.above(index).id()) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Before `new` is built on `base`, where `like` is built, all of whose clusters it has: should `base` be on its way into
/// another volume, it reads exactly through `new` as well.
pub(crate) fn permit(repo: &Repo, base: ImageId, like: VolumeId, new: VolumeId) -> Result<()> {
    repo.update_image(base, |now| {
        let absorbed = now.state == State::Absorbed && now.absorbed_by.contains(&like);
        if !absorbed || now.absorbed_by.contains(&new) || without!("absorb.permit") {
            return Ok(Change::Keep);
        }
        now.absorbed_by.push(new);
        Ok(Change::Put)
    })
    .map(drop)
}

/// Makes the lowest volume as large as the upper one, reading zeroes where it does not show through the others; also beyond its
/// end, where what is built on the upper one may be longer, and a program may have written.
pub(super) fn make_room(
    repo: &Repo,
    line: &mut Line,
    lower: &[OpenVolume],
    upper: &OpenVolume,
) -> Result<()> {
    hide(repo, line, lower, upper)?;
    let (old, new) = (line.lowest().volume.size, line.upper_volume.size);
    if old == new && without!("absorb.cut") {
        return Ok(());
    }
    resize::grow_volume(repo, &mut line.lowers[0].volume, &lower[0], old.max(new))
}

/// Zeroes what lies in the lowest volume beyond its part that shows, where nothing above covers it.
fn hide(repo: &Repo, line: &Line, lower: &[OpenVolume], upper: &OpenVolume) -> Result<()> {
    let (from, end) = (line.reach(), line.lowest().volume.size);
    if from >= end {
        return Ok(());
    }
    let source = chain::open_layers(line.layers(lower, upper), false, repo.memory)?;
    let volume = &line.lowest().volume;
    let own = Layer { device: lower[0].device.clone(), format: volume.format.into(), size: end };
    let below = line.backing().map(|backing| chain::layers_of(repo, volume.id(), backing)).transpose()?;
    let target =
        chain::open_layers([own].into_iter().chain(below.unwrap_or_default()).collect(), true, repo.memory)?;
    for run in source.runs(from, end - from) {
        let run = run?;
        if run.kind == RunKind::Hole && !without!("absorb.zero") {
            target.write_zeroes(run.offset, run.length)?;
        }
    }
    if without!("absorb.flush") {
        return Ok(());
    }
    Ok(target.flush()?)
}
