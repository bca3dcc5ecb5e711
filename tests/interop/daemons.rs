//! BIRD, FRR and GoBGP with each other, from the lab's generators: sessions, both families, passwords, withdrawal,
//! reflection.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::{Lab, Link, eventually_ok};

use crate::harness::{Case, Need};

const SOON: Duration = Duration::from_secs(30);
const ALL: &[Need] = &[
    Need::Daemon(Kind::Bird),
    Need::Daemon(Kind::Frr),
    Need::Daemon(Kind::Gobgp),
];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "interop::daemons_exchange_both_families_over_ebgp",
            ALL,
            ebgp,
        ),
        Case::new("interop::daemons_reflect_over_ibgp", ALL, reflect),
        Case::new(
            "interop::a_wrong_password_keeps_a_session_down",
            ALL,
            wrong_password,
        ),
    ]
}

fn prefix(text: &str) -> Result<IpNet> {
    text.parse().with_context(|| text.to_owned())
}

/// A host per daemon on one network, the first with 192.0.2.1.
fn hosts(lab: &Lab) -> Result<Vec<Link>> {
    let network = lab.network("lan", &[prefix("192.0.2.0/24")?, prefix("2001:db8::/64")?])?;
    Kind::ALL
        .iter()
        .map(|kind| network.join(&lab.netns(kind.package())?))
        .collect()
}

fn speaker(link: &Link, asn: u32, number: u8) -> Result<Speaker> {
    Ok(Speaker::new(asn, Ipv4Addr::new(192, 0, 2, number))
        .quick()
        .address(link.ipv4()?)
        .address(link.ipv6()?))
}

/// The prefixes that the daemon of this number originates.
fn own(number: u8) -> Result<[IpNet; 2]> {
    Ok([
        prefix(&format!("10.{number}.0.0/24"))?,
        prefix(&format!("fd00:{number}::/64"))?,
    ])
}

/// A full mesh of one AS each, a password between the first two, everything announced is everywhere; what is
/// withdrawn goes.
fn ebgp(lab: &Lab) -> Result<()> {
    let links = hosts(lab)?;
    let mut routers = Vec::new();
    for (number, (kind, link)) in (1u8..).zip(Kind::ALL.iter().zip(&links)) {
        let mut speaker = speaker(link, 65000 + u32::from(number), number)?;
        speaker.networks = own(number)?.to_vec();
        for (other, peer) in (1u8..).zip(&links).filter(|(other, _)| *other != number) {
            let neighbour = Neighbour::new(peer.ipv4()?, 65000 + u32::from(other));
            let both_first = number + other == 3;
            speaker = speaker.neighbour(if both_first {
                neighbour.password("selvage")
            } else {
                neighbour
            });
        }
        routers.push(Router::start(*kind, link.member(), speaker)?);
    }
    for (number, router) in (1u8..).zip(&routers) {
        for (other, peer) in (1u8..).zip(&links).filter(|(other, _)| *other != number) {
            router.wait_established(peer.ipv4()?, SOON)?;
            for prefix in own(other)? {
                let hop = if prefix.addr().is_ipv4() {
                    peer.ipv4()?
                } else {
                    peer.ipv6()?
                };
                // Until the direct path has come, there may be one through the third.
                let what = format!("{} has {prefix} from {other} itself", router.kind());
                eventually_ok(SOON, &what, || {
                    let route = router.route(prefix)?.context("no route")?;
                    ensure!(route.as_path == [65000 + u32::from(other)], "{route:?}");
                    // GoBGP passes its own session address on as an IPv6 next hop when a path goes through it, never
                    // for its own paths.
                    ensure!(route.next_hop == Some(hop), "{route:?}, wanted {hop}");
                    Ok(())
                })?;
            }
        }
    }
    for number in 1..=3u8 {
        let [v4, v6] = own(number)?;
        let extra = prefix(&format!("10.{number}.1.0/24"))?;
        let router = &mut routers[usize::from(number) - 1];
        router.announce(extra)?;
        router.withdraw(v4)?;
        router.withdraw(v6)?;
        for (_, other) in (1u8..).zip(&routers).filter(|(other, _)| *other != number) {
            other.wait_route(extra, SOON)?;
            other.wait_no_route(v4, SOON)?;
            other.wait_no_route(v6, SOON)?;
        }
    }
    Ok(())
}

/// Each daemon in turn reflects between the other two.
fn reflect(lab: &Lab) -> Result<()> {
    let links = hosts(lab)?;
    for (reflector, kind) in Kind::ALL.iter().enumerate() {
        let mut routers = Vec::new();
        for (index, link) in links.iter().enumerate() {
            let number = u8::try_from(index + 1)?;
            let mut speaker = speaker(link, 65000, number)?;
            speaker.networks = own(number)?.to_vec();
            for (other, peer) in links.iter().enumerate() {
                let neighbour = Neighbour::new(peer.ipv4()?, 65000);
                if index == reflector && other != index {
                    speaker.neighbours.push(neighbour.reflector_client());
                } else if other == reflector && index != reflector {
                    speaker.neighbours.push(neighbour);
                }
            }
            routers.push(Router::start(Kind::ALL[index], link.member(), speaker)?);
        }
        let clients: Vec<usize> = (0..3).filter(|index| *index != reflector).collect();
        for (index, origin) in [(clients[0], clients[1]), (clients[1], clients[0])] {
            let [v4, _] = own(u8::try_from(origin + 1)?)?;
            let route = routers[index]
                .wait_route(v4, SOON)
                .with_context(|| format!("reflected by {kind}"))?;
            let hop: IpAddr = links[origin].ipv4()?;
            ensure!(
                route.as_path.is_empty() && route.next_hop == Some(hop),
                "reflected by {kind}: {route:?}"
            );
        }
    }
    Ok(())
}

fn wrong_password(lab: &Lab) -> Result<()> {
    let links = hosts(lab)?;
    let (bird, frr) = (&links[0], &links[1]);
    let good = |link: &Link, asn, key: &str| {
        Ok::<_, anyhow::Error>(Neighbour::new(link.ipv4()?, asn).password(key))
    };
    let one = speaker(bird, 65001, 1)?.neighbour(good(frr, 65002, "one")?);
    let other = speaker(frr, 65002, 2)?
        .neighbour(good(bird, 65001, "another")?)
        .neighbour(Neighbour::new(links[2].ipv4()?, 65003));
    // A session of the same daemon that is right shows that there was time enough for the wrong one.
    let right = speaker(&links[2], 65003, 3)?.neighbour(Neighbour::new(frr.ipv4()?, 65002));
    let one = Router::start(Kind::Bird, bird.member(), one)?;
    let other = Router::start(Kind::Frr, frr.member(), other)?;
    let _right = Router::start(Kind::Gobgp, links[2].member(), right)?;
    other.wait_established(links[2].ipv4()?, SOON)?;
    for router in [&one, &other] {
        let wrong = router
            .sessions()?
            .into_iter()
            .find(|session| !session.established);
        ensure!(wrong.is_some(), "{} accepted the wrong key", router.kind());
    }
    Ok(())
}
