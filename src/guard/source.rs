//! Who is counted as one: an IPv4 address, or the /64 network of an IPv6 address.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// One source of connections and requests.
///
/// IPv6 by /64, because that is what one customer has at least; IPv4-mapped addresses are the IPv4 address they
/// stand for, which is how a socket for both families shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source(IpNet);

impl Source {
    /// How many bits of an IPv6 address name a source.
    const IPV6_BITS: u8 = 64;

    /// Whose address this is.
    pub fn of(ip: IpAddr) -> Self {
        Self(match ip.to_canonical() {
            IpAddr::V4(ip) => IpNet::from(IpAddr::V4(ip)),
            IpAddr::V6(ip) => {
                let [a, b, c, d, ..] = ip.segments();
                let network = Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0);
                Ipv6Net::new(network, Self::IPV6_BITS).map_or_else(|_| IpAddr::V6(ip).into(), IpNet::V6)
            }
        })
    }

    /// All its addresses.
    pub fn network(self) -> IpNet {
        self.0
    }
}

/// A network as addresses are compared with it: host bits cleared, a network of IPv4-mapped addresses as the IPv4
/// network it stands for. A wider IPv6 network, as `::/0`, has no IPv4 address in it.
pub fn folded(network: IpNet) -> IpNet {
    const MAPPED_BITS: u8 = 96;
    let v4 = match network {
        IpNet::V4(_) => None,
        IpNet::V6(v6) => v6
            .addr()
            .to_ipv4_mapped()
            .zip(v6.prefix_len().checked_sub(MAPPED_BITS))
            .and_then(|(ip, bits)| Ipv4Net::new(ip, bits).ok()),
    };
    v4.map_or(network, IpNet::V4).trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(ip: &str) -> Source {
        Source::of(ip.parse().unwrap())
    }

    #[test]
    fn r6_1_a_source_is_an_ipv4_address_or_an_ipv6_network() {
        assert_eq!(source("192.0.2.1"), source("::ffff:192.0.2.1"), "mapped");
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        // Compatible addresses are no IPv4 addresses.
        assert_ne!(source("192.0.2.1"), source("::192.0.2.1"));
        assert_eq!(source("192.0.2.1").network().to_string(), "192.0.2.1/32");
        assert_eq!(source("2001:db8:1:2:3::1").network().to_string(), "2001:db8:1:2::/64");
    }

    #[test]
    fn r6_2_networks_are_folded_like_addresses() {
        for (network, as_compared) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("::ffff:192.0.2.77/120", "192.0.2.0/24"),
            ("::ffff:192.0.2.77/128", "192.0.2.77/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
            ("2001:db8::1/32", "2001:db8::/32"),
            ("::/0", "::/0"),
        ] {
            assert_eq!(folded(network.parse().unwrap()).to_string(), as_compared, "{network}");
        }
    }
}
