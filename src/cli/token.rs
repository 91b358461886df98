//! `token mint`, `token inspect`, `token verify`: work with tokens where no relay runs.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

use super::{
    Exit, Failure, OrFail as _, files, out,
    pair::IssuerArgs,
    relay_arg::{RELAY_HELP, RelayArgs},
    show_unix,
};
use crate::{
    clock::Clock,
    config::parse_duration,
    wire::{
        AllocationId, AnyToken, Claims, DeviceId, KeyError, PeerId, PublicKey, RelayId, TokenError,
        TokenFields, token::Expected,
    },
};

/// Mint, read and check tokens
#[derive(Debug, clap::Subcommand)]
pub enum Token {
    /// Sign a token for one allocation and print it
    #[command(after_help = mint_help())]
    Mint(Mint),
    /// Print what a token says, without believing any of it
    #[command(
        after_help = "Examples:\n  zrc-relay token inspect \"$TOKEN\"\n  zrc-relay token inspect --json \"$TOKEN\""
    )]
    Inspect(Inspect),
    /// Check a token as a relay would
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
}

fn mint_help() -> String {
    format!(
        "\
The token goes to stdout: 240 characters, or a JWT when an issuer grants it. Both sides
connect with it, and each proves its own key. A limit that is not asked for is the default
of the relay's tier.

{RELAY_HELP}

Examples:
  zrc-relay keygen --out device.pem
  PEER=$(zrc-relay keygen --out peer.pem)
  zrc-relay token mint --device-key device.pem --peer-id \"$PEER\" --relay relay.json --ttl 1h
  zrc-relay token mint --issuer-key issuer.pem --kid backend-2026 --device-id \"$DEVICE\" \\
    --peer-id \"$PEER\" --relay relay.json --tier gold"
    )
}

const VERIFY_HELP: &str = "\
Prints `valid`, exit 0, or the reason in one word, exit 1:
  text               not 240 characters of base64url, and no JWT
  jwt_...            a JWT whose form, header or claim of that name is not what it must be
  device_key         --device-key-hex is no key that can be relied on
  signature          not signed by that key, or changed since
  not_yet_valid      a JWT whose nbf is later than now
  peer_key           the token's peer id is no key that can be relied on
  unknown_device     a device's token, and --device-key-hex is missing
  unknown_issuer     a JWT, and --issuer-key-hex is missing or no key
  wrong_relay        for another relay
  wrong_allocation   for another allocation
  expired            expires_at is not later than now
  lifetime_too_long  expires_at is further ahead than --max-lifetime

Example:
  zrc-relay token verify \"$TOKEN\" --device-key-hex \"$DEVICE\" \\
    --relay-id \"$RELAY\" --allocation-id \"$ALLOCATION\"";

/// Sign a token for one allocation and print it
#[derive(Debug, clap::Args)]
pub struct Mint {
    /// The device's private key, as keygen writes it; not where an issuer grants the token
    #[arg(long, value_name = "FILE", required_unless_present = "issuer_key", conflicts_with = "issuer_key")]
    device_key: Option<PathBuf>,
    #[command(flatten)]
    issuer: IssuerArgs,
    /// Who may meet the device: the peer's public key, 64 hex digits
    #[arg(long, value_name = "HEX")]
    peer_id: PeerId,
    #[command(flatten)]
    relay: RelayArgs,
    /// What the relay calls the device: its public key, unless the operator has pinned that under another id
    /// [default: the public key of --device-key]
    #[arg(long, value_name = "HEX", required_unless_present = "device_key")]
    device_id: Option<DeviceId>,
    /// Which allocation, 32 hex digits [default: a new one, at random]
    #[arg(long, value_name = "HEX")]
    allocation_id: Option<AllocationId>,
    /// How long the token is valid: 90s, 30m, 1h, 7d
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// What rate to ask for; the relay's tier caps it [default: the tier's default]
    #[arg(long, value_name = "BYTES_PER_SEC", default_value_t = 0, hide_default_value = true)]
    bandwidth: u64,
    /// How many bytes to ask for; the relay's tier caps it [default: the tier's default]
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    quota: u64,
}

