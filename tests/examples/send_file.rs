//! Joins an allocation as its device, sends a file over a stream, and checks what comes back.
//!
//! ```text
//! cargo run --example send_file -- --relay /tmp/relay/relay.json --key device.pem --token $TOKEN --file README.md
//! ```
//!
//! The other side is `echo_peer`, beside it, which also shows how to come by keys and a token. The allocation is
//! released at the end, which ends the other side too.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program tells people what it does")]

use std::{error::Error, fs};

use ed25519_dalek::pkcs8::DecodePrivateKey as _;
use zrc_relay::{
    client::{Event, Relay, SigningKey, Ticket},
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
    let file = fs::read(value(&arguments, "--file")?)?;

    let session = relay.connect(Ticket::device(token, key)?).await?;
    let mut events = session.events();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if !matches!(event, Event::Ended(_)) {
                eprintln!("{event:?}");
            }
        }
    });
    session.peer_arrived().await?;

    let started = tokio::time::Instant::now();
    let (mut send, mut recv) = session.open_bi().await?;
    // Both at once: a file is larger than what may be on its way.
    let (sent, received) = tokio::join!(
        async {
            send.write_all(&file).await?;
            send.finish()?;
            Ok::<_, Box<dyn Error>>(())
        },
        recv.read_to_end(file.len())
    );
    sent?;
    if received? != file {
        return Err("what came back is not what was sent".into());
    }
    println!("{} bytes there and back in {:?}", file.len(), started.elapsed());

    session.release().await?;
    Ok(())
}

fn value<'a>(arguments: &'a [String], name: &str) -> Result<&'a str, String> {
    let mut after = arguments.iter().skip_while(|argument| *argument != name).skip(1);
    let usage = || format!("usage: --relay FILE --key FILE --token TEXT --file FILE; no {name}");
    after.next().map(String::as_str).ok_or_else(usage)
}
