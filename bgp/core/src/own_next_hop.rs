//! Our own next hop in a session: an address of the interface that the session runs over (RFC 4760 section 3, RFC 2545).
//!
//! In the family of the session the next hop is our end of the connection. For the other family:
//!
//! | session | next hop |
//! |---|---|
//! | internal, from an InternalIP of the node | the InternalIP of the other family, wherever it is: nodes know each other by these |
//! | over an interface that has a global address of the family | the InternalIP, if it is on that interface, else the first address there |
//! | over an interface without one; internal, or of several hops | the InternalIP |
//! | from an address that is on no link (loopback) | the InternalIP |
//! | over an interface without one; external, of one hop | none: the neighbour could not reach it on the shared link |

use std::net::IpAddr;

use crate::{
    config::{LinkAddresses, PeerConfig, SpeakerConfig},
    ids::{Family, IfIndex},
    wire::attr::NextHop,
};

/// Our end of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct LocalEnd {
    /// The address that the session runs from.
    pub addr: IpAddr,
    /// The interface of a session between link-local addresses.
    pub interface: Option<IfIndex>,
}

impl LocalEnd {
    /// The link that the session runs over, as far as the address tells.
    fn link(self, speaker: &SpeakerConfig) -> Option<&LinkAddresses> {
        speaker.links.iter().find(|link| match self.interface {
            Some(index) => link.index == index,
            None => link.addresses.contains(&self.addr),
        })
    }
}

/// Why a family cannot be offered in a session: there is no next hop to announce in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoNextHop {
    /// The interface of the session has no address of the family, and the neighbour reaches us over that link alone.
    #[error(
        "the interface of the session has no {0} address to be the next hop; give it one, or set multihop if the neighbour reaches the node's InternalIP"
    )]
    OnInterface(Family),
    /// Neither the interface nor the node has an address of the family.
    #[error(
        "neither the interface of the session nor the Node (status.addresses, InternalIP) has an {0} address to be the next hop; give one of them an address"
    )]
    OnNode(Family),
}

impl NoNextHop {
    /// The family that is left out.
    pub fn family(self) -> Family {
        match self {
            NoNextHop::OnInterface(family) | NoNextHop::OnNode(family) => family,
        }
    }
}

/// Our next hop in `family`, in a session that we hold from `end`.
///
/// # Errors
/// Why there is none.
pub(crate) fn own_next_hop(
    speaker: &SpeakerConfig,
    config: &PeerConfig,
    end: LocalEnd,
    family: Family,
) -> Result<NextHop, NoNextHop> {
    let of_node = speaker.local_address[family.index()];
    match end.addr {
        IpAddr::V6(a) if a.is_unicast_link_local() && family == Family::Ipv6 => {
            let on_link = end.link(speaker).and_then(|l| on_link(l, of_node, family));
            Ok(NextHop {
                global: on_link.or(of_node).unwrap_or(end.addr),
                link_local: end.interface.map(|i| (a, i)),
            })
        }
        addr if Family::of(&addr) == family => Ok(addr.into()),
        addr => {
            let external = speaker.is_external(config);
            let of_the_node = speaker.local_address.contains(&Some(addr));
            if let (false, true, Some(address)) = (external, of_the_node, of_node) {
                return Ok(address.into());
            }
            let link = end.link(speaker);
            if let Some(address) = link.and_then(|link| on_link(link, of_node, family)) {
                return Ok(address.into());
            }
            let one_hop = external
                && config.multihop.is_none()
                && config.ttl_security.is_none_or(|hops| hops <= 1);
            match of_node {
                Some(_) if one_hop && link.is_some() => Err(NoNextHop::OnInterface(family)),
                Some(address) => Ok(address.into()),
                None => Err(NoNextHop::OnNode(family)),
            }
        }
    }
}

