//! A pair of clients of a TURN server: each has a relayed address, and a channel to the other's.
//!
//! The cheapest sequence that RFC 8656 has for this: Allocate, refused with realm and nonce; Allocate; ChannelBind,
//! which installs the permission too. Runs are shorter than the 300 s for which that lasts, so nothing is refreshed.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use anyhow::{Context as _, bail};
use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::{
    lanes::{Client, Lane},
    stun::{Class, Credentials, Message, Method, Request, channel_data_header},
    udp,
};

/// The user that the server is told to let in.
pub const USERNAME: &str = "bench";
pub const PASSWORD: &str = "bench";
/// The only channel that each client binds.
const CHANNEL: u16 = 0x4000;
/// How long until a request is sent again, as RFC 8489 advises.
const RETRANSMIT: Duration = Duration::from_millis(500);
const TRIES: usize = 7;
/// No message of a TURN server is longer.
const MAX_MESSAGE_BYTES: usize = 1500;

/// A client that has been given an address.
struct Allocated {
    socket: UdpSocket,
    credentials: Credentials,
    relayed: SocketAddrV4,
}

/// Sets up two clients that send to each other.
pub async fn pair(relay: SocketAddr, size: usize) -> anyhow::Result<Lane> {
    let (device, peer) = tokio::try_join!(allocate(relay), allocate(relay))?;
    tokio::try_join!(bind_channel(&device, relay, peer.relayed), bind_channel(&peer, relay, device.relayed))?;
    let header = channel_data_header(CHANNEL, u16::try_from(size).context("the payload is too long")?);
    Ok(Lane([
        Client::Udp(udp::client(device.socket, relay, &header, size)?),
        Client::Udp(udp::client(peer.socket, relay, &header, size)?),
    ]))
}

async fn allocate(relay: SocketAddr) -> anyhow::Result<Allocated> {
    let socket = UdpSocket::from_std(udp::bind()?)?;
    let request = Request::new(Method::Allocate, transaction_id()?).requested_transport_udp();
    let answer = ask(&socket, relay, request.unsigned()).await?;
    let refusal = Message::parse(&answer).context("no answer")?;
    if refusal.error_code() != Some(401) {
        bail!("Allocate without credentials: {:?} {:?}, not 401", refusal.class, refusal.error_code());
    }
    let realm = refusal.realm().context("the refusal names no realm")?;
    let nonce = refusal.nonce().context("the refusal has no nonce")?;
    let credentials = Credentials::new(USERNAME, PASSWORD, realm, nonce);

    let request = Request::new(Method::Allocate, transaction_id()?).requested_transport_udp();
    let answer = ask(&socket, relay, request.signed(&credentials)).await?;
    let granted = granted(&answer, Method::Allocate, &credentials)?;
    let relayed = granted.xor_relayed_address().context("no relayed address")?;
    Ok(Allocated { socket, credentials, relayed })
}

async fn bind_channel(client: &Allocated, relay: SocketAddr, other: SocketAddrV4) -> anyhow::Result<()> {
    let request = Request::new(Method::ChannelBind, transaction_id()?)
        .channel_number(CHANNEL)
        .xor_peer_address(other)
        .signed(&client.credentials);
    let answer = ask(&client.socket, relay, request).await?;
    granted(&answer, Method::ChannelBind, &client.credentials).map(drop)
}

fn granted<'a>(answer: &'a [u8], method: Method, credentials: &Credentials) -> anyhow::Result<Message<'a>> {
    let message = Message::parse(answer).context("no answer")?;
    if message.class != Class::Success || !message.is_of(method) {
        bail!("{method:?}: {:?} {:?}", message.class, message.error_code());
    }
    if !message.is_signed_with(credentials) {
        bail!("{method:?}: the answer is not the server's");
    }
    Ok(message)
}

/// Sends a request until it is answered.
async fn ask(socket: &UdpSocket, relay: SocketAddr, request: Vec<u8>) -> anyhow::Result<Vec<u8>> {
    let id = Message::parse(&request).context("a request of our own is malformed")?.id;
    let mut buffer = vec![0; MAX_MESSAGE_BYTES];
    for _ in 0..TRIES {
        socket.send_to(&request, relay).await?;
        let until = Instant::now() + RETRANSMIT;
        while let Ok(received) = timeout_at(until, socket.recv_from(&mut buffer)).await {
            let (len, from) = received?;
            buffer.truncate(len);
            if from == relay && Message::parse(&buffer).is_some_and(|message| message.id == id) {
                return Ok(buffer);
            }
            buffer.resize(MAX_MESSAGE_BYTES, 0);
        }
    }
    bail!("the TURN server at {relay} does not answer")
}

fn transaction_id() -> anyhow::Result<[u8; 12]> {
    let mut id = [0; 12];
    getrandom::fill(&mut id).context("no randomness")?;
    Ok(id)
}
