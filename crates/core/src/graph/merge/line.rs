//! What takes part in a merge, as the records are.

use std::ops::Range;

use vdsmstore_io::Layer;

use crate::Result;
use crate::graph::chain::MAX_DEPTH;
use crate::graph::look::View;
use crate::id::{ImageId, Token, VolumeId};
use crate::record::{Backing, ImageRecord, Kind, State, VolumeFormat, VolumeRecord, VolumeState};
use crate::repo::Repo;
use crate::repository::OpenVolume;

use super::Direction;

/// An image that goes, and its volume.
#[derive(Clone, Debug)]
pub(crate) struct Lower {
    pub image: ImageRecord,
    pub volume: VolumeRecord,
}

/// A line of images that nobody wants, each built on the one before, and the image on top of them that stays.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    /// The images that go, lowest first; at least one.
    pub lowers: Vec<Lower>,
    /// The image that stays.
    pub upper: ImageRecord,
    pub upper_volume: VolumeRecord,
}

/// An unwanted image with its only child.
struct Pair {
    volume: VolumeRecord,
    upper: ImageRecord,
    upper_volume: VolumeRecord,
}

fn pair(view: &impl View, t: &ImageRecord) -> Result<Option<Pair>> {
    let unwanted = t.kind == Kind::Hidden && t.state == State::Live
        || t.state == State::Removed
        || t.state == State::Absorbed && !t.absorbed_by.is_empty();
    if !unwanted || t.next.is_some() {
        return Ok(None);
    }
    let is_ready = |volume: &VolumeRecord| volume.state == VolumeState::Ready;
    let Some(volume) = view.volume(t.volume)?.filter(is_ready) else { return Ok(None) };
    let mut built = view.built_on(t.id())?;
    let (Some(upper_volume), true) = (built.pop(), built.is_empty()) else { return Ok(None) };
    if !is_ready(&upper_volume) || upper_volume.format != VolumeFormat::Qcow2 {
        return Ok(None);
    }
    let mut holding = view.held_by(upper_volume.id())?;
    let (Some(upper), true) = (holding.pop(), holding.is_empty()) else { return Ok(None) };
    if upper.next.is_some() || !upper.freeze.is_empty() || upper.volume != upper_volume.id() {
        return Ok(None);
    }
    if view.is_shared(t)? || t.state == State::Absorbed && !t.absorbed_by.contains(&upper_volume.id()) {
        return Ok(None);
    }
    Ok(Some(Pair { volume, upper, upper_volume }))
}

/// The image below `t` that is merged together with it.
fn below(view: &impl View, t: ImageId, volume: &VolumeRecord) -> Result<Option<Lower>> {
    let Some(backing) = &volume.backing else { return Ok(None) };
    let Some(image) = view.image(backing.image)? else { return Ok(None) };
    let pair = pair(view, &image)?.filter(|pair| pair.upper.id() == t);
    Ok(pair.map(|pair| Lower { image, volume: pair.volume }))
}

/// Whether nothing below the image is merged together with it.
pub(crate) fn is_lowest(view: &impl View, t: &ImageRecord) -> Result<bool> {
    let Some(volume) = view.volume(t.volume)? else { return Ok(true) };
    Ok(below(view, t.id(), &volume)?.is_none())
}

/// The merge that the image `t` is part of, if it can go: the longest line.
pub(crate) fn candidate(view: &impl View, t: &ImageRecord) -> Result<Option<Line>> {
    let Some(Pair { volume, mut upper, mut upper_volume }) = pair(view, t)? else { return Ok(None) };
    let mut lowers = vec![Lower { image: t.clone(), volume }];
    while let Some(above) = pair(view, &upper)? {
        lowers.push(Lower { image: upper, volume: upper_volume });
        (upper, upper_volume) = (above.upper, above.upper_volume);
        if lowers.len() > MAX_DEPTH {
            return Ok(None);
        }
    }
    if !matches!(upper.state, State::Live | State::Removed) {
        return Ok(None);
    }
    lowers.reverse();
    while let Some(lower) = match lowers.last() {
        Some(lowest) => below(view, lowest.image.id(), &lowest.volume)?,
        None => None,
    } {
        lowers.push(lower);
        if lowers.len() > MAX_DEPTH {
            return Ok(None);
        }
    }
    lowers.reverse();
    Ok(Some(Line { lowers, upper, upper_volume }))
}

