//! A route reflector with a range: its clients come, go for good, are replaced.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use selvage_lab::cluster::object;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::objects::Objects;
use selvage_lab::{Agent, Lab, Network, eventually_ok};
use serde_json::json;

use crate::harness::{Case, Need};
use crate::scene::{SOON, prefix};

const WITH_BIRD: &[Need] = &[Need::Own("selvage"), Need::Daemon(Kind::Bird)];

pub fn cases() -> Vec<Case> {
    vec![Case::new(
        "faults::clients_of_a_reflector_are_replaced",
        WITH_BIRD,
        replaced,
    )]
}

const ASN: u32 = 64512;
const REFLECTOR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// A reflector at 192.0.2.1 that takes all who come from its network as clients.
struct Scene {
    lab: Lab,
    network: Network,
    reflector: Agent,
}

/// What client `n` originates.
fn networks(n: u8) -> Result<[IpNet; 2]> {
    Ok([
        prefix(&format!("10.{n}.0.0/16"))?,
        prefix(&format!("fd00:{n}::/48"))?,
    ])
}

impl Scene {
    fn new(lab: &Lab) -> Result<Scene> {
        let network = lab.network("lan", &[prefix("192.0.2.0/24")?, prefix("2001:db8::/64")?])?;
        let netns = lab.netns("rr")?;
        network.join(&netns)?;
        let objects = Objects::create(lab.directory().join("objects"))?;
        let configuration = json!({
            "asn": ASN, "routerId": REFLECTOR, "nodeMesh": {"mode": "off"},
            "routeReflector": {"clusterId": REFLECTOR},
        });
        let range = json!({
            "range": "192.0.2.0/24", "asn": "internal", "routeReflectorClient": true,
        });
        objects.write(
            "configuration",
            &object("BGPConfiguration", "default", configuration),
        )?;
        objects.write("clients", &object("BGPPeer", "clients", range))?;
        let features = ["--features", "bgp"];
        let mut reflector = Agent::start(&netns, "rr", objects.directory(), &features)?;
        reflector.wait_ready(SOON)?;
        Ok(Scene {
            lab: lab.clone(),
            network,
            reflector,
        })
    }

    /// Starts a BIRD as client `n`, which originates [`networks`].
    fn client(&self, n: u8) -> Result<Router> {
        let link = self.network.join(&self.lab.netns(&format!("c{n}"))?)?;
        let mut speaker = Speaker::new(ASN, Ipv4Addr::new(192, 0, 2, 100 + n))
            .address(link.ipv4()?)
            .address(link.ipv6()?)
            .neighbour(Neighbour::new(REFLECTOR.into(), ASN))
            .without_kernel();
        speaker.networks = networks(n)?.to_vec();
        Router::start(Kind::Bird, link.member(), speaker)
    }

    /// How many neighbours the reflector knows.
    fn wait_neighbours(&self, wanted: usize) -> Result<()> {
        eventually_ok(SOON, &format!("{wanted} neighbours"), || {
            match self.reflector.peers()? {
                peers if peers.len() == wanted => Ok(()),
                peers => bail!("{peers:?}"),
            }
        })
    }
}

/// Each client that comes has another one's place at the reflector: it is heard and told everything.
fn replaced(lab: &Lab) -> Result<()> {
    let scene = Scene::new(lab)?;
    let stays = scene.client(1)?;
    for n in 2..6 {
        let mut comes = scene.client(n)?;
        for network in networks(n)? {
            stays
                .wait_route(network, SOON)
                .with_context(|| format!("of client {n} at client 1"))?;
        }
        for network in networks(1)? {
            comes
                .wait_route(network, SOON)
                .with_context(|| format!("of client 1 at client {n}"))?;
        }
        // An orderly end: the reflector keeps nothing of it, and its place is free.
        let process = comes.processes().last_mut().context("a process")?;
        process.stop(SOON)?;
        for network in networks(n)? {
            stays.wait_no_route(network, SOON)?;
        }
        scene.wait_neighbours(1)?;
    }
    Ok(())
}
