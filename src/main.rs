//! The binary: everything is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    zrc_relay::cli::main()
}
