//! Who keeps an image busy.

use crate::Error;
use crate::id::{ImageId, Incarnation};
use crate::record::VolumeState;
use crate::repo::Repo;
use crate::repository::Liveness;

use super::chain::MAX_DEPTH;
use super::in_use;

/// The error for an image whose lock somebody else holds, with the host in its details as far as it can be told.
pub(crate) fn busy(repo: &Repo, id: ImageId) -> Error {
    named(repo, Some(id), in_use(repo, id, "another operation on it is under way"))
}

/// Adds the host of whoever works on the image, or on something else if it is about none.
pub(crate) fn named(repo: &Repo, id: Option<ImageId>, error: Error) -> Error {
    let worker = id.and_then(|id| line(repo, id).find_map(|id| worker(repo, id)));
    match worker.or_else(|| only_other(repo)) {
        Some(host) => error.with("host", host),
        None => error,
    }
}

/// The image and those that are built on it, each alone: whoever merges them says so of the one on top.
fn line(repo: &Repo, id: ImageId) -> impl Iterator<Item = ImageId> {
    std::iter::successors(Some(id), move |id| {
        let children = repo.driver.children(*id).ok()?;
        let [child] = children[..] else { return None };
        let holders = repo.driver.holders(child).ok()?;
        if let [holder] = holders[..] { Some(holder) } else { None }
    })
    .take(MAX_DEPTH)
}

/// A lock does not say who holds it; who fills a volume, merges or writes has said so in a record.
fn worker(repo: &Repo, id: ImageId) -> Option<String> {
    // It is told for people: what cannot be read is not told.
    let image = repo.image(id).ok()?;
    let held = image.as_ref().and_then(|image| image.open.as_ref());
    let progress = repo.progress(id).ok()?;
    let volume = image.as_ref().map(|image| image.next.unwrap_or(image.volume));
    let volume = volume.and_then(|volume| repo.volume(volume).ok()?);
    let owner =
        volume.filter(|volume| volume.state == VolumeState::Filling).map(|volume| volume.header.owner);
    let told = [
        progress.map(|progress| (progress.incarnation, progress.host)),
        owner.map(|owner| (owner.incarnation, owner.host)),
        held.map(|open| (open.incarnation, open.host.clone())),
    ];
    let mut told = told.into_iter().flatten().filter(|(incarnation, _)| is_another(repo, *incarnation));
    told.next().map(|(_, host)| host)
}

fn is_another(repo: &Repo, incarnation: Incarnation) -> bool {
    let lives = |incarnation| repo.driver.liveness(incarnation).is_ok_and(|it| it == Liveness::Alive);
    incarnation != repo.driver.host().incarnation && lives(incarnation)
}

/// The host of all other stores, if it is the same: nobody else can be meant.
fn only_other(repo: &Repo) -> Option<String> {
    let mut others = repo.driver.others().ok()?.into_iter().map(|host| host.host_id);
    let first = others.next()?;
    others.all(|other| other == first).then_some(first)
}
