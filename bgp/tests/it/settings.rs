//! Settings that change while the speaker runs.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
};

use selvage_bgp::{
    ConfigureError,
    core::{
        config::{Password, PeerAsn, PeerConfig, SpeakerConfig},
        ids::PeerKey,
        session::Stop,
        wire::header::MessageType,
    },
};

use crate::{
    neighbour::Neighbour,
    space::{SPEAKER, in_space, reflector, start, start_idle},
};

/// Nothing is asked of whoever programs routes before the owner of the speaker has its handle to answer by.
#[test]
fn before_its_first_configuration_a_speaker_listens_nowhere() {
    in_space(|| {
        let config = Arc::new(reflector());
        let (speaker, _events, _changes) = start_idle(config.clone());
        let at = SocketAddr::from((SPEAKER, 179));
        // The I/O thread has answered, so it runs.
        assert!(speaker.handle().peers().unwrap().is_empty());
        let refused = TcpStream::connect(at).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        assert!(speaker.handle().configure(config).unwrap().is_empty());
        TcpStream::connect(at).unwrap();
        speaker.stop(Stop::Restart);
    });
}

/// A listener holds several hundred keys at most.
#[test]
fn a_key_that_is_refused_is_tried_and_reported_again() {
    in_space(|| {
        let peers = (0..4000u16).map(|i| {
            let [a, b] = i.to_be_bytes();
            let key = PeerKey::from(IpAddr::from([127, 1, a, b]));
            Arc::new(PeerConfig {
                passive: true,
                password: Password::new(b"secret"),
                ..PeerConfig::new(key, PeerAsn::Internal)
            })
        });
        let many = SpeakerConfig {
            peers: peers.collect(),
            ..reflector()
        };
        let keys = |errors: &[ConfigureError]| {
            let key = |e: &&ConfigureError| matches!(e, ConfigureError::Key { .. });
            errors.iter().filter(key).count()
        };
        let (speaker, refused, _events) = start(many.clone());
        assert!(keys(&refused) > 0);
        let again = speaker.handle().configure(Arc::new(many.clone())).unwrap();
        assert_eq!(keys(&again), keys(&refused));
        let few = SpeakerConfig {
            peers: many.peers.iter().take(10).cloned().collect(),
            ..many
        };
        let again = speaker.handle().configure(Arc::new(few)).unwrap();
        assert_eq!(keys(&again), 0);
        speaker.stop(Stop::Restart);
    });
}

/// The key of a range is no key of those inside it who are configured without one.
#[test]
fn a_neighbour_without_a_password_inside_a_range_that_has_one_is_heard() {
    in_space(|| {
        let mut config = reflector();
        let template = PeerConfig {
            password: Password::new(b"secret"),
            ..(*config.ranges[0].template).clone()
        };
        config.ranges[0].template = Arc::new(template);
        let plain = [127, 0, 0, 5];
        config.peers = vec![Arc::new(PeerConfig {
            passive: true,
            ..PeerConfig::new(PeerKey::from(IpAddr::from(plain)), PeerAsn::Internal)
        })];
        let (speaker, refused, _events) = start(config);
        assert!(refused.is_empty(), "{refused:?}");
        Neighbour::connect(plain.into(), None).read_until(MessageType::Open);
        speaker.stop(Stop::Restart);
    });
}
