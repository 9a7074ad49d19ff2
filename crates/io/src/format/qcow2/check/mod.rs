//! The check: finds out whether the metadata of an image is sound, sharing no code with what writes it.
//!
//! The file may hold anything. Memory is in proportion to its tables: a byte per cluster where something is counted.
//! `docs/formats/qcow2-check.md` says what is looked at, and where the numbers differ from QEMU's.

mod bitmaps;
mod counts;
mod header;
mod refcounts;
mod report;
mod snapshots;
mod source;
mod tables;

use counts::{Bits, Counts};
use header::Header;
use refcounts::Refcounts;
pub use report::{Finding, Part, Problem, Report, Severity};
use source::Source;

use crate::{Device, Error, ErrorKind, Result};

/// QEMU checks no file of more clusters.
const MAX_CLUSTERS: u64 = i32::MAX as u64;

/// What was read, or why it cannot be understood.
type Readable<T> = std::result::Result<T, &'static str>;

/// Checks an image; reads its metadata, nothing of the disk and nothing that its header names.
///
/// `Corrupt`: the header cannot be understood (or it is no qcow2 at all). `Unsupported`: encryption, unknown
/// incompatible features, sizes beyond QEMU's limits. Otherwise all that is wrong is in the report.
pub fn check(device: &dyn Device) -> Result<Report> {
    Ok(Checker::run(device)?.report)
}

/// What is known of the image so far.
#[derive(Debug)]
struct Checker<'a> {
    source: Source<'a>,
    header: Header,
    report: Report,
    /// What the image says.
    refcounts: Refcounts,
    /// How often each cluster is referred to.
    references: Counts,
    /// Which clusters hold tables.
    tables: Bits,
    /// Which clusters have been reported as holding two things.
    overlapping: Bits,
    /// Clusters of the file, those included that begin in it only just.
    clusters: u64,
}

impl<'a> Checker<'a> {
    fn run(device: &'a dyn Device) -> Result<Checker<'a>> {
        let source = Source::new(device)?;
        let header = Header::read(&source)?;
        let cluster_size = header.cluster_size();
        let clusters = source.length().div_ceil(cluster_size);
        if clusters > MAX_CLUSTERS {
            return Err(
                Error::new(ErrorKind::Unsupported, "too many clusters to check").with_path(device.name())
            );
        }
        let report = Report {
            total_clusters: (header.size / 512 * 512).div_ceil(cluster_size),
            dirty: header.dirty(),
            marked_corrupt: header.corrupt(),
            ..Report::default()
        };
        let refcounts = Refcounts::read(&source, &header)?;
        let (references, tables, overlapping) = (Counts::default(), Bits::default(), Bits::default());
        let mut checker =
            Checker { source, header, report, refcounts, references, tables, overlapping, clusters };
        checker.refer(0, cluster_size, 1, Part::Header);
        checker.check_snapshots_and_disk()?;
        checker.refer(
            checker.header.reftable_offset,
            checker.header.reftable_clusters * cluster_size,
            1,
            Part::RefcountTable,
        );
        checker.check_bitmaps()?;
        checker.check_blocks();
        checker.compare()?;
        Ok(checker)
    }

    /// Counts a reference to everything in the range; `times` of them.
    fn refer(&mut self, offset: u64, length: u64, times: u64, part: Part) {
        if length == 0 {
            return;
        }
        let end = offset.saturating_add(length);
        // The last cluster may be cut short by the end of the file.
        if end >= self.source.length().saturating_add(self.header.cluster_size()) {
            return self.report.corruption(times, Problem::BeyondEnd { part, length }, offset);
        }
        let bits = self.header.cluster_bits;
        let is_table = !matches!(part, Part::Data | Part::Compressed);
        for cluster in offset >> bits..=(end - 1) >> bits {
            self.clusters = self.clusters.max(cluster + 1);
            let overlaps = if is_table {
                self.tables.set(cluster) || self.references.get(cluster) > 0
            } else {
                self.tables.get(cluster)
            };
            if overlaps && !self.overlapping.set(cluster) {
                self.report.overlap(part, cluster << bits);
            }
            let over = self.references.add(cluster, times, self.header.refcount_max());
            if over > 0 {
                self.report.corruption(over, Problem::Overflow, cluster << bits);
            }
        }
    }
}