/// Print what a token says, without believing any of it
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// The token's text: 240 characters, or a JWT; it may begin with a dash
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    text: String,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Check a token as a relay would
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The token's text: 240 characters, or a JWT; it may begin with a dash
    #[arg(value_name = "TEXT", allow_hyphen_values = true)]
    text: String,
    /// The device's key, which must have signed: 64 hex digits; with a JWT, the key that is pinned for the device
    #[arg(long, value_name = "HEX", required_unless_present = "issuer_key_hex")]
    device_key_hex: Option<String>,
    /// The issuer's key, which must have signed a JWT: 64 hex digits
    #[arg(long, value_name = "HEX")]
    issuer_key_hex: Option<String>,
    /// The relay it must be for: 32 hex digits
    #[arg(long, value_name = "HEX")]
    relay_id: RelayId,
    /// The allocation it must be for: 32 hex digits
    #[arg(long, value_name = "HEX")]
    allocation_id: AllocationId,
    /// The time to check it at, unix seconds [default: now]
    #[arg(long, value_name = "UNIX")]
    now: Option<u64>,
    /// How far ahead it may expire, seconds [default: no cap; each relay has its own]
    #[arg(long, value_name = "SECS")]
    max_lifetime: Option<u64>,
}

impl Token {
    pub(super) async fn run(self) -> Result<Exit, Failure> {
        match self {
            Self::Mint(mint) => mint.run().await,
            Self::Inspect(inspect) => inspect.run(),
            Self::Verify(verify) => verify.run(),
        }
    }
}

impl Mint {
    async fn run(self) -> Result<Exit, Failure> {
        if self.ttl.is_zero() {
            return Err(Failure::new(Exit::Usage, "--ttl 0: the token would have expired at once"));
        }
        PublicKey::from_bytes(&self.peer_id.0)
            .or_fail(Exit::Usage, format!("--peer-id {}: no relay would accept it", self.peer_id))?;
        let device_key = self.device_key.as_deref().map(files::read_signing_key).transpose()?;
        let granter = self.issuer.granter()?;
        let own_id = device_key.as_ref().map(|key| DeviceId(*key.verifying_key().as_bytes()));
        let device_id = self.device_id.or(own_id);
        let device_id = device_id.ok_or_else(|| Failure::new(Exit::Usage, "--device-id is missing"))?;
        let relay = self.relay.resolve().await?;
        let allocation_id = match self.allocation_id {
            Some(id) => id,
            None => AllocationId::random()
                .or_fail(Exit::Software, "the operating system has no randomness to give")?,
        };
        let ttl_secs = self.ttl.as_secs().saturating_add(u64::from(self.ttl.subsec_nanos() > 0));
        let now_unix = Clock::start().unix_secs();
        let mut fields = TokenFields {
            relay_id: relay.relay_id,
            allocation_id,
            device_id,
            peer_id: self.peer_id,
            expires_at_unix: now_unix.saturating_add(ttl_secs),
            bandwidth_bytes_per_sec: 0,
            quota_bytes: self.quota,
        };
        let token = match (device_key, granter) {
            (_, Some(granter)) => granter.sign(&fields, self.bandwidth)?,
            (Some(key), None) => {
                fields.bandwidth_bytes_per_sec = u32::try_from(self.bandwidth).map_err(|_| {
                    let text = format!(
                        "--bandwidth {}: a device's token asks for {} at most",
                        self.bandwidth,
                        u32::MAX
                    );
                    Failure::new(Exit::Usage, text)
                })?;
                fields.sign(&key).into()
            }
            (None, None) => return Err(Failure::new(Exit::Usage, "--device-key is missing")),
        };
        out::say(format_args!(
            "token for allocation {allocation_id} on relay {}, valid until {}",
            fields.relay_id,
            show_unix(fields.expires_at_unix)
        ));
        out::data(token.to_text())?;
        Ok(Exit::Ok)
    }
}

/// What `inspect --json` prints. Null where the token asks for the tier's default; what only an issuer's token has
/// is absent in others.
#[derive(Serialize)]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    relay_id: String,
    allocation_id: String,
    device_id: String,
    peer_id: String,
    expires_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before: Option<u64>,
    bandwidth_limit: Option<u64>,
    quota_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tier: Option<String>,
    signature: String,
    verified: bool,
}

