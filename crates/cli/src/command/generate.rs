//! Man pages and completions from the definition of the command line.

use clap_complete::Shell;
use vdsmstore_core::Result;

use crate::args::{self, GenerateArgs, GenerateWhat};
use crate::output::local;
use crate::session::Outcome;

/// `generate`
pub fn run(arguments: &GenerateArgs) -> Result<Outcome> {
    let directory = &arguments.directory;
    let mut command = args::command();
    match arguments.what {
        GenerateWhat::Man => {
            clap_mangen::generate_to(command, directory)
                .map_err(|error| local(directory.display(), error))?;
        }
        GenerateWhat::Completions => {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut command, "vdsmstore", directory)
                    .map_err(|error| local(directory.display(), error))?;
            }
        }
    }
    Ok(Outcome::Done)
}
