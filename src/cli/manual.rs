//! `man` and `completions`: what a package installs beside the program, made from the command line's own definition.

use std::{fs, io, path::PathBuf};

use clap_complete::Shell;

use super::{Exit, Failure, OrFail as _, definition, out};

/// Write a man page for each command
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  zrc-relay man /usr/local/share/man/man1
  zrc-relay man . && man ./zrc-relay-serve.1")]
pub struct Man {
    /// Where to write them; made when it is missing
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Man {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let shown = self.folder.display();
        fs::create_dir_all(&self.folder).or_fail(Exit::CantCreate, format!("cannot make {shown}"))?;
        // Pages of `help` commands would say nothing.
        let command = definition().disable_help_subcommand(true);
        clap_mangen::generate_to(command, &self.folder)
            .or_fail(Exit::Io, format!("cannot write man pages to {shown}"))?;
        Ok(Exit::Ok)
    }
}

/// Print what lets a shell complete zrc-relay's commands and options
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  zrc-relay completions bash > /usr/share/bash-completion/completions/zrc-relay
  zrc-relay completions zsh > /usr/share/zsh/vendor-completions/_zrc-relay
  zrc-relay completions fish > ~/.config/fish/completions/zrc-relay.fish")]
pub struct Completions {
    /// For which shell
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut definition(), "zrc-relay", &mut script);
        let script = String::from_utf8(script)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            .or_fail(Exit::Software, "the completions are no text")?;
        out::data(script.trim_end())?;
        Ok(Exit::Ok)
    }
}
