//! `image ...`: what only looks at images, and the way to the others.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;
use vdsmstore_core::options::{ForceOptions, ImageKind, ListOptions, ResizeOptions};
use vdsmstore_core::{Error, ErrorKind, ImageInfo, Prepared, Result, Status};

use crate::args::{
    ImageCommand, ImageList, ImageResize, ImageSetStrategy, ImageSetUserData, ImageTeardown, ImageWait,
    KindArg, OneImage,
};
use crate::command::{bytes, make, prepare, transfer};
use crate::draw::tree::name_of;
use crate::output::{pairs, table, warn};
use crate::session::{Outcome, Session, status_value, usable};
use crate::size::{date, human};
use crate::stop;

/// Runs one of them.
pub fn run(session: &Session, command: ImageCommand) -> Result<Outcome> {
    match command {
        ImageCommand::Create(arguments) => make::create(session, &arguments),
        ImageCommand::Snapshot(arguments) => make::snapshot(session, &arguments),
        ImageCommand::Copy(arguments) => make::copy(session, &arguments),
        ImageCommand::Import(arguments) => make::import(session, &arguments),
        ImageCommand::Remove(arguments) => make::remove(session, &arguments),
        ImageCommand::Status(arguments) => status(session, &arguments),
        ImageCommand::List(arguments) => list(session, &arguments),
        ImageCommand::Info(arguments) => info(session, &arguments),
        ImageCommand::Wait(arguments) => wait(session, &arguments),
        ImageCommand::Stop(arguments) => stop(session, &arguments),
        ImageCommand::SetUserdata(arguments) => set_user_data(session, &arguments),
        ImageCommand::SetStrategy(arguments) => set_strategy(session, &arguments),
        ImageCommand::Resize(arguments) => resize(session, &arguments),
        ImageCommand::Export(arguments) => transfer::export(session, &arguments),
        ImageCommand::Diff(arguments) => transfer::diff(session, &arguments),
        ImageCommand::Measure(arguments) => transfer::measure(session, &arguments),
        ImageCommand::Read(arguments) => bytes::read(session, &arguments),
        ImageCommand::Write(arguments) => bytes::write(session, &arguments),
        ImageCommand::Extents(arguments) => bytes::extents(session, &arguments),
        ImageCommand::Prepare(arguments) => prepare::prepare(session, &arguments),
        ImageCommand::Teardown(arguments) => teardown(session, &arguments),
    }
}

fn status(session: &Session, arguments: &OneImage) -> Result<Outcome> {
    session.connect(&arguments.repo)?;
    let status = session.store.get_image_status(&arguments.repo, &arguments.image)?;
    session.out.either(&status_value(&arguments.repo, &arguments.image, &status)?, || {
        let mut lines = vec![("status", word(status.status).to_owned())];
        if !status.host_id.is_empty() {
            lines.push(("host", status.host_id.clone()));
        }
        if !status.stage.is_empty() {
            lines.push(("stage", status.stage.clone()));
        }
        if status.percent_complete >= 0 && status.status != Status::Optimized {
            lines.push(("complete", format!("{}%", status.percent_complete)));
        }
        if let Some(error) = &status.last_error {
            lines.push(("last error", error.clone()));
        }
        pairs(&lines)
    })?;
    Ok(Outcome::Done)
}

fn list(session: &Session, arguments: &ImageList) -> Result<Outcome> {
    session.connect(&arguments.repo)?;
    let options = ListOptions {
        details: arguments.details,
        kind: arguments.kind.map(|kind| match kind {
            KindArg::Disk => ImageKind::Disk,
            KindArg::Snapshot => ImageKind::Snapshot,
        }),
        after: arguments.after.clone(),
        limit: arguments.limit,
    };
    if arguments.details {
        let infos = session.store.list_image_infos(&arguments.repo, &options)?;
        session.out.either(&infos, || {
            let heading =
                ["IMAGE", "KIND", "SIZE", "ALLOCATED", "CREATED", "NAME"].map(str::to_owned).to_vec();
            let rows: Vec<_> = [heading].into_iter().chain(infos.iter().map(row)).collect();
            table(&rows)
        })?;
    } else {
        let ids: Vec<String> =
            session.store.list_images(&arguments.repo, &options)?.iter().map(ToString::to_string).collect();
        if session.out.json() {
            session.out.value(&ids)?;
        } else {
            session.out.lines(&ids)?;
        }
    }
    Ok(Outcome::Done)
}

