//! A namespace with a loopback interface and a speaker in it.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::AsFd,
    sync::{Arc, mpsc},
};

use selvage_bgp::{
    ConfigureError, PeerChange, RouteEvent, Speaker, Start,
    core::{
        config::{PeerAsn, PeerConfig, RangeConfig, SpeakerConfig},
        ids::{Asn, PeerKey, RouterId},
    },
};
use selvage_netlink::{Protocol, Socket, link, netns};

/// Where the speaker listens.
pub const SPEAKER: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Everybody's autonomous system.
pub const ASN: Asn = Asn(64512);

/// Runs a test in a namespace of its own, with the whole of 127.0.0.0/8 to connect from.
pub fn in_space<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let space = netns::create_unnamed().expect("root is needed to make a namespace");
    let mut socket = Socket::open_in(space.as_fd(), Protocol::Route).unwrap();
    let loopback = link::get_by_name(&mut socket, "lo").unwrap().index;
    socket
        .apply(|batch| link::set_up(batch, loopback, true))
        .unwrap();
    netns::within(space.as_fd(), run).unwrap()
}

/// A speaker that takes whoever comes from the loopback network as a client.
pub fn reflector() -> SpeakerConfig {
    let client = PeerConfig {
        route_reflector_client: true,
        ..PeerConfig::new(PeerKey::from(IpAddr::from([0; 4])), PeerAsn::Internal)
    };
    SpeakerConfig {
        listen: vec![(SPEAKER, 179).into()],
        local_address: [Some(SPEAKER.into()), None],
        ranges: vec![RangeConfig {
            prefix: "127.0.0.0/8".parse().unwrap(),
            template: Arc::new(client),
        }],
        ..SpeakerConfig::new(ASN, RouterId::from(SPEAKER))
    }
}

/// Starts a speaker; what it tells the kernel comes out of the channel.
pub fn start(config: SpeakerConfig) -> (Speaker, Vec<ConfigureError>, mpsc::Receiver<RouteEvent>) {
    let (speaker, refused, events, _) = start_told(config);
    (speaker, refused, events)
}

/// As [`start`]; what it tells of its neighbours comes out of the second channel.
pub fn start_told(
    config: SpeakerConfig,
) -> (
    Speaker,
    Vec<ConfigureError>,
    mpsc::Receiver<RouteEvent>,
    mpsc::Receiver<PeerChange>,
) {
    let config = Arc::new(config);
    let (speaker, events, changes) = start_idle(config.clone());
    let refused = speaker.handle().configure(config).unwrap();
    (speaker, refused, events, changes)
}

/// A speaker that has not been configured yet.
pub fn start_idle(
    config: Arc<SpeakerConfig>,
) -> (
    Speaker,
    mpsc::Receiver<RouteEvent>,
    mpsc::Receiver<PeerChange>,
) {
    let (sender, events) = mpsc::channel();
    let (teller, changes) = mpsc::channel();
    let speaker = Speaker::start(Start {
        config,
        restarting: false,
        before: None,
        seed: 1,
        routes: Box::new(move |batch| {
            // The test may not be interested any more.
            batch.into_iter().for_each(|e| drop(sender.send(e)));
        }),
        peers: Box::new(move |batch| {
            batch.into_iter().for_each(|c| drop(teller.send(c)));
        }),
    })
    .unwrap();
    (speaker, events, changes)
}
