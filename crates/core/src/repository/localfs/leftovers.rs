//! What dead stores left over: temporary files, registrations, generations that nobody reads any more.

use std::collections::HashMap;

use rustix::fs::FileType;
use vdsmstore_io::without;

use super::format::TEMPORARY;
use super::layout::{Dir, Room, parse_id, parse_record, parse_temporary, record_name};
use super::tree::Tree;
use crate::Result;
use crate::id::Incarnation;
use crate::repository::{Liveness, shard_of};

/// What a file without blocks counts, and one that frees none: something to sweep is never 0.
const LEAST: u64 = 4096;

/// Names of one directory that may go, and what their files take.
#[derive(Default)]
pub(super) struct Left {
    pub(super) names: Vec<String>,
    bytes: u64,
    /// Some of them are superseded by records that are to be made durable first.
    superseded: bool,
}

/// Looks for what is left over. The dead stay dead, so that each store is asked for once.
struct Search<'a> {
    tree: &'a Tree,
    dead: HashMap<Incarnation, bool>,
}

impl Tree {
    pub(super) fn leftovers(&self) -> Result<u64> {
        let mut sum = 0;
        self.each_leftover(|_, left| {
            sum += left.bytes;
            Ok(())
        })?;
        Ok(sum)
    }

    pub(super) fn sweep_all(&self) -> Result<()> {
        let swept = self.each_leftover(|dir, left| {
            if left.superseded && !without!("localfs.flush.swept") {
                // Else a power failure could take the newer generation away after the older ones.
                dir.sync()?;
            }
            // Names only, no truncation: the file may be a record or a volume under another name.
            left.names.iter().try_for_each(|name| self.with_reserve(|| dir.unlink(name)).map(|_| ()))
        });
        self.refill_reserve();
        self.mend_reserve();
        swept
    }

    /// Calls `visit` for the directories where something is left over. One that fails does not spare the others.
    pub(super) fn each_leftover(&self, mut visit: impl FnMut(&Dir, &Left) -> Result<()>) -> Result<()> {
        let mut search = Search { tree: self, dead: HashMap::new() };
        let mut result = Ok(());
        let mut done = |found: Result<Left>, dir: &Dir| {
            let outcome =
                found.and_then(|left| if left.names.is_empty() { Ok(()) } else { visit(dir, &left) });
            if result.is_ok() {
                result = outcome;
            }
        };
        // A repository's descriptor has its name, and does not need this one any more.
        done(search.pick(&self.root, |_, name| name == TEMPORARY), &self.root);
        done(search.pick(&self.hosts, Search::is_dead_host), &self.hosts);
        done(search.pick(&self.data, Search::is_of_dead), &self.data);
        let shards = self.shards(&Room::ALL).unwrap_or_else(|error| {
            done(Err(error), &self.root);
            Vec::new()
        });
        for room in [Room::Images, Room::Volumes, Room::Progress, Room::Blobs] {
            for &shard in &shards {
                match self.shard(room, shard) {
                    Ok(None) => {}
                    Ok(Some(dir)) if matches!(room, Room::Images | Room::Volumes) => {
                        done(search.pick_records(&dir, shard), &dir);
                    }
                    Ok(Some(dir)) => done(search.pick(&dir, Search::is_of_dead), &dir),
                    Err(error) => done(Err(error), &self.root),
                }
            }
        }
        result
    }
}

impl Search<'_> {
    fn is_dead(&mut self, store: Incarnation) -> bool {
        let tree = self.tree;
        *self.dead.entry(store).or_insert_with(|| matches!(tree.liveness(store), Ok(Liveness::CertainlyDead)))
    }

    /// A temporary file of a dead store.
    fn is_of_dead(&mut self, name: &str) -> bool {
        parse_temporary(name).is_some_and(|owner| self.is_dead(owner))
    }

    /// Who is just registering has no registration yet, but locks what is to become one.
    fn is_dead_host(&mut self, name: &str) -> bool {
        match (parse_id(name), parse_temporary(name)) {
            (Some(id), _) => self.is_dead(Incarnation(id)),
            (None, Some(_)) => matches!(self.tree.is_locked_host(name), Ok(Some(false))),
            (None, None) => false,
        }
    }

    fn pick(&mut self, dir: &Dir, mut may_go: impl FnMut(&mut Self, &str) -> bool) -> Result<Left> {
        let mut names = Vec::new();
        dir.each_name(|name| {
            if may_go(self, name) {
                names.push(name.to_owned());
            }
        })?;
        let mut left = Left::default();
        names.into_iter().try_for_each(|name| left.add(dir, name))?;
        Ok(left)
    }

    fn pick_records(&mut self, dir: &Dir, shard: u16) -> Result<Left> {
        let (mut records, mut names, mut old) = (Vec::new(), Vec::new(), Vec::new());
        dir.each_name(|name| match parse_record(name) {
            // In another shard than its own a record is nobody's.
            Some((id, generation)) if shard_of(id) == shard => records.push((id, generation)),
            None if self.is_of_dead(name) => names.push(name.to_owned()),
            Some(_) | None => {}
        })?;
        // The highest generation of each id comes first.
        records.sort_unstable_by(|a, b| (a.0, b.1).cmp(&(b.0, a.1)));
        let mut highest = None;
        let mut left = Left::default();
        for (id, generation) in records {
            match highest {
                // The second highest stays, as a put leaves it.
                Some((known, last)) if known == id && last - generation > 1 => {
                    left.superseded = true;
                    old.push(record_name(id, generation));
                }
                Some((known, _)) if known == id => {}
                _ => highest = Some((id, generation)),
            }
        }
        // The lowest goes first: whoever knows one of them relies on it (`records::unchanged`).
        if !without!("localfs.order.swept") {
            old.reverse();
        }
        names.into_iter().chain(old).try_for_each(|name| left.add(dir, name))?;
        Ok(left)
    }
}

impl Left {
    /// Nothing but a regular file is ours.
    fn add(&mut self, dir: &Dir, name: String) -> Result<()> {
        let Some(stat) = dir.stat(&name)? else { return Ok(()) };
        if FileType::from_raw_mode(stat.st_mode).is_file() {
            let alone = stat.st_nlink == 1;
            self.bytes += if alone { LEAST.max(stat.st_blocks.cast_unsigned() * 512) } else { LEAST };
            self.names.push(name);
        }
        Ok(())
    }
}
