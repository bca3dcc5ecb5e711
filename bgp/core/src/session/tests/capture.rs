//! Single peers against bytes: what is said in which state, and what is answered.

use std::net::SocketAddr;

use bytes::Bytes;

use super::*;
use crate::{
    clock::Now,
    event::PeerEvent,
    ids::{Epochs, Family, FamilySet},
    session::{ConnId, Input, Output, Peer, State},
    wire::{
        capability::Capability, header, notification::Notification, open::Open,
        refresh::RouteRefresh,
    },
};

/// A peer, the time, and what it wanted done since it was last asked.
struct Bench {
    peer: Peer,
    now: Now,
    out: Vec<Output>,
}

const LOCAL: ([u8; 4], u16) = ([10, 0, 0, 1], 179);
const REMOTE: ([u8; 4], u16) = ([10, 0, 0, 2], 40000);

impl Bench {
    /// A started passive peer of AS 64513, in AS 64512 with identifier 1.
    fn new(change: impl Fn(&mut SpeakerConfig, &mut PeerConfig)) -> Bench {
        let (mut s, mut p) = (speaker(64512, 1), neighbor(2, 64513));
        p.passive = true;
        change(&mut s, &mut p);
        let mut bench = Bench {
            peer: Peer::new(arc(s), arc(p), 1, false, Epochs::default()),
            now: Now(1),
            out: Vec::new(),
        };
        bench.tell(Input::Start);
        bench
    }

