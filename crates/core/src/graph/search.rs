//! Where an image is: the target repository first, then the others in order of connection.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::ImageId;
use crate::record::{ImageRecord, Kind, State};
use crate::repo::Repo;
use crate::repository::Read;
use crate::{Error, ErrorKind, Result};

use super::chain::{Resolved, resolve};
use super::look::Now;

/// Which repositories are searched, in order.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub repos: Vec<Arc<Repo>>,
    pub hints: BTreeMap<ImageId, String>,
    pub participating: Option<Vec<String>>,
}

/// An image that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub repo: Arc<Repo>,
    pub record: ImageRecord,
}

impl Search {
    /// The repositories where the image may be, the target first.
    fn places(&self, target: &Arc<Repo>, id: ImageId) -> Result<Vec<Arc<Repo>>> {
        let connected = |name: &String| {
            self.repos.iter().find(|repo| repo.id == *name).cloned().ok_or_else(|| {
                let message = format!("no repository is connected under the name {name:?}");
                Error::new(ErrorKind::RepositoryNotFound, message).with("repoId", name.clone())
            })
        };
        if let Some(name) = self.hints.get(&id) {
            return Ok(vec![connected(name)?]);
        }
        let mut places: Vec<_> = match &self.participating {
            None => self.repos.clone(),
            Some(names) => names.iter().map(connected).collect::<Result<_>>()?,
        };
        if let Some(index) = places.iter().position(|repo| Arc::ptr_eq(repo, target)) {
            let target = places.remove(index);
            places.insert(0, target);
        } else if self.participating.is_none() {
            places.insert(0, Arc::clone(target));
        }
        Ok(places)
    }

    /// The first usable image of that id; if there is none, the first that is there at all is reported as broken.
    pub fn find(&self, target: &Arc<Repo>, id: ImageId) -> Result<Found> {
        let mut broken = None;
        for repo in self.places(target, id)? {
            let Some(record) = repo.image(id)? else { continue };
            if record.kind == Kind::Hidden
                || record.state == State::Removed
                || record.state == State::Absorbed
            {
                continue;
            }
            match resolve(&Now(&repo, Read::Fresh), record.clone())? {
                Resolved::Whole(_) => return Ok(Found { repo, record }),
                Resolved::Broken(_, reason) => {
                    broken.get_or_insert_with(|| super::chain::broken(&repo, id, &reason));
                }
            }
        }
        Err(broken.unwrap_or_else(|| {
            Error::new(ErrorKind::ImageNotFound, format!("no connected repository has image {id}"))
                .with("imageId", id.to_string())
        }))
    }
}

/// A whole image of this id outside `except`, for reading its data: snapshots only, whose id names the data.
pub(crate) fn elsewhere(repos: &[Arc<Repo>], except: &Arc<Repo>, id: ImageId) -> Result<Option<Arc<Repo>>> {
    for repo in repos.iter().filter(|repo| !Arc::ptr_eq(repo, except)) {
        let Some(record) = repo.image(id)? else { continue };
        if record.kind != Kind::Disk
            && record.can_back()
            && matches!(resolve(&Now(repo, Read::Fresh), record)?, Resolved::Whole(_))
        {
            return Ok(Some(Arc::clone(repo)));
        }
    }
    Ok(None)
}
