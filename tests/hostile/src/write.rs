//! Writing into an image that may be anything.

use std::sync::Arc;

use vdsmstore_io::{Error, ErrorKind, Format, Image, ImageOptions, Layer, Result, qcow2};

use crate::device::Bytes;
use crate::read::check_kind;
use crate::{Choices, bounded};

/// Larger clusters cost no more thought, but time.
const MAX_CLUSTER: u64 = 1 << 16;

fn open(device: &Arc<Bytes>, size: u64) -> Result<Image> {
    let layer = Layer { device: Arc::clone(device) as _, format: Format::Qcow2, size };
    // Little memory, so that tables are written early.
    let options = ImageOptions { writable: true, memory: Some(0), ..ImageOptions::default() };
    Image::open_with(vec![layer], &options)
}

fn refused(error: &Error) {
    // Found half way through a flush, and told again.
    if error.kind() != ErrorKind::Poisoned {
        check_kind(error);
    }
}

/// Whether a check finds nothing that could lose data.
fn is_sound(device: &Bytes) -> bool {
    qcow2::check(device).is_ok_and(|report| report.corruptions == 0 && report.check_errors == 0)
}

/// Random writes, zeroes, discards and flushes; then the image is opened again and shows the same, and one that was sound
/// still is.
pub fn write(bytes: &[u8]) {
    bounded(bytes, || {
        let device = Bytes::patient(bytes, 1);
        let Ok(info) = qcow2::info(&*device) else { return };
        if info.cluster_size > MAX_CLUSTER {
            return;
        }
        let was_sound = is_sound(&device);
        let image = match open(&device, info.size) {
            Ok(image) => image,
            Err(error) => return check_kind(&error),
        };
        let mut choices = Choices::new(bytes);
        if let Err(error) = scribble(&image, info.cluster_size, &mut choices) {
            return refused(&error);
        }
        let mut samples = Vec::new();
        for _ in 0..20.min(info.size) {
            let at = choices.below(info.size);
            let mut buffer = vec![0; 600.min(info.size - at) as usize];
            match image.read(at, &mut buffer) {
                Ok(()) => samples.push((at, buffer)),
                Err(error) => check_kind(&error),
            }
        }
        drop(image);
        // What was written well can be opened, and has not changed.
        let image = match open(&device, info.size) {
            Ok(image) => image,
            Err(error) => panic!("it does not open any more: {error:?}"),
        };
        for (at, before) in samples {
            let mut now = vec![0; before.len()];
            assert!(image.read(at, &mut now).is_ok() && now == before, "other bytes at {at:#x}");
        }
        assert!(
            !was_sound || is_sound(&device),
            "what was written is not sound: {:?}",
            qcow2::check(&*device)
        );
    });
}

fn scribble(image: &Image, cluster_size: u64, choices: &mut Choices) -> Result<()> {
    let size = image.size();
    for step in 0..24u8 {
        if size == 0 {
            break;
        }
        // Most of it close together, where it meets what is there.
        let area = if choices.below(3) == 0 { size } else { size.min(16 * cluster_size) };
        let at = choices.below(area);
        let length = (1 + choices.below(2 * cluster_size)).min(size - at);
        match choices.below(8) {
            0..=2 => image.write(at, &vec![step + 1; length as usize])?,
            3 => image.write_zeroes(at, length)?,
            4 => image.discard(
                at / cluster_size * cluster_size,
                cluster_size.min(size - at / cluster_size * cluster_size),
            )?,
            5 => {
                let at = at / cluster_size * cluster_size;
                image.write_compressed(at, &vec![step; cluster_size.min(size - at) as usize])?;
            }
            _ => image.flush()?,
        }
    }
    image.flush()
}
