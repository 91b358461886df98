//! The client library: one side of an allocation, for programs to build on.
//!
//! Two programs that cannot reach each other connect to the same relay, one as the *device* that signed a
//! token, one as the *peer* that the token names. Each gets a [`Session`]: datagrams and streams to the other side.
//!
//! ```no_run
//! use zrc_relay::{client::{Relay, Ticket}, wire::SignedToken};
//! # use ed25519_dalek::SigningKey;
//! # async fn run(key: SigningKey, token: &str) -> Result<(), Box<dyn std::error::Error>> {
//! let relay = Relay::from_json(std::fs::read("relay.json")?)?;
//! let session = relay.connect(Ticket::device(SignedToken::from_text(token)?, key)?).await?;
//! session.peer_arrived().await?;
//! session.send_datagram("ping".into())?;
//! println!("{:?}", session.recv_datagram().await?);
//! let (mut send, mut recv) = session.open_bi().await?;
//! send.write_all(b"hello").await?;
//! send.finish()?;
//! println!("{:?}", recv.read_to_end(1024).await?);
//! session.close();
//! session.closed().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it does by itself
//! - Trusts the relay by the pin in its descriptor, by a CA, or by the operating system's authorities; nothing else.
//! - Connects anew when the connection is lost, does not answer, or is refused for a reason that may pass, with
//!   growing random pauses. Every other refusal ends the session with a typed [`End`].
//! - Follows the relay to another one when asked, and keeps the old connection until the new one works.
//! - Sends datagrams beside QUIC where the relay offers it (its *raw channel*) and the path lets them through, which
//!   it asks once a second; otherwise as QUIC datagrams. [`Session::send_train`] and [`Session::recv_train`] move many
//!   at the price of one. [`Options::raw_channel`] turns it off.
//! - Sends datagrams that do not fit the path by a stream each.
//!
//! # What it leaves to the application
//! - **End-to-end encryption.** The relay sees what crosses. Run TLS, Noise or a QUIC connection inside.
//! - **Repeating what was lost.** Datagrams may be lost; streams end with their connection.
//! - **Newer tokens.** [`Event::Expiring`] says when; [`Session::refresh`] takes one.
//!
//! # Bounds
//! All that a relay or a peer can make this library hold is bounded by [`Options`]: received datagrams, stream
//! data, unaccepted streams; control frames are at most 64 KiB, events 256. What a relay can do is end the
//! session, delay or drop data, and name other relays to connect to. What a peer can do is send up to those bounds.
//!
//! # Logs
//! With `tracing`: never a payload, token or key; addresses at debug level only.

mod backoff;
mod channel;
mod connect;
mod driver;
mod events;
mod grant;
mod inbox;
mod link;
mod queue;
mod relay;
mod session;
mod socket;
mod stats;
mod trust;

pub use connect::{ConnectError, ConnectTimes, ProtocolError, Refusal};
pub use ed25519_dalek::SigningKey;
pub use events::{Event, Events};
pub use grant::Grant;
pub use inbox::Train;
pub use quinn::{RecvStream, SendStream};
pub use relay::{Options, Proof, Relay, Ticket, TicketError};
pub use session::{End, MAX_DATAGRAM_BYTES, RefreshError, SendError, Session};
pub use stats::Stats;
pub use trust::TrustError;

#[cfg(test)]
mod tests;
