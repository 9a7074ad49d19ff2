//! Mend: brings one image to the state that its records ask for, chosen from these records alone.

use std::sync::Arc;
use std::time::Duration;

use vdsmstore_io::without;

use crate::id::ImageId;
use crate::job::{Env, Job, Step};
use crate::record::{Fill, How, ImageRecord, Kind, Source, State, VolumeFormat, VolumeState};
use crate::repo::Repo;
use crate::repository::{Guard, Read};
use crate::{Error, ErrorKind, Result};

use super::chain::{self, Chain, Resolved};
use super::fill::{Filler, Start};
use super::look::Now;
use super::search::elsewhere;
use super::{add, busy, clean, mirror, replace, switch};

/// Pause before a busy image is looked at again.
const BUSY: Duration = Duration::from_millis(100);
/// Looks at a busy image before the task gives up: about five seconds.
const BUSY_LOOKS: u32 = 50;

/// The job that completes an image: as far as usable, or as far as its best representation.
pub(crate) struct Mend {
    repo: Arc<Repo>,
    image: ImageId,
    /// Go on to the best representation.
    optimize: bool,
    /// Part of another image's mending: it ends as soon as the image can be read, whoever completed it.
    is_base: bool,
    lock: Option<Box<dyn Guard>>,
    filler: Option<Box<Filler>>,
    base: Option<Box<Mend>>,
    bandwidth: Option<u64>,
    /// A copy that was stored without its base, on purpose, is to be completed from elsewhere all the same.
    fetch_partial: bool,
    /// How often it was busy, and how often that may be.
    busy: u32,
    patience: u32,
    /// The same for what it is built on.
    base_patience: u32,
}

impl Mend {
    pub fn new(repo: &Arc<Repo>, image: ImageId, optimize: bool) -> Self {
        Self {
            repo: Arc::clone(repo),
            image,
            optimize,
            is_base: false,
            lock: None,
            filler: None,
            base: None,
            bandwidth: None,
            fetch_partial: false,
            busy: 0,
            patience: BUSY_LOOKS,
            // Whoever works on that is waited for, as long as it takes.
            base_patience: u32::MAX,
        }
    }

    /// For a fix, which somebody decided to run: whatever can be whole becomes whole.
    #[must_use]
    pub fn thorough(mut self) -> Self {
        self.fetch_partial = true;
        self
    }

    /// For a fix, which somebody waits for: nobody is waited for long.
    #[must_use]
    pub fn impatient(mut self) -> Self {
        self.base_patience = BUSY_LOOKS;
        self
    }

    /// At most so many bytes per second, from now on and for whoever goes on.
    #[must_use]
    pub fn limited(mut self, bandwidth: Option<u64>) -> Self {
        self.bandwidth = bandwidth;
        self
    }

    /// First completes what the image is built on.
    fn mend_base(&mut self, base: ImageId) -> Step {
        let mut mend = Self::new(&self.repo, base, false);
        mend.is_base = true;
        (mend.patience, mend.base_patience) = (self.base_patience, self.base_patience);
        self.base = Some(Box::new(mend));
        // Nothing waits with a lock in its hands; what was seen under it is looked at again.
        self.lock = None;
        Step::Again
    }

    fn look(&mut self, env: &Env<'_>) -> Result<Step> {
        let Some(image) = self.repo.image(self.image)? else { return Ok(Step::Done) };
        if self.is_base && image.state == State::Live && image.next.is_none() {
            // Complete by now, whoever did it.
            return Ok(Step::Done);
        }
        if self.lock.is_none() && !without!("mend.lock") {
            self.lock = self.repo.driver.lock_image(self.image)?;
            if self.lock.is_none() {
                self.busy = self.busy.saturating_add(1);
                if self.busy > self.patience {
                    return Err(busy::busy(&self.repo, self.image));
                }
                return Ok(Step::Later(BUSY));
            }
            // Read again, now that nobody else works on it.
            if !without!("mend.reread") {
                return Ok(Step::Again);
            }
        }
        match image.state {
            State::Pending => self.pending(env, &image),
            State::Live => self.live(env, &image),
            State::Removed | State::Absorbed => {
                let message = format!("image {} in repository {:?} was removed", self.image, self.repo.id);
                Err(Error::new(ErrorKind::Stopped, message))
            }
        }
    }

