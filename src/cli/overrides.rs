//! What environment and command line put over a configuration file.

use crate::config::{ConfigError, Overrides};

use super::{Exit, Failure};

/// What is said on the command line.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Set {
    /// Sets one key, whatever file and environment say, as relay.listen_port=4434; for several, several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Set {
    /// With what the environment says.
    pub(super) fn over(self) -> Overrides {
        Overrides { environment: Overrides::environment(), set: self.set, state_dir: None }
    }
}

/// A configuration that cannot be run.
impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self { exit: Exit::Config, error: error.into() }
    }
}
