//! Where a relay keeps what commands read and write beside it: found as the relay itself finds it, by its configuration and
//! the environment. Of those, other faults than in what is asked for do not matter here.

use std::path::{Path, PathBuf};

use super::super::{Exit, Failure, running::TOKEN_FILE};
use crate::config::{self, ConfigError, DEFAULT_STATE_DIR, Overrides, Sources};

/// Which relay's files.
#[derive(Debug, clap::Args)]
pub(super) struct Place {
    /// The relay's configuration
    #[arg(long, value_name = "FILE", env = config::FILE_VARIABLE)]
    config: Option<PathBuf>,
    /// The relay's state directory, whatever the configuration says
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

impl Place {
    /// The state directory.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub(super) fn state_dir(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.state_dir {
            return Ok(folder.clone());
        }
        let said = configured(self.config.as_deref(), "state_dir")?;
        Ok(said.unwrap_or_else(|| DEFAULT_STATE_DIR.into()))
    }

    /// The file of the tokens' hashes.
    ///
    /// # Errors
    /// When the configuration cannot be read.
    pub(super) fn token_file(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.state_dir {
            return Ok(folder.join(TOKEN_FILE));
        }
        match configured(self.config.as_deref(), "admin.token_file")? {
            Some(file) => Ok(file),
            None => Ok(self.state_dir()?.join(TOKEN_FILE)),
        }
    }
}

/// The socket that a relay of this environment has, if its configuration can be read and names one.
pub(super) fn configured_socket() -> Option<PathBuf> {
    let file = std::env::var_os(config::FILE_VARIABLE).filter(|file| !file.is_empty());
    configured(file.as_deref().map(Path::new), "admin.socket").ok()?
}

/// A path that configuration or environment say.
fn configured(file: Option<&Path>, key: &str) -> Result<Option<PathBuf>, Failure> {
    let over = Overrides { environment: Overrides::environment(), ..Overrides::default() };
    let sources = Sources { file: file.map(Path::to_owned), over, ..Sources::default() };
    let reading = sources.read()?;
    let folder = file.and_then(Path::parent).unwrap_or(Path::new(""));
    match (reading.settings.text(key), reading.checked) {
        (Some(path), _) => Ok(Some(folder.join(path))),
        // Where nothing is configured, the defaults hold.
        (None, Ok(_)) => Ok(None),
        (None, Err(_)) if file.is_none() => Ok(None),
        (None, Err(faults)) => {
            let Failure { error, .. } = ConfigError::Faults { path: sources.file, faults }.into();
            Err(Failure { exit: Exit::Config, error })
        }
    }
}
