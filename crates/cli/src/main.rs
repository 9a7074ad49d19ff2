//! The command line of vdsmstore.

mod args;
mod command;
mod config;
mod draw;
mod interrupt;
mod output;
mod progress;
mod session;
mod size;
mod stop;

use std::env;
use std::process::ExitCode;

use vdsmstore_core::{Error, ErrorKind};

fn main() -> ExitCode {
    let cli = match args::parse(env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let json = cli.json;
    match command::run(cli) {
        Ok(outcome) => ExitCode::from(outcome.code()),
        Err(error) => {
            output::report(json, &error);
            ExitCode::from(status_of(&error))
        }
    }
}

fn status_of(error: &Error) -> u8 {
    match error.kind() {
        ErrorKind::Stopped => interrupt::EXIT,
        ErrorKind::InvalidParameter if error.details().contains_key("usage") => 2,
        _ => 1,
    }
}

/// What clap has to say: help and version are no errors.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && env::args_os().any(|argument| argument == "--json") {
        let rendered = error.render().to_string();
        // Help that is shown because the command is missing does not begin with an error.
        let message = rendered.strip_prefix("error: ").and_then(|text| text.split("\n\n").next());
        let message = message.unwrap_or("a command is needed, see --help");
        output::report(true, &config::usage(message.split_whitespace().collect::<Vec<_>>().join(" ")));
    } else {
        // A closed pipe, at worst.
        let _ = error.print();
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}
