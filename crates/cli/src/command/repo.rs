//! `repo ...`

use serde_json::json;
use vdsmstore_core::options::{ForceOptions, FormatOptions};
use vdsmstore_core::{Error, Result};

use crate::args::{RepoCommand, RepoFormat};
use crate::command::fix;
use crate::output::{pairs, table};
use crate::session::{Outcome, Session};
use crate::size::human;

/// Runs one of them.
pub fn run(session: &Session, command: RepoCommand) -> Result<Outcome> {
    match command {
        RepoCommand::Format(arguments) => format(session, &arguments),
        RepoCommand::List => list(session),
        RepoCommand::Info(arguments) => info(session, &arguments.repo),
        RepoCommand::Check(arguments) => fix::check(session, &arguments),
        RepoCommand::Fix(arguments) => fix::fix(session, &arguments),
    }
}

fn format(session: &Session, arguments: &RepoFormat) -> Result<Outcome> {
    let spec = session.repository(&arguments.name)?;
    let options = FormatOptions { owner: arguments.owner, group: arguments.group, mode: arguments.mode };
    session.store.format_storage_repository(&spec.format, &spec.parameters, &options)?;
    if session.out.json() {
        session
            .out
            .value(&json!({ "repoId": spec.name, "format": spec.format, "location": spec.location() }))?;
    }
    Ok(Outcome::Done)
}

fn list(session: &Session) -> Result<Outcome> {
    let mut values = Vec::new();
    let mut rows = vec![["NAME", "FORMAT", "STATE", "LOCATION"].map(str::to_owned).to_vec()];
    for spec in session.repositories() {
        let reached = session.connect(&spec.name);
        let mut value = json!({ "repoId": spec.name, "format": spec.format, "location": spec.location() });
        value["connected"] = json!(reached.is_ok());
        value["error"] = json!(reached.as_ref().err().map(Error::message));
        values.push(value);
        let state = reached.as_ref().err().map_or("ok", |error| error.kind().name());
        rows.push(vec![spec.name.clone(), spec.format.clone(), state.to_owned(), spec.location()]);
        if reached.is_ok() {
            session.store.disconnect_storage_repository(&spec.name, &ForceOptions::default())?;
        }
    }
    session.out.either(&values, || table(&rows))?;
    Ok(Outcome::Done)
}

fn info(session: &Session, name: &str) -> Result<Outcome> {
    session.connect(name)?;
    let info = session.store.get_storage_repository_info(name)?;
    session.out.either(&info, || {
        let capabilities = serde_json::to_value(info.capabilities).unwrap_or_default();
        let able: Vec<&str> = capabilities
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(_, able)| **able == json!(true))
            .map(|(name, _)| name.as_str())
            .collect();
        pairs(&[
            ("repository", info.repo_id.clone()),
            ("format", info.format.clone()),
            ("location", info.location.clone()),
            ("capacity", human(info.capacity)),
            ("available", human(info.available)),
            ("virtual disks", info.virtual_disks.to_string()),
            ("snapshots", info.snapshots.to_string()),
            ("read only", if info.read_only { "yes" } else { "no" }.to_owned()),
            ("features", words(&info.features)),
            ("capabilities", words(&able)),
        ])
    })?;
    Ok(Outcome::Done)
}

fn words(words: &[impl AsRef<str>]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
