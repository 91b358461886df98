//! The relay: quinn's sockets and tasks around the table.
//!
//! ```text
//!  UDP port ── steer.rs: the kernel picks the shard by connection ID or tag
//!   └ socket.rs ─┬ raw packets ────────────────────────────────► other leg's address   channel.rs
//!                └ QUIC ── shard (one thread: endpoint, accept loop, sweep)  entry.rs: who gets a handshake
//!                           └ session (one task per connection)
//!                              │ handshake, Hello, proof   auth.rs
//!                              │ control stream            control.rs
//!                              ├ datagrams ──► other leg   forward.rs
//!                              └ streams  ◄──► other leg   splice.rs
//!  hub.rs: the table behind one mutex, taken when connections come and go, never per packet
//! ```
//!
//! A leg is a connection that has been accepted into an allocation. When the table pairs two legs,
//! each holds the other by `Arc`, and the allocation's meter; from then on forwarding a datagram looks nothing
//! up and locks nothing that another allocation uses.

mod auth;
mod channel;
mod control;
mod entry;
mod forward;
mod handle;
mod handshake;
mod hub;
mod latency;
mod leg;
mod notices;
mod server;
mod session;
mod shard;
mod share;
mod socket;
mod splice;
mod steer;
#[cfg(test)]
mod tests;
mod tls;
mod unproven;

pub use auth::{Admission, Issuer, Pinned};
pub use handle::{LegInfo, RelayHandle};
pub use server::{
    DATAGRAM_RECEIVE_BUFFER_BYTES, LiveLimits, MAX_SHARDS, Pulse, RelayConfig, RelayServer, StartError,
};
pub use tls::TlsIdentity;
