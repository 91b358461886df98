//! What `probe`, `quickstart` and `bench` have in common: tokens minted on the spot, both sides of an allocation,
//! and what is said when a relay does not want them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ed25519_dalek::SigningKey;
use tokio::time::{sleep, timeout};

use super::{Exit, Failure, OrFail as _, files};
use crate::{
    client::{ConnectError, Relay, Session, Ticket},
    clock::Clock,
    wire::{AllocationId, AnyToken, DeviceId, IssuerFields, KeyId, PeerId, RelayId, Role, TokenFields},
};

/// What a token asks for. 0 is the tier's default.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) ttl: Duration,
    pub(super) bandwidth_bytes_per_sec: u32,
    pub(super) quota_bytes: u64,
}

/// `--issuer-key`: have an issuer's key grant the tokens instead of the device's.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct IssuerArgs {
    /// Sign as the issuer with this private key (JWT): for relays with a [[relay.issuer]]
    #[arg(long, value_name = "FILE", requires = "kid")]
    issuer_key: Option<PathBuf>,
    /// What the relay calls the issuer's key
    #[arg(long, value_name = "KID", requires = "issuer_key")]
    kid: Option<KeyId>,
    /// The tier to name, one that the issuer may grant [default: the issuer's own]
    #[arg(long, value_name = "NAME", requires = "issuer_key")]
    tier: Option<String>,
}

/// Who grants, where it is not the device.
#[derive(Clone)]
pub(super) struct Granter {
    key: SigningKey,
    kid: KeyId,
    tier: Option<Arc<str>>,
}

impl IssuerArgs {
    /// The issuer, if one is to grant.
    pub(super) fn granter(&self) -> Result<Option<Granter>, Failure> {
        let (Some(path), Some(kid)) = (&self.issuer_key, &self.kid) else { return Ok(None) };
        let key = files::read_signing_key(path)?;
        Ok(Some(Granter { key, kid: kid.clone(), tier: self.tier.as_deref().map(Into::into) }))
    }
}

impl Granter {
    /// Signs what a device would ask for; 0 asks for nothing, as there.
    pub(super) fn sign(
        &self,
        fields: &TokenFields,
        bandwidth_bytes_per_sec: u64,
    ) -> Result<AnyToken, Failure> {
        let fields = IssuerFields {
            relay_id: fields.relay_id,
            allocation_id: fields.allocation_id,
            device_id: fields.device_id,
            peer_id: fields.peer_id,
            expires_at_unix: fields.expires_at_unix,
            not_before_unix: None,
            bandwidth_bytes_per_sec: Some(bandwidth_bytes_per_sec).filter(|rate| *rate != 0),
            quota_bytes: Some(fields.quota_bytes).filter(|quota| *quota != 0),
            tier: self.tier.clone(),
        };
        let token = fields.sign(&self.key, &self.kid).or_fail(Exit::Usage, "--tier is no name of a tier")?;
        Ok(token.into())
    }
}

/// The keys of both sides.
pub(super) struct PairKeys {
    pub(super) device: SigningKey,
    pub(super) peer: SigningKey,
    /// What the relay calls the device, when that is not its key.
    pub(super) device_id: DeviceId,
}

impl PairKeys {
    pub(super) fn new(device: SigningKey, peer: SigningKey) -> Self {
        Self { device_id: DeviceId(*device.verifying_key().as_bytes()), device, peer }
    }

    /// Two that nobody has had before.
    pub(super) fn random() -> Result<Self, Failure> {
        Ok(Self::new(super::keygen::random_key()?, super::keygen::random_key()?))
    }

    /// The fields of a token for a new allocation, valid from now on.
    pub(super) fn fields(&self, relay_id: RelayId, ask: &Ask) -> Result<TokenFields, Failure> {
        let allocation_id = AllocationId::random()
            .or_fail(Exit::Software, "the operating system has no randomness to give")?;
        Ok(TokenFields {
            relay_id,
            allocation_id,
            device_id: self.device_id,
            peer_id: PeerId(*self.peer.verifying_key().as_bytes()),
            expires_at_unix: Clock::start().unix_secs().saturating_add(ask.ttl.as_secs()),
            bandwidth_bytes_per_sec: ask.bandwidth_bytes_per_sec,
            quota_bytes: ask.quota_bytes,
        })
    }

    /// A token for a new allocation, granted by the issuer where there is one.
    pub(super) fn mint(
        &self,
        relay_id: RelayId,
        ask: &Ask,
        granter: Option<&Granter>,
    ) -> Result<AnyToken, Failure> {
        let fields = self.fields(relay_id, ask)?;
        match granter {
            Some(granter) => granter.sign(&fields, u64::from(fields.bandwidth_bytes_per_sec)),
            None => Ok(fields.sign(&self.device).into()),
        }
    }

