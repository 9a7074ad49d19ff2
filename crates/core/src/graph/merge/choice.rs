//! Which way the data goes: the shorter one for which there is room.

use vdsmstore_io::{Image, Layer, plan};

use crate::graph::chain;
use crate::record::VolumeFormat;
use crate::repo::Repo;
use crate::repository::OpenVolume;
use crate::{Error, ErrorKind, Result};

use super::{Direction, Line, watermark};

/// Virtual bytes that are looked at at a time.
const PIECE: u64 = 1 << 30;
/// Tables and records, beside what is counted.
const TABLES: u64 = 256 << 10;

/// A direction, and what it costs in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Price {
    pub direction: Direction,
    /// Read and written.
    pub moves: u64,
    /// Taken from the storage before anything is given back.
    pub needs: u64,
    /// Given back in the end.
    pub frees: u64,
}

/// Whether the lowest volume can hold the image that stays. A larger one would show its tail to whoever opens it by
/// path.
fn can_go_down(line: &Line) -> bool {
    line.lowest().volume.size <= line.upper_volume.size
}

/// At most what the shorter direction costs, and what either gives back. Bytes on the storage stand for bytes to move.
pub(crate) fn bound(repo: &Repo, line: &Line) -> Result<Price> {
    let mut between = 0;
    for lower in &line.lowers[1..] {
        between += repo.driver.allocated(lower.volume.id())?;
    }
    let up = between + repo.driver.allocated(line.lowest().volume.id())?;
    let down = between + repo.driver.allocated(line.upper_volume.id())?;
    let (direction, moves) =
        if can_go_down(line) && down <= up { (Direction::Down, down) } else { (Direction::Up, up) };
    Ok(Price { direction, moves, needs: moves, frees: up.max(down) })
}

/// What each direction that is possible really costs, the better first.
pub(crate) fn prices(
    repo: &Repo,
    line: &Line,
    lower: &[OpenVolume],
    upper: &OpenVolume,
) -> Result<Vec<Price>> {
    let source = chain::open_layers(line.layers(lower, upper), false, repo.memory)?;
    let mut prices = Vec::with_capacity(2);
    if can_go_down(line) {
        prices.push(price(repo, line, Direction::Down, &source, &lower[0])?);
    }
    prices.push(price(repo, line, Direction::Up, &source, upper)?);
    prices.sort_by_key(|price| price.moves);
    Ok(prices)
}

fn price(
    repo: &Repo,
    line: &Line,
    direction: Direction,
    source: &Image,
    target: &OpenVolume,
) -> Result<Price> {
    let record = line.target(direction);
    let own = Layer { device: target.device.clone(), format: record.format.into(), size: record.size };
    let own = chain::open_layers(vec![own], false, repo.memory)?;
    let frees = match direction {
        Direction::Up => line.lowest().volume.id(),
        Direction::Down => line.upper_volume.id(),
    };
    let mut price = Price { direction, moves: 0, needs: 0, frees: repo.driver.allocated(frees)? };
    for lower in &line.lowers[1..] {
        price.frees += repo.driver.allocated(lower.volume.id())?;
    }
    let end = line.length(direction);
    let mut at = watermark(repo, line, direction)?;
    while at < end {
        let length = PIECE.min(end - at);
        let plan = plan::layers(source, line.moved(direction), at, length)?;
        price.moves += plan.write_bytes();
        price.needs += plan::growth(&plan, &own)?;
        at += length;
    }
    // A raw volume that was reserved has its space, though nothing was written there.
    if record.format == VolumeFormat::Raw && repo.driver.allocated(record.id())? >= line.upper_volume.size {
        price.needs = 0;
    }
    Ok(price)
}

/// The better of the directions for which there is room. `NoSpace`: there is none, and how many bytes it takes.
pub(crate) fn choose(repo: &Repo, line: &Line, prices: &[Price]) -> Result<Price> {
    let available = repo.driver.usage()?.available;
    // What the storage clones takes nothing.
    let shares = repo.driver.capabilities().reflink;
    let needs =
        |price: &Price| if price.needs == 0 || shares { 0 } else { price.needs + price.needs / 256 + TABLES };
    if let Some(price) = prices.iter().find(|price| needs(price) <= available) {
        return Ok(*price);
    }
    let needed = prices.iter().map(needs).min().unwrap_or(0);
    let message = format!(
        "a merge of image {} in repository {:?} needs {needed} bytes, and {available} are available",
        line.upper.id(),
        repo.id
    );
    Err(Error::new(ErrorKind::NoSpace, message)
        .with("imageId", line.upper.id().to_string())
        .with("needs", needed.to_string())
        .with("available", available.to_string()))
}