    fn pending(&mut self, env: &Env<'_>, image: &ImageRecord) -> Result<Step> {
        let Some(volume) = self.repo.volume(image.volume)? else {
            return Err(chain::broken(&self.repo, self.image, "its volume has no record"));
        };
        match volume.state {
            VolumeState::Filling => {
                let stage = if self.optimize { "1/2" } else { "1/1" };
                match Filler::start(&self.repo, env, image, volume.clone(), stage, self.bandwidth)? {
                    Start::Filling(filler) => self.filler = Some(filler),
                    Start::Replaced => {}
                    Start::NotYet => {
                        let source = volume.fill.and_then(|fill| fill.source);
                        return Ok(source.map_or(Step::Done, |source| self.mend_base(source.image)));
                    }
                }
                Ok(Step::Again)
            }
            VolumeState::Ready => {
                if let Some(disk) = switch::disk_of(&self.repo, image)? {
                    // The disk's own lock orders this; ours would be in its way.
                    self.lock = None;
                    let _order = (!without!("mend.lock.disk"))
                        .then(|| super::lock_image(&self.repo, disk))
                        .transpose()?;
                    switch::complete(&self.repo, disk)?;
                } else if !without!("mend.compare.taken")
                    && switch::is_forsaken(&Now(&self.repo, Read::Fresh), image)?
                {
                    return Err(chain::broken(
                        &self.repo,
                        self.image,
                        "the call that was to take it never returned",
                    ));
                } else {
                    add::promote(&self.repo, self.image, volume.id(), volume.manifest.as_ref())?;
                }
                Ok(Step::Again)
            }
            VolumeState::Doomed => Err(chain::broken(&self.repo, self.image, "its volume is being deleted")),
        }
    }

    fn live(&mut self, env: &Env<'_>, image: &ImageRecord) -> Result<Step> {
        if !image.freeze.is_empty() {
            switch::complete(&self.repo, self.image)?;
            return Ok(Step::Again);
        }
        if let Some(next) = image.next {
            let Some(volume) = self.repo.volume(next)? else {
                return Err(chain::broken(&self.repo, self.image, "its next volume has no record"));
            };
            if volume.state == VolumeState::Ready {
                replace::seal(&self.repo, image)?;
            } else {
                let stage = if self.optimize { "2/2" } else { "1/1" };
                if let Start::Filling(filler) =
                    Filler::start(&self.repo, env, image, volume, stage, self.bandwidth)?
                {
                    self.filler = Some(filler);
                }
            }
            return Ok(Step::Again);
        }
        let whole = match chain::resolve(&Now(&self.repo, Read::Fresh), image.clone())? {
            Resolved::Whole(chain) => chain,
            Resolved::Broken(partial, _) => {
                return match self.complete_base(&partial)? {
                    Some(step) => Ok(step),
                    // Its own data is lost.
                    None if partial.links.is_empty() => self.fetch(env, image),
                    // It may have been stored without its base on purpose: that base makes it whole.
                    None if !self.fetch_partial => Ok(Step::Done),
                    None => self.fetch(env, image),
                };
            }
        };
        let top = &whole.top().volume;
        if !mirror::is_current(&self.repo, top)? {
            mirror::correct(&self.repo, top.id())?;
        }
        if self.optimize && replace::begin(&self.repo, &whole)? {
            return Ok(Step::Again);
        }
        Ok(Step::Done)
    }

