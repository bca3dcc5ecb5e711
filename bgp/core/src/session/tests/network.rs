//! A network of speakers inside one test: a virtual clock, connections as pipes with delay, loss, reset and refusal.
//!
//! A [`Node`] has one [`Peer`] for each neighbour and a log of their events; a RIB can be fed from that log. Node `i`
//! has the address 10.0.0.`i+1`. What must always hold is checked at every step.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{arc, neighbor, speaker};
use crate::{
    clock::Now,
    config::{PeerConfig, SpeakerConfig},
    event::PeerEvent,
    ids::{Epoch, Epochs},
    session::{ConnId, Input, Output, Peer, State, Stop, peer::Idle},
};

pub struct Network {
    pub now: Now,
    pub nodes: Vec<Node>,
    pub delay: Duration,
    /// Nothing arrives any more, and nobody is told.
    pub silent: bool,
    pipes: Vec<Pipe>,
    /// What is under way, in the order of arrival.
    flying: BTreeMap<(Now, u64), Packet>,
    sequence: u64,
}

pub struct Node {
    pub speaker: Arc<SpeakerConfig>,
    pub slots: Vec<Slot>,
    /// Whether it accepts connections.
    pub listening: bool,
    epochs: Epochs,
}

/// One neighbour of a node.
pub struct Slot {
    pub peer: Peer,
    pub config: Arc<PeerConfig>,
    /// Which node it is.
    pub to: usize,
    pub events: Vec<(Now, Epoch, PeerEvent)>,
    /// The bytes sent, one entry for each output.
    pub sent: Vec<Bytes>,
    up: Option<Epoch>,
    last_epoch: u64,
}

/// One TCP connection. Side 0 has opened it.
struct Pipe {
    ends: [(usize, usize); 2],
    conns: [Option<ConnId>; 2],
    /// When the last octet that is under way to a side arrives.
    last: [Now; 2],
}

#[derive(Debug)]
enum Packet {
    Syn(usize),
    Connected(usize),
    Failed(usize),
    Data(usize, usize, Bytes),
    Fin(usize, usize),
}

impl Network {
    /// Speakers, each a neighbour of all others: (AS, identifier).
    pub fn mesh(speakers: &[(u32, u32)], delay_ms: u64) -> Network {
        let nodes = speakers
            .iter()
            .enumerate()
            .map(|(i, &(asn, id))| {
                let others = speakers.iter().enumerate().filter(|(j, _)| *j != i);
                Node {
                    speaker: arc(speaker(asn, id)),
                    slots: others
                        .map(|(j, &(peer_asn, _))| Slot::new(j, neighbor(j as u8 + 1, peer_asn)))
                        .collect(),
                    listening: true,
                    epochs: Epochs::default(),
                }
            })
            .collect();
        let mut network = Network {
            now: Now::default(),
            nodes,
            delay: Duration::from_millis(delay_ms),
            silent: false,
            pipes: Vec::new(),
            flying: BTreeMap::new(),
            sequence: 0,
        };
        network.boot_all(false);
        network
    }

    /// Two speakers.
    pub fn pair(a: (u32, u32), b: (u32, u32)) -> Network {
        Network::mesh(&[a, b], 5)
    }

    fn boot_all(&mut self, restarted: bool) {
        for node in 0..self.nodes.len() {
            self.boot(node, restarted);
        }
    }

    /// New peers for a node, from its settings.
    pub fn boot(&mut self, node: usize, restarted: bool) {
        let n = &mut self.nodes[node];
        n.listening = true;
        n.epochs = Epochs::default();
        for (i, slot) in n.slots.iter_mut().enumerate() {
            let seed = (node * 100 + i) as u64 + self.now.0;
            slot.peer = Peer::new(
                n.speaker.clone(),
                slot.config.clone(),
                seed,
                restarted,
                n.epochs.clone(),
            );
            slot.up = None;
            slot.last_epoch = 0;
        }
    }

    /// Changes what a node is before it is started.
    pub fn configure(&mut self, node: usize, change: impl Fn(&mut SpeakerConfig, &mut PeerConfig)) {
        let n = &mut self.nodes[node];
        let mut speaker = (*n.speaker).clone();
        for slot in &mut n.slots {
            let mut config = (*slot.config).clone();
            change(&mut speaker, &mut config);
            slot.config = arc(config);
        }
        n.speaker = arc(speaker);
        self.boot(node, false);
    }

