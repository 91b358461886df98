//! `admin audit`: shows the audit log, and verifies that nobody has changed it.

use std::path::PathBuf;

use super::{
    super::{Exit, Failure, OrFail as _, out},
    Reach,
    place::Place,
    show,
};
use crate::ops::audit;

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
Without FILEs, all of the log in the relay's state directory is read, rotated files included
(audit.jsonl*), and audit.head says where it must end. FILEs are given the oldest first; compressed
ones are unpacked before. What is missing at their end is then not seen.

Whoever may write into the state directory can write all of it anew, audit.head included. The last
hash, noted elsewhere, is what nobody can change: --expect N:HASH says whether line N is still it.

Exit 0: nothing was changed. Exit 1: something was. Exit 66: there is no log there, or it cannot be
read.")]
    Verify {
        /// The log's files, the oldest first
        files: Vec<PathBuf>,
        /// A line that must be there: its number and its hash, as another verification has shown them
        #[arg(long, value_name = "N:HASH", value_parser = expected)]
        expect: Option<(u64, String)>,
        #[command(flatten)]
        place: Place,
    },
}

fn expected(text: &str) -> Result<(u64, String), &'static str> {
    const FORM: &str = "a number, a colon, and 64 hex digits";
    let (seq, hash) = text.split_once(':').ok_or(FORM)?;
    if hash.len() != 64 || !hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(FORM);
    }
    Ok((seq.parse().map_err(|_| FORM)?, hash.to_ascii_lowercase()))
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
            Self::Verify { files, expect, place } => verify(files, expect, &place, as_json),
        }
    }
}

fn verify(
    files: Vec<PathBuf>,
    expect: Option<(u64, String)>,
    place: &Place,
    as_json: bool,
) -> Result<Exit, Failure> {
    let log = if files.is_empty() {
        let folder = place.state_dir()?;
        let shown = folder.display();
        let next = format!(
            "cannot read the audit log in {shown}: --config or --state-dir say where the relay's is, and its user \
             or root may read it"
        );
        let log = audit::read(&folder).or_fail(Exit::NoInput, next)?;
        if log.files.is_empty() && !log.has_head() {
            let reason = format!(
                "there is no audit log in {shown}: --config or --state-dir say where the relay's state directory is; a \
                 relay that has one begins its log at its start"
            );
            return Err(Failure::new(Exit::NoInput, reason));
        }
        log
    } else {
        audit::Log { files, head: audit::Head::NotAsked }
    };
    let report = audit::verify(&log, expect.as_ref()).or_fail(Exit::NoInput, "cannot read the audit log")?;
    if as_json {
        out::json(&report)?;
    } else {
        for fault in &report.faults {
            out::data(fault)?;
        }
        if report.torn > 0 {
            out::data(format_args!("{} cut off by a crash, and known to be", counted(report.torn, "line")))?;
        }
        if report.first > 1 {
            out::data(format_args!("begins with line {}: older files are elsewhere", report.first))?;
        }
        if report.last > 0 {
            out::data(format_args!("ends with line {}:{}", report.last, report.last_hash))?;
        }
        let verdict = if report.faults.is_empty() { "nothing was changed" } else { "THE LOG WAS CHANGED" };
        let files = counted(log.files.len() as u64, "file");
        out::data(format_args!("{} in {files}: {verdict}", counted(report.lines, "line")))?;
    }
    Ok(if report.faults.is_empty() { Exit::Ok } else { Exit::Refused })
}

fn counted(count: u64, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}
