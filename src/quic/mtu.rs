//! How the path's MTU is found: the largest size first.

use quinn::MtuDiscoveryConfig;

/// What every path must carry.
const LEAST_BYTES: u16 = 1200;
/// The largest UDP payload tried: an Ethernet frame of 1500 bytes less IPv6 and UDP headers.
pub(crate) const MOST_BYTES: u16 = 1452;

/// One probe finds what an Ethernet path carries; where that is too much, a second one of 1325 bytes may still do.
///
/// A finer search finds no more on most paths, and takes four probes of either side. Padding is what quinn takes
/// longest over: they cost the relay an eighth of a connection's set-up.
pub(crate) fn discovery() -> MtuDiscoveryConfig {
    let mut config = MtuDiscoveryConfig::default();
    // quinn stops halving at this step, and then tries the upper bound: here, at once.
    config.upper_bound(MOST_BYTES).minimum_change((MOST_BYTES - LEAST_BYTES) / 2 + 1);
    config
}

#[cfg(test)]
mod tests {
    use std::{net::SocketAddr, sync::Arc, time::Duration};

    use quinn::{ClientConfig, Endpoint, ServerConfig, TransportConfig, rustls};
    use tokio::net::UdpSocket;

    use super::*;

    /// A path that takes packets of up to `largest` bytes.
    async fn narrow(to: SocketAddr, largest: usize) -> SocketAddr {
        let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let far = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        far.connect(to).await.unwrap();
        let addr = near.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut up, mut down, mut client) = ([0; 2000], [0; 2000], None);
            loop {
                tokio::select! {
                    Ok((len, from)) = near.recv_from(&mut up) => {
                        client = Some(from);
                        if len <= largest {
                            let _ = far.send(&up[..len]).await;
                        }
                    }
                    Ok(len) = far.recv(&mut down) => if let Some(client) = client {
                        let _ = near.send_to(&down[..len], client).await;
                    }
                }
            }
        });
        addr
    }

    #[tokio::test]
    async fn one_probe_finds_an_ethernet_path_and_a_second_one_most_narrower_ones() {
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = certified.signing_key.serialize_der().try_into().unwrap();
        let config = ServerConfig::with_single_cert(vec![certified.cert.der().clone()], key).unwrap();
        let server = Endpoint::server(config, "127.0.0.1:0".parse().unwrap()).unwrap();
        let addr = server.local_addr().unwrap();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Some(incoming) = server.accept().await {
                open.push(incoming.await);
            }
        });
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certified.cert.der().clone()).unwrap();
        let mut config = ClientConfig::with_root_certificates(Arc::new(roots)).unwrap();
        let mut transport = TransportConfig::default();
        transport.mtu_discovery_config(Some(discovery()));
        config.transport_config(Arc::new(transport));
        for (largest, found, probes) in [(1472, 1452, 1), (1400, 1325, 4), (1250, 1200, 6)] {
            let path = narrow(addr, largest).await;
            let client = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
            let connection = client.connect_with(config.clone(), path, "localhost").unwrap().await.unwrap();
            let settled = async {
                loop {
                    let stats = connection.stats().path;
                    if stats.current_mtu == found && stats.sent_plpmtud_probes == probes {
                        return;
                    }
                    assert!(stats.sent_plpmtud_probes <= probes, "{stats:?}");
                    // A lost probe is noticed by what is acknowledged after it.
                    connection.open_uni().await.unwrap().write_all(b"x").await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), settled).await.expect("the MTU was not found");
        }
    }
}
