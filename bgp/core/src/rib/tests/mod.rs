//! What the RIB's tests share: speakers, peers and attributes as values.

mod differential;
mod scenarios;
mod shell;

use std::net::{IpAddr, Ipv4Addr};

use crate::{
    config::{PeerAsn, PeerConfig, SpeakerConfig},
    event::Negotiated,
    ids::{Asn, FamilySet, PeerKey, RouterId},
    wire::attr::{AsPath, NextHop, PathAttributes},
};

/// A speaker without peers, identifier 0.0.0.1, that takes all next hops for reachable.
pub(crate) fn speaker(asn: u32) -> SpeakerConfig {
    SpeakerConfig {
        maximum_paths: 16,
        ..SpeakerConfig::new(Asn(asn), RouterId(1))
    }
}

/// The neighbour 10.0.0.`last` in `asn`.
pub(crate) fn peer_config(last: u8, asn: u32) -> PeerConfig {
    let addr = IpAddr::from([10, 0, 0, last]);
    PeerConfig::new(PeerKey::from(addr), PeerAsn::Exactly(Asn(asn)))
}

/// Its session with us, 10.0.0.100; identifier 0.0.1.`last`.
pub(crate) fn negotiated(speaker: &SpeakerConfig, config: &PeerConfig, last: u8) -> Negotiated {
    let PeerAsn::Exactly(peer_asn) = config.asn else {
        panic!("a test peer has a number");
    };
    let local_asn = config.local_asn.unwrap_or(speaker.asn);
    Negotiated {
        local_asn,
        peer_asn,
        peer_id: RouterId(256 + u32::from(last)),
        internal: local_asn == peer_asn,
        families: FamilySet::ALL,
        four_octet_as: true,
        route_refresh: true,
        add_path_send: FamilySet::NONE,
        add_path_receive: FamilySet::NONE,
        max_message: 4096,
        hold: std::time::Duration::ZERO,
        keepalive: std::time::Duration::ZERO,
        graceful_restart: None,
        local_addr: IpAddr::from([10, 0, 0, 100]),
        peer_addr: IpAddr::from([10, 0, 0, last]),
        interface: None,
    }
}

/// Attributes with this next hop and AS_PATH.
pub(crate) fn attrs_via(next_hop: [u8; 4], as_path: &[u32]) -> PathAttributes {
    let asns: Vec<Asn> = as_path.iter().copied().map(Asn).collect();
    PathAttributes {
        as_path: AsPath::from_sequence(&asns),
        ..PathAttributes::local(NextHop::from(IpAddr::V4(Ipv4Addr::from(next_hop))))
    }
}
