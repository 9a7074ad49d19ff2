//! The verbs that read images for somebody else: export, differences, measure.

use vdsmstore_io::qcow2::Compression;
use vdsmstore_io::{Format, Target, plan};

use crate::graph::export::{Destination, Export};
use crate::graph::{chain, difference};
use crate::id::ImageId;
use crate::job::TaskRequest;
use crate::options::{ExportOptions, MeasureOptions};
use crate::types::Measure;
use crate::{Error, ErrorKind, Result};

use super::{Store, open_moment};

use crate::graph::difference::Difference;

fn parse_format(format: &str) -> Result<Format> {
    format.parse().map_err(|_| {
        let message = format!("format {format:?} is neither \"raw\" nor \"qcow2\"");
        Error::new(ErrorKind::InvalidParameter, message).with("parameter", "format")
    })
}

fn parse_compress(compress: Option<&str>, format: Format) -> Result<Option<Compression>> {
    let invalid =
        |message: String| Err(Error::new(ErrorKind::InvalidParameter, message).with("parameter", "compress"));
    match compress {
        None => Ok(None),
        Some(_) if format != Format::Qcow2 => {
            invalid("option \"compress\": only a qcow2 file can be compressed".to_owned())
        }
        Some("zstd") => Ok(Some(Compression::Zstd)),
        Some("deflate") => Ok(Some(Compression::Deflate)),
        Some(other) => invalid(format!("option \"compress\" is neither \"zstd\" nor \"deflate\": {other:?}")),
    }
}

impl Store {
    /// Starts writing the image to a file; returns the task's name. The file has its name only when it is whole.
    ///
    /// Raises `InvalidParameter`, `ImageNotFound`, `ImageBroken`, `ImageInUse`.
    pub fn export_image(
        &self,
        repo_id: &str,
        image_id: &str,
        path: &str,
        format: &str,
        options: &ExportOptions,
    ) -> Result<String> {
        let repo = self.repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        let format = parse_format(format)?;
        self.0.pool.check_id(options.task_id.as_deref())?;
        let compress = parse_compress(options.compress.as_deref(), format)?;
        let destination = Destination::new(path, format, options.overwrite, &self.repos())?;
        let opened = self.explained(&repo, id, open_moment(&repo, id))?;
        let bandwidth = options.bandwidth.map(|limit| limit.0);
        let job = Box::new(Export::new(&opened, destination, compress, bandwidth)?);
        let request = TaskRequest { id: options.task_id.clone(), kind: "export", repo, image: Some(id), job };
        self.0.pool.start(request).map(|task| task.id.clone())
    }

    /// What differs between the image and the base, or without a base what the image has: opened for reading until it
    /// is dropped.
    pub fn diff_images(
        &self,
        repo_id: &str,
        image_id: &str,
        base_image_id: Option<&str>,
    ) -> Result<Difference> {
        let repo = self.repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        let base = base_image_id.map(ImageId::parse).transpose()?;
        let opened = self.explained(&repo, id, open_moment(&repo, id))?;
        let base = match base {
            None => None,
            Some(base) => Some(self.explained(&repo, base, open_moment(&repo, base))?),
        };
        difference::open(&opened, base.as_ref())
    }

    /// What a copy of the image would need, in bytes.
    pub fn measure_image(
        &self,
        repo_id: &str,
        image_id: &str,
        base_image_id: Option<&str>,
        options: &MeasureOptions,
    ) -> Result<Measure> {
        let repo = self.repo(repo_id)?;
        let id = ImageId::parse(image_id)?;
        let base = base_image_id.map(ImageId::parse).transpose()?;
        let format = parse_format(&options.format)?;
        let opened = self.explained(&repo, id, open_moment(&repo, id))?;
        let base: Option<chain::OpenChain> = match base {
            None => None,
            Some(base) => Some(self.explained(&repo, base, open_moment(&repo, base))?),
        };
        let source = opened.image(false)?;
        let base = base.as_ref().map(|base| base.image(false)).transpose()?;
        let target = Target { backed: base.is_some(), known_zero: base.is_none() };
        let plan = plan::copy(&source, base.as_ref(), target, 0, source.size())?;
        let measured = difference::measure(&plan, source.size(), format);
        // All of the source for its hashes, and what was written.
        let verified = source.size().max(measured.read).saturating_add(plan.write_bytes());
        Ok(Measure { read: if options.verify { verified } else { measured.read }, ..measured })
    }
}

impl std::fmt::Debug for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Difference").finish_non_exhaustive()
    }
}
