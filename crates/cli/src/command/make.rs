//! The commands that make or remove images, and wait for the work they start.

use std::fs;
use std::path::Path;

use vdsmstore_core::options::{AutoFix, Bandwidth, CopyOptions, CreateOptions, RemoveOptions, Strategy};
use vdsmstore_core::{Error, ErrorKind, Result};

use crate::args::{
    FileFormat, ImageCopy, ImageCreate, ImageImport, ImageRemove, ImageSnapshot, NewArgs, StrategyArg,
    WorkArgs,
};
use crate::config::usage;
use crate::output::local;
use crate::session::{Outcome, Session, task_id};

/// `image create`
pub fn create(session: &Session, arguments: &ImageCreate) -> Result<Outcome> {
    let new = &arguments.new;
    if arguments.base.is_some() {
        connect(session, &arguments.repo, new)?;
    } else {
        session.connect(&arguments.repo)?;
    }
    let task = task_id(new.work.task_id.as_deref());
    let id = session.store.create_virtual_disk(
        &arguments.repo,
        arguments.size,
        arguments.base.as_deref(),
        &user_data(&new.user_data)?,
        &create_options(new, &task, arguments.limit.bandwidth)?,
    )?;
    session.finish(&arguments.repo, id, &task, !new.work.no_wait)
}

/// `image snapshot`
pub fn snapshot(session: &Session, arguments: &ImageSnapshot) -> Result<Outcome> {
    let new = &arguments.new;
    session.connect(&arguments.repo)?;
    let task = task_id(new.work.task_id.as_deref());
    let id = session.store.create_snapshot(
        &arguments.repo,
        &arguments.disk,
        &user_data(&new.user_data)?,
        &create_options(new, &task, None)?,
    )?;
    session.finish(&arguments.repo, id, &task, !new.work.no_wait)
}

/// `image copy`
pub fn copy(session: &Session, arguments: &ImageCopy) -> Result<Outcome> {
    let new = &arguments.new;
    connect(session, &arguments.repo, new)?;
    let task = task_id(new.work.task_id.as_deref());
    let common = create_options(new, &task, arguments.limit.bandwidth)?;
    let mut options = CopyOptions {
        mutable: !arguments.snapshot,
        partial: arguments.partial,
        verify: arguments.verify,
        ..CopyOptions::default()
    };
    options.auto_fix = common.auto_fix;
    options.strategy = common.strategy;
    options.participating_repositories = common.participating_repositories;
    options.image_hints = common.image_hints;
    options.image_id = common.image_id;
    options.task_id = common.task_id;
    options.bandwidth = common.bandwidth;
    let id = session.store.copy_image(
        &arguments.repo,
        &arguments.image,
        arguments.base.as_deref(),
        &user_data(&new.user_data)?,
        &options,
    )?;
    session.finish(&arguments.repo, id, &task, !new.work.no_wait)
}

/// `image import`
pub fn import(session: &Session, arguments: &ImageImport) -> Result<Outcome> {
    let new = &arguments.new;
    let path = absolute(&arguments.file)?;
    session.connect(&arguments.repo)?;
    let task = task_id(new.work.task_id.as_deref());
    let id = session.store.import_image(
        &arguments.repo,
        &path,
        format_name(arguments.format),
        &user_data(&new.user_data)?,
        &CreateOptions { verify: arguments.verify, ..create_options(new, &task, arguments.limit.bandwidth)? },
    )?;
    session.finish(&arguments.repo, id, &task, !new.work.no_wait)
}

/// `image remove`
pub fn remove(session: &Session, arguments: &ImageRemove) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let task = task_id(arguments.task_id.as_deref());
    let auto_fix = if arguments.no_wait { AutoFix::Off } else { AutoFix::On };
    let options = RemoveOptions { auto_fix, task_id: Some(task.clone()) };
    session.store.remove_image(repo, image, &options)?;
    if !arguments.no_wait {
        session.wait_tasks(&task).map_err(|error| {
            let error = match error.kind() {
                ErrorKind::Stopped => Error::new(
                    ErrorKind::Stopped,
                    format!("interrupted; image {image} is removed from {repo}, its space is freed later"),
                ),
                _ => {
                    error.context(format!("image {image} is removed from {repo}, but its space is not free"))
                }
            };
            error.with("repoId", repo.as_str()).with("imageId", image.as_str())
        })?;
    }
    if session.out.json() {
        session.out.value(&serde_json::json!({ "repoId": repo, "imageId": image }))?;
    }
    Ok(Outcome::Done)
}

/// A path of the command line as the store gets it.
pub fn absolute(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|error| local(path.display(), error))?;
    path.into_os_string()
        .into_string()
        .map_err(|path| usage(format!("{}: the path is not UTF-8", path.display())))
}

/// A format as the store names it.
pub fn format_name(format: FileFormat) -> &'static str {
    match format {
        FileFormat::Raw => "raw",
        FileFormat::Qcow2 => "qcow2",
    }
}

/// The JSON that was given, or that of the file that was named.
pub fn user_data(text: &str) -> Result<String> {
    match text.strip_prefix('@') {
        Some(path) => fs::read_to_string(path).map_err(|error| local(path, error)),
        None => Ok(text.to_owned()),
    }
}

fn connect(session: &Session, target: &str, new: &NewArgs) -> Result<()> {
    let named: Vec<&str> =
        new.only.iter().map(String::as_str).chain(new.hints.iter().map(|(_, repo)| repo.as_str())).collect();
    // A hint speaks of one image; the others are still searched for everywhere unless --only says where.
    if new.only.is_empty() {
        for name in &named {
            session.repository(name)?;
        }
        session.connect_for_search(target, &[])
    } else {
        session.connect_for_search(target, &named)
    }
}

fn create_options(new: &NewArgs, task: &str, bandwidth: Option<Bandwidth>) -> Result<CreateOptions> {
    let mut options = CreateOptions {
        auto_fix: auto_fix(&new.work),
        strategy: strategy(new.strategy),
        participating_repositories: (!new.only.is_empty()).then(|| new.only.clone()),
        image_id: new.image_id.clone(),
        task_id: Some(task.to_owned()),
        bandwidth,
        ..CreateOptions::default()
    };
    for (image, repo) in &new.hints {
        if options.image_hints.insert(image.clone(), repo.clone()).is_some() {
            return Err(usage(format!("--hint: image {image} is given twice")));
        }
    }
    Ok(options)
}

/// The strategy that was named.
pub fn strategy(named: StrategyArg) -> Strategy {
    match named {
        StrategyArg::Space => Strategy::Space,
        StrategyArg::Performance => Strategy::Performance,
    }
}

fn auto_fix(work: &WorkArgs) -> AutoFix {
    match (work.no_wait, work.optimized) {
        (true, _) => AutoFix::Off,
        (false, true) => AutoFix::Optimized,
        (false, false) => AutoFix::On,
    }
}
