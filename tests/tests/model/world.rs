//! What must be: a byte vector per image and repository, and the rules of the API for what each call does to them.

use std::collections::{BTreeMap, BTreeSet};

use vdsmstore_core::ErrorKind;

/// What is known of an image's usability.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Usable for ever.
    Whole,
    /// A snapshot of this disk that was only announced; `may`: something may have completed it. Not `sure`: the call
    /// never returned, and it may vanish.
    Announced { disk: String, may: bool, sure: bool },
    /// Only intended, or its work failed; a snapshot becomes `then` when it is copied again.
    Pending { then: Option<Box<State>> },
    /// A copy of this disk that was only intended, or not finished: any one of these moments may become it.
    Adrift { repo: usize, source: String, moments: Vec<Vec<u8>> },
    /// A copy whose base is to come.
    Partial { base: String },
}

#[derive(Clone, Debug)]
pub struct Img {
    pub disk: bool,
    pub data: Vec<u8>,
    pub user: String,
    pub state: State,
}

pub struct Open {
    pub store: usize,
    pub repo: usize,
    pub id: String,
    pub writable: bool,
}

/// The error kinds that a call may answer with; none: it succeeds.
pub type Expect<T> = Result<T, Vec<ErrorKind>>;

#[derive(Default)]
pub struct Model {
    pub repos: [BTreeMap<String, Img>; 2],
    /// Snapshots that once were in the repository: as long as something is built on one, its data is still there.
    pub were: [BTreeSet<String>; 2],
    pub open: Vec<Open>,
    /// The storage clones: of a disk that is being written, too.
    pub clones: bool,
    /// Ids that were removed, to be asked for again.
    pub removed: Vec<(usize, String)>,
}

/// The base of a copy.
pub enum Base {
    None,
    /// A disk in the target: it is frozen, which fails if it is in use.
    Disk(String),
    Snapshot(String),
}

impl Model {
    pub fn get(&self, repo: usize, id: &str) -> Option<&Img> {
        self.repos[repo].get(id)
    }

    /// What is known of the images of a repository.
    pub fn states(&self, repo: usize) -> Vec<(String, State)> {
        let unfinished = self.repos[repo].iter().filter(|(_, image)| image.state != State::Whole);
        unfinished.map(|(id, image)| (id.clone(), image.state.clone())).collect()
    }

    pub fn ids(&self) -> Vec<(usize, String)> {
        let live = (0..2).flat_map(|repo| self.repos[repo].keys().map(move |id| (repo, id.clone())));
        live.collect()
    }

    pub fn insert(&mut self, repo: usize, id: String, image: Img) {
        if !image.disk {
            self.were[repo].insert(id.clone());
        }
        self.repos[repo].insert(id, image);
    }

    /// Whether an image can be read now.
    pub fn usable(&self, repo: usize, id: &str) -> bool {
        let mut id = id;
        for _ in 0..=self.repos[repo].len() {
            match self.repos[repo].get(id).map(|image| &image.state) {
                Some(State::Whole) => return true,
                Some(State::Partial { base }) => id = base,
                _ => return false,
            }
        }
        false
    }

    /// Where an image is found: the target first.
    pub fn find(&self, target: usize, id: &str) -> Expect<usize> {
        let places = [target, 1 - target];
        if let Some(repo) = places.into_iter().find(|&repo| self.usable(repo, id)) {
            return Ok(repo);
        }
        let there = places.into_iter().any(|repo| self.get(repo, id).is_some());
        Err(vec![if there { ErrorKind::ImageBroken } else { ErrorKind::ImageNotFound }])
    }

    pub fn is_open(&self, repo: usize, id: &str) -> bool {
        self.open.iter().any(|open| open.repo == repo && open.id == id)
    }

    pub fn is_open_for_writing(&self, repo: usize, id: &str) -> bool {
        self.open.iter().any(|open| open.writable && open.repo == repo && open.id == id)
    }

