//! Check: what is wrong with a repository, or could be better, found by looking. Takes no locks, changes nothing.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;
use vdsmstore_io::without;

use crate::fix::{self, Action, Cost, Fix};
use crate::graph::chain::{Chain, Resolved, resolve};
use crate::graph::look::{Everything, Now, View, each, each_quickly};
use crate::graph::merge;
use crate::graph::search::elsewhere;
use crate::graph::{clean, in_place, lease, mirror, switch};
use crate::id::{BlobId, ImageId, VolumeId};
use crate::record::{ImageRecord, Kind, State, VolumeState};
use crate::repo::Repo;
use crate::repository::{Marker, Read};
use crate::{Error, ErrorKind, Result, Status};

/// Fixes that a thread takes at a time.
const FEW: usize = 16;

/// Lists the fixes of a repository.
pub(crate) fn check(repo: &Arc<Repo>, repos: &[Arc<Repo>], exact: bool) -> Result<Vec<Fix>> {
    let all = Everything::read(repo)?;
    let judge = Judge { repo, repos, view: &all, respects_holders: true };
    let images: Vec<_> = all.images.values().collect();
    let found = each_quickly(&images, |image| {
        // One merge takes a whole line of images.
        let action = judge.image(image)?;
        let again = matches!(action, Some(Action::Merge(_))) && !merge::is_lowest(&all, image)?;
        Ok(action.filter(|_| !again))
    })?;
    let mut actions: Vec<_> = found.into_iter().flatten().collect();
    let volumes: Vec<_> = all.volumes.keys().copied().collect();
    actions.extend(each_quickly(&volumes, |id| judge.volume(*id))?.into_iter().flatten());
    let unrecorded =
        all.objects.iter().filter(|id| !all.volumes.contains_key(id) && !all.corrupt.contains(&id.0));
    actions.extend(unrecorded.map(|id| Action::CleanObject(*id)));
    actions.extend(each_quickly(&all.markers, |marker| judge.marker(*marker))?.into_iter().flatten());
    for (image, blob) in &all.blobs {
        actions.extend(judge.blob(*image, *blob)?);
    }
    for image in &all.progress {
        actions.extend(judge.progress(*image)?);
    }
    actions.extend((all.leftovers > 0).then_some(Action::Sweep));
    // The pieces were read one after the other, and others go on working: only what is still so is listed.
    let fixes = each(&actions, FEW, |&action| {
        // What is left over was looked for at one go.
        let lasts = action == Action::Sweep
            || without!("check.reread")
            || needs_now(repo, repos, action, Read::Relaxed, true)? == Some(action);
        lasts.then(|| describe(repo, repos, &all, action, exact)).transpose()
    })?;
    let mut seen = BTreeSet::new();
    Ok(fixes.into_iter().flatten().filter(|fix| seen.insert(fix.data.to_string())).collect())
}

/// What one object needs now, as a check would list it.
pub(crate) fn needs(repo: &Arc<Repo>, repos: &[Arc<Repo>], action: Action) -> Result<Option<Action>> {
    needs_now(repo, repos, action, Read::Fresh, true)
}

/// Whether what a fix says is to be done now. Not if its object needs nothing; `FixRefused` if it needs another work,
/// `ImageInUse` if it needs this one, but not before somebody lets go of it.
pub(crate) fn is_needed(repo: &Arc<Repo>, repos: &[Arc<Repo>], action: Action) -> Result<bool> {
    match needs(repo, repos, action)? {
        None if needs_now(repo, repos, action, Read::Fresh, false)? == Some(action) => {
            match blocked(repo, action)? {
                Some(error) => Err(error),
                // Let go of meanwhile.
                None => is_needed(repo, repos, action),
            }
        }
        None => Ok(false),
        Some(needed) if needed == action || without!("check.compare.stale") => Ok(true),
        // Somebody completed it; that it could be better still is another fix.
        Some(Action::Optimize(_)) if matches!(action, Action::Mend(_)) => Ok(false),
        // Somebody merged it; that the rest of it is to be cleaned is another fix.
        Some(Action::CleanImage(_)) if matches!(action, Action::Merge(_)) => Ok(false),
        // It has begun: the new volume is there, and is to be completed.
        Some(Action::Mend(id)) if action == Action::Optimize(id) && is_being_replaced(repo, id)? => Ok(true),
        Some(needed) => {
            let message = format!("fix refused: it is stale, what is needed now is {needed:?}");
            Err(Error::new(ErrorKind::FixRefused, message))
        }
    }
}

