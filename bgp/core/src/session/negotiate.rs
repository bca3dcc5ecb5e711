//! What our OPEN offers, and what both OPENs together mean.

use std::time::Duration;

use super::state::Ends;
use crate::{
    config::{PeerAsn, PeerConfig, SpeakerConfig},
    event::{Negotiated, PeerRestart},
    ids::{Asn, Family, FamilySet, RouterId},
    own_next_hop::{LocalEnd, NoNextHop, own_next_hop},
    wire::{
        capability::{Capability, LongLivedFamily, MAX_LONG_LIVED_TIME, Restart, RestartFamily},
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
    pub settings: OpenSettings,
    pub keepalive: Duration,
    pub families: FamilySet,
    /// What graceful restart is offered with, if it is.
    pub restart: RestartBits,
    /// Without capabilities, for those who refuse them (RFC 5492 section 3).
    pub plain: bool,
}

/// What a session keeps as its OPEN said it, though the configuration may have changed since (RFC 4271 has no way to
/// negotiate anew).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenSettings {
    /// The hold time; zero: never.
    pub hold: Duration,
    /// The restart time of graceful restart (RFC 4724); `None`: it is not offered.
    pub restart_time: Option<Duration>,
    /// The stale time of long-lived graceful restart (RFC 9494); `None`: it is not offered.
    pub long_lived: Option<Duration>,
}

impl OpenSettings {
    /// What an OPEN would say now. `plain`: it has no capabilities.
    pub(crate) fn new(speaker: &SpeakerConfig, peer: &PeerConfig, plain: bool) -> OpenSettings {
        let speaker = &speaker.graceful_restart;
        let restart = speaker.enabled && peer.graceful_restart && !plain;
        let long_lived = restart && peer.long_lived_restart;
        OpenSettings {
            hold: peer.timers.hold,
            restart_time: restart.then_some(speaker.restart_time),
            long_lived: speaker.long_lived.filter(|_| long_lived),
        }
    }
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
pub(crate) fn families(speaker: &SpeakerConfig, peer: &PeerConfig, local: LocalEnd) -> FamilySet {
    let usable =
        |f: &Family| speaker.assume_reachable || own_next_hop(speaker, peer, local, *f).is_ok();
    peer.families.iter().filter(usable).collect()
}

/// The families that are configured and that [`families`] leaves out, with the reason.
pub(crate) fn families_left_out(
    speaker: &SpeakerConfig,
    peer: &PeerConfig,
    local: LocalEnd,
) -> Vec<NoNextHop> {
    let wanted = peer.families.iter().filter(|_| !speaker.assume_reachable);
    wanted
        .filter_map(|f| own_next_hop(speaker, peer, local, f).err())
        .collect()
}

impl Offer {
    pub fn new(
        speaker: &SpeakerConfig,
        peer: &PeerConfig,
        local: LocalEnd,
        bits: RestartBits,
        plain: bool,
    ) -> Offer {
        let families = families(speaker, peer, local);
        Offer {
            asn: local_asn(speaker, peer),
            router_id: speaker.router_id,
            settings: OpenSettings::new(speaker, peer, plain),
            keepalive: peer.timers.keepalive,
            families: match plain {
                true => families.and(FamilySet::from_iter([Family::Ipv4])),
                false => families,
            },
            restart: bits,
            plain,
        }
    }