    pub fn has_open_disk(&self, repo: usize) -> bool {
        let is_disk = |id: &str| self.get(repo, id).is_some_and(|image| image.disk);
        self.open.iter().any(|open| open.repo == repo && is_disk(&open.id))
    }

    /// A snapshot of it is a clone of the moment at which it is made, because somebody writes it.
    pub fn is_cloned_while_written(&self, repo: usize, id: &str) -> bool {
        self.clones && self.is_open_for_writing(repo, id)
    }

    /// The image exists, and is a disk that can be written now.
    pub fn writable(&self, repo: usize, id: &str) -> Expect<()> {
        let image = self.get(repo, id).ok_or(vec![ErrorKind::ImageNotFound])?;
        if !image.disk {
            return Err(vec![ErrorKind::ReadOnlyImage]);
        }
        if self.is_open(repo, id) {
            return Err(vec![ErrorKind::ImageInUse]);
        }
        if self.usable(repo, id) { Ok(()) } else { Err(vec![ErrorKind::ImageBroken]) }
    }

    pub fn readable(&self, repo: usize, id: &str) -> Expect<()> {
        self.get(repo, id).ok_or(vec![ErrorKind::ImageNotFound])?;
        if self.is_open_for_writing(repo, id) {
            return Err(vec![ErrorKind::ImageInUse]);
        }
        if self.usable(repo, id) { Ok(()) } else { Err(vec![ErrorKind::ImageBroken]) }
    }

    /// As `readable`, for who reads one moment of it.
    pub fn pinnable(&self, repo: usize, id: &str) -> Expect<()> {
        if !self.is_cloned_while_written(repo, id) {
            return self.readable(repo, id);
        }
        if self.usable(repo, id) { Ok(()) } else { Err(vec![ErrorKind::ImageBroken]) }
    }

    /// As `writable`, by a verb for disks.
    pub fn growable(&self, repo: usize, id: &str) -> Expect<()> {
        match self.get(repo, id) {
            Some(image) if !image.disk => Err(vec![ErrorKind::NotADisk]),
            _ => self.writable(repo, id),
        }
    }

    pub fn snapshot(&self, repo: usize, id: &str) -> Expect<Vec<u8>> {
        let image = self.get(repo, id).ok_or(vec![ErrorKind::ImageNotFound])?;
        if !image.disk {
            return Err(vec![ErrorKind::NotADisk]);
        }
        if !self.is_cloned_while_written(repo, id) {
            self.writable(repo, id)?;
        }
        Ok(image.data.clone())
    }

    pub fn remove(&self, store: usize, repo: usize, id: &str) -> Expect<bool> {
        let image = self.get(repo, id).ok_or(vec![ErrorKind::ImageNotFound])?;
        let here = self.open.iter().any(|open| open.store == store && open.repo == repo && open.id == id);
        if image.disk || here {
            return if self.is_open(repo, id) { Err(vec![ErrorKind::ImageInUse]) } else { Ok(true) };
        }
        // Open elsewhere: a snapshot that others are built on cannot be told from one that is read through them.
        Ok(!self.is_open(repo, id))
    }

    /// The base snapshot of a new disk: where it is.
    pub fn disk_base(&self, target: usize, base: &str) -> Expect<usize> {
        let repo = self.find(target, base)?;
        if self.repos[repo][base].disk { Err(vec![ErrorKind::NotASnapshot]) } else { Ok(repo) }
    }

    /// The source and base of a copy.
    pub fn copy(&self, target: usize, id: &str, base: Option<&str>, partial: bool) -> Expect<(usize, Base)> {
        let mut wrong = Vec::new();
        let source = self.find(target, id).map_err(|kinds| wrong.extend(kinds));
        if let Ok(repo) = source
            && !self.clones
            && self.is_open_for_writing(repo, id)
        {
            wrong.push(ErrorKind::ImageInUse);
        }
        let base = match base {
            None => Ok(Base::None),
            Some(base) => self.copy_base(target, id, base, partial),
        };
        match (source, base) {
            (Ok(source), Ok(base)) if wrong.is_empty() => Ok((source, base)),
            (_, base) => {
                wrong.extend(base.err().into_iter().flatten());
                Err(wrong)
            }
        }
    }

