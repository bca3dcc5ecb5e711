//! A route reflector with a range: its clients come, go for good, are replaced.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use selvage_lab::cluster::object;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::objects::Objects;
use selvage_lab::{Agent, Lab, Link, Network, eventually_ok};
use serde_json::json;

use crate::conformance::speaker::{self, KEEPALIVE, UPDATE, message, open_graceful};
use crate::harness::{Case, Need};
use crate::scene::{SOON, prefix};

const WITH_BIRD: &[Need] = &[Need::Own("selvage"), Need::Daemon(Kind::Bird)];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "faults::clients_of_a_reflector_are_replaced",
            WITH_BIRD,
            replaced,
        ),
        Case::new(
            "faults::a_reflector_that_restarts_waits_for_a_slow_client",
            WITH_BIRD,
            |lab| restarts(lab, Return::Late),
        ),
        Case::new(
            "faults::a_reflector_that_restarts_tries_its_clients",
            WITH_BIRD,
            |lab| restarts(lab, Return::Called),
        ),
    ]
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

/// How a client comes back to a reflector that was away.
#[derive(Clone, Copy, PartialEq)]
enum Return {
    /// By itself, when the reflector has long been there again: a daemon may wait two minutes before it tries again.
    Late,
    /// Called by the reflector; by itself it would not come.
    Called,
}

/// The longest time that a reflector once waited for its clients after a restart was 20 s.
const LATE: Duration = Duration::from_secs(25);

/// What a slow client announces: 10.99.0.0/16.
const SLOW: (&str, [u8; 3]) = ("10.99.0.0/16", [16, 10, 99]);

/// A session with the reflector, all that the client has to say in it, and the sign that this is all.
fn say_all(client: &mut speaker::Speaker, link: &Link, restarting: bool) -> Result<()> {
    let next_hop = match link.ipv4()? {
        std::net::IpAddr::V4(address) => address,
        std::net::IpAddr::V6(_) => bail!("not an IPv4 address"),
    };
    client.establish(&open_graceful(ASN as u16, next_hop.octets(), restarting))?;
    let attributes = [
        &[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4][..],
        &next_hop.octets(),
        &[0x40, 5, 4, 0, 0, 0, 100],
    ]
    .concat();
    client.send(&speaker::update(&attributes, &SLOW.1))?;
    client.send(&message(UPDATE, &[0; 4]))
}

/// The reflector is killed, and away for a moment. A client of its range comes back much later than the others, or not by
/// itself: the others keep its route all the time.
fn restarts(lab: &Lab, how: Return) -> Result<()> {
    let mut scene = Scene::new(lab)?;
    let watcher = scene.client(1)?;
    let link = scene.network.join(&lab.netns("slow")?)?;
    let mut slow = speaker::Speaker::connect(link.member(), REFLECTOR.into())?;
    say_all(&mut slow, &link, false)?;
    let route = prefix(SLOW.0)?;
    watcher.wait_route(route, SOON)?;
    scene.wait_neighbours(2)?;
    wait_remembered(&scene, &link)?;

    scene.reflector.process().kill()?;
    drop(slow);
    eventually_ok(SOON, "the watcher's session ends", || {
        let sessions = watcher.sessions()?;
        ensure!(sessions.iter().all(|s| !s.established), "{sessions:?}");
        Ok(())
    })?;
    let stays = |when: &str| -> Result<()> {
        let there = watcher.route(route)?;
        ensure!(
            there.is_some(),
            "the route of the slow client is gone, {when}"
        );
        Ok(())
    };
    stays("when the reflector was killed")?;
    scene.reflector.restart()?;
    let mut slow = match how {
        Return::Called => speaker::Speaker::accept(link.member(), link.ipv4()?)?,
        Return::Late => {
            watcher.wait_established(REFLECTOR.into(), SOON)?;
            // What is shown here takes its time: nobody drops the route while the client is away.
            let end = Instant::now() + LATE;
            while Instant::now() < end {
                stays("while its client is away")?;
                std::thread::sleep(Duration::from_millis(200));
            }
            speaker::Speaker::connect(link.member(), REFLECTOR.into())?
        }
    };
    say_all(&mut slow, &link, true)?;
    eventually_ok(SOON, "the end of the restart, with the route", || {
        stays("at the end")?;
        let there = watcher.route(route)?;
        ensure!(
            there.as_ref().is_some_and(|route| !route.stale),
            "{there:?}"
        );
        let sessions = watcher.sessions()?;
        ensure!(
            sessions.iter().all(|s| s.established && !s.stale),
            "{sessions:?}"
        );
        Ok(())
    })?;
    slow.send(&message(KEEPALIVE, &[]))?;
    scene.wait_neighbours(2)
}

/// The reflector has written down that there is a session with this neighbour.
fn wait_remembered(scene: &Scene, link: &Link) -> Result<()> {
    let path = scene.reflector.state_dir().join("neighbours");
    let address = link.ipv4()?.to_string();
    eventually_ok(SOON, "the neighbour is in the state directory", || {
        let text = std::fs::read_to_string(&path)?;
        ensure!(text.lines().any(|line| line == address), "{text}");
        Ok(())
    })
}
