//! zrc-relay: a QUIC relay with token-gated allocations.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

pub mod clock;
pub mod table;
pub mod wire;