fn is_being_replaced(repo: &Repo, id: ImageId) -> Result<bool> {
    Ok(repo.image(id)?.is_some_and(|image| image.next.is_some()))
}

/// The error for work that waits for the holder of an image.
fn blocked(repo: &Repo, action: Action) -> Result<Option<Error>> {
    let now = Now(repo, Read::Fresh);
    let Some(image) = action.image().map(|id| now.image(id)).transpose()?.flatten() else { return Ok(None) };
    let held = match action {
        Action::Merge(_) => merge::candidate(&now, &image)?.map(|line| line.upper),
        _ => Some(image),
    };
    let Some(image) = held else { return Ok(None) };
    Ok(lease::ensure_free(repo, &image).err())
}

fn needs_now(
    repo: &Arc<Repo>,
    repos: &[Arc<Repo>],
    action: Action,
    read: Read,
    respects_holders: bool,
) -> Result<Option<Action>> {
    let now = Now(repo, read);
    let judge = Judge { repo, repos, view: &now, respects_holders };
    match action {
        Action::Mend(id) | Action::Optimize(id) | Action::Merge(id) | Action::CleanImage(id) => {
            match now.image(id)? {
                Some(image) => judge.image(&image),
                None => Ok(None),
            }
        }
        Action::CleanVolume(id) => judge.volume(id),
        Action::CleanObject(id) => judge.object(id),
        Action::CleanMarker(marker) => {
            let there = match marker {
                Marker::Child(image, volume) => now.children(image)?.contains(&volume),
                Marker::Holder(volume, image) => now.holders(volume)?.contains(&image),
            };
            if there { judge.marker(marker) } else { Ok(None) }
        }
        Action::CleanBlob(image, blob) if repo.driver.blobs(image)?.contains(&blob) => {
            judge.blob(image, blob)
        }
        Action::CleanProgress(id) if repo.driver.get_progress(id)?.is_some() => judge.progress(id),
        Action::CleanBlob(..) | Action::CleanProgress(_) => Ok(None),
        Action::Sweep => Ok((repo.driver.leftovers()? > 0).then_some(Action::Sweep)),
    }
}

/// What counts instead if a record that decides cannot be understood: what hangs on it is left alone.
fn unless_bad(answer: Result<bool>, instead: bool) -> Result<bool> {
    match answer {
        Err(error) if error.is_bad_record() => Ok(instead),
        other => other,
    }
}

struct Judge<'a, V> {
    repo: &'a Arc<Repo>,
    repos: &'a [Arc<Repo>],
    view: &'a V,
    /// What somebody holds needs nothing: he completes it, or lets go of it.
    respects_holders: bool,
}

