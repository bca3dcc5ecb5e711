//! Sessions as captures, as networks with a virtual clock, and as random schedules.

mod capture;
mod network;
mod restarts;
mod schedules;
mod settings;

use std::{sync::Arc, time::Duration};

use crate::{
    config::{PeerAsn, PeerConfig, SpeakerConfig},
    ids::{Asn, RouterId},
};

fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// A speaker in this AS with this identifier, without long-lived graceful restart.
fn speaker(asn: u32, id: u32) -> SpeakerConfig {
    let mut speaker = SpeakerConfig::new(Asn(asn), RouterId(id));
    speaker.graceful_restart.long_lived = None;
    speaker
}

/// A neighbour at 10.0.0.`host` in this AS.
fn neighbor(host: u8, asn: u32) -> PeerConfig {
    let addr = std::net::IpAddr::from([10, 0, 0, host]);
    PeerConfig::new(addr.into(), PeerAsn::Exactly(Asn(asn)))
}

fn arc<T>(value: T) -> Arc<T> {
    Arc::new(value)
}
