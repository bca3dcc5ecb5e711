//! What people see, from fixed views.

use std::path::Path;
use std::time::Duration;

use selvage::api::{
    BgpView, DirectionView, EndView, FaultCountView, FaultView, Finding, Health, PathView,
    PeerView, PolicyView, ReadyView, RouteTotals, RouteView, SourceView, StaleFamilyView,
    StatusView, UnknownSourceView, WaitView, WhyView,
};
use selvage::cli::screen::Screen;
use selvage::cli::{peer_text, routes_text, sort_routes, status_text, wait_text, why_text};

use crate::objects::blessed;

fn peers() -> Vec<PeerView> {
    let up = PeerView {
        address: "10.0.0.2".parse().unwrap(),
        origin: "mesh".into(),
        description: "node n2".into(),
        asn: "64512".into(),
        state: "Established".into(),
        up: true,
        since: 3_725,
        families: vec!["ipv4".into(), "ipv6".into()],
        unused_families: Vec::new(),
        received: [120, 4],
        advertised: [1, 1],
        end_of_rib: true,
        stale: false,
        stale_families: Vec::new(),
        last_error: None,
        hint: None,
        faults: vec![FaultCountView {
            kind: "treatAsWithdraw".into(),
            messages: 3,
            prefixes: 40,
        }],
        last_fault: Some(FaultView {
            kind: "treatAsWithdraw".into(),
            since: 61,
            attribute: Some("NEXT_HOP".into()),
            code: Some("3/8".into()),
            prefixes: 2,
            text: "routes treated as withdrawn: the next hop is no host's address (NEXT_HOP, code 3/8, 2 prefixes)".into(),
        }),
        established: 1,
        router_id: Some("10.0.0.2".into()),
        hold: 9,
        next_session: vec![
            "hold time 30s".into(),
            "graceful restart 120s".into(),
            "no long-lived graceful restart".into(),
        ],
    };
    let down = PeerView {
        address: "192.0.2.1".parse().unwrap(),
        origin: "BGPPeer tor".into(),
        description: String::new(),
        asn: "65001".into(),
        state: "Active".into(),
        up: false,
        since: 42,
        received: [0, 0],
        advertised: [0, 0],
        end_of_rib: false,
        stale: true,
        stale_families: vec![StaleFamilyView {
            family: "ipv6".into(),
            remaining: 599,
            long_lived: true,
        }],
        last_error: Some("connection refused".into()),
        hint: Some("nothing listens there".into()),
        faults: Vec::new(),
        last_fault: None,
        established: 0,
        router_id: None,
        ..up.clone()
    };
    vec![up, down]
}

fn status() -> StatusView {
    StatusView {
        version: "0.1.0".into(),
        node: "n1".into(),
        pid: 4711,
        uptime: 90_061,
        features: vec!["bgp".into(), "kernel".into(), "policy".into()],
        health: Health::Degraded,
        ready: ReadyView {
            ready: true,
            missing: vec!["no End-of-RIB from 192.0.2.1".into()],
        },
        source: SourceView {
            problem_count: 0,
            from: "/etc/selvage/objects".into(),
            synced: true,
            objects: [("Node".to_owned(), 3), ("Pod".to_owned(), 0)].into(),
            problems: Vec::new(),
        },
        bgp: Some(BgpView {
            asn: 64512,
            router_id: "10.0.0.1".into(),
            networks: vec!["10.244.1.0/24".into()],
            peers: peers(),
            unknown_connections: 12,
            unknown_sources: vec![UnknownSourceView {
                address: "192.0.2.77".parse().unwrap(),
                connections: 12,
                since: 3,
            }],
        }),
        routes: Some(RouteTotals {
            ipv4: 120,
            ipv6: 4,
            unresolved: 1,
            failed: 0,
        }),
        policy: Some(PolicyView {
            enforced: 7,
            planned: 7,
            local_pods: 2,
            policies: 3,
            ..PolicyView::default()
        }),
        wrong: vec![Finding {
            what: "neighbour 192.0.2.1 (BGPPeer tor) is Active: connection refused".into(),
            todo: Some("is it reachable, does it expect us?".into()),
        }],
    }
}

fn routes() -> Vec<RouteView> {
    let path = |peer: &str, best, multipath, reason: &str| PathView {
        peer: peer.parse().ok(),
        next_hops: vec![peer.to_owned()],
        as_path: "65001 64513".into(),
        local_pref: Some(100),
        best,
        multipath,
        reason: reason.into(),
        ..PathView::default()
    };
    let mut rows = vec![
        RouteView {
            prefix: "fd00:2::/64".into(),
            paths: vec![path("fd00::2", true, false, "only path")],
            kernel: None,
        },
        RouteView {
            prefix: "10.244.2.0/24".into(),
            paths: vec![
                path("10.0.0.2", true, false, "router id"),
                path("10.0.0.3", false, true, "router id"),
            ],
            kernel: Some("installed".into()),
        },
        RouteView {
            prefix: "10.9.0.0/16".into(),
            paths: vec![path("10.0.0.9", true, false, "only path")],
            kernel: Some("unresolved".into()),
        },
    ];
    sort_routes(&mut rows);
    rows
}

fn why() -> WhyView {
    let end = |address: &str, identity: Option<&str>| EndView {
        address: address.into(),
        identity: identity.map(Into::into),
    };
    WhyView {
        allowed: false,
        source: end("10.244.1.2", Some("pod shop/web")),
        destination: end("203.0.113.9", None),
        service: "tcp/443".into(),
        egress: DirectionView {
            allowed: false,
            reason: "denied: isolated by NetworkPolicy shop/deny, and no rule allows it".into(),
            policies: vec!["shop/deny".into()],
            rule: None,
        },
        ingress: DirectionView {
            allowed: true,
            reason: "allowed: no pod that policy applies to".into(),
            policies: Vec::new(),
            rule: None,
        },
        obstacles: vec![Finding {
            what: "this node does not forward IPv4: net.ipv4.ip_forward is 0, its pods are cut off"
                .into(),
            todo: Some("sysctl -w net.ipv4.ip_forward=1".into()),
        }],
    }
}

#[test]
fn screens() {
    let plain = &Screen::PLAIN;
    let waited = WaitView {
        done: false,
        missing: vec!["neighbour 192.0.2.1 is Active".into()],
    };
    let detail: String = peers().iter().map(|peer| peer_text(plain, peer)).collect();
    for (name, text) in [
        ("status", status_text(plain, &status())),
        ("peers", detail),
        ("routes", routes_text(plain, &routes())),
        ("why", why_text(plain, &why())),
        ("wait", wait_text(plain, &waited, Duration::from_secs(30))),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/it/screens")
            .join(name)
            .with_extension("txt");
        assert!(!text.contains('\x1b'), "{name}");
        assert!(
            text.lines().all(|line| line == line.trim_end()),
            "{name}: blanks at the end of a line"
        );
        blessed(&path, &text);
    }
}