    pub fn start_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.start(node);
        }
    }

    pub fn start(&mut self, node: usize) {
        for slot in 0..self.nodes[node].slots.len() {
            self.input(node, slot, Input::Start);
        }
    }

    /// The process dies. `noticed`: its kernel tells the others.
    pub fn kill(&mut self, node: usize, noticed: bool) {
        self.nodes[node].listening = false;
        for pipe in 0..self.pipes.len() {
            for side in 0..2 {
                if self.pipes[pipe].ends[side].0 == node && self.pipes[pipe].conns[side].is_some() {
                    self.pipes[pipe].conns[side] = None;
                    if noticed {
                        self.fly(pipe, 1 - side, Packet::Fin(pipe, 1 - side));
                    }
                }
            }
        }
        self.boot(node, false);
        self.nodes[node].listening = false;
    }

    /// All connections break, on both sides.
    pub fn reset_connections(&mut self) {
        self.flying
            .retain(|_, p| matches!(p, Packet::Syn(_) | Packet::Failed(_)));
        for pipe in 0..self.pipes.len() {
            for side in 0..2 {
                self.deliver(Packet::Fin(pipe, side));
            }
        }
    }

    /// Sends bytes from one node to its neighbour on the present session, past the peer.
    pub fn inject(&mut self, node: usize, slot: usize, bytes: &[u8]) {
        let conn = self.nodes[node].slots[slot].peer.established_conn();
        let (pipe, side) = self.pipe_of(node, slot, conn.expect("a session")).unwrap();
        self.fly(
            pipe,
            1 - side,
            Packet::Data(pipe, 1 - side, Bytes::copy_from_slice(bytes)),
        );
    }

    /// Lets time pass.
    pub fn run(&mut self, d: Duration) {
        self.run_while(d, |_| true);
    }

    /// Lets time pass until the condition holds; says whether it came to hold within `d`.
    pub fn run_until(&mut self, d: Duration, done: impl Fn(&Network) -> bool) -> bool {
        self.run_while(d, |n| !done(n));
        done(self)
    }

    fn run_while(&mut self, d: Duration, go: impl Fn(&Network) -> bool) {
        let end = self.now + d;
        let mut idle_steps = 0;
        while go(self) {
            let flying = self.flying.first_key_value().map(|(k, _)| k.0);
            let due = self.earliest_deadline();
            let next = [flying, due.map(|(at, ..)| at)].into_iter().flatten().min();
            let Some(next) = next.filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            // No time passes without end.
            idle_steps = if next > self.now { 0 } else { idle_steps + 1 };
            assert!(idle_steps < 10_000, "a livelock at {:?}", self.now);
            self.now = self.now.max(next);
            if flying == Some(next) {
                let (_, packet) = self.flying.pop_first().unwrap();
                self.deliver(packet);
            } else if let Some((_, node, slot)) = due {
                self.input(node, slot, Input::Timer);
            }
        }
    }

    fn earliest_deadline(&self) -> Option<(Now, usize, usize)> {
        let all = self.nodes.iter().enumerate().flat_map(|(n, node)| {
            node.slots
                .iter()
                .enumerate()
                .filter_map(move |(s, slot)| slot.peer.deadline().map(|at| (at, n, s)))
        });
        all.min()
    }

    pub fn input(&mut self, node: usize, slot: usize, input: Input<'_>) -> Vec<ConnId> {
        let mut out = Vec::new();
        let now = self.now;
        self.nodes[node].slots[slot]
            .peer
            .handle(now, input, &mut out);
        let mut accepted = Vec::new();
        for output in out {
            self.act(node, slot, output, &mut accepted);
        }
        self.nodes[node].slots[slot].check();
        accepted
    }

    fn act(&mut self, node: usize, slot: usize, output: Output, accepted: &mut Vec<ConnId>) {
        match output {
            Output::Connect(conn) => {
                let to = self.nodes[node].slots[slot].to;
                let back = self.nodes[to].slots.iter().position(|s| s.to == node);
                self.pipes.push(Pipe {
                    ends: [(node, slot), (to, back.unwrap())],
                    conns: [Some(conn), None],
                    last: [self.now; 2],
                });
                let pipe = self.pipes.len() - 1;
                self.fly(pipe, 1, Packet::Syn(pipe));
            }
            Output::Accept(conn) => {
                // The connection being accepted is named by the caller of `input`.
                accepted.push(conn);
                let pipe =
                    self.pipes.iter_mut().rev().find(|p| {
                        p.ends[1] == (node, slot) && p.conns[1] == Some(ConnId(u32::MAX))
                    });
                pipe.expect("an accepted connection").conns[1] = Some(conn);
            }
            Output::Refuse | Output::Fault(_) => {}
            Output::Send(conn, bytes) => {
                self.nodes[node].slots[slot].sent.push(bytes.clone());
                if let Some((pipe, side)) = self.pipe_of(node, slot, conn) {
                    self.fly(pipe, 1 - side, Packet::Data(pipe, 1 - side, bytes));
                }
            }
            Output::Close(conn) => {
                if let Some((pipe, side)) = self.pipe_of(node, slot, conn) {
                    self.pipes[pipe].conns[side] = None;
                    self.fly(pipe, 1 - side, Packet::Fin(pipe, 1 - side));
                }
            }
            Output::Event(epoch, event) => {
                let now = self.now;
                self.nodes[node].slots[slot].event(now, epoch, event);
            }
            Output::State(state) => {
                let peer = &self.nodes[node].slots[slot].peer;
                assert_eq!(peer.state(), state);
            }
        }
    }

    fn pipe_of(&self, node: usize, slot: usize, conn: ConnId) -> Option<(usize, usize)> {
        let mut all = self
            .pipes
            .iter()
            .enumerate()
            .rev()
            .flat_map(|(i, p)| [(i, 0, p.ends[0], p.conns[0]), (i, 1, p.ends[1], p.conns[1])]);
        all.find(|(_, _, end, c)| *end == (node, slot) && *c == Some(conn))
            .map(|(i, side, ..)| (i, side))
    }

    /// Arrives after the delay, and not before what was sent earlier on the same pipe.
    fn fly(&mut self, pipe: usize, side: usize, packet: Packet) {
        let at = (self.now + self.delay).max(self.pipes[pipe].last[side]);
        self.pipes[pipe].last[side] = at;
        self.sequence += 1;
        self.flying.insert((at, self.sequence), packet);
    }

    fn deliver(&mut self, packet: Packet) {
        if self.silent {
            return;
        }
        let address = |node: usize| SocketAddr::from(([10, 0, 0, node as u8 + 1], 179));
        match packet {
            Packet::Syn(pipe) => {
                let (from, (node, slot)) = (self.pipes[pipe].ends[0].0, self.pipes[pipe].ends[1]);
                if !self.nodes[node].listening {
                    return self.fly(pipe, 0, Packet::Failed(pipe));
                }
                // The handshake is the kernel's: the other side is connected, whatever the peer says.
                self.fly(pipe, 0, Packet::Connected(pipe));
                self.pipes[pipe].conns[1] = Some(ConnId(u32::MAX));
                let accepted = self.input(
                    node,
                    slot,
                    Input::Accepted {
                        local: address(node),
                        remote: address(from),
                        interface: None,
                    },
                );
                if accepted.is_empty() {
                    self.pipes[pipe].conns[1] = None;
                    self.fly(pipe, 0, Packet::Fin(pipe, 0));
                }
            }
            Packet::Connected(pipe) => {
                let [(node, slot), (to, _)] = self.pipes[pipe].ends;
                if let Some(conn) = self.pipes[pipe].conns[0] {
                    self.input(
                        node,
                        slot,
                        Input::Connected {
                            conn,
                            local: address(node),
                            remote: address(to),
                            interface: None,
                        },
                    );
                }
            }
            Packet::Failed(pipe) => {
                let (node, slot) = self.pipes[pipe].ends[0];
                if let Some(conn) = self.pipes[pipe].conns[0].take() {
                    let error = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
                    let error = error.into();
                    let unanswered = false;
                    self.input(
                        node,
                        slot,
                        Input::ConnectFailed {
                            conn,
                            error,
                            unanswered,
                        },
                    );
                }
            }
            Packet::Data(pipe, side, bytes) => {
                let (node, slot) = self.pipes[pipe].ends[side];
                // In two pieces, since nothing may depend on where the stream is cut.
                let (a, b) = bytes.split_at(bytes.len() / 3);
                for bytes in [a, b] {
                    if let Some(conn) = self.pipes[pipe].conns[side] {
                        self.input(node, slot, Input::Bytes { conn, bytes });
                    }
                }
            }
            Packet::Fin(pipe, side) => {
                let (node, slot) = self.pipes[pipe].ends[side];
                if let Some(conn) = self.pipes[pipe].conns[side].take() {
                    self.input(node, slot, Input::Closed { conn, error: None });
                }
            }
        }
    }

    pub fn slot(&self, node: usize) -> &Slot {
        &self.nodes[node].slots[0]
    }

    pub fn all_established(&self) -> bool {
        self.nodes
            .iter()
            .flat_map(|n| &n.slots)
            .all(|s| s.peer.state() == State::Established)
    }

    /// Stops a node in this way.
    pub fn stop(&mut self, node: usize, how: &Stop) {
        for slot in 0..self.nodes[node].slots.len() {
            self.input(node, slot, Input::Stop(how.clone()));
        }
    }
}