    pub(super) fn ticket(&self, token: impl Into<AnyToken>, role: Role) -> Result<Ticket, Failure> {
        let key = match role {
            Role::Device => &self.device,
            Role::Peer => &self.peer,
        };
        Ticket::new(token, role, key.clone()).or_fail(Exit::Software, "a ticket of our own is refused")
    }
}

/// Both sides of an allocation.
pub(super) struct Pair {
    pub(super) device: Session,
    pub(super) peer: Session,
}

impl Pair {
    /// Connects both, and waits until each knows of the other.
    pub(super) async fn connect(relay: &Relay, device: Ticket, peer: Ticket) -> Result<Self, Failure> {
        let device =
            relay.connect(device).await.map_err(|error| not_connected(relay, Role::Device, error))?;
        let peer = match relay.connect(peer).await {
            Ok(peer) => peer,
            Err(error) => {
                let _ = device.release().await;
                return Err(not_connected(relay, Role::Peer, error));
            }
        };
        for session in [&device, &peer] {
            session.peer_arrived().await.or_fail(Exit::Refused, "the two sides were not brought together")?;
        }
        Ok(Self { device, peer })
    }

    /// Ends the allocation, and waits until both sides have said goodbye.
    pub(super) async fn release(self) {
        // When it ended otherwise, it has ended.
        let _ = self.device.release().await;
        self.peer.closed().await;
    }
}

/// Until path MTU discovery has found what the path carries; it takes a few round trips.
const MTU_TIMEOUT: Duration = Duration::from_secs(3);

/// Waits until all sessions can send this much as one datagram. Answers whether they can: should the path not
/// carry it, it goes by a stream.
pub(super) async fn wait_for_mtu<'a, I>(sessions: impl Fn() -> I, bytes: usize) -> bool
where
    I: Iterator<Item = &'a Session>,
{
    let all_fit =
        || sessions().all(|session| session.max_datagram_bytes().is_some_and(|limit| limit >= bytes));
    let fitting = async {
        while !all_fit() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(MTU_TIMEOUT, fitting).await.is_ok()
}

/// The exit code says whether there was a relay that refused, or no relay.
pub(super) fn not_connected(relay: &Relay, role: Role, error: ConnectError) -> Failure {
    let descriptor = relay.descriptor();
    let exit = match step_of(&error) {
        Step::Reach => Exit::Unavailable,
        Step::Trust | Step::Join => Exit::Refused,
    };
    let context = format!("the {role} cannot connect to {} port {} (UDP)", descriptor.addr, descriptor.port);
    Failure { exit, error: anyhow::Error::new(error).context(context) }
}

/// How far a connection came that did not come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nobody answered.
    Reach,
    /// Whoever answered is not, or does not want to be, the relay that is meant.
    Trust,
    /// The relay said no.
    Join,
}

pub(super) fn step_of(error: &ConnectError) -> Step {
    match error {
        ConnectError::Resolve { .. }
        | ConnectError::Bind(_)
        | ConnectError::Unusable(_)
        | ConnectError::Transport(_)
        | ConnectError::Timeout => Step::Reach,
        ConnectError::Trust(_) | ConnectError::Handshake(_) => Step::Trust,
        _ => Step::Join,
    }
}

/// One word for programs: the relay's code by name, else what went wrong here.
pub(super) fn reason_of(error: &ConnectError) -> &'static str {
    match error {
        ConnectError::WrongRelay { .. } => "wrong_relay",
        ConnectError::Resolve { .. } => "resolve",
        ConnectError::Bind(_) => "bind",
        ConnectError::Unusable(_) => "unusable_address",
        ConnectError::Trust(_) => "untrusted",
        ConnectError::Handshake(_) => "handshake",
        ConnectError::Transport(_) => "transport",
        ConnectError::Timeout => "timeout",
        ConnectError::Refused(refusal) => refusal.code.name(),
        ConnectError::UnknownCode(_) => "unknown_code",
        ConnectError::Protocol(_) => "protocol",
    }
}

/// The value below which `percent` of the sorted samples lie (nearest rank); `None` without samples.
pub(super) fn percentile(sorted: &[u64], percent: u64) -> Option<u64> {
    let rank = (sorted.len() as u64 * percent).div_ceil(100).max(1);
    sorted.get(usize::try_from(rank - 1).ok()?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_by_nearest_rank() {
        assert_eq!(percentile(&[], 50), None);
        assert_eq!((percentile(&[7], 50), percentile(&[7], 99)), (Some(7), Some(7)));
        let hundred: Vec<u64> = (1..=100).collect();
        for percent in [1, 50, 99, 100] {
            assert_eq!(percentile(&hundred, percent), Some(percent));
        }
        assert_eq!((percentile(&[1, 2, 3], 50), percentile(&[1, 2, 3], 99)), (Some(2), Some(3)));
    }
}