    /// The OPEN that says it. The same offer always makes the same bytes.
    pub fn open(&self) -> Open {
        let mut capabilities: Vec<Capability> =
            self.families.iter().map(Capability::family).collect();
        capabilities.push(Capability::RouteRefresh);
        capabilities.push(Capability::ExtendedMessage);
        let bits = self.restart;
        if let Some(time) = self.settings.restart_time {
            capabilities.push(Capability::GracefulRestart(Restart {
                restarting: bits.restarting,
                notification: true,
                time: time.as_secs().min(4095) as u16,
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
        if let Some(time) = self.settings.long_lived {
            let families = self.families.iter().map(|f| LongLivedFamily {
                afi: f.afi(),
                safi: f.safi(),
                forwarding: bits.forwarding,
                time: u32::try_from(time.as_secs())
                    .map_or(MAX_LONG_LIVED_TIME, |t| t.min(MAX_LONG_LIVED_TIME)),
            });
            capabilities.push(Capability::LongLivedRestart(families.collect()));
        }
        capabilities.push(Capability::FourOctetAs(self.asn));
        if self.plain {
            capabilities.clear();
        }
        Open {
            my_as: self.asn.two_octet(),
            hold_time: self.settings.hold.as_secs().min(65535) as u16,
            router_id: self.router_id,
            capabilities,
        }
    }

    /// What our offer and the peer's OPEN together mean.
    ///
    /// # Errors
    /// The NOTIFICATION of RFC 4271 section 6.2 where the OPEN does not fit what is configured, and what does not fit.
    pub fn negotiate(
        &self,
        expected: PeerAsn,
        open: &Open,
        ends: &Ends,
    ) -> Result<Negotiated, OpenRefusal> {
        let peer_asn = open.asn();
        let fits = match expected {
            PeerAsn::Exactly(asn) => peer_asn == asn,
            PeerAsn::Internal => peer_asn == self.asn,
            PeerAsn::External => peer_asn != self.asn,
        };
        if !fits {
            let expected = match expected {
                PeerAsn::Exactly(asn) => format!("AS {asn} is configured"),
                PeerAsn::Internal => format!("`internal` asks for ours, AS {}", self.asn),
                PeerAsn::External => "`external` asks for another than ours".into(),
            };
            return Err(OpenRefusal {
                notification: Notification::new(2, 2, &[]),
                why: format!("the neighbour says AS {peer_asn}, {expected}"),
            });
        }
        let internal = peer_asn == self.asn;
        // Identifiers are unique inside an AS only (RFC 6286 section 2.2).
        if internal && open.router_id == self.router_id {
            return Err(OpenRefusal {
                notification: Notification::new(2, 3, &[]),
                why: format!("the neighbour has our own identifier, {}", self.router_id),
            });
        }
        let families = self.families.and(offered_families(open));
        if families.is_empty() {
            return Err(self.no_common_family(offered_families(open)));
        }
        let both = |code| open.has(code) && !self.plain;
        let hold = self
            .settings
            .hold
            .min(Duration::from_secs(open.hold_time.into()));
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
            graceful_restart: self
                .settings
                .restart_time
                .and_then(|_| peer_restart(open, families, self.settings.long_lived)),
            local_addr: ends.local.ip(),
            peer_addr: ends.remote.ip(),
            interface: ends.interface,
        })
    }

    /// RFC 5492 section 5: the data lists the capabilities that we miss.
    fn no_common_family(&self, theirs: FamilySet) -> OpenRefusal {
        let mut data = Vec::new();
        for family in self.families.iter() {
            Capability::family(family).put(&mut data);
        }
        OpenRefusal {
            notification: Notification::new(2, 7, &data),
            why: format!(
                "the neighbour offers {}, we offer {}",
                names(theirs),
                names(self.families)
            ),
        }
    }
}

/// An OPEN that is not taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OpenRefusal {
    /// What the other side is told.
    pub notification: Notification,
    /// What it said and what was expected, for people; may be empty.
    pub why: String,
}

impl OpenRefusal {
    /// An OPEN that is wrong by itself.
    pub fn of_open(notification: Notification, body: &[u8]) -> OpenRefusal {
        let number = |at: usize| {
            let octets = body.get(at..at + 2);
            octets.map_or(0, |o| o.iter().fold(0, |n, o| n << 8 | u32::from(*o)))
        };
        let why = match (notification.code, notification.subcode) {
            (2, 1) => format!(
                "the neighbour says version {}, we speak 4",
                body.first().copied().unwrap_or_default()
            ),
            (2, 2) => "the neighbour says AS 0, which is nobody's".into(),
            (2, 3) => "the neighbour's identifier is 0.0.0.0".into(),
            (2, 6) => format!(
                "the neighbour proposes {} s, 0 or at least 3 s are allowed",
                number(3)
            ),
            _ => String::new(),
        };
        OpenRefusal { notification, why }
    }
}

fn names(families: FamilySet) -> String {
    match families.is_empty() {
        true => "no family that we know".into(),
        false => families
            .iter()
            .map(|f| f.to_string())
            .collect::<Vec<_>>()
            .join(" and "),
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
fn peer_restart(open: &Open, negotiated: FamilySet, ours: Option<Duration>) -> Option<PeerRestart> {
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
    let long_lived = open.capabilities.iter().rev().find_map(|c| match c {
        Capability::LongLivedRestart(families) => Some(&families[..]),
        _ => None,
    });
    let mut forwarding = families(true);
    let mut times = [None; 2];
    for f in long_lived.unwrap_or_default() {
        let Some(family) = Family::from_afi_safi(f.afi, f.safi).filter(|f| negotiated.contains(*f))
        else {
            continue;
        };
        if f.forwarding {
            forwarding.insert(family);
        }
        // Neither side has its routes kept for longer than it asks, nor keeps them for longer than it wants to.
        let time = ours.map(|ours| ours.min(Duration::from_secs(f.time.into())));
        if let Some(place) = times.get_mut(family.index()) {
            *place = time.filter(|t| !t.is_zero());
        }
    }
    Some(PeerRestart {
        restarting: restart.restarting,
        notification: restart.notification,
        time: Duration::from_secs(restart.time.into()),
        families: families(false),
        forwarding,
        understands_long_lived: long_lived.is_some(),
        keeps_ours_long: long_lived.is_some() && ours.is_some(),
        long_lived: times,
    })
}