    fn tell(&mut self, input: Input<'_>) -> Vec<Output> {
        self.peer.handle(self.now, input, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn accept(&mut self) -> ConnId {
        let out = self.tell(Input::Accepted {
            local: SocketAddr::from(LOCAL),
            remote: SocketAddr::from(REMOTE),
            interface: None,
        });
        let conn = out.iter().find_map(|o| match o {
            Output::Accept(c) => Some(*c),
            _ => None,
        });
        conn.expect("accepted")
    }

    /// Sends bytes; the messages of the answer without their headers: (type, body).
    fn say(&mut self, conn: ConnId, bytes: &[u8]) -> Vec<(u8, Bytes)> {
        messages(&self.tell(Input::Bytes { conn, bytes }))
    }

    fn pass(&mut self, d: std::time::Duration) -> Vec<Output> {
        self.now = self.now + d;
        self.tell(Input::Timer)
    }

    /// Up to Established with this OPEN.
    fn establish(&mut self, open: &Open) -> ConnId {
        let conn = self.accept();
        let bytes = [open.encode(), header::keepalive()].concat();
        let answer = self.say(conn, &bytes);
        assert_eq!(answer, [(4, Bytes::new())]);
        assert_eq!(self.peer.state(), State::Established);
        conn
    }
}

fn messages(out: &[Output]) -> Vec<(u8, Bytes)> {
    out.iter()
        .filter_map(|o| match o {
            Output::Send(_, b) => Some((b[18], b.slice(19..))),
            _ => None,
        })
        .collect()
}

fn notification(code: u8, subcode: u8, data: &[u8]) -> Vec<(u8, Bytes)> {
    vec![(
        3,
        Notification::new(code, subcode, data).encode().slice(19..),
    )]
}

/// The OPEN of AS 64513, identifier 2, hold time 30 s, with IPv4 only.
fn open() -> Open {
    Open {
        my_as: 64513,
        hold_time: 30,
        router_id: RouterId(2),
        capabilities: vec![
            Capability::family(Family::Ipv4),
            Capability::RouteRefresh,
            Capability::FourOctetAs(Asn(64513)),
        ],
    }
}

#[test]
fn our_open_as_captured() {
    let mut bench = Bench::new(|_, p| p.passive = false);
    let out = bench.tell(Input::Timer);
    assert!(out.is_empty());
    let conn = bench.peer.conns[0].id;
    let out = bench.tell(Input::Connected {
        conn,
        local: SocketAddr::from(LOCAL),
        remote: SocketAddr::from(REMOTE),
        interface: None,
    });
    let (kind, body) = messages(&out).remove(0);
    assert_eq!(kind, 1);
    assert_eq!(
        &body[..],
        [
            &[4, 0xfc, 0x00, 0, 9, 0, 0, 0, 1, 36, 2, 34][..],
            &[1, 4, 0, 1, 0, 1],
            &[1, 4, 0, 2, 0, 1],
            &[2, 0],
            &[6, 0],
            &[64, 10, 0x40, 120, 0, 1, 1, 0, 0, 2, 1, 0],
            &[65, 4, 0, 0, 0xfc, 0],
        ]
        .concat()
    );
}

#[test]
fn opens_that_do_not_fit() {
    let with = |f: fn(&mut Open)| {
        let mut o = open();
        f(&mut o);
        o
    };
    let ipv6_only = with(|o| o.capabilities[0] = Capability::family(Family::Ipv6));
    let cases = [
        (
            "wrong AS",
            with(|o| o.capabilities[2] = Capability::FourOctetAs(Asn(5))),
            notification(2, 2, &[]),
        ),
        (
            "no common family",
            ipv6_only,
            notification(2, 7, &[1, 4, 0, 1, 0, 1]),
        ),
        ("fits", open(), vec![(4, Bytes::new())]),
        (
            "no capabilities: IPv4",
            with(|o| o.capabilities.clear()),
            vec![(4, Bytes::new())],
        ),
        (
            "our identifier in another AS",
            with(|o| o.router_id = RouterId(1)),
            vec![(4, Bytes::new())],
        ),
    ];
    for (name, open, answer) in cases {
        let mut bench = Bench::new(|_, p| p.families = FamilySet::from_iter([Family::Ipv4]));
        let conn = bench.accept();
        assert_eq!(bench.say(conn, &open.encode()), answer, "{name}");
    }
    let mut bench = Bench::new(|_, p| p.asn = PeerAsn::Internal);
    let conn = bench.accept();
    let mut ours = open();
    ours.capabilities[2] = Capability::FourOctetAs(Asn(64512));
    ours.router_id = RouterId(1);
    assert_eq!(bench.say(conn, &ours.encode()), notification(2, 3, &[]));
    let mut bench = Bench::new(|_, p| p.asn = PeerAsn::External);
    let conn = bench.accept();
    ours.router_id = RouterId(2);
    assert_eq!(bench.say(conn, &ours.encode()), notification(2, 2, &[]));
}

#[test]
fn messages_in_the_wrong_state() {
    let update = [&[0xff; 16][..], &[0, 23, 2, 0, 0, 0, 0]].concat();
    let refresh = RouteRefresh {
        afi: 1,
        subtype: 0,
        safi: 1,
    }
    .encode();
    let keepalive = header::keepalive();
    let open = open().encode();
    let cases: [(&str, Vec<&[u8]>, Vec<(u8, Bytes)>); 9] = [
        (
            "KEEPALIVE in OpenSent",
            vec![&keepalive],
            notification(5, 1, &[4]),
        ),
        (
            "UPDATE in OpenSent",
            vec![&update],
            notification(5, 1, &[2]),
        ),
        (
            "ROUTE-REFRESH in OpenSent",
            vec![&refresh],
            notification(5, 1, &[5]),
        ),
        (
            "OPEN in OpenConfirm",
            vec![&open, &open],
            notification(5, 2, &[1]),
        ),
        (
            "UPDATE in OpenConfirm",
            vec![&open, &update],
            notification(5, 2, &[2]),
        ),
        (
            "ROUTE-REFRESH in OpenConfirm",
            vec![&open, &refresh],
            notification(5, 2, &[5]),
        ),
        (
            "OPEN in Established",
            vec![&open, &keepalive, &open],
            notification(5, 3, &[1]),
        ),
        (
            "type 9",
            vec![&[
                0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                0xff, 0xff, 0, 19, 9,
            ]],
            notification(1, 3, &[9]),
        ),
        (
            "text",
            vec![b"SSH-2.0-OpenSSH_9.2\r\n"],
            notification(1, 1, &[]),
        ),
    ];
    for (name, said, answer) in cases {
        let mut bench = Bench::new(|_, _| {});
        let conn = bench.accept();
        let mut last = Vec::new();
        for bytes in said {
            last = bench.say(conn, bytes);
        }
        assert_eq!(last, answer, "{name}");
        assert_eq!(bench.peer.state(), State::Idle, "{name}");
        assert!(bench.peer.conns.is_empty());
    }
}

#[test]
fn half_a_message_and_then_silence() {
    let mut bench = Bench::new(|_, _| {});
    let conn = bench.accept();
    assert!(bench.say(conn, &open().encode()[..25]).is_empty());
    assert!(messages(&bench.pass(secs(29))).is_empty());
    let out = bench.pass(secs(10));
    assert_eq!(messages(&out), notification(4, 0, &[]));
    assert!(
        out.iter()
            .any(|o| matches!(o, Output::Close(c) if *c == conn))
    );
}

#[test]
fn keepalives_keep_a_session_and_their_absence_ends_it() {
    let mut bench = Bench::new(|_, _| {});
    let conn = bench.establish(&open());
    let negotiated = bench.peer.negotiated().unwrap();
    assert_eq!((negotiated.hold, negotiated.keepalive), (secs(9), secs(3)));
    let mut sent = 0;
    for _ in 0..100 {
        sent += messages(&bench.pass(secs(1))).len();
        bench.say(conn, &header::keepalive());
    }
    assert!((33..=50).contains(&sent), "{sent}");
    assert_eq!(bench.peer.state(), State::Established);
    // Bytes that wait to be read are as good as bytes that were.
    bench.now = bench.now + secs(9);
    bench.peer.note_unread(bench.now);
    assert_eq!(bench.peer.state(), State::Established);
    bench.tell(Input::Timer);
    assert_eq!(bench.peer.state(), State::Established);
    let out = bench.pass(secs(4));
    assert!(messages(&out).contains(&notification(4, 0, &[])[0]));
}

#[test]
fn a_hold_time_of_zero_means_no_timers() {
    let mut bench = Bench::new(|_, _| {});
    let mut o = open();
    o.hold_time = 0;
    bench.establish(&o);
    assert_eq!(bench.peer.deadline(), None);
    assert!(bench.pass(secs(100_000)).is_empty());
    assert_eq!(bench.peer.state(), State::Established);
}

#[test]
fn a_two_octet_neighbour() {
    let mut bench = Bench::new(|s, _| s.asn = Asn(100_000));
    let conn = bench.accept();
    let mut old = open();
    old.capabilities.pop();
    bench.say(conn, &[old.encode(), header::keepalive()].concat());
    let n = bench.peer.negotiated().unwrap();
    assert!(!n.four_octet_as && n.peer_asn == Asn(64513) && n.local_asn == Asn(100_000));
}

#[test]
fn a_neighbour_that_knows_no_capabilities_gets_none() {
    let mut bench = Bench::new(|_, _| {});
    let conn = bench.accept();
    bench.say(conn, &Notification::new(2, 4, &[]).encode());
    let out = bench.tell(Input::Accepted {
        local: SocketAddr::from(LOCAL),
        remote: SocketAddr::from(REMOTE),
        interface: None,
    });
    let (kind, body) = messages(&out).remove(0);
    assert_eq!(
        (kind, &body[..]),
        (1, &[4, 0xfc, 0, 0, 9, 0, 0, 0, 1, 0][..])
    );
}

#[test]
fn refresh_of_what_was_not_negotiated_means_nothing() {
    let mut bench = Bench::new(|_, _| {});
    let conn = bench.establish(&open());
    for (afi, subtype, safi, expected) in [
        (1, 0, 1, true),
        (2, 0, 1, false),
        (1, 1, 1, false),
        (1, 2, 1, false),
        (1, 0, 128, false),
        (25, 7, 65, false),
    ] {
        let bytes = RouteRefresh { afi, subtype, safi }.encode();
        let out = bench.tell(Input::Bytes {
            conn,
            bytes: &bytes,
        });
        let got = out
            .iter()
            .any(|o| matches!(o, Output::Event(_, PeerEvent::Refresh(Family::Ipv4))));
        assert_eq!(got, expected, "{afi} {subtype} {safi}");
        assert_eq!(bench.peer.state(), State::Established);
    }
}

#[test]
fn who_is_not_running_refuses() {
    let mut bench = Bench::new(|_, _| {});
    bench.tell(Input::Stop(crate::session::Stop::Shutdown(String::new())));
    let out = bench.tell(Input::Accepted {
        local: SocketAddr::from(LOCAL),
        remote: SocketAddr::from(REMOTE),
        interface: None,
    });
    assert!(matches!(out[..], [Output::Refuse]));
}

#[test]
fn a_dynamic_neighbour_can_be_forgotten_when_nothing_is_left() {
    let mut bench = Bench::new(|_, _| {});
    assert!(!bench.peer.is_forgettable());
    let mut o = open();
    o.capabilities.push(Capability::GracefulRestart(
        crate::wire::capability::Restart {
            time: 60,
            families: vec![crate::wire::capability::RestartFamily {
                afi: 1,
                safi: 1,
                forwarding: true,
            }],
            ..Default::default()
        },
    ));
    let conn = bench.establish(&o);
    assert!(!bench.peer.is_forgettable());
    bench.tell(Input::Closed { conn, error: None });
    assert!(!bench.peer.is_forgettable());
    let out = bench.pass(secs(60));
    assert!(matches!(
        &out[..],
        [Output::Event(_, PeerEvent::DropStale(_))]
    ));
    assert!(bench.peer.is_forgettable());
}

/// DampPeerOscillations (RFC 4271 section 8.1.1) holds for neighbours of a range, too: who is forgotten has no row of
/// faults.
#[test]
fn a_dynamic_neighbour_is_remembered_for_its_faults() {
    let mut bench = Bench::new(|_, _| {});
    let limits = crate::config::Limits::default();
    let mut hold = limits.idle_hold;
    for _ in 0..4 {
        let conn = bench.accept();
        let answer = bench.say(conn, &[0; header::HEADER]);
        assert_eq!(answer, notification(1, 1, &[]));
        let pause = bench.peer.snapshot(bench.now).retry_remaining.unwrap();
        assert!(
            hold * 3 / 4 <= pause && pause <= hold,
            "{pause:?} of {hold:?}"
        );
        bench.pass(pause);
        assert_eq!(bench.peer.state(), State::Active);
        assert!(!bench.peer.is_forgettable());
        hold *= 2;
    }
    // Its time comes by itself.
    let at = bench.peer.deadline().unwrap();
    assert_eq!(at.since(bench.now), limits.steady);
    bench.pass(limits.steady);
    assert!(bench.peer.is_forgettable());
}

#[test]
fn without_n_a_notification_ends_everything() {
    let mut o = open();
    let restart = |notification| {
        Capability::GracefulRestart(crate::wire::capability::Restart {
            notification,
            time: 60,
            families: vec![crate::wire::capability::RestartFamily {
                afi: 1,
                safi: 1,
                forwarding: true,
            }],
            ..Default::default()
        })
    };
    o.capabilities.push(restart(false));
    let ipv4 = FamilySet::from_iter([Family::Ipv4]);
    for (n, bytes, kept) in [
        (
            false,
            Notification::new(6, 4, &[]).encode(),
            FamilySet::NONE,
        ),
        (true, Notification::new(6, 4, &[]).encode(), ipv4),
        (
            true,
            Notification::new(6, 4, &[]).into_hard_reset().encode(),
            FamilySet::NONE,
        ),
        (true, Bytes::from_static(&[0; 19]), ipv4),
        (false, Bytes::from_static(&[0; 19]), FamilySet::NONE),
    ] {
        *o.capabilities.last_mut().unwrap() = restart(n);
        let mut bench = Bench::new(|_, _| {});
        let conn = bench.establish(&o);
        let out = bench.tell(Input::Bytes {
            conn,
            bytes: &bytes,
        });
        let got = out.iter().find_map(|o| match o {
            Output::Event(_, PeerEvent::Down { keep_stale, .. }) => Some(*keep_stale),
            _ => None,
        });
        assert_eq!(got, Some(kept));
    }
}

/// Something at the neighbour's address takes our connection and says nothing, while the neighbour connects to us and does
/// all that is right, with an identifier for which ours would stay.
#[test]
fn a_connection_without_an_open_does_not_keep_the_neighbour_out() {
    let mut bench = Bench::new(|s, p| {
        s.router_id = RouterId(9);
        p.passive = false;
    });
    // The first attempt is made at the start.
    bench.tell(Input::Connected {
        conn: ConnId(0),
        local: SocketAddr::from(LOCAL),
        remote: SocketAddr::from(([10, 0, 0, 2], 179)),
        interface: None,
    });
    for _ in 0..10 {
        bench.pass(secs(1));
        let conn = bench.accept();
        bench.say(conn, &[open().encode(), header::keepalive()].concat());
        if bench.peer.state() == State::Established {
            return;
        }
    }
    panic!("no session in ten seconds");
}

#[test]
fn who_reads_nothing_is_given_up_though_it_speaks() {
    for (progress, lasts) in [(false, false), (true, true)] {
        let mut bench = Bench::new(|_, _| {});
        let conn = bench.establish(&open());
        let mut told = Vec::new();
        for _ in 0..500 {
            bench.peer.note_sending(bench.now, conn, true);
            told.extend(bench.pass(secs(1)));
            bench.say(conn, &header::keepalive());
            if progress && bench.now > Now(0) + secs(400) {
                bench.peer.note_sending(bench.now, conn, false);
            }
        }
        assert_eq!(bench.peer.established_conn().is_some(), lasts);
        let last = messages(&told).pop();
        assert_eq!(last.filter(|m| m.0 == 3).is_none(), lasts);
    }
}

/// A send hold time of our own counts; twice the hold time (9 s) is the least.
#[test]
fn the_send_hold_time_is_a_setting() {
    for (setting, gone_after) in [(1, 18), (30, 30)] {
        let mut bench = Bench::new(|_, peer| peer.timers.send_hold = secs(setting));
        let conn = bench.establish(&open());
        let began = bench.now;
        while bench.peer.established_conn().is_some() {
            assert!(bench.now <= began + secs(60), "{setting} s");
            bench.peer.note_sending(bench.now, conn, true);
            bench.pass(secs(1));
            bench.say(conn, &header::keepalive());
        }
        assert_eq!(bench.now.since(began), secs(gone_after), "{setting} s");
    }
}

#[test]
fn each_error_of_a_socket_has_its_cause() {
    use std::io::ErrorKind;

    use crate::session::Cause;
    let plain = |_: &mut PeerConfig| ();
    type Change = fn(&mut PeerConfig);
    let cases: [(ErrorKind, Change, Cause); 10] = [
        (
            ErrorKind::ConnectionRefused,
            plain,
            Cause::ConnectionRefused,
        ),
        (ErrorKind::HostUnreachable, plain, Cause::NotOnLink),
        (
            ErrorKind::HostUnreachable,
            |p| p.multihop = Some(3),
            Cause::HostUnreachable,
        ),
        (
            ErrorKind::HostUnreachable,
            |p| p.asn = crate::config::PeerAsn::Internal,
            Cause::HostUnreachable,
        ),
        (
            ErrorKind::NetworkUnreachable,
            plain,
            Cause::NetworkUnreachable,
        ),
        (ErrorKind::TimedOut, plain, Cause::NoAnswer),
        (
            ErrorKind::TimedOut,
            |p| p.password = crate::config::Password::new(b"x"),
            Cause::NoAnswerWithPassword,
        ),
        (
            ErrorKind::TimedOut,
            |p| p.ttl_security = Some(1),
            Cause::NoAnswerWithTtlSecurity,
        ),
        (
            ErrorKind::AddrNotAvailable,
            |p| p.local_address = Some([10, 9, 9, 9].into()),
            Cause::LocalAddress,
        ),
        (ErrorKind::PermissionDenied, plain, Cause::NotPermitted),
    ];
    for (kind, change, cause) in cases {
        let mut bench = Bench::new(|_, p| {
            p.passive = false;
            change(p);
        });
        let conn = bench.peer.conns[0].id;
        bench.tell(Input::ConnectFailed {
            conn,
            error: std::io::Error::from(kind).into(),
            unanswered: false,
        });
        let (_, error) = bench.peer.snapshot(bench.now).last_error.unwrap();
        assert_eq!(error.cause, cause, "{kind:?}");
        if cause == Cause::LocalAddress {
            assert!(error.text.contains("10.9.9.9 (localAddress)"), "{error}");
        }
    }
    // Taken and closed at once: not now, as a BIRD that waits after a fault.
    let mut bench = Bench::new(|_, p| p.passive = false);
    let conn = bench.peer.conns[0].id;
    bench.tell(Input::Connected {
        conn,
        local: SocketAddr::from(LOCAL),
        remote: SocketAddr::from(REMOTE),
        interface: None,
    });
    bench.tell(Input::Closed { conn, error: None });
    let (_, error) = bench.peer.snapshot(bench.now).last_error.unwrap();
    assert_eq!(error.cause, Cause::ClosedBeforeOpen);
    assert!(error.text.contains("refuses for now"), "{error}");
}

#[test]
fn a_notification_says_what_was_said_and_what_was_expected() {
    use crate::config::PeerAsn;
    let other_as = |o: &mut Open| o.capabilities[2] = Capability::FourOctetAs(Asn(5));
    type Offer = fn(&mut Open);
    let cases: [(PeerAsn, Offer, &str); 6] = [
        (
            PeerAsn::Exactly(Asn(64513)),
            other_as,
            "2/2 bad peer AS: the neighbour says AS 5, AS 64513 is configured",
        ),
        (
            PeerAsn::Internal,
            other_as,
            "2/2 bad peer AS: the neighbour says AS 5, `internal` asks for ours, AS 64512",
        ),
        (
            PeerAsn::External,
            |o| o.capabilities[2] = Capability::FourOctetAs(Asn(64512)),
            "2/2 bad peer AS: the neighbour says AS 64512, `external` asks for another than ours",
        ),
        (
            PeerAsn::External,
            |o| o.hold_time = 1,
            "2/6 unacceptable hold time: the neighbour proposes 1 s, 0 or at least 3 s are allowed",
        ),
        (
            PeerAsn::External,
            |o| o.capabilities[0] = Capability::MultiProtocol { afi: 25, safi: 65 },
            "2/7 unsupported capability: the neighbour offers no family that we know, we offer ipv4",
        ),
        (
            PeerAsn::External,
            |o| o.router_id = RouterId(0),
            "2/3 bad BGP identifier: the neighbour's identifier is 0.0.0.0",
        ),
    ];
    for (asn, change, text) in cases {
        let mut bench = Bench::new(|s, p| {
            p.asn = asn;
            s.assume_reachable = false;
        });
        let mut open = open();
        change(&mut open);
        let conn = bench.accept();
        bench.say(conn, &open.encode());
        let snapshot = bench.peer.snapshot(bench.now);
        let (_, error) = snapshot.last_error.unwrap();
        assert_eq!(error.text, format!("sent notification: {text}"));
        let (_, fault) = snapshot.faults.last.unwrap();
        assert_eq!(fault.kind, crate::session::FaultKind::OpenRefused);
    }
    // And the other way round.
    let mut bench = Bench::new(|_, _| ());
    let conn = bench.accept();
    bench.say(conn, &Notification::new(2, 2, &[]).encode());
    let (_, error) = bench.peer.snapshot(bench.now).last_error.unwrap();
    assert_eq!(
        error.text,
        "received notification: 2/2 bad peer AS: our OPEN says AS 64512"
    );
}

/// A peer that drops routes for any NOTIFICATION (no N bit), as BIRD 2 does, is left without one when it is silent, so that
/// it keeps ours as we keep its: as a last resort, at once.
#[test]
fn a_silent_peer_that_keeps_routes_long_is_not_told() {
    use crate::{
        event::DownReason,
        wire::capability::{LongLivedFamily, Restart, RestartFamily},
    };
    // `theirs`: the capability, and with a family; a BIRD without settings of its own sends it without.
    for (ours, theirs) in [
        (true, Some(true)),
        (true, Some(false)),
        (true, None),
        (false, Some(true)),
    ] {
        let mut bench = Bench::new(|s, _| {
            s.graceful_restart.long_lived = ours.then_some(secs(600));
        });
        let mut open = open();
        open.capabilities.push(Capability::GracefulRestart(Restart {
            time: 120,
            families: vec![RestartFamily {
                afi: 1,
                safi: 1,
                forwarding: true,
            }],
            ..Restart::default()
        }));
        if let Some(family) = theirs {
            let family = family.then_some(LongLivedFamily {
                afi: 1,
                safi: 1,
                forwarding: true,
                time: 3600,
            });
            let families = family.into_iter().collect();
            open.capabilities
                .push(Capability::LongLivedRestart(families));
        }
        bench.establish(&open);
        let out = bench.pass(secs(31));
        let told = !messages(&out).is_empty();
        let events: Vec<&PeerEvent> = out
            .iter()
            .filter_map(|o| match o {
                Output::Event(_, event) => Some(event),
                _ => None,
            })
            .collect();
        let ipv4 = FamilySet::from_iter([Family::Ipv4]);
        assert_eq!(told, !(ours && theirs.is_some()));
        if ours && theirs == Some(true) {
            assert!(
                matches!(events[..], [
                    PeerEvent::Down { reason: DownReason::HoldTimeExpired, keep_stale },
                    PeerEvent::LongLived(families),
                ] if *keep_stale == ipv4 && *families == ipv4),
                "{events:?}"
            );
            let stale = bench.peer.snapshot(bench.now).stale;
            assert!(stale[0].long_lived && stale[0].remaining == secs(600));
            let out = bench.pass(secs(601));
            assert!(
                out.iter()
                    .any(|o| matches!(o, Output::Event(_, PeerEvent::DropStale(f)) if *f == ipv4))
            );
        } else {
            assert!(
                matches!(events[..], [PeerEvent::Down { keep_stale, .. }] if keep_stale.is_empty()),
                "{events:?}"
            );
        }
    }
}
