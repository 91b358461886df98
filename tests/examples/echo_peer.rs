//! Joins an allocation as its peer and sends everything back: each datagram, each stream.
//!
//! ```text
//! zrc-relay serve --dev --state-dir /tmp/relay          # in another terminal
//! DEVICE=$(zrc-relay keygen --out device.pem); PEER=$(zrc-relay keygen --out peer.pem)
//! TOKEN=$(zrc-relay token mint --device-key device.pem --peer-id $PEER --relay /tmp/relay/relay.json)
//! cargo run --example echo_peer -- --relay /tmp/relay/relay.json --key peer.pem --token $TOKEN
//! ```
//!
//! It ends when the allocation does; `send_file`, beside it, is the other side.

#![allow(clippy::print_stderr, reason = "a program tells people on stderr")]

use std::{error::Error, fs};

use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use zrc_relay::{
    client::{End, RecvStream, Relay, SendStream, Session, SigningKey, Ticket},
    wire::SignedToken,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    run(std::env::args().collect()).await
}

/// The whole program, given its command line.
pub async fn run(arguments: Vec<String>) -> Result<(), Box<dyn Error>> {
    let relay = Relay::from_json(fs::read(value(&arguments, "--relay")?)?)?;
    let key = SigningKey::from_pkcs8_pem(&fs::read_to_string(value(&arguments, "--key")?)?)?;
    let token = SignedToken::from_text(value(&arguments, "--token")?)?;

    let session = relay.connect(Ticket::peer(token, key)?).await?;
    eprintln!("joined, seen as {:?}; echoing", session.observed_addr());
    let end = tokio::select! {
        end = echo_datagrams(&session) => end,
        end = echo_streams(&session) => end,
    };
    eprintln!("{end}");
    Ok(())
}

async fn echo_datagrams(session: &Session) -> End {
    loop {
        match session.recv_datagram().await {
            // What finds no room is lost, as on any network.
            Ok(data) => drop(session.send_datagram(data)),
            Err(end) => return end,
        }
    }
}

async fn echo_streams(session: &Session) -> End {
    loop {
        match session.accept_bi().await {
            Ok((send, recv)) => drop(tokio::spawn(echo_stream(send, recv))),
            Err(end) => return end,
        }
    }
}

/// Ends with the stream; when either direction breaks, dropping the other one resets it.
async fn echo_stream(mut send: SendStream, mut recv: RecvStream) {
    while let Ok(Some(chunk)) = recv.read_chunk(64 * 1024, true).await {
        if send.write_chunk(chunk.bytes).await.is_err() {
            return;
        }
    }
    // It fails only when the other side does not want the end.
    let _ = send.finish();
}

fn value<'a>(arguments: &'a [String], name: &str) -> Result<&'a str, String> {
    let mut after = arguments.iter().skip_while(|argument| *argument != name).skip(1);
    after
        .next()
        .map(String::as_str)
        .ok_or_else(|| format!("usage: --relay FILE --key FILE --token TEXT; no {name}"))
}
