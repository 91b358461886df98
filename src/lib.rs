//! zrc-relay: a QUIC relay with token-gated allocations.
//!
//! Two machines behind NATs each connect to the relay over QUIC. Each shows an Ed25519-signed token and proves
//! that it holds its key; the relay pairs the two connections into an *allocation* and passes datagrams and
//! streams between them, unread and unmodified, within the allocation's rate, packet rate and quota.
//!
//! This page is the map. How to run it is in `README.md` and `deploy/`; what crosses the wire is in
//! `src/wire/PROTOCOL.md`; a program that wants to be a client begins at [`client`].
//!
//! # Map
//!
//! | module | what it is for | I/O |
//! |---|---|---|
//! | [`wire`] | tokens, proofs, control frames, close codes, descriptors: the contract, shared by both sides | none |
//! | [`table`] | which connections belong together and until when; the meter that both legs share | none |
//! | `guard` | who may come and how often, what floods bring, and the stream of security events | none |
//! | [`clock`] | the only reader of clocks; everything else is told the time | clocks |
//! | `relay` | sockets and tasks around the table: shard, socket, session, leg, forward, channel, splice | UDP |
//! | `quic` | what relay and client both set up in quinn | none |
//! | [`client`] | sessions that keep themselves connected | UDP |
//! | `ops` | health, readiness, metrics, the status page; the admin API, dashboard, tokens, audit log | HTTP, files |
//! | `acme` | certificates from an authority that speaks ACME | HTTP |
//! | `config` | TOML to checked types, all faults at once | files |
//! | `telemetry` | the log: lines from events, and its level while it runs | none |
//! | `https` | whom the relay and its commands trust when they ask others over HTTPS | files |
//! | `geoip` | which country an address is in, by the operator's database | none |
//! | `metrics` | every metric, declared once, handles cached | none |
//! | `cli` | a file per command; `cli::running` puts the pieces together | all |
//!
//! Arrows point down: `cli -> {relay, ops, client, config} -> {quic, table, wire}`. `relay` and `ops` never import
//! each other, `client` imports neither; `wire` and `table` import no runtime and no socket, and read no clock.
//! `tests/it/architecture.rs` reads the `use` lines and holds all of this.
//!
//! # A connection's life
//!
//! 1. The kernel hands its packets to one of the shards, threads that share the UDP port: a BPF program reads which
//!    from the connection ID, so a client that changes its address stays. The guard says whether it may begin: by list,
//!    by its source's budget, by what floods there are. The shard's endpoint accepts it, if fewer than
//!    `max_unauthenticated` others are still without a token. Until it has one it may open one stream, send 16 KiB, and
//!    take 3 s.
//! 2. Its session reads `Hello`, checks the token (form, key, signature, audience, allocation, times: bytes become
//!    a [`SignedToken`](wire::SignedToken) of a device or an [`IssuerToken`](wire::IssuerToken) of a back end, that a
//!    [`VerifiedToken`](wire::token::VerifiedToken), that [`Claims`](wire::Claims)), and checks the proof, bound to
//!    this TLS session. What the signer may have is its tier.
//! 3. The hub puts it into the [`Table`](table::Table), under the one mutex. The answer is a list of
//!    [`Effect`](table::Effect)s: link these connections, close that one. They are carried out before the mutex is
//!    let go, so that no two shards see them in different orders.
//! 4. The connection is now a *leg*. Two child tasks move its datagrams and its streams; the session itself
//!    reads and writes the control stream. Where both sides want a raw channel, each leg gets a tag of its own.
//! 5. Whatever ends it (the client, the table, the sweep, a panic), the session's guard leaves the table. The end
//!    has a code, on the control stream and on the connection.
//!
//! # The packet path
//!
//! A datagram costs: read from quinn; one atomic load for the leg at the other end; a look at that leg's send
//! buffer; the meter's atomics (bytes, packets and quota together, all or nothing, before sending); send; four
//! counters. No map is looked up, no lock is shared between allocations, no memory is allocated. If the send is
//! refused, the charge is given back. Everything not sent is counted under one reason.
//!
//! A raw packet never reaches QUIC. The shard's socket, which quinn reads through, takes it out of what was received:
//! its tag finds the leg, its source must be the leg's proven address, the meter is charged, the other leg's tag
//! takes the place of this one's, in the buffer the packet arrived in, and it is sent. All of that is done once for a
//! train of packets (GRO), which leaves as a train (GSO). While the other side has not shown lately that it
//! receives raw packets, they leave as datagrams.
//!
//! A stream costs a task that holds what two dozen packets brought. It reads on when the other side has taken that,
//! so the sender's flow-control window is the queue. FIN, RESET and STOP_SENDING cross; the relay's own resets say so.
//!
//! # What always holds
//!
//! - Nothing is created, joined or evicted before token *and* proof have been checked.
//! - An allocation is its [`Identity`](wire::Identity): signer, device, peer and allocation id together.
//! - Bytes used are never reset: not by refresh, reconnect or re-creation. A full ledger refuses; it never forgets.
//! - Only an address that has proven itself is counted, blocked for what it did, or reported. What forged packets can
//!   bring about is a Retry or silence, for all alike, and never more than three bytes for one. Whoever has a
//!   connection and claims to have moved has that address sent one whole datagram, as quinn does it, and so at most 64
//!   addresses in 10 s (`quic::moves`). What quinn sends behind that in the same turn, to look for a larger
//!   MTU, is withheld.
//! - Every queue, buffer and wait is bounded, and the bound says why. What a client is to be told sits in slots
//!   where the latest wins, so a client that does not read costs a few hundred bytes.
//! - Who may have what can change while sessions run: it is judged under the table's mutex, for those who join as for
//!   those who are there, so nobody slips between the old rules and the new.
//! - A panic in a session ends that session, a panic over a packet costs what arrived with it; both are counted,
//!   and nothing else happens. One within quinn's own state leaves a lock that nobody may take again: that, as any
//!   other way to lose a shard, ends the daemon, for its supervisor to start anew.
//! - No payload, token or key is logged; addresses only at debug, but where the operator asks for those of security
//!   events. Each event is one line, whatever clients put into it.
//!
//! # What one connection can make the relay hold
//!
//! | what | at most | why so much |
//! |---|---|---|
//! | stream bytes that nobody reads | 64 streams of 256 KiB, and 64 KiB for the control stream | the client's flow-control windows |
//! | stream bytes on their way through | 64 pumps of 24 packets, some 2 MiB | read together, written together |
//! | stream bytes sent and not acknowledged | 2 MiB | the send window, over all streams |
//! | datagrams to be sent | 100 ms of what rate and path carry, 64 KiB to 2 MiB | the forwarder looks before it hands over |
//! | datagrams received and not yet read | 1 MiB | one burst; reading waits for nothing |
//! | raw packets | nothing | they are sent at once or dropped |
//! | what it is to be told | a few hundred bytes | one slot a message, the latest wins |
//!
//! So 23 MiB, for a client that fills every window towards a peer that reads nothing, and some 35 KiB for one that is
//! idle. Before its token is accepted: 16 KiB of stream, 3 s.
//!
//! # What is not here
//!
//! No encryption between device and peer: that is theirs, and the relay neither has nor wants the keys. No
//! hole punching: this is for when that has failed. No storage: a restart forgets allocations and their use.
//! No 0-RTT, no TCP fallback. Nothing parses what is relayed.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

#[cfg(feature = "server")]
mod acme;
#[cfg(feature = "server")]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "server")]
pub mod geoip;
#[cfg(feature = "server")]
pub mod guard;
#[cfg(feature = "server")]
mod https;
#[cfg(feature = "server")]
pub mod metrics;
#[cfg(feature = "server")]
pub mod ops;
#[cfg(feature = "client")]
mod quic;
#[cfg(feature = "server")]
pub mod relay;
pub mod table;
#[cfg(feature = "server")]
pub mod telemetry;
pub mod wire;