fn row(info: &ImageInfo) -> Vec<String> {
    vec![
        info.image_id.to_string(),
        kind(info).to_owned(),
        human(info.size),
        human(info.allocated),
        date(info.created),
        name_of(&info.user_data).unwrap_or_default(),
    ]
}

fn kind(info: &ImageInfo) -> &'static str {
    if info.mutable { "disk" } else { "snapshot" }
}

fn info(session: &Session, arguments: &OneImage) -> Result<Outcome> {
    session.connect(&arguments.repo)?;
    let info = session.store.get_image_info(&arguments.repo, &arguments.image)?;
    session.out.either(&info, || {
        let prepared = |prepared: &Prepared| {
            format!("{} by {} since {}", prepared.mode, prepared.host_id, date(prepared.since))
        };
        let strategy = json!(info.strategy);
        pairs(&[
            ("image", info.image_id.to_string()),
            ("kind", kind(&info).to_owned()),
            ("size", format!("{} ({})", info.size, human(info.size))),
            ("allocated", format!("{} ({})", info.allocated, human(info.allocated))),
            ("strategy", strategy.as_str().unwrap_or_default().to_owned()),
            ("created", date(info.created)),
            ("depth", info.depth.to_string()),
            ("in use", info.prepared.as_ref().map_or_else(|| "no".to_owned(), prepared)),
            ("user data", info.user_data.get().to_owned()),
        ])
    })?;
    Ok(Outcome::Done)
}

/// Another process does the work, so its status is looked at until it is good enough.
fn wait(session: &Session, arguments: &ImageWait) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let start = Instant::now();
    let mut pause = Duration::from_millis(20);
    loop {
        let status = session.store.get_image_status(repo, image)?;
        let enough = match status.status {
            Status::Optimized => true,
            Status::Degraded => !arguments.optimized,
            Status::Broken => false,
        };
        if enough {
            session.out.either(&status_value(repo, image, &status)?, || word(status.status).to_owned())?;
            return usable(repo, image, &status);
        }
        session.interrupt.check()?;
        let left = match arguments.timeout {
            Some(timeout) => timeout.saturating_sub(start.elapsed()),
            None => pause,
        };
        if left.is_zero() {
            let message = format!("image {image} in {repo} is still {}", word(status.status));
            return Err(Error::new(ErrorKind::Timeout, message));
        }
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

fn set_user_data(session: &Session, arguments: &ImageSetUserData) -> Result<Outcome> {
    let OneImage { repo, image } = &arguments.image;
    session.connect(repo)?;
    session.store.set_image_user_data(repo, image, &make::user_data(&arguments.user_data)?)?;
    done(session, &arguments.image)
}

/// Stops the command that works on the image, if one of this machine and user does.
fn stop(session: &Session, arguments: &OneImage) -> Result<Outcome> {
    let OneImage { repo, image } = arguments;
    session.connect(repo)?;
    let status = session.store.get_image_status(repo, image)?;
    let stopped = stop::ask(session.repository(repo)?, image)?;
    if !stopped && status.status == Status::Broken {
        warn(&format!("no command of this user and machine works on image {image} in {repo}"));
    }
    if session.out.json() {
        session.out.value(&json!({ "repoId": repo, "imageId": image, "stopped": stopped }))?;
    }
    Ok(Outcome::Done)
}

fn set_strategy(session: &Session, arguments: &ImageSetStrategy) -> Result<Outcome> {
    let OneImage { repo, image } = &arguments.image;
    session.connect(repo)?;
    session.store.set_image_strategy(repo, image, make::strategy(arguments.strategy))?;
    done(session, &arguments.image)
}

fn resize(session: &Session, arguments: &ImageResize) -> Result<Outcome> {
    let OneImage { repo, image } = &arguments.image;
    session.connect(repo)?;
    session.store.resize_virtual_disk(repo, image, arguments.size, &ResizeOptions::default())?;
    done(session, &arguments.image)
}

fn teardown(session: &Session, arguments: &ImageTeardown) -> Result<Outcome> {
    let OneImage { repo, image } = &arguments.image;
    session.connect(repo)?;
    session.store.teardown_image(repo, image, &ForceOptions { force: arguments.force })?;
    done(session, &arguments.image)
}

fn done(session: &Session, image: &OneImage) -> Result<Outcome> {
    if session.out.json() {
        session.out.value(&json!({ "repoId": image.repo, "imageId": image.image }))?;
    }
    Ok(Outcome::Done)
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Optimized => "optimized",
        Status::Degraded => "degraded",
        Status::Broken => "broken",
    }
}
