//! Somebody else's hand in the routing table: what is ours comes back, what is not ours stays.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use selvage_lab::network::add_route;
use selvage_lab::{Lab, eventually_ok};
use selvage_netlink::route::{self, Filter, Route, Target};
use selvage_netlink::{Prefix, nexthop};

use crate::harness::Case;
use crate::scene::{
    OWN, SOON, kernel_route, prefix, two_nodes, wait_kernel_route, wait_no_kernel_route,
    wait_reaches,
};

pub fn cases() -> Vec<Case> {
    vec![
        Case::new("faults::a_route_deleted_by_hand_comes_back", OWN, deleted),
        Case::new(
            "faults::a_nexthop_deleted_by_hand_comes_back",
            OWN,
            nexthop_deleted,
        ),
        Case::new("faults::a_route_changed_by_hand_is_put_right", OWN, changed),
        Case::new(
            "faults::a_foreign_route_to_the_same_prefix_stays",
            OWN,
            foreign,
        ),
        Case::new(
            "faults::a_route_deleted_while_the_agent_is_dead_comes_back",
            OWN,
            deleted_without_agent,
        ),
    ]
}

const PODS: [&str; 2] = ["10.244.1.0/24", "fd00:10:244:1::/64"];

fn deleted(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let netns = cluster.netns("n2")?;
    for own in [PODS, ["10.244.2.0/24", "fd00:10:244:2::/64"]] {
        for pods in own {
            let route = wait_kernel_route(netns, prefix(pods)?)?;
            netns
                .rtnetlink()?
                .apply(|batch| route::delete(batch, &route))?;
            let again = wait_kernel_route(netns, prefix(pods)?)?;
            ensure!(again == route, "{route:?} came back as {again:?}");
        }
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

fn group(route: &Route) -> Result<u32> {
    match route.target {
        Target::Nexthop(id) => Ok(id),
        _ => anyhow::bail!("{route:?}"),
    }
}

/// The routes that stand on it go with it, and say nothing.
fn nexthop_deleted(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let netns = cluster.netns("n2")?;
    for pods in PODS {
        for single in [false, true] {
            let route = wait_kernel_route(netns, prefix(pods)?)?;
            let mut socket = netns.rtnetlink()?;
            let mut id = group(&route)?;
            if single {
                let nexthop::Kind::Group(members) = nexthop::get(&mut socket, id)?.kind else {
                    anyhow::bail!("not a group")
                };
                id = members.first().context("an empty group")?.id;
            }
            socket.apply(|batch| nexthop::delete(batch, id))?;
            eventually_ok(SOON, "the route stands on a group again", || {
                let route = kernel_route(netns, prefix(pods)?)?.context("no route")?;
                nexthop::get(&mut socket, group(&route)?)?;
                Ok(())
            })?;
        }
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

fn changed(lab: &Lab) -> Result<()> {
    let cluster = two_nodes(lab)?;
    let netns = cluster.netns("n2")?;
    for pods in PODS {
        let route = wait_kernel_route(netns, prefix(pods)?)?;
        let wrong = Route {
            target: Target::Nothing,
            kind: route::Kind::Blackhole,
            ..route.clone()
        };
        netns
            .rtnetlink()?
            .apply(|batch| route::replace(batch, &wrong))?;
        eventually_ok(SOON, "the right way again", || {
            let now = kernel_route(netns, prefix(pods)?)?.context("no route")?;
            ensure!(now == route, "{now:?}, wanted {route:?}");
            Ok(())
        })?;
    }
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}

/// Of another protocol, better and worse than ours: neither replaced nor removed with ours.
fn foreign(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let netns = cluster.netns("n2")?.clone();
    let hops = cluster.addresses("n1");
    for (pods, hop) in PODS.iter().zip(&hops) {
        add_route(&netns, prefix(pods)?, *hop)?;
    }
    let is_there = |pods: &str, protocol: u8| -> Result<bool> {
        let to = prefix(pods)?;
        let filter = Filter {
            protocol: Some(protocol),
            ..Filter::default()
        };
        let routes = route::list(&mut netns.rtnetlink()?, to.addr().is_ipv6(), &filter)?;
        let wanted = Prefix::new(to.network(), to.prefix_len());
        Ok(routes.iter().any(|route| route.prefix == wanted))
    };
    let agent = &mut cluster.node("n2")?.agent;
    agent.process().kill()?;
    agent.restart()?;
    agent.ask(&["wait", "--for", "peers", "--timeout", "30s"])?;
    for pods in PODS {
        wait_kernel_route(&netns, prefix(pods)?)?;
        ensure!(is_there(pods, 4)?, "the foreign route to {pods} went");
    }
    cluster.objects().remove("node-n1")?;
    for pods in PODS {
        wait_no_kernel_route(&netns, prefix(pods)?)?;
        ensure!(
            is_there(pods, 4)?,
            "the foreign route to {pods} went with ours"
        );
    }
    Ok(())
}

fn deleted_without_agent(lab: &Lab) -> Result<()> {
    let mut cluster = two_nodes(lab)?;
    let netns = cluster.netns("n2")?.clone();
    let routes: Vec<Route> = PODS
        .iter()
        .map(|pods| wait_kernel_route(&netns, prefix(pods)?))
        .collect::<Result<_>>()?;
    let agent = &mut cluster.node("n2")?.agent;
    agent.process().kill()?;
    netns
        .rtnetlink()?
        .apply(|batch| routes.iter().for_each(|route| route::delete(batch, route)))?;
    // One that nobody announces any more, as if it were from an earlier life.
    let stale: IpAddr = "10.244.99.0".parse()?;
    let stale = Route {
        prefix: Prefix::new(stale, 24),
        ..routes.first().context("a route")?.clone()
    };
    netns
        .rtnetlink()?
        .apply(|batch| route::replace(batch, &stale))?;
    agent.restart()?;
    for pods in PODS {
        wait_kernel_route(&netns, prefix(pods)?)?;
    }
    wait_no_kernel_route(&netns, prefix("10.244.99.0/24")?)?;
    wait_reaches(&cluster, "default/client", "shop/web", Some(80))
}
