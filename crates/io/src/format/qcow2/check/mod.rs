//! The check: finds out whether the metadata of an image is sound, sharing no code with what writes it.
//!
//! The file may hold anything. Memory is in proportion to its tables: a byte per cluster where something is counted.
//! `docs/formats/qcow2-check.md` says what is looked at, and where the numbers differ from QEMU's.

mod bitmaps;
mod counts;
mod header;
mod rebuild;
mod refcounts;
mod repair;
mod report;
mod snapshots;
mod source;
mod tables;

use counts::{Bits, Counts};
use header::Header;
use refcounts::Refcounts;
pub use repair::{Repair, repair};
pub use report::{Finding, Part, Problem, Report, Severity};
use source::Source;
use tables::L2;

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
    Ok(Checker::run(device, Look::Everything)?.report)
}

/// Which references are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// All.
    Everything,
    /// Without those of the refcount table and its blocks, which are to be replaced, and, if so, of the snapshot table.
    Replacing { snapshots: bool },
}

/// What can be done about a corruption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    /// Nothing.
    None,
    /// Setting the refcount.
    Refcount,
    /// Setting or clearing the mark of an entry.
    Mark,
    /// Changing an entry that says something impossible, without changing what the disk reads as.
    Entry,
    /// A new refcount table with new blocks.
    Rebuild,
    /// A new snapshot table.
    Snapshots,
}

/// How many corruptions there are by what can be done about them, and check errors that are not about refcounts.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    hopeless: u64,
    /// Those of the hopeless ones that make it doubtful whether what is taken for a table is one.
    doubts: u64,
    marks: u64,
    entries: u64,
    rebuild: u64,
    snapshots: u64,
    blind: u64,
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
    /// The first cluster behind the end of the file that something refers to; refcounts do not count.
    beyond: Option<u64>,
    look: Look,
    tally: Tally,
    /// All L2 tables, in order of their places.
    l2s: Vec<L2>,
}

impl<'a> Checker<'a> {
    fn run(device: &'a dyn Device, look: Look) -> Result<Checker<'a>> {
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
        let mut checker = Checker {
            refcounts: Refcounts::read(&source, &header)?,
            source,
            header,
            report,
            references: Counts::default(),
            tables: Bits::default(),
            overlapping: Bits::default(),
            clusters,
            beyond: None,
            look,
            tally: Tally::default(),
            l2s: Vec::new(),
        };
        checker.refer(0, cluster_size, 1, Part::Header);
        checker.check_snapshots_and_disk()?;
        if look == Look::Everything {
            let length = checker.header.reftable_clusters * cluster_size;
            checker.refer(checker.header.reftable_offset, length, 1, Part::RefcountTable);
        }
        checker.check_bitmaps()?;
        if look == Look::Everything {
            checker.check_blocks();
            checker.compare()?;
            let length = checker.header.reftable_clusters * cluster_size;
            if !checker.is_safe(checker.header.reftable_offset, length) {
                checker.tally.rebuild += 1;
            }
        }
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
            let remedy = if part == Part::RefcountTable { Remedy::Rebuild } else { Remedy::None };
            if part != Part::RefcountTable {
                let first = offset >> self.header.cluster_bits;
                self.beyond = Some(self.beyond.map_or(first, |known| known.min(first)));
            }
            return self.corruption(times, remedy, Problem::BeyondEnd { part, length }, offset);
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
                self.corruption(over, Remedy::None, Problem::Overflow, cluster << bits);
            }
        }
    }

    fn corruption(&mut self, number: u64, remedy: Remedy, problem: Problem, offset: u64) {
        let tally = &mut self.tally;
        match remedy {
            Remedy::None => {
                tally.hopeless += number;
                tally.doubts += if problem.leaves_tables() { 0 } else { number };
            }
            Remedy::Refcount => {}
            Remedy::Mark => tally.marks += number,
            Remedy::Entry => tally.entries += number,
            Remedy::Rebuild => tally.rebuild += number,
            Remedy::Snapshots => tally.snapshots += number,
        }
        self.report.corruption(number, problem, offset);
    }

    /// A table other than a refcount block that cannot be understood.
    fn unreadable(&mut self, part: Part, reason: &'static str, offset: u64) {
        self.tally.blind += 1;
        self.report.check_error(1, Problem::Unreadable { part, reason }, offset);
    }
}
