//! `file ...`: what can be done with plain files, without repositories.

mod chain;
mod check;
mod compare;
mod create;
mod hash;
mod info;
mod map;
mod move_data;
mod open;

use vdsmstore_core::Result;
use vdsmstore_io::Control;

use crate::args::file::FileCommand;
use crate::interrupt::Interrupt;
use crate::output::Output;
use crate::session::Outcome;

/// What the commands share.
pub struct Context {
    /// Where results go.
    pub out: Output,
    /// Whether to stop.
    interrupt: Interrupt,
}

impl Context {
    /// Runs work that can be interrupted, on as many threads as help.
    fn with_control<T>(&self, work: impl FnOnce(&Control<'_>) -> vdsmstore_io::Result<T>) -> Result<T> {
        let interrupt = &self.interrupt;
        let cancel = || interrupt.asked();
        let threads = std::thread::available_parallelism().map_or(1, |count| count.get().clamp(1, 8));
        let result = work(&Control { cancel: &cancel, progress: &|_| {}, threads });
        self.interrupt.check()?;
        Ok(result?)
    }
}

/// Runs the command.
pub fn run(json: bool, interrupt: Interrupt, command: FileCommand) -> Result<Outcome> {
    let context = Context { out: Output::new(json), interrupt };
    match command {
        FileCommand::Info(arguments) => info::run(&context, &arguments),
        FileCommand::Check(arguments) => check::run(&context, &arguments),
        FileCommand::Map(arguments) => map::run(&context, &arguments),
        FileCommand::Measure(arguments) => map::measure(&context, &arguments),
        FileCommand::Convert(arguments) => move_data::convert(&context, &arguments),
        FileCommand::Compare(arguments) => compare::run(&context, &arguments),
        FileCommand::Hash(arguments) => hash::run(&context, &arguments),
        FileCommand::Create(arguments) => create::run(&context, &arguments),
        FileCommand::Commit(arguments) => chain::commit(&context, &arguments),
        FileCommand::Rebase(arguments) => chain::rebase(&context, &arguments),
    }
}