impl<V: View> Judge<'_, V> {
    fn image(&self, image: &ImageRecord) -> Result<Option<Action>> {
        let id = image.id();
        let outcome = match image.state {
            State::Pending => self.pending(image),
            State::Live if image.kind != Kind::Hidden => self.live(image),
            State::Live | State::Removed | State::Absorbed => self.unwanted(image),
        };
        match outcome {
            // What hangs on a record that cannot be understood is left alone.
            Err(error) if error.is_bad_record() => Ok(None),
            Err(error) => Err(error.context(format_args!("image {id}"))),
            Ok(action) => Ok(action),
        }
    }

    fn pending(&self, image: &ImageRecord) -> Result<Option<Action>> {
        let id = image.id();
        let volume = self.view.volume(image.volume)?;
        Ok(Some(match volume.map(|volume| volume.state) {
            // The volume has a fix of its own.
            Some(VolumeState::Doomed) if self.view.object(image.volume)? => return Ok(None),
            None | Some(VolumeState::Doomed) => Action::CleanImage(id),
            Some(VolumeState::Ready) if switch::is_forsaken(self.view, image)? => Action::CleanImage(id),
            Some(VolumeState::Filling | VolumeState::Ready) => Action::Mend(id),
        }))
    }

    fn live(&self, image: &ImageRecord) -> Result<Option<Action>> {
        let id = image.id();
        if self.is_held(image)? {
            return Ok(None);
        }
        if !image.freeze.is_empty() || image.next.is_some() {
            return Ok(Some(Action::Mend(id)));
        }
        let fetch = || -> Result<Option<Action>> {
            let there = image.kind == Kind::Snapshot
                && !self.is_kept(image.volume, self.view.volume_state(image.volume)?)?
                && elsewhere(self.repos, self.repo, id)?.is_some();
            Ok(there.then_some(Action::Mend(id)))
        };
        match resolve(self.view, image.clone())? {
            Resolved::Broken(partial, _) => {
                // What it is built on has a fix of its own. One that is not here may come, or the image be fetched.
                let base = match partial.base() {
                    Some(base) => self.view.image(base)?,
                    None => None,
                };
                let waits = match base {
                    Some(base) if base.state == State::Pending => true,
                    Some(base) => base.visible() && elsewhere(self.repos, self.repo, base.id())?.is_some(),
                    None => false,
                };
                if waits { Ok(None) } else { fetch() }
            }
            Resolved::Whole(chain) => {
                // A header that another host may still write is not corrected: the image gets another volume.
                let corrects = || in_place::is_doubtful(self.repo, &chain.top().volume).map(|doubt| !doubt);
                if !self.is_mirrored(&chain)? && corrects()? {
                    return Ok(Some(Action::Mend(id)));
                }
                Ok((chain.status(self.repo)? == Status::Degraded).then_some(Action::Optimize(id)))
            }
        }
    }

    fn is_held(&self, image: &ImageRecord) -> Result<bool> {
        Ok(self.respects_holders && lease::holder(self.repo, image)?.is_some())
    }

    fn is_mirrored(&self, chain: &Chain) -> Result<bool> {
        let volume = &chain.top().volume;
        let Some(base) = chain.links.get(1) else { return Ok(true) };
        Ok(volume.mirror == Some(base.volume.id()) || mirror::is_current(self.repo, volume)?)
    }

    fn unwanted(&self, image: &ImageRecord) -> Result<Option<Action>> {
        let id = image.id();
        // One that was flagged to be buried, and then its host died, gets its state back by the same fix.
        let flagged = image.state == State::Absorbed && image.absorbed_by.is_empty();
        if flagged || self.view.built_on(id)?.is_empty() {
            return Ok(Some(Action::CleanImage(id)));
        }
        let Some(line) = merge::candidate(self.view, image)? else { return Ok(None) };
        // A removed image on top goes first; one that is in use is waited for.
        if self.goes(&line.upper)? || self.is_held(&line.upper)? {
            return Ok(None);
        }
        // Where storage lost data there is nothing to merge.
        for volume in line.volumes() {
            if !self.view.object(volume)? {
                return Ok(None);
            }
        }
        Ok(Some(Action::Merge(id)))
    }

    /// Whether the image is removed and no other one is built on it: what is, nobody holds.
    fn goes(&self, image: &ImageRecord) -> Result<bool> {
        if image.state != State::Removed {
            return Ok(false);
        }
        for volume in self.view.built_on(image.id())? {
            if !self.view.held_by(volume.id())?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn volume(&self, id: VolumeId) -> Result<Option<Action>> {
        let wrong = || -> Result<bool> {
            let state = self.view.volume_state(id)?;
            Ok(state.is_some() && (!self.view.is_held(id)? || self.is_kept(id, state)?))
        };
        Ok(unless_bad(wrong(), false)?.then_some(Action::CleanVolume(id)))
    }

    /// Whether a volume that somebody points at was about to be deleted, and is there: the same fix keeps it.
    fn is_kept(&self, id: VolumeId, state: Option<VolumeState>) -> Result<bool> {
        Ok(state == Some(VolumeState::Doomed) && self.view.object(id)?)
    }

    fn object(&self, id: VolumeId) -> Result<Option<Action>> {
        // An image that points at it has lost the record only: these are its bytes.
        let garbage = || -> Result<bool> {
            Ok(!self.view.is_held(id)? && self.view.object(id)? && self.view.volume_state(id)?.is_none())
        };
        Ok(unless_bad(garbage(), false)?.then_some(Action::CleanObject(id)))
    }

    fn marker(&self, marker: Marker) -> Result<Option<Action>> {
        let borne_out = match marker {
            Marker::Child(image, volume) => unless_bad(self.view.builds_on(volume, image), true)?,
            // While the volume is there, its own cleaning takes the marker along.
            Marker::Holder(volume, image) => {
                unless_bad(self.view.holds(image, volume), true)? || self.cleans(volume)?
            }
        };
        Ok((!borne_out).then_some(Action::CleanMarker(marker)))
    }

    fn cleans(&self, volume: VolumeId) -> Result<bool> {
        Ok(self.volume(volume)?.is_some())
    }

    fn blob(&self, owner: ImageId, blob: BlobId) -> Result<Option<Action>> {
        let image = match self.view.image(owner) {
            Err(error) if error.is_bad_record() => return Ok(None),
            other => other?,
        };
        let named = match &image {
            None => false,
            Some(image) => clean::blobs_of(self.view, image)?.contains(&blob),
        };
        Ok((!named).then_some(Action::CleanBlob(owner, blob)))
    }

    fn progress(&self, id: ImageId) -> Result<Option<Action>> {
        let image = match self.view.image(id) {
            Err(error) if error.is_bad_record() => return Ok(None),
            other => other?,
        };
        let unfinished = match &image {
            None => false,
            Some(image) => image.state == State::Pending || image.next.is_some() || self.is_merging(image)?,
        };
        Ok((!unfinished).then_some(Action::CleanProgress(id)))
    }
}

impl<V: View> Judge<'_, V> {
    /// Whether what the image is built on is to be merged with it: its progress is that of the merge.
    fn is_merging(&self, image: &ImageRecord) -> Result<bool> {
        let base =
            self.view.volume(image.volume)?.and_then(|volume| volume.backing).map(|backing| backing.image);
        let Some(base) = base else { return Ok(false) };
        let Some(lower) = self.view.image(base)? else { return Ok(false) };
        Ok(merge::candidate(self.view, &lower)?.is_some_and(|line| line.upper.id() == image.id()))
    }
}

