//! Pins: a disk as it is at one moment, for whoever reads it for long; who writes it, now or later, is not disturbed.

use vdsmstore_io::without;

use crate::Result;
use crate::id::{ImageId, Token};
use crate::repo::Repo;
use crate::repository::Access;

use super::chain::{self, OpenChain};
use super::{lease, lock_image};

/// Whether disks of the repository can be pinned.
pub(crate) fn is_possible(repo: &Repo) -> bool {
    repo.driver.clone_under_writer() && !repo.driver.read_only()
}

/// Opens a disk as it is now. The token names these bytes for as long as it is the record's.
pub(crate) fn open(repo: &Repo, disk: ImageId) -> Result<(OpenChain, Token)> {
    // Nobody begins to write, or moves the disk to another volume, before the moment is fixed.
    let _order = (!without!("pin.lock")).then(|| lock_image(repo, disk)).transpose()?;
    let record = repo.visible_image(disk)?;
    let mut opened = chain::open(repo, disk, Access::Moment)?;
    let token = if lease::is_written(repo, &record)? && !without!("pin.token") {
        // The record's token names bytes that go on changing: no later moment is the same.
        Token::random()
    } else {
        record.token
    };
    opened.volumes[0] = repo.driver.pin_volume(&opened.volumes[0])?;
    Ok((opened, token))
}
