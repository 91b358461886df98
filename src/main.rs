//! The binary: everything is in the library's `cli`.

use std::process::ExitCode;

/// Musl's own lets one thread at a time allocate.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    zrc_relay::cli::main()
}