impl Line {
    /// The image that goes and on which nothing unwanted is built below.
    pub fn lowest(&self) -> &Lower {
        &self.lowers[0]
    }

    /// The image that goes and on which the one that stays is built.
    pub fn topmost(&self) -> &Lower {
        &self.lowers[self.lowers.len() - 1]
    }

    /// All images, lowest first.
    pub fn ids(&self) -> impl Iterator<Item = ImageId> {
        self.lowers.iter().map(|lower| lower.image.id()).chain([self.upper.id()])
    }

    /// The volumes of all, lowest first.
    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.lowers.iter().map(|lower| lower.volume.id()).chain([self.upper_volume.id()])
    }

    /// Whether they are the same images on the same volumes.
    pub fn same(&self, other: &Self) -> bool {
        let volumes = |line: &Self| line.lowers.iter().map(|lower| lower.volume.id()).collect::<Vec<_>>();
        self.ids().eq(other.ids())
            && volumes(self) == volumes(other)
            && self.upper_volume.id() == other.upper_volume.id()
    }

    /// What the lowest volume shows through.
    pub fn backing(&self) -> Option<&Backing> {
        self.lowest().volume.backing.as_ref()
    }

    /// The volume right above one that goes.
    pub fn above(&self, index: usize) -> &VolumeRecord {
        self.lowers.get(index + 1).map_or(&self.upper_volume, |lower| &lower.volume)
    }

    /// How much of each volume that goes shows through the one above it, lowest first.
    fn shown(&self) -> impl Iterator<Item = u64> {
        (0..self.lowers.len()).map(|index| {
            let backing = self.above(index).backing.as_ref();
            backing.map_or(0, |backing| backing.size)
        })
    }

    /// How much of the lowest volume shows through all others.
    pub fn reach(&self) -> u64 {
        self.shown().min().unwrap_or(0)
    }

    /// The volumes of the line, top first; `lower`: lowest first.
    pub fn layers(&self, lower: &[OpenVolume], upper: &OpenVolume) -> Vec<Layer> {
        let mut layers = Vec::with_capacity(self.lowers.len() + 1);
        for ((opened, Lower { volume, .. }), size) in lower.iter().zip(&self.lowers).zip(self.shown()) {
            layers.push(Layer { device: opened.device.clone(), format: volume.format.into(), size });
        }
        layers.push(Layer {
            device: upper.device.clone(),
            format: self.upper_volume.format.into(),
            size: self.upper_volume.size,
        });
        layers.reverse();
        layers
    }

    /// The layers whose data is moved.
    pub fn moved(&self, direction: Direction) -> Range<usize> {
        match direction {
            Direction::Up => 1..self.lowers.len() + 1,
            Direction::Down => 0..self.lowers.len(),
        }
    }

    /// The volume that is written.
    pub fn target(&self, direction: Direction) -> &VolumeRecord {
        match direction {
            Direction::Up => &self.upper_volume,
            Direction::Down => &self.lowest().volume,
        }
    }

    /// The same to be changed.
    pub fn target_mut(&mut self, direction: Direction) -> &mut VolumeRecord {
        match direction {
            Direction::Up => &mut self.upper_volume,
            Direction::Down => &mut self.lowers[0].volume,
        }
    }

    /// Whether nobody took the image that stays away from this merge, which claimed it.
    pub fn owns(&self, repo: &Repo, now: &ImageRecord) -> bool {
        repo.owns(&now.header) && now.header.epoch == self.upper.header.epoch
    }

    /// How much is looked through.
    pub fn length(&self, direction: Direction) -> u64 {
        match direction {
            Direction::Up => self.shown().last().unwrap_or(0).min(self.upper_volume.size),
            Direction::Down => self.upper_volume.size,
        }
    }

    /// What a watermark is bound to: the data of the image that stays, and the two ends of the line. What comes and goes
    /// between them only moves within it.
    pub fn token(&self) -> Token {
        let ends = [self.lowest().volume.id().0, self.upper_volume.id().0];
        let mixed = ends.iter().fold(self.upper.token.0.as_u128(), |all, id| all ^ id.as_u128());
        Token(uuid::Uuid::from_u128(mixed))
    }
}
