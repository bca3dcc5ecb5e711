//! What is logged of neighbours that misbehave, however many they are.

use std::{
    fmt,
    net::Ipv4Addr,
    sync::{Mutex, Once},
    time::Instant,
};

use selvage_bgp::{
    PeerChange, RouteEvent,
    core::{
        config::SpeakerConfig,
        rib::RibInput,
        session::{FaultKind, Stop},
        wire::header,
    },
};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{
    neighbour::{LIMIT, Neighbour, open},
    space::{in_space, reflector, start, start_told},
};

/// A line about a fault that a session has survived.
#[derive(Clone, Default, Debug)]
struct Line {
    peer: String,
    text: String,
    /// It says how many lines were left out before it, as every line about a fault does.
    is_of_fault: bool,
}

/// The lines about faults of all speakers of this test program.
static LINES: Mutex<Vec<Line>> = Mutex::new(Vec::new());

/// Keeps the lines about faults from now on. The speakers' threads are to be heard, so one subscriber listens to the whole
/// test program.
fn listen() {
    static LISTENS: Once = Once::new();
    LISTENS.call_once(|| {
        tracing::subscriber::set_global_default(Lines).expect("no other subscriber");
    });
}

/// What was logged of the neighbours in `network`, as the beginning of their addresses.
fn lines_about(network: &str) -> Vec<String> {
    let lines = LINES.lock().unwrap();
    let of_these = lines.iter().filter(|line| line.peer.starts_with(network));
    of_these.map(|line| line.text.clone()).collect()
}

struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        if line.is_of_fault {
            LINES.lock().unwrap().push(line);
        }
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Visit for Line {
    fn record_u64(&mut self, field: &Field, _: u64) {
        self.is_of_fault |= field.name() == "left_out_of_all";
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "peer" => self.peer = format!("{value:?}"),
            // One field has this name, or what reads the log as JSON keeps the last one alone.
            "message" => self.text += &format!("{value:?}"),
            _ => {}
        }
    }
}

/// Each neighbour says one thing wrong, and is under the limit for a neighbour; together they would flood the log.
#[test]
fn many_neighbours_do_not_flood_the_log_together() {
    const NEIGHBOURS: u8 = 200;
    listen();
    in_space(|| {
        let begin = Instant::now();
        let (speaker, ..) = start(reflector());
        for n in 0..NEIGHBOURS {
            let address = Ipv4Addr::new(127, 0, 7, n);
            let mut neighbour = Neighbour::connect(address, None);
            let mut open = open(address);
            open.my_as = 65009;
            open.capabilities.retain(|c| c.code() != 65);
            neighbour.write(&open.encode());
            let (told, _) = neighbour.read_to_end();
            assert!(told.is_some(), "neighbour {n} was not refused");
        }
        let periods = begin.elapsed().as_secs() / 10 + 1;
        let logged = lines_about("127.0.7.").len() as u64;
        assert!(logged >= 20, "{logged}");
        assert!(
            logged <= 20 * (periods + 1),
            "{logged} lines in {periods} periods"
        );
        speaker.stop(Stop::Restart);
    });
}

/// Routes that are not used for their next hop are counted, told to whoever shows neighbours, and logged: no matter
/// whether the answer about the next hop comes after them or was there before.
#[test]
fn routes_that_are_not_used_for_their_next_hop_are_counted_told_and_logged() {
    listen();
    let address = Ipv4Addr::new(127, 0, 8, 2);
    let networks = ["10.1.0.0/16", "10.2.0.0/16"].map(|text| text.parse().unwrap());
    in_space(|| {
        let (speaker, _, events, changes) = start_told(SpeakerConfig {
            assume_reachable: false,
            ..reflector()
        });
        let handle = speaker.handle();
        let mut neighbour = Neighbour::connect(address, None);
        neighbour.write(&[open(address).encode(), header::keepalive()].concat());
        neighbour.announce(&networks);
        let next_hop = std::iter::from_fn(|| events.recv_timeout(LIMIT).ok())
            .find_map(|event| match event {
                RouteEvent::Watch(next_hop) => Some(next_hop),
                _ => None,
            })
            .expect("nobody asks for the next hop");
        let told = |messages, prefixes| {
            let mut neighbours = std::iter::from_fn(|| changes.recv_timeout(LIMIT).ok());
            let faults = neighbours.find_map(|change| match change {
                PeerChange::Is(peer) => {
                    let faults = peer.session.faults;
                    let count = faults.counts[FaultKind::UnusableNextHop.index()];
                    ((count.messages, count.prefixes) == (messages, prefixes)).then_some(faults)
                }
                _ => None,
            });
            let (_, last) = faults.expect("it is not told").last.expect("the last one");
            assert_eq!(last.kind, FaultKind::UnusableNextHop);
            assert_eq!(last.what, format!("{next_hop} cannot be reached"));
        };
        let unreachable = RibInput::Reachability {
            next_hop,
            metric: None,
        };
        handle.tell([unreachable]);
        told(1, 2);
        neighbour.announce(&networks[..1]);
        told(2, 3);
        speaker.stop(Stop::Restart);
    });
    // The second one has a line if it came more than ten seconds later.
    let lines = lines_about("127.0.8.");
    let wanted = "next hop unusable: 192.0.2.1 cannot be reached (2 prefixes)";
    assert_eq!(lines.first().map(String::as_str), Some(wanted), "{lines:?}");
}