/// The fix as callers get it.
fn describe(
    repo: &Arc<Repo>,
    repos: &[Arc<Repo>],
    all: &Everything,
    action: Action,
    exact: bool,
) -> Result<Fix> {
    let observed = observed(all, action);
    Ok(Fix {
        fix_type: action.fix_type(),
        image_id: action.image(),
        description: text(all, action),
        cost: match fix::cost(repo, repos, all, action, exact) {
            // It went while the check was looking; so will the fix.
            Err(error) if matches!(error.kind(), ErrorKind::ImageBroken | ErrorKind::ImageNotFound) => {
                Cost::default()
            }
            other => other?,
        },
        data: fix::write(repo.driver.repository_nonce(), action, observed),
    })
}

fn observed(all: &Everything, action: Action) -> Vec<(Uuid, u64)> {
    let image = action.image().and_then(|id| all.images.get(&id));
    let volume = match action {
        Action::CleanVolume(id) => Some(id),
        _ => image.map(|image| image.volume),
    };
    let volume = volume.and_then(|id| all.volumes.get(&id));
    let headers = image.map(|image| &image.header).into_iter().chain(volume.map(|volume| &volume.header));
    headers.map(|header| (header.id, header.generation)).collect()
}

/// How many images go in a merge.
fn merged(all: &Everything, id: ImageId) -> usize {
    let line = all.images.get(&id).map(|image| merge::candidate(all, image));
    match line {
        Some(Ok(Some(line))) => line.lowers.len(),
        _ => 1,
    }
}

fn text(all: &Everything, action: Action) -> String {
    let kind = |id: ImageId| match all.images.get(&id).map(|image| image.kind) {
        Some(Kind::Disk) => "virtual disk",
        Some(Kind::Snapshot) => "snapshot",
        _ => "inner image",
    };
    match action {
        Action::Mend(id) => format!("complete {} {id}", kind(id)),
        Action::Optimize(id) => format!("give {} {id} its best representation", kind(id)),
        Action::Merge(id) => match merged(all, id) {
            1 => format!("merge the removed image {id} with the one that is built on it"),
            count => {
                format!("merge {count} removed images, from {id} up, with the one that is built on them")
            }
        },
        Action::CleanImage(id) => format!("remove what is left of image {id}"),
        Action::CleanVolume(id) if matches!(all.is_held(id), Ok(true)) => {
            format!("keep volume {id}, which an image came to use before it was deleted")
        }
        Action::CleanVolume(id) => format!("remove volume {id}, which no image uses"),
        Action::CleanObject(id) => format!("remove data object {id}, which has no record"),
        Action::CleanMarker(Marker::Child(image, volume)) => {
            format!("forget that volume {volume} might be built on image {image}")
        }
        Action::CleanMarker(Marker::Holder(volume, image)) => {
            format!("forget that image {image} might use volume {volume}")
        }
        Action::CleanBlob(image, _) => format!("remove text of image {image} that is not used any more"),
        Action::CleanProgress(id) => format!("forget the progress of image {id}, which is complete"),
        Action::Sweep => "remove temporary files of stores that are gone".to_owned(),
    }
}
