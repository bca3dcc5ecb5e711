//! What our OPEN offers, and what both OPENs together mean.

use std::{net::IpAddr, time::Duration};

use super::state::Ends;
use crate::{
    config::{PeerAsn, PeerConfig, SpeakerConfig},
    event::{Negotiated, PeerRestart},
    ids::{Asn, Family, FamilySet, RouterId},
    wire::{
        capability::{Capability, Restart, RestartFamily},
        header::{MAX_EXTENDED_MESSAGE, MAX_MESSAGE},
        notification::Notification,
        open::Open,
    },
};

/// What we offer in one OPEN. Kept with the connection, since the configuration may change before the answer comes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Offer {
    pub asn: Asn,
    pub router_id: RouterId,
    pub hold: Duration,
    pub keepalive: Duration,
    pub families: FamilySet,
    /// Graceful restart, with these bits.
    pub restart: Option<RestartBits>,
    /// How long our restart takes.
    pub restart_time: Duration,
    /// Without capabilities, for those who refuse them (RFC 5492 section 3).
    pub plain: bool,
}

/// What we say of our own restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RestartBits {
    /// R: we have just restarted.
    pub restarting: bool,
    /// F: our forwarding state is as the last session left it.
    pub forwarding: bool,
}

/// Our AS in the eyes of this neighbour (RFC 7705).
pub(crate) fn local_asn(speaker: &SpeakerConfig, peer: &PeerConfig) -> Asn {
    peer.local_asn.unwrap_or(speaker.asn)
}

/// The families that can be offered on a session from `local`: those configured for which we have a next hop to announce.
/// Without a kernel of our own (a pure reflector) we pass on other people's next hops, and need none.
pub(crate) fn families(speaker: &SpeakerConfig, peer: &PeerConfig, local: IpAddr) -> FamilySet {
    let usable = |f: &Family| {
        *f == Family::of(&local)
            || speaker.assume_reachable
            || speaker
                .local_address
                .get(f.index())
                .is_some_and(Option::is_some)
    };
    peer.families.iter().filter(usable).collect()
}

impl Offer {
    pub fn new(
        speaker: &SpeakerConfig,
        peer: &PeerConfig,
        local: IpAddr,
        bits: RestartBits,
        plain: bool,
    ) -> Offer {
        let restart = speaker.graceful_restart.enabled && peer.graceful_restart && !plain;
        let families = families(speaker, peer, local);
        Offer {
            asn: local_asn(speaker, peer),
            router_id: speaker.router_id,
            hold: peer.timers.hold,
            keepalive: peer.timers.keepalive,
            families: match plain {
                true => families.and(FamilySet::from_iter([Family::Ipv4])),
                false => families,
            },
            restart: restart.then_some(bits),
            restart_time: speaker.graceful_restart.restart_time,
            plain,
        }
    }

    /// The OPEN that says it. The same offer always makes the same bytes.
    pub fn open(&self) -> Open {
        let mut capabilities: Vec<Capability> =
            self.families.iter().map(Capability::family).collect();
        capabilities.push(Capability::RouteRefresh);
        capabilities.push(Capability::ExtendedMessage);
        if let Some(bits) = self.restart {
            capabilities.push(Capability::GracefulRestart(Restart {
                restarting: bits.restarting,
                notification: true,
                time: self.restart_time.as_secs().min(4095) as u16,
                families: self
                    .families
                    .iter()
                    .map(|f| RestartFamily {
                        afi: f.afi(),
                        safi: f.safi(),
                        forwarding: bits.forwarding,
                    })
                    .collect(),
            }));
        }
        capabilities.push(Capability::FourOctetAs(self.asn));
        if self.plain {
            capabilities.clear();
        }
        Open {
            my_as: self.asn.two_octet(),
            hold_time: self.hold.as_secs().min(65535) as u16,
            router_id: self.router_id,
            capabilities,
        }
    }

    /// What our offer and the peer's OPEN together mean.
    ///
    /// # Errors
    /// The NOTIFICATION of RFC 4271 section 6.2 where the OPEN does not fit what is configured.
    pub fn negotiate(
        &self,
        expected: PeerAsn,
        open: &Open,
        ends: &Ends,
    ) -> Result<Negotiated, Notification> {
        let peer_asn = open.asn();
        let fits = match expected {
            PeerAsn::Exactly(asn) => peer_asn == asn,
            PeerAsn::Internal => peer_asn == self.asn,
            PeerAsn::External => peer_asn != self.asn,
        };
        if !fits {
            return Err(Notification::new(2, 2, &[]));
        }
        let internal = peer_asn == self.asn;
        // Identifiers are unique inside an AS only (RFC 6286 section 2.2).
        if internal && open.router_id == self.router_id {
            return Err(Notification::new(2, 3, &[]));
        }
        let families = self.families.and(offered_families(open));
        if families.is_empty() {
            return Err(self.no_common_family());
        }
        let both = |code| open.has(code) && !self.plain;
        let hold = self.hold.min(Duration::from_secs(open.hold_time.into()));
        Ok(Negotiated {
            local_asn: self.asn,
            peer_asn,
            peer_id: open.router_id,
            internal,
            families,
            four_octet_as: both(65),
            route_refresh: both(2),
            add_path_send: FamilySet::NONE,
            add_path_receive: FamilySet::NONE,
            max_message: match both(6) {
                true => MAX_EXTENDED_MESSAGE,
                false => MAX_MESSAGE,
            },
            hold,
            keepalive: keepalive(self.keepalive, hold),
            graceful_restart: self.restart.and_then(|_| peer_restart(open, families)),
            local_addr: ends.local.ip(),
            peer_addr: ends.remote.ip(),
            interface: ends.interface,
        })
    }

    /// RFC 5492 section 5: the data lists the capabilities that we miss.
    fn no_common_family(&self) -> Notification {
        let mut data = Vec::new();
        for family in self.families.iter() {
            Capability::family(family).put(&mut data);
        }
        Notification::new(2, 7, &data)
    }
}

/// A third of the hold time at most, and at least a second (RFC 4271 section 4.4); zero with a hold time of zero.
fn keepalive(configured: Duration, hold: Duration) -> Duration {
    let third = hold / 3;
    match configured {
        Duration::ZERO => third,
        configured => configured.max(Duration::from_secs(1)).min(third),
    }
}

/// The families of an OPEN; IPv4 where it names none (RFC 4760 section 8).
fn offered_families(open: &Open) -> FamilySet {
    if !open.has(1) {
        return FamilySet::from_iter([Family::Ipv4]);
    }
    open.capabilities
        .iter()
        .filter_map(|c| match c {
            Capability::MultiProtocol { afi, safi } => Family::from_afi_safi(*afi, *safi),
            _ => None,
        })
        .collect()
}

/// The peer's graceful restart capability; the last one counts if there are several (RFC 5492 section 4).
fn peer_restart(open: &Open, negotiated: FamilySet) -> Option<PeerRestart> {
    let restart = open.capabilities.iter().rev().find_map(|c| match c {
        Capability::GracefulRestart(r) => Some(r),
        _ => None,
    })?;
    let families = |forwarding: bool| -> FamilySet {
        restart
            .families
            .iter()
            .filter(|f| f.forwarding || !forwarding)
            .filter_map(|f| Family::from_afi_safi(f.afi, f.safi))
            .collect::<FamilySet>()
            .and(negotiated)
    };
    Some(PeerRestart {
        restarting: restart.restarting,
        notification: restart.notification,
        time: Duration::from_secs(restart.time.into()),
        families: families(false),
        forwarding: families(true),
    })
}