/// An address of a link in a family: `preferred`, if it is there.
fn on_link(link: &LinkAddresses, preferred: Option<IpAddr>, family: Family) -> Option<IpAddr> {
    let here = |a: &IpAddr| link.addresses.contains(a);
    let first = || link.addresses.iter().find(|a| Family::of(a) == family);
    preferred.filter(here).or_else(|| first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::PeerAsn,
        ids::{Asn, PeerKey, RouterId},
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// InternalIPs on link 1, another link 2, a link 3 with IPv4 alone.
    fn speaker() -> SpeakerConfig {
        let link = |index, addresses: &[&str]| LinkAddresses {
            index: IfIndex(index),
            addresses: addresses.iter().map(|a| ip(a)).collect(),
        };
        SpeakerConfig {
            assume_reachable: false,
            local_address: [Some(ip("10.1.0.1")), Some(ip("fd01::1"))],
            links: vec![
                link(1, &["10.1.0.1", "fd00::ffff", "fd01::1"]),
                link(2, &["10.2.0.1", "fd02::1"]),
                link(3, &["10.3.0.1"]),
            ],
            ..SpeakerConfig::new(Asn(64512), RouterId(1))
        }
    }

    fn next_hop(
        speaker: &SpeakerConfig,
        from: &str,
        scope: Option<u32>,
        asn: PeerAsn,
        multihop: Option<u8>,
        family: Family,
    ) -> Result<String, NoNextHop> {
        let mut config = PeerConfig::new(PeerKey::from(ip("192.0.2.9")), asn);
        config.multihop = multihop;
        let end = LocalEnd {
            addr: ip(from),
            interface: scope.map(IfIndex),
        };
        own_next_hop(speaker, &config, end, family).map(|n| n.global.to_string())
    }

    #[test]
    fn belongs_to_the_interface_of_the_session() {
        use Family::{Ipv4, Ipv6};
        use PeerAsn::{External, Internal};
        let all = speaker();
        let none_of = |family: Family| {
            let mut speaker = speaker();
            speaker.local_address[family.index()] = None;
            speaker
        };
        for (speaker, from, scope, asn, hops, family, expected) in [
            // The family of the session: its own end.
            (&all, "10.2.0.1", None, External, None, Ipv4, Ok("10.2.0.1")),
            (&all, "10.9.9.9", None, Internal, None, Ipv4, Ok("10.9.9.9")),
            // The other one: of the same link, the InternalIP first.
            (&all, "10.1.0.1", None, External, None, Ipv6, Ok("fd01::1")),
            (&all, "10.2.0.1", None, External, None, Ipv6, Ok("fd02::1")),
            (&all, "10.2.0.1", None, Internal, None, Ipv6, Ok("fd02::1")),
            (
                &all,
                "10.2.0.1",
                None,
                External,
                Some(3),
                Ipv6,
                Ok("fd02::1"),
            ),
            (&all, "fd02::1", None, External, None, Ipv4, Ok("10.2.0.1")),
            (
                &all,
                "fe80::1",
                Some(2),
                External,
                None,
                Ipv4,
                Ok("10.2.0.1"),
            ),
            (
                &all,
                "fe80::1",
                Some(2),
                External,
                None,
                Ipv6,
                Ok("fd02::1"),
            ),
            // A link without: the node's, where the neighbour may reach that.
            (&all, "10.3.0.1", None, Internal, None, Ipv6, Ok("fd01::1")),
            (
                &all,
                "10.3.0.1",
                None,
                External,
                Some(2),
                Ipv6,
                Ok("fd01::1"),
            ),
            (
                &all,
                "10.3.0.1",
                None,
                External,
                None,
                Ipv6,
                Err(NoNextHop::OnInterface(Ipv6)),
            ),
            // From a loopback address.
            (
                &all,
                "10.255.0.1",
                None,
                External,
                Some(2),
                Ipv6,
                Ok("fd01::1"),
            ),
            (
                &all,
                "fd00:255::1",
                None,
                Internal,
                None,
                Ipv4,
                Ok("10.1.0.1"),
            ),
            // No address of that family anywhere.
            (
                &none_of(Ipv6),
                "10.3.0.1",
                None,
                Internal,
                None,
                Ipv6,
                Err(NoNextHop::OnNode(Ipv6)),
            ),
            (
                &none_of(Ipv6),
                "10.255.0.1",
                None,
                External,
                Some(2),
                Ipv6,
                Err(NoNextHop::OnNode(Ipv6)),
            ),
            (
                &none_of(Ipv6),
                "10.2.0.1",
                None,
                External,
                None,
                Ipv6,
                Ok("fd02::1"),
            ),
        ] {
            let got = next_hop(speaker, from, scope, asn, hops, family);
            assert_eq!(
                got,
                expected.map(ToOwned::to_owned),
                "{family} from {from} to {asn:?}, {hops:?} hops"
            );
        }
    }

    #[test]
    fn nodes_that_mesh_know_each_other_by_their_internal_addresses() {
        let mut speaker = speaker();
        // The InternalIP of IPv6 is on another link than that of IPv4, which has an IPv6 address, too.
        speaker.local_address[1] = Some(ip("fd02::1"));
        let v6 = |asn| next_hop(&speaker, "10.1.0.1", None, asn, None, Family::Ipv6);
        assert_eq!(v6(PeerAsn::Internal), Ok("fd02::1".into()));
        assert_eq!(v6(PeerAsn::External), Ok("fd00::ffff".into()));
    }
}