impl Shown {
    fn of(token: &AnyToken) -> Result<Self, TokenError> {
        Ok(match token {
            AnyToken::Device(token) => {
                let fields = token.fields();
                let rate = u64::from(fields.bandwidth_bytes_per_sec);
                Self {
                    kid: None,
                    relay_id: fields.relay_id.to_string(),
                    allocation_id: fields.allocation_id.to_string(),
                    device_id: fields.device_id.to_string(),
                    peer_id: fields.peer_id.to_string(),
                    expires_at: fields.expires_at_unix,
                    not_before: None,
                    bandwidth_limit: Some(rate).filter(|rate| *rate != 0),
                    quota_bytes: Some(fields.quota_bytes).filter(|quota| *quota != 0),
                    tier: None,
                    signature: hex::encode(token.signature()),
                    verified: false,
                }
            }
            AnyToken::Issuer(token) => {
                let fields = token.fields()?;
                Self {
                    kid: Some(token.kid().to_string()),
                    relay_id: fields.relay_id.to_string(),
                    allocation_id: fields.allocation_id.to_string(),
                    device_id: fields.device_id.to_string(),
                    peer_id: fields.peer_id.to_string(),
                    expires_at: fields.expires_at_unix,
                    not_before: fields.not_before_unix,
                    bandwidth_limit: fields.bandwidth_bytes_per_sec,
                    quota_bytes: fields.quota_bytes,
                    tier: fields.tier.as_deref().map(str::to_owned),
                    signature: hex::encode(token.signature()),
                    verified: false,
                }
            }
        })
    }
}

impl Inspect {
    fn run(self) -> Result<Exit, Failure> {
        let shown = match AnyToken::from_text(&self.text).and_then(|token| Shown::of(&token)) {
            Ok(shown) => shown,
            Err(error) => return refused(error),
        };
        if self.json {
            out::json(&shown)?;
            return Ok(Exit::Ok);
        }
        let or_default = |asked: Option<String>| asked.unwrap_or_else(|| "the tier's default".into());
        let time = |unix: u64| format!("{unix} ({})", show_unix(unix));
        for (name, value) in [
            ("kid", shown.kid),
            ("relay_id", Some(shown.relay_id)),
            ("allocation_id", Some(shown.allocation_id)),
            ("device_id", Some(shown.device_id)),
            ("peer_id", Some(shown.peer_id)),
            ("not_before", shown.not_before.map(time)),
            ("expires_at", Some(time(shown.expires_at))),
            (
                "bandwidth_limit",
                Some(or_default(shown.bandwidth_limit.map(|rate| format!("{rate} bytes/s")))),
            ),
            ("quota_bytes", Some(or_default(shown.quota_bytes.map(|quota| format!("{quota} bytes"))))),
            // Anybody may have written it.
            ("tier", shown.tier.map(|tier| tier.escape_debug().to_string())),
            ("signature", Some(format!("{} (not checked: token verify)", shown.signature))),
        ] {
            if let Some(value) = value {
                out::data(format_args!("{name:<16} {value}"))?;
            }
        }
        Ok(Exit::Ok)
    }
}

impl Verify {
    fn run(self) -> Result<Exit, Failure> {
        match self.check() {
            Ok(claims) => {
                out::say(format_args!("valid until {}", show_unix(claims.expires_at_unix)));
                out::data("valid")?;
                Ok(Exit::Ok)
            }
            Err(error) => refused(error),
        }
    }

    /// Form, key, signature, ids, expiry: in the order in which a relay looks.
    fn check(&self) -> Result<Claims, TokenError> {
        let token = AnyToken::from_text(&self.text)?;
        let key = |hex: &str| {
            let bytes = hex::decode(hex).map_err(|_| KeyError::Length);
            bytes.and_then(|bytes| PublicKey::from_slice(&bytes)).map_err(TokenError::DeviceKey)
        };
        let device_key = self.device_key_hex.as_deref().map(key).transpose()?;
        let verified = match (&token, &self.issuer_key_hex) {
            (AnyToken::Device(token), _) => token.verify(&device_key.ok_or(TokenError::UnknownDevice)?)?,
            (AnyToken::Issuer(_), None) => return Err(TokenError::UnknownIssuer),
            (AnyToken::Issuer(token), Some(hex)) => {
                let issuer_key = key(hex).map_err(|_| TokenError::UnknownIssuer)?;
                token.verify(&issuer_key, |_| device_key)?
            }
        };
        verified.check(&Expected {
            relay_id: &self.relay_id,
            allocation_id: self.allocation_id.as_bytes(),
            now_unix: self.now.unwrap_or_else(|| Clock::start().unix_secs()),
            max_lifetime: self.max_lifetime.map(Duration::from_secs),
        })
    }
}

/// The reason as one word on stdout, in words on stderr.
fn refused(error: TokenError) -> Result<Exit, Failure> {
    out::data(error.reason())?;
    out::say(format_args!("refused: {error}"));
    Ok(Exit::Refused)
}
