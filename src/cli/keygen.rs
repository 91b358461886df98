//! `keygen`: makes the key of a device or of a peer.

use std::{io, path::PathBuf};

use ed25519_dalek::{
    SigningKey,
    pkcs8::{EncodePrivateKey as _, KeypairBytes, spki::der::pem::LineEnding},
};
use zeroize::Zeroizing;

use super::{Exit, Failure, OrFail as _, files, out};

/// Make an Ed25519 key, for a device or for a peer
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The id that is printed is the public key in hex: the device id of a device, the peer id of a
peer. Give the id away, keep the file.

Examples:
  zrc-relay keygen --out device.pem
  PEER=$(zrc-relay keygen --out peer.pem)
  openssl pkey -in device.pem -noout -text      # the file is ordinary PKCS#8")]
pub struct Keygen {
    /// Where to put the private key: PKCS#8 PEM, mode 0600. An existing file is left as it is
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Keygen {
    pub(super) fn run(self) -> Result<Exit, Failure> {
        let key = random_key()?;
        let path = self.out.display();
        files::create_new(&self.out, to_pem(&key)?.as_bytes(), files::SECRET).map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::AlreadyExists => format!("{path} is there already and is left as it is"),
                _ => format!("cannot make {path}"),
            };
            Failure { exit: Exit::CantCreate, error: anyhow::Error::new(error).context(advice) }
        })?;
        out::data(hex::encode(key.verifying_key().as_bytes()))?;
        Ok(Exit::Ok)
    }
}

/// A key from the operating system's randomness.
pub(super) fn random_key() -> Result<SigningKey, Failure> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).or_fail(Exit::Software, "the operating system has no randomness to give")?;
    Ok(SigningKey::from_bytes(&seed))
}

/// PKCS#8 version 1, without the public half (RFC 8410): the form that every tool reads.
pub(super) fn to_pem(key: &SigningKey) -> Result<Zeroizing<String>, Failure> {
    KeypairBytes { secret_key: key.to_bytes(), public_key: None }
        .to_pkcs8_pem(LineEnding::LF)
        .or_fail(Exit::Software, "cannot encode the key")
}