    fn copy_base(&self, target: usize, id: &str, base: &str, partial: bool) -> Expect<Base> {
        let made = match self.get(target, base) {
            Some(here) => {
                if (!partial || here.disk) && !self.usable(target, base) {
                    return Err(vec![ErrorKind::ImageBroken, ErrorKind::InvalidParameter]);
                }
                if here.disk { Base::Disk(base.to_owned()) } else { Base::Snapshot(base.to_owned()) }
            }
            None if !partial => return Err(vec![ErrorKind::ImageNotFound]),
            None => {
                let repo = self.find(target, base)?;
                if self.repos[repo][base].disk {
                    return Err(vec![ErrorKind::NotASnapshot]);
                }
                Base::Snapshot(base.to_owned())
            }
        };
        match made {
            Base::Snapshot(_) if base == id => Err(vec![ErrorKind::InvalidParameter]),
            made => Ok(made),
        }
    }

    /// Everything that was announced of a disk has been taken.
    pub fn complete(&mut self, repo: usize, disk: &str) {
        for image in self.repos[repo].values_mut() {
            if let State::Announced { disk: of, may, sure } = &mut image.state
                && of == disk
            {
                *may = true;
                if *sure {
                    image.state = State::Whole;
                }
            }
        }
    }

    /// Everything that was announced of a disk may have been taken.
    pub fn may_complete(&mut self, repo: usize, disk: &str) {
        for image in self.repos[repo].values_mut() {
            if let State::Announced { disk: of, may, .. } = &mut image.state
                && of == disk
            {
                *may = true;
            }
        }
    }

    /// Everything that was announced in the repository may have been taken.
    pub fn may_complete_all(&mut self, repo: usize) {
        for image in self.repos[repo].values_mut() {
            if let State::Announced { may, .. } = &mut image.state {
                *may = true;
            }
        }
    }

    /// Disks go on being written: what is not finished of their copies may be of any moment since.
    pub fn drift(&mut self) {
        let now: BTreeMap<(usize, String), Vec<u8>> = (0..2)
            .flat_map(|repo| self.repos[repo].iter().map(move |(id, image)| ((repo, id.clone()), image)))
            .filter_map(|(key, image)| match &image.state {
                State::Adrift { repo, source, .. } => {
                    let mut data = self.repos[*repo].get(source)?.data.clone();
                    data.resize(image.data.len(), 0);
                    Some((key, data))
                }
                _ => None,
            })
            .collect();
        for ((repo, id), data) in now {
            if let Some(Img { state: State::Adrift { moments, .. }, .. }) = self.repos[repo].get_mut(&id)
                && moments.last() != Some(&data)
            {
                moments.push(data);
            }
        }
    }

    /// What has its base now has it for ever. The rest, which the model cannot know, is asked of the store; `all`: work
    /// was broken off or taken up again, so that nothing that is not whole is known for sure.
    pub fn settle(&mut self, repo: usize, all: bool, whole: impl Fn(&str) -> bool) {
        let ids: Vec<String> = self.repos[repo].keys().cloned().collect();
        let mut again = true;
        while again {
            again = false;
            for id in &ids {
                let known = match &self.repos[repo][id].state {
                    State::Whole | State::Adrift { .. } => false,
                    _ if all && whole(id) => true,
                    State::Partial { base } => {
                        self.usable(repo, id)
                            || (!self.repos[repo].contains_key(base)
                                && self.were[repo].contains(base)
                                && whole(id))
                    }
                    // Whatever is built on a pending snapshot completes it.
                    State::Announced { may: true, .. } | State::Pending { then: Some(_) } => whole(id),
                    _ => false,
                };
                if known && let Some(image) = self.repos[repo].get_mut(id) {
                    image.state = State::Whole;
                    again = true;
                }
            }
        }
    }
}
