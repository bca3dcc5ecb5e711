//! A route reflector in thirty lines: whoever connects from inside a prefix becomes its client.
//!
//! `cargo run --release -p selvage-bgp --example reflector -- 64512 10.0.0.1 10.0.0.0/8`
//!
//! With `transit ADDRESS ASN …` behind that, it passes routes between these neighbours instead.

use std::{env, net::IpAddr, sync::Arc};

use anyhow::{Context, Result};
use selvage_bgp::{
    Speaker, Start,
    core::{
        config::{FilterRef, PeerAsn, PeerConfig, RangeConfig, SpeakerConfig},
        ids::{Asn, PeerKey, RouterId},
        prefix::Prefix,
    },
};

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [asn, address, prefix, rest @ ..] = arguments.as_slice() else {
        anyhow::bail!("usage: reflector ASN ADDRESS PREFIX [transit ADDRESS ASN ...]");
    };
    let address: IpAddr = address.parse().context("ADDRESS")?;
    let prefix: Prefix = prefix.parse()?;
    let IpAddr::V4(id) = address else {
        anyhow::bail!("ADDRESS: an IPv4 address")
    };
    let client = PeerConfig {
        route_reflector_client: true,
        passive: true,
        ..PeerConfig::new(PeerKey::from(prefix.addr()), PeerAsn::Internal)
    };
    let neighbour = |pair: &[String]| -> Result<Arc<PeerConfig>> {
        let [address, asn] = pair else {
            anyhow::bail!("transit: ADDRESS ASN in pairs")
        };
        let key = PeerKey::from(address.parse::<IpAddr>()?);
        Ok(Arc::new(PeerConfig {
            passive: true,
            multihop: Some(5),
            import: vec![FilterRef::AcceptAll],
            export: vec![FilterRef::AcceptAll],
            ..PeerConfig::new(key, PeerAsn::Exactly(Asn(asn.parse()?)))
        }))
    };
    let neighbours = rest
        .get(1..)
        .unwrap_or_default()
        .chunks(2)
        .map(neighbour)
        .collect::<Result<Vec<_>>>()?;
    let config = SpeakerConfig {
        cluster_id: Some(RouterId::from(id)),
        listen: vec![(address, 179).into()],
        local_address: [Some(address), None],
        ranges: if neighbours.is_empty() {
            vec![RangeConfig {
                prefix,
                template: Arc::new(client),
            }]
        } else {
            Vec::new()
        },
        peers: neighbours,
        ..SpeakerConfig::new(Asn(asn.parse().context("ASN")?), RouterId::from(id))
    };
    let config = Arc::new(config);
    let start = Start {
        config: config.clone(),
        restarting: false,
        before: None,
        seed: 1,
        routes: Box::new(drop),
        peers: Box::new(drop),
    };
    let speaker = Speaker::start(start)?;
    let refused = speaker.handle().configure(config)?;
    refused.iter().for_each(|error| eprintln!("{error}"));
    loop {
        std::thread::park();
        drop(speaker.handle());
    }
}
