//! How fast the bytes move, beside `cp` and `qemu-img convert`. Needs 5 GiB; the best of three runs counts.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vdsmstore_io::qcow2::{self, CreateOptions};
use vdsmstore_io::{Control, FileDevice, Format, Image, Layer, Target, execute, plan};

use crate::scene::{Result, noise, text, tool};

const GIB: u64 = 1 << 30;

/// Copies.
pub fn run(directory: &Path) -> Result<()> {
    println!("\nbytes moved: ours, theirs, ratio (over 1: we are faster)");
    copy(directory)
}

fn best(mut work: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let started = Instant::now();
        work()?;
        best = best.min(started.elapsed());
    }
    Ok(best)
}

fn report(what: &str, ours: Duration, theirs: Duration) {
    let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
    println!("{what:<48} {:>8.3} s {:>8.3} s  {ratio:.2}", ours.as_secs_f64(), theirs.as_secs_f64());
}

fn image(path: &Path, format: Format, size: u64, writable: bool) -> Result<Image> {
    let device = Arc::new(FileDevice::open(path, writable)?);
    Ok(Image::open(vec![Layer { device, format, size }], writable)?)
}

/// A raw file of which three quarters are data, into another.
fn copy(directory: &Path) -> Result<()> {
    let (source, target) = (directory.join("speed-source"), directory.join("speed-target"));
    let mut seed = 1;
    let mut file = File::create(&source)?;
    file.set_len(GIB)?;
    for at in 0..GIB >> 20 {
        if at % 4 != 0 {
            let block: Vec<u8> = (0..1 << 17).flat_map(|_| noise(&mut seed).to_le_bytes()).collect();
            std::os::unix::fs::FileExt::write_all_at(&file, &block, at << 20)?;
        }
    }
    file.flush()?;
    file.sync_all()?;
    let again = || -> Result<()> {
        let _ = std::fs::remove_file(&target);
        Ok(())
    };
    let move_it = |format: Format| -> Result<()> {
        again()?;
        let device = FileDevice::create_new(&target)?;
        match format {
            Format::Raw => device.file().set_len(GIB)?,
            Format::Qcow2 => qcow2::create(&device, &empty())?,
        }
        let (from, to) = (image(&source, Format::Raw, GIB, false)?, image(&target, format, GIB, true)?);
        let plan = plan::copy(&from, None, Target { backed: false, known_zero: true }, 0, GIB)?;
        let control = Control { cancel: &|| false, progress: &|_| {}, threads: 4 };
        execute(&plan, &from, None, &to, &control)?;
        Ok(to.flush()?)
    };
    let (a, b) = (text(&source)?, text(&target)?);
    let cp = best(|| {
        again()?;
        tool("cp", &["--sparse=always", "--reflink=never", a, b])?;
        Ok(File::open(&target)?.sync_data()?)
    })?;
    let ours = best(|| move_it(Format::Raw))?;
    report("1 GiB raw to raw, cp --sparse=always", ours, cp);
    for format in [Format::Raw, Format::Qcow2] {
        let ours = best(|| move_it(format))?;
        let convert = best(|| {
            again()?;
            tool("qemu-img", &["convert", "-f", "raw", "-O", &format.to_string(), a, b])?;
            Ok(File::open(&target)?.sync_data()?)
        })?;
        report(&format!("1 GiB raw to {format}, qemu-img convert"), ours, convert);
    }
    std::fs::remove_file(source)?;
    again()
}

fn empty() -> CreateOptions {
    CreateOptions { size: GIB, backing: None, preallocate_metadata: false }
}