impl Slot {
    fn new(to: usize, config: PeerConfig) -> Slot {
        let config = arc(config);
        Slot {
            peer: Peer::new(
                arc(speaker(1, 1)),
                config.clone(),
                0,
                false,
                Epochs::default(),
            ),
            config,
            to,
            events: Vec::new(),
            sent: Vec::new(),
            up: None,
            last_epoch: 0,
        }
    }

    /// Sessions have growing numbers, begin once, end once, and say nothing before or after.
    fn event(&mut self, now: Now, epoch: Epoch, event: PeerEvent) {
        match &event {
            PeerEvent::Up(_) => {
                assert_eq!(self.up, None, "Up in a session");
                assert!(epoch.0 > self.last_epoch, "an epoch comes again");
                self.last_epoch = epoch.0;
                self.up = Some(epoch);
            }
            PeerEvent::Down { .. } => {
                assert_eq!(self.up.take(), Some(epoch), "Down without a session");
            }
            PeerEvent::LongLived(_) | PeerEvent::DropStale(_) | PeerEvent::Unanswered => {
                assert_eq!(epoch.0, self.last_epoch)
            }
            _ => assert_eq!(self.up, Some(epoch), "{event:?} without a session"),
        }
        self.events.push((now, epoch, event));
    }

    fn check(&self) {
        let established = |c: &&crate::session::state::Connection| c.state() == State::Established;
        assert!(self.peer.conns.len() <= 2, "three connections");
        let sessions = self.peer.conns.iter().filter(established).count();
        assert!(sessions <= 1, "two sessions");
        assert_eq!(sessions == 1, self.up.is_some());
        let for_good = self.peer.idle == Some(Idle::Forever);
        if self.peer.running && !self.peer.config.passive && !for_good {
            assert!(
                self.peer.deadline().is_some() || sessions == 1,
                "a dead end"
            );
        }
    }

    /// The events as short words, since `from`.
    pub fn words(&self, from: Now) -> Vec<String> {
        let word = |e: &PeerEvent| match e {
            PeerEvent::Up(_) => "up".into(),
            PeerEvent::Down { reason, keep_stale } => {
                format!("down: {reason}; keeps {keep_stale:?}")
            }
            PeerEvent::LongLived(f) => format!("long-lived {f:?}"),
            PeerEvent::DropStale(f) => format!("drop {f:?}"),
            PeerEvent::EndOfRib(f) => format!("end of {f}"),
            PeerEvent::Unanswered => "unanswered".into(),
            PeerEvent::Refresh(f) => format!("refresh {f}"),
            PeerEvent::Reach { attrs, nlri } => {
                format!(
                    "reach {:?} by {}",
                    nlri.iter().map(|n| n.1).collect::<Vec<_>>(),
                    attrs.next_hop
                )
            }
            PeerEvent::Unreach(b) => {
                format!("unreach {:?}", b.iter().map(|n| n.1).collect::<Vec<_>>())
            }
        };
        self.events
            .iter()
            .filter(|(at, ..)| *at >= from)
            .map(|(_, _, e)| word(e))
            .collect()
    }
}
