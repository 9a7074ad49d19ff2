//! `repo check` and `repo fix`.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use vdsmstore_core::options::{CheckOptions, FixOptions};
use vdsmstore_core::{Error, ErrorKind, Fix, FixType, ImageId, Result};

use crate::args::{FixTypeArg, RepoCheck, RepoFix};
use crate::config::usage;
use crate::output::{local, table, warn};
use crate::session::{Outcome, Session, task_id};
use crate::size::human;

/// Checks of one pass: what one fix makes possible is listed by the next check.
const ROUNDS: u32 = 10;
/// How often a pause looks at signals.
const TICK: Duration = Duration::from_millis(100);

/// `repo check`
pub fn check(session: &Session, arguments: &RepoCheck) -> Result<Outcome> {
    let repo = &arguments.repo.repo;
    session.connect_for_search(repo, &[])?;
    let options = CheckOptions { exact_cost: arguments.exact };
    let fixes = session.store.check_storage_repository(repo, &options)?;
    list(session, &fixes)?;
    Ok(Outcome::Done)
}

fn list(session: &Session, fixes: &[Fix]) -> Result<()> {
    session.out.either(&fixes, || {
        if fixes.is_empty() {
            return "nothing is left to do".to_owned();
        }
        let heading = ["TYPE", "READS", "WRITES", "NEEDS", "FREES", "WHAT"].map(str::to_owned).to_vec();
        let row = |fix: &Fix| {
            let cost = [fix.cost.read, fix.cost.write, fix.cost.needs, fix.cost.frees].map(human);
            let mut row = vec![word(fix.fix_type).to_owned()];
            row.extend(cost);
            row.push(fix.description.clone());
            row
        };
        table(&[heading].into_iter().chain(fixes.iter().map(row)).collect::<Vec<_>>())
    })
}

fn word(fix_type: FixType) -> &'static str {
    match fix_type {
        FixType::Clean => "clean",
        FixType::Optimize => "optimize",
        FixType::Merge => "merge",
        FixType::Mend => "mend",
    }
}

/// `repo fix`
pub fn fix(session: &Session, arguments: &RepoFix) -> Result<Outcome> {
    let repo = &arguments.repo.repo;
    let Some(file) = &arguments.file else { return fix_all(session, arguments) };
    let fixes = parse(&read(file)?)?;
    session.connect_for_search(repo, &[])?;
    let mut pass = Pass::new(session, arguments);
    if let [single] = fixes.as_slice() {
        pass.run(single)?;
    } else {
        for fix in &fixes {
            pass.attempt(fix)?;
        }
    }
    pass.report()
}

fn read(file: &Path) -> Result<String> {
    if file.as_os_str() == "-" {
        return io::read_to_string(io::stdin()).map_err(|error| local("standard input", error));
    }
    fs::read_to_string(file).map_err(|error| local(file.display(), error))
}

/// One fix, or a list of them.
fn parse(text: &str) -> Result<Vec<Fix>> {
    let bad =
        |error: serde_json::Error| usage(format!("this is no fix as `repo check --json` lists it: {error}"));
    let fixes = match serde_json::from_str(text).map_err(bad)? {
        Value::Array(list) => list,
        single => vec![single],
    };
    fixes.into_iter().map(|fix| serde_json::from_value(fix).map_err(bad)).collect()
}

fn fix_all(session: &Session, arguments: &RepoFix) -> Result<Outcome> {
    session.connect_for_search(&arguments.repo.repo, &[])?;
    if arguments.dry_run {
        let fixes = Pass::new(session, arguments).check()?;
        list(session, &fixes)?;
        return Ok(Outcome::Done);
    }
    let Some(pause) = arguments.watch else { return Pass::new(session, arguments).all()?.report() };
    loop {
        // One bad pass is no reason to give up: the storage may come back.
        match Pass::new(session, arguments).all().and_then(Pass::report) {
            Err(error) if error.kind() == ErrorKind::Stopped => return Err(error),
            Err(error) => warn(error.message()),
            Ok(_) => {}
        }
        let start = Instant::now();
        while let Some(left) = pause.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            session.interrupt.check()?;
            thread::sleep(left.min(TICK));
        }
        session.interrupt.check()?;
    }
}

/// What was done, and what was not.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    repo_id: String,
    rounds: u32,
    done: Vec<Entry>,
    /// What cannot be done now.
    skipped: Vec<Entry>,
    failed: Vec<Entry>,
    /// What the last check lists.
    left: Vec<Fix>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(rename = "type")]
    fix_type: FixType,
    image_id: Option<ImageId>,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Reason>,
}

#[derive(Debug, Serialize)]
struct Reason {
    code: i32,
    kind: &'static str,
    message: String,
}

/// One run over what a check lists.
struct Pass<'a> {
    session: &'a Session,
    arguments: &'a RepoFix,
    report: Report,
    /// The first failure of the last round.
    failure: Option<Error>,
}

