//! `admin audit`: shows the audit log, and verifies that nobody has changed it.

use std::path::{Path, PathBuf};

use super::{
    super::{Exit, Failure, OrFail as _, out},
    Reach, show,
};
use crate::{
    config::{self, DEFAULT_STATE_DIR, Sources},
    ops::audit,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Audit {
    /// Show the last lines, by the admin API
    Show {
        /// How many
        #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
        tail: u32,
    },
    /// Verify the files: exit 0 if nothing was changed, removed or inserted, else 1
    #[command(after_help = "\
Without FILEs, all of the log in the state directory is read, rotated files included (audit.jsonl*),
and audit.head says where it must end. FILEs are given the oldest first; compressed ones are
unpacked before.")]
    Verify {
        /// The log's files, the oldest first
        files: Vec<PathBuf>,
        /// The relay's state directory
        #[arg(long, value_name = "DIR", conflicts_with = "files")]
        state_dir: Option<PathBuf>,
        /// The relay's configuration
        #[arg(long, value_name = "FILE", env = config::FILE_VARIABLE, conflicts_with_all = ["files", "state_dir"])]
        config: Option<PathBuf>,
    },
}

impl Audit {
    pub(super) async fn run(self, reach: &Reach, as_json: bool) -> Result<Exit, Failure> {
        match self {
            Self::Show { tail } => {
                let answer = reach.client()?.get("/admin/audit", &[("tail", tail.to_string())]).await?;
                if as_json {
                    out::json(&answer)?
                } else {
                    out::data(show::audit(&answer))?
                }
                Ok(Exit::Ok)
            }
            Self::Verify { files, state_dir, config } => verify(files, state_dir, config, as_json),
        }
    }
}

fn verify(
    files: Vec<PathBuf>,
    state_dir: Option<PathBuf>,
    config: Option<PathBuf>,
    as_json: bool,
) -> Result<Exit, Failure> {
    let (files, head) = if files.is_empty() {
        let folder = match (state_dir, config) {
            (Some(folder), _) => folder,
            (None, Some(file)) => Sources { file: Some(file), ..Sources::default() }.load()?.0.state_dir,
            (None, None) => Path::new(DEFAULT_STATE_DIR).to_owned(),
        };
        audit::read(&folder).or_fail(Exit::NoInput, format!("cannot read {}", folder.display()))?
    } else {
        (files, None)
    };
    let report = audit::verify(&files, head).or_fail(Exit::NoInput, "cannot read the audit log")?;
    if as_json {
        out::json(&report)?;
    } else {
        for fault in &report.faults {
            out::data(fault)?;
        }
        if report.torn > 0 {
            out::data(format_args!("{} cut off by a crash, and known to be", lines(report.torn)))?;
        }
        if report.first > 1 {
            out::data(format_args!("begins with line {}: older files are elsewhere", report.first))?;
        }
        let verdict = if report.faults.is_empty() { "nothing was changed" } else { "THE LOG WAS CHANGED" };
        out::data(format_args!("{} in {} files: {verdict}", lines(report.lines), files.len()))?;
    }
    Ok(if report.faults.is_empty() { Exit::Ok } else { Exit::Refused })
}

fn lines(count: u64) -> String {
    if count == 1 { "1 line".into() } else { format!("{count} lines") }
}
