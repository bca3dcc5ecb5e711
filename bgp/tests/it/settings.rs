//! Settings that change while the speaker runs.

use std::{net::IpAddr, sync::Arc};

use selvage_bgp::{
    ConfigureError,
    core::{
        config::{Password, PeerAsn, PeerConfig, SpeakerConfig},
        ids::PeerKey,
        session::Stop,
    },
};

use crate::space::{in_space, reflector, start};

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
