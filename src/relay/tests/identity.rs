//! Another certificate, shown while the relay runs.

use super::*;
use crate::wire::control::Prove;

fn identity() -> (TlsIdentity, rustls::RootCertStore) {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = certified.cert.der().clone();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let key = certified.signing_key.serialize_der().try_into().unwrap();
    (TlsIdentity { chain: vec![certificate], key }, roots)
}

/// Proves by the relay's nonce, with this as the relay's key.
async fn mode_2(raw: Raw, pair: &Pair, spki: SpkiPin) -> Option<RelayMessage> {
    let hello = Hello { proof: None, ..raw.hello(pair, Role::Peer) };
    let mut control = raw.begin(&ClientMessage::Hello(hello).to_frame()).await;
    let Some(RelayMessage::Challenge(challenge)) = control.next().await else { panic!("no Challenge") };
    let nonce = challenge.nonce.as_ref().try_into().unwrap();
    let binding = Binding::Nonce { nonce, spki_sha256: spki.0 };
    let proof = proof::prove(&pair.peer, Role::Peer, &pair.token.hash(), &binding);
    control.say(&ClientMessage::Prove(Prove { proof: Bytes::copy_from_slice(&proof) })).await;
    control.next().await
}

#[tokio::test]
async fn r8_new_connections_are_shown_another_certificate_and_sessions_go_on() {
    let mut harness = Harness::start();
    let pair = harness.pair();
    let (device, peer) = harness.joined_pair(&pair).await;
    let before = spki(&harness);

    let (mut other, roots) = identity();
    // A key that is another one's changes nothing.
    let wrong = TlsIdentity { chain: other.chain.clone(), key: identity().0.key };
    harness.server.set_identity(&wrong).unwrap_err();
    assert_eq!(spki(&harness), before);
    harness.connect().await;

    // Handshakes made with the first certificate, and nothing said yet.
    let (early, early_too) = (harness.connect().await, harness.connect().await);
    let after = harness.server.set_identity(&other).unwrap();
    assert_ne!(after, before);
    assert_eq!((spki(&harness), other.spki().unwrap()), (after, after));
    // A proof is bound to the certificate of its own connection.
    let is_let_in = async |raw: Raw, key| {
        let answer = mode_2(raw, &harness.pair(), key).await;
        matches!(answer, Some(RelayMessage::Allocated(_)))
    };
    assert!(is_let_in(early, before).await);
    assert!(!is_let_in(early_too, after).await);
    harness.try_connect(|_| {}).await.err().expect("whoever trusts the first one alone stays out");
    harness.roots = Arc::new(roots);
    let late = harness.pair();
    harness.joined_pair(&late).await;
    for (key, expected) in [(after, true), (before, false)] {
        let answer = mode_2(harness.connect().await, &harness.pair(), key).await;
        assert_eq!(matches!(answer, Some(RelayMessage::Allocated(_))), expected, "{answer:?}");
    }
    device.send_datagram("still here");
    assert_eq!(peer.datagram().await, "still here");
    // The same again is nothing new.
    other.chain.truncate(1);
    assert_eq!(harness.server.set_identity(&other).unwrap(), after);
}
