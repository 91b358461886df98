//! The integration tests, one binary: the real modules together, over loopback sockets.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test says what is wrong by panicking"
)]

mod acme;
mod admin_api;
mod admin_files;
mod admin_page;
mod architecture;
mod certificates;
mod check_config;
mod cli;
mod cli_bench;
mod cli_clients;
mod cli_manual;
mod cli_serve;
mod client;
mod countries;
mod init;
mod leaks;
mod log;
mod log_hygiene;
mod memory;
mod meter;
mod metrics;
#[cfg(feature = "otel")]
mod otlp;
mod readme;
mod reload;
mod restart;
mod service;
mod webhook;