    /// A snapshot that cannot be read here gets a new volume, filled from another repository, if one has it.
    fn fetch(&self, env: &Env<'_>, image: &ImageRecord) -> Result<Step> {
        if image.kind != Kind::Snapshot {
            return Ok(Step::Done);
        }
        let Some(other) = elsewhere(&env.repos, &self.repo, self.image)? else { return Ok(Step::Done) };
        let source = Source { repo: other.driver.repository_nonce(), image: self.image, token: image.token };
        let fill = Fill { source: Some(source), ..Fill::simple(How::Copy) };
        let volume = add::NewVolume {
            format: VolumeFormat::Raw,
            size: image.size,
            backing: None,
            fill,
            partial: false,
        };
        replace::refill(&self.repo, image, volume)?;
        Ok(Step::Again)
    }

    /// What the image is built on, if it is being made, or made anew, in this repository.
    fn complete_base(&mut self, partial: &Chain) -> Result<Option<Step>> {
        let below = partial.links.iter().skip(1).map(|link| &link.image);
        let renewed = below.filter(|image| image.next.is_some()).map(ImageRecord::id).next();
        let last =
            partial.links.last().and_then(|link| link.volume.backing.as_ref()).map(|backing| backing.image);
        let Some(missing) = renewed.or(last) else { return Ok(None) };
        let coming = self
            .repo
            .image(missing)?
            .is_some_and(|image| image.state == State::Pending || image.next.is_some());
        Ok(coming.then(|| self.mend_base(missing)))
    }

    fn fill(&mut self, env: &Env<'_>) -> Result<Step> {
        let Some(filler) = &mut self.filler else { return Ok(Step::Again) };
        let step = filler.step(env)?;
        if step != Step::Done {
            return Ok(step);
        }
        let volume = filler.volume().clone();
        let image = self.repo.image(self.image)?.ok_or_else(|| self.repo.image_not_found(self.image))?;
        if image.state == State::Pending {
            add::seal(&self.repo, self.image, &volume)?;
            self.filler = None;
            self.sealed(&image, &volume)?;
        } else if image.next == Some(volume.id()) || without!("mend.compare.filled") {
            add::ready(&self.repo, &volume)?;
            self.filler = None;
            replace::seal(&self.repo, &image)?;
        } else {
            // Another host took over, and it is filling another one.
            return Err(add::displaced(&self.repo, volume.id()));
        }
        Ok(Step::Again)
    }

    /// What a new image lets go of, and what waited for it.
    fn sealed(&self, image: &ImageRecord, volume: &crate::record::VolumeRecord) -> Result<()> {
        if let Some(blob) = volume.fill.as_ref().and_then(|fill| fill.blob) {
            self.repo.driver.delete_blob(self.image, blob)?;
        }
        if image.kind == Kind::Snapshot {
            mirror::correct_children(&self.repo, self.image)?;
        }
        Ok(())
    }
}

impl Job for Mend {
    fn step(&mut self, env: &Env<'_>) -> Result<Step> {
        if let Some(base) = &mut self.base {
            let step = base.step(env)?;
            if step != Step::Done {
                return Ok(step);
            }
            self.base = None;
            return Ok(Step::Again);
        }
        if self.filler.is_some() { self.fill(env) } else { self.look(env) }
    }

    fn failed(&mut self, error: &Error) {
        if let Some(base) = &mut self.base {
            base.failed(error);
        }
        match &self.filler {
            Some(filler) => filler.failed(error),
            // Whoever works on it says what becomes of that.
            None if self.lock.is_none() && error.kind() == ErrorKind::ImageInUse => {}
            None => super::fill::persist_error(&self.repo, self.image, error),
        }
    }
}

/// The job that gives back the space of a removed image.
pub(crate) struct Clean {
    pub repo: Arc<Repo>,
    pub image: ImageId,
}

impl Job for Clean {
    fn step(&mut self, _: &Env<'_>) -> Result<Step> {
        // Whoever still works on it stops at its next look.
        let order = self.repo.driver.lock_image(self.image)?;
        if order.is_none() && !without!("mend.lock.clean") {
            return Ok(Step::Later(BUSY));
        }
        clean::image(&self.repo, self.image)?;
        Ok(Step::Done)
    }

    fn failed(&mut self, _: &Error) {
        // What is left over is found by looking.
    }
}
