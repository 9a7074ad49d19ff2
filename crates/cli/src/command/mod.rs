//! The commands: each calls one verb of the store, prints what it returns and waits for what it started.

mod bytes;
mod file;
mod fix;
mod generate;
mod graph;
mod image;
mod make;
mod prepare;
mod repo;
mod transfer;

use vdsmstore_core::Result;

use crate::args::{Cli, Command};
use crate::interrupt::Interrupt;
use crate::session::{Outcome, Session};

/// Runs the command.
pub fn run(cli: Cli) -> Result<Outcome> {
    if let Command::Generate(generate) = &cli.command {
        return generate::run(generate);
    }
    if let Command::File(command) = cli.command {
        return file::run(cli.json, Interrupt::install()?, command);
    }
    let session = Session::open(&cli, Interrupt::install()?)?;
    let result = match cli.command {
        Command::Repo(command) => repo::run(&session, command),
        Command::Image(command) => image::run(&session, command),
        Command::Graph(arguments) => graph::run(&session, &arguments),
        Command::File(_) | Command::Generate(_) => Ok(Outcome::Done),
    };
    let closed = session.store.close();
    let outcome = result?;
    closed?;
    Ok(outcome)
}
