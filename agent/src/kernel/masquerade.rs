//! Masquerading: what pods send to the world outside takes the node's address, what they send to other pods does not.
//!
//! A table of its own, `inet selvage-nat`, with one rule per family: its sets hold the pods that asked for it and the
//! prefixes of all nodes' pods, so that policy by source works on every node. What is here is the plan of that table;
//! the thread `nft` writes and heals it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use selvage_cni::masquerade::rule;
use selvage_netlink::nft::{Base, ChainType, DataType, Hook, list::ElementInfo};

use super::nft::plan::{ChainPlan, SetKind, SetPlan, WholeTable};

/// Its table, of family inet.
pub const TABLE: &str = "selvage-nat";

const CHAIN: &str = "postrouting";
/// Of no other program: one before `srcnat` (100), and before the plugin's own (101), which has no effect then.
const PRIORITY: i32 = 99;
const BASE: Base = Base {
    hook: Hook::Postrouting,
    priority: PRIORITY,
    kind: ChainType::Nat,
    drop: false,
};

/// What should be masqueraded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Masquerade {
    pods: BTreeSet<IpAddr>,
    /// The ranges that are not masqueraded to, as elements: IPv4 and IPv6.
    inside: [Arc<BTreeSet<ElementInfo>>; 2],
}

impl Masquerade {
    /// Masquerades what comes from these addresses. Says whether that is new.
    pub fn set_pods(&mut self, pods: BTreeSet<IpAddr>) -> bool {
        let differs = self.pods != pods;
        self.pods = pods;
        differs
    }

    /// But not what goes to these prefixes, of which none overlaps another. Says whether that is new.
    pub fn set_inside(&mut self, prefixes: &[IpNet]) -> bool {
        let ranges = |v6| {
            let family = prefixes.iter().filter(|net| net.addr().is_ipv6() == v6);
            family.map(range).collect::<BTreeSet<ElementInfo>>()
        };
        let inside = [ranges(false), ranges(true)];
        let mut differs = false;
        for (known, now) in self.inside.iter_mut().zip(inside) {
            if **known != now {
                *known = Arc::new(now);
                differs = true;
            }
        }
        differs
    }

    /// Whether what comes from an address is to be masqueraded.
    pub fn has(&self, pod: &IpAddr) -> bool {
        self.pods.contains(pod)
    }

    /// The table.
    pub fn plan(&self) -> WholeTable {
        let mut sets = BTreeMap::new();
        let mut rules = Vec::new();
        let names = [("pods4", "inside4"), ("pods6", "inside6")];
        for ((v6, inside), (pods_name, inside_name)) in
            [false, true].into_iter().zip(&self.inside).zip(names)
        {
            let kind = |interval| SetKind {
                key: vec![if v6 {
                    DataType::IPV6_ADDR
                } else {
                    DataType::IPV4_ADDR
                }],
                interval,
                data: None,
            };
            let pods = self.pods.iter().filter(|pod| pod.is_ipv6() == v6);
            let pods = pods.map(|pod| ElementInfo {
                key: octets(*pod),
                last: None,
                data: None,
            });
            let pods = SetPlan {
                kind: kind(false),
                elements: Arc::new(pods.collect()),
            };
            sets.insert(pods_name.to_owned(), pods);
            let inside = SetPlan {
                kind: kind(true),
                elements: Arc::clone(inside),
            };
            sets.insert(inside_name.to_owned(), inside);
            rules.push(rule(v6, pods_name, inside_name));
        }
        let chain = ChainPlan {
            base: Some(BASE),
            rules,
        };
        WholeTable {
            name: TABLE.to_owned(),
            chains: [(CHAIN.to_owned(), chain)].into(),
            sets,
        }
    }
}

fn range(net: &IpNet) -> ElementInfo {
    ElementInfo {
        key: octets(net.network()),
        last: Some(octets(net.broadcast())),
        data: None,
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}