impl<'a> Pass<'a> {
    fn new(session: &'a Session, arguments: &'a RepoFix) -> Self {
        let report = Report {
            repo_id: arguments.repo.repo.clone(),
            rounds: 0,
            done: Vec::new(),
            skipped: Vec::new(),
            failed: Vec::new(),
            left: Vec::new(),
        };
        Self { session, arguments, report, failure: None }
    }

    fn check(&self) -> Result<Vec<Fix>> {
        let repo = &self.arguments.repo.repo;
        let mut fixes = self.session.store.check_storage_repository(repo, &CheckOptions::default())?;
        let types: Vec<FixType> = self.arguments.types.iter().map(|named| fix_type(*named)).collect();
        fixes.retain(|fix| types.is_empty() || types.contains(&fix.fix_type));
        Ok(fixes)
    }

    /// Rounds of a check and its fixes, until nothing is left or nothing moves any more.
    fn all(mut self) -> Result<Self> {
        let mut former = BTreeSet::new();
        loop {
            let fixes = self.check()?;
            let listed: BTreeSet<String> = fixes.iter().map(|fix| fix.data.to_string()).collect();
            let stands_still = listed == former;
            self.report.left = fixes;
            if listed.is_empty() || stands_still || self.report.rounds == ROUNDS {
                break;
            }
            former = listed;
            self.report.rounds += 1;
            self.report.skipped.clear();
            self.report.failed.clear();
            self.failure = None;
            for fix in self.report.left.clone() {
                self.attempt(&fix)?;
            }
        }
        if self.report.left.is_empty() {
            // Somebody else has done what could not be done here.
            self.report.skipped.clear();
            self.report.failed.clear();
            self.failure = None;
        }
        Ok(self)
    }

    /// Runs a fix. Only an interrupt is an error; others are kept.
    fn attempt(&mut self, fix: &Fix) -> Result<()> {
        match self.run(fix) {
            Err(error) if error.kind() == ErrorKind::Stopped && self.session.interrupt.asked() => Err(error),
            Err(error) if is_for_later(&error) => {
                self.report.skipped.push(entry(fix, Some(&error)));
                Ok(())
            }
            Err(error) => {
                self.report.failed.push(entry(fix, Some(&error)));
                self.failure.get_or_insert(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn run(&mut self, fix: &Fix) -> Result<()> {
        let (session, repo) = (self.session, &self.arguments.repo.repo);
        session.interrupt.check()?;
        let task = task_id(None);
        let options = FixOptions { task_id: Some(task.clone()), bandwidth: self.arguments.limit.bandwidth };
        session.store.fix_storage_repository(repo, fix, &options)?;
        let _offer = fix.image_id.and_then(|image| session.offer_to_stop(repo, &image.to_string()));
        session.wait_tasks(&task).map_err(|error| {
            let interrupted = error.kind() == ErrorKind::Stopped && session.interrupt.asked();
            if interrupted {
                let message = format!("interrupted; `vdsmstore repo fix {repo} --all` goes on");
                return Error::new(ErrorKind::Stopped, message).with("repoId", repo.as_str());
            }
            error
        })?;
        if !session.out.json() {
            session.out.line(&format!("done: {}", fix.description))?;
        }
        self.report.done.push(entry(fix, None));
        Ok(())
    }

    /// Says what came of it.
    fn report(self) -> Result<Outcome> {
        let (out, report) = (&self.session.out, &self.report);
        if out.json() {
            out.value(report)?;
        } else {
            for (entries, what) in [(&report.skipped, "left for later"), (&report.failed, "failed")] {
                for entry in entries {
                    let reason = entry.error.as_ref().map_or("", |error| error.message.as_str());
                    warn(&format!("{what}: {}: {reason}", entry.description));
                }
            }
        }
        match (self.failure, report.left.is_empty() && report.skipped.is_empty()) {
            (Some(error), _) => {
                let message = format!("{} of the fixes failed, the first with: {error}", report.failed.len());
                Err(Error::new(error.kind(), message).with("repoId", report.repo_id.as_str()))
            }
            (None, true) => Ok(Outcome::Done),
            (None, false) => Ok(Outcome::Degraded),
        }
    }
}

fn fix_type(named: FixTypeArg) -> FixType {
    match named {
        FixTypeArg::Clean => FixType::Clean,
        FixTypeArg::Optimize => FixType::Optimize,
        FixTypeArg::Merge => FixType::Merge,
        FixTypeArg::Mend => FixType::Mend,
    }
}

/// Whether it may work another time without anybody's doing: it is in use, out of date, or waits for another image.
fn is_for_later(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ImageInUse
            | ErrorKind::FixRefused
            | ErrorKind::Conflict
            | ErrorKind::CannotLock
            | ErrorKind::ImageNotFound
            | ErrorKind::ImageBroken
            | ErrorKind::RepositoryNotFound
            | ErrorKind::Stopped
    )
}

fn entry(fix: &Fix, error: Option<&Error>) -> Entry {
    let error = error.map(|error| Reason {
        code: error.kind().code(),
        kind: error.kind().name(),
        message: error.message().to_owned(),
    });
    Entry { fix_type: fix.fix_type, image_id: fix.image_id, description: fix.description.clone(), error }
}
