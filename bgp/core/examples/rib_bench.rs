//! What the RIB costs by itself: seconds, octets per prefix, without sockets and threads.
//!
//! `cargo run --release -p selvage-bgp-core --example rib_bench`

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use selvage_bgp_core::{
    clock::Now,
    config::{FilterRef, PeerAsn, PeerConfig, SpeakerConfig},
    event::{FromPeer, Negotiated, PeerEvent},
    ids::{Asn, Epoch, Family, FamilySet, PeerIdx, PeerKey, RouterId},
    prefix::Prefix,
    rib::{Chunk, Query, Rib, RibInput, RibOutput},
    wire::{
        attr::{AsPath, NextHop, PathAttributes},
        nlri::{self, NlriBlock},
        update::{AttributeCache, Context, EncodeOptions, decode, write_reach, write_unreach},
    },
};

const ASN: Asn = Asn(64512);
const HEADER: usize = 19;

fn speaker() -> SpeakerConfig {
    SpeakerConfig {
        maximum_paths: 16,
        ..SpeakerConfig::new(ASN, RouterId(1))
    }
}

struct Bench {
    rib: Rib,
    now: u64,
    log: Vec<Chunk>,
    octets: u64,
    messages_out: usize,
    dumps: usize,
    keep: bool,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            rib: Rib::new(Arc::new(speaker()), Now(0)),
            now: 0,
            log: Vec::new(),
            octets: 0,
            messages_out: 0,
            dumps: 0,
            keep: false,
        }
    }

    fn up(&mut self, idx: u16, asn: u32) {
        let addr = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + u32::from(idx)));
        let peer_asn = Asn(asn);
        let mut config = PeerConfig::new(PeerKey::from(addr), PeerAsn::Exactly(peer_asn));
        config.route_reflector_client = asn == ASN.0;
        config.export = vec![FilterRef::AcceptAll];
        let session = Negotiated {
            local_asn: ASN,
            peer_asn,
            peer_id: RouterId(0x0a00_0000 + u32::from(idx)),
            internal: peer_asn == ASN,
            families: FamilySet::from_iter([Family::Ipv4]),
            four_octet_as: true,
            route_refresh: true,
            add_path_send: FamilySet::NONE,
            add_path_receive: FamilySet::NONE,
            max_message: 4096,
            hold: Duration::from_secs(9),
            keepalive: Duration::from_secs(3),
            graceful_restart: None,
            local_addr: IpAddr::from([10, 255, 255, 254]),
            peer_addr: addr,
            interface: None,
        };
        let peer = PeerIdx(idx);
        self.apply(RibInput::Peer(peer, Arc::new(config)));
        self.event(peer, PeerEvent::Up(Arc::new(session)));
    }

    fn apply(&mut self, input: RibInput) {
        self.now += 1000;
        self.rib.apply(Now(self.now), input);
    }

    fn event(&mut self, peer: PeerIdx, event: PeerEvent) {
        let epoch = Epoch(1);
        self.apply(RibInput::Event(FromPeer { peer, epoch, event }));
    }

    fn poll(&mut self, until_done: bool) {
        let mut out = Vec::new();
        while self.rib.poll(Now(self.now), 8192, &mut out) && until_done {}
        for output in out {
            match output {
                RibOutput::Log { chunk, .. } => {
                    self.octets += chunk.bytes.len() as u64;
                    self.messages_out += 1;
                    if self.keep {
                        self.log.push(chunk);
                    }
                }
                RibOutput::Dump { chunk, .. } => self.octets += chunk.bytes.len() as u64,
                RibOutput::DumpEnd { .. } => self.dumps += 1,
                _ => {}
            }
        }
    }

    /// Feeds messages as a session would: decode, then batches of events.
    fn feed(&mut self, idx: u16, external: Option<u32>, messages: &[Bytes]) {
        let context = Context {
            internal: external.is_none(),
            four_octet_as: true,
            families: FamilySet::from_iter([Family::Ipv4]),
            add_path: FamilySet::NONE,
            first_as: external.map(Asn),
            local_addr: IpAddr::from([10, 255, 255, 254]),
            interface: None,
        };
        let mut cache = AttributeCache::default();
        for batch in messages.chunks(64) {
            for message in batch {
                let Ok(update) = decode(&message.slice(HEADER..), &context, &mut cache) else {
                    panic!("our own message is refused");
                };
                for nlri in update.withdrawn {
                    self.event(PeerIdx(idx), PeerEvent::Unreach(nlri));
                }
                for (attrs, nlri) in update.reach {
                    self.event(PeerIdx(idx), PeerEvent::Reach { attrs, nlri });
                }
            }
            self.poll(false);
        }
        self.poll(true);
    }
}

/// `n` /24s from `first` on, about seven to an attribute set, in messages of one attribute set each.
fn table(first: u32, n: u32, asn: u32, withdraw: bool) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let options = EncodeOptions::default();
    let mut at = 0;
    let mut x = 12345u32;
    while at < n {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let count = (1 + (x >> 16) % 13).min(n - at);
        let path: Vec<Asn> = [asn]
            .into_iter()
            .chain((0..2 + x % 4).map(|i| 1000 + (x >> 8) % 50_000 + i * 7))
            .map(Asn)
            .collect();
        let attrs = PathAttributes {
            as_path: AsPath::from_sequence(&path),
            communities: [asn << 16 | x & 0xff, 0x1234_0000 | x >> 28].into(),
            ..PathAttributes::local(NextHop::from(IpAddr::from([10, 0, 0, 9])))
        };
        let mut prefixes = (at..at + count).map(|i| {
            let prefix = Prefix::V4 {
                addr: (first + i) << 8,
                len: 24,
            };
            (0, prefix)
        });
        let mut out = BytesMut::new();
        if withdraw {
            write_unreach(&mut out, Family::Ipv4, &options, &mut prefixes);
        } else if write_reach(&mut out, Family::Ipv4, &attrs, &options, &mut prefixes).is_err() {
            panic!("too large");
        }
        messages.push(out.freeze());
        at += count;
    }
    messages
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|n| n.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// User and system time so far, in seconds: other work on the machine does not count.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split(' ');
    let ticks: f64 = fields
        .skip(12)
        .take(2)
        .filter_map(|f| f.parse::<f64>().ok())
        .sum();
    ticks / 100.0
}

fn report(what: &str, start: (Instant, f64), before: u64, bench: &Bench, prefixes: u64) {
    let totals = bench.rib.query(&Query::Peers).totals;
    println!(
        "{what}: {:.3} s, {:.2} CPU-s; resident {:.1} octets a prefix, tables {:.1}; {} attribute sets; {:.1} MB out in {} chunks, {} dumps",
        start.0.elapsed().as_secs_f64(),
        cpu() - start.1,
        resident().saturating_sub(before) as f64 / prefixes as f64,
        totals.octets as f64 / prefixes as f64,
        totals.attribute_sets,
        bench.octets as f64 / 1e6,
        bench.messages_out,
        bench.dumps,
    );
}

fn one_by_one(peers: u16, each: u32, same: bool) {
    let tables: Vec<_> = (0..u32::from(peers))
        .map(|p| {
            let first = if same {
                0x01_0000
            } else {
                0x01_0000 + p * each
            };
            table(first, each, 65000 + p, false)
        })
        .collect();
    let withdrawals = table(0x01_0000, each, 65000, true);
    let mut bench = Bench::new();
    bench.up(1000, 64000);
    for p in 0..peers {
        bench.up(p, 65000 + u32::from(p));
    }
    bench.poll(true);
    let before = resident();
    let start = (Instant::now(), cpu());
    for (p, table) in tables.iter().enumerate() {
        bench.feed(p as u16, Some(65000 + p as u32), table);
    }
    let prefixes = if same { each } else { each * u32::from(peers) };
    report(
        &format!("{peers} x {each}{}", if same { " the same" } else { "" }),
        start,
        before,
        &bench,
        prefixes.into(),
    );
    let start = (Instant::now(), cpu());
    bench.feed(0, Some(65000), &withdrawals);
    println!(
        "  withdraw {each}: {:.3} s, {:.2} CPU-s",
        start.0.elapsed().as_secs_f64(),
        cpu() - start.1
    );
}

fn join_storm(clients: u16) {
    let mut bench = Bench::new();
    bench.keep = true;
    let before = resident();
    let start = (Instant::now(), cpu());
    for idx in 0..clients {
        bench.up(idx, ASN.0);
        let next_hop = IpAddr::from(Ipv4Addr::from(0x0a00_0000 + u32::from(idx)));
        let attrs = PathAttributes {
            local_pref: Some(100),
            ..PathAttributes::local(NextHop::from(next_hop))
        };
        let mut bytes = Vec::new();
        let prefix = Prefix::V4 {
            addr: 0x0af4_0000 + (u32::from(idx) << 8),
            len: 24,
        };
        nlri::put(&mut bytes, None, &prefix);
        let Ok(nlri) = NlriBlock::new(Family::Ipv4, false, bytes.into()) else {
            return;
        };
        let attrs = Arc::new(attrs);
        bench.event(PeerIdx(idx), PeerEvent::Reach { attrs, nlri });
        bench.event(PeerIdx(idx), PeerEvent::EndOfRib(Family::Ipv4));
        if idx % 4 == 3 {
            bench.poll(true);
        }
    }
    bench.poll(true);
    report(
        &format!("join storm {clients}"),
        start,
        before,
        &bench,
        clients.into(),
    );
    let start = (Instant::now(), cpu());
    let mut read = 0u64;
    for idx in 0..clients {
        read += bench
            .log
            .iter()
            .filter(|c| c.is_for(PeerIdx(idx)))
            .map(|c| c.bytes.len() as u64)
            .sum::<u64>();
    }
    println!(
        "  the whole log seen by all: {:.3} s, {:.0} MB",
        start.0.elapsed().as_secs_f64(),
        read as f64 / 1e6
    );
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("full") => one_by_one(1, 1_000_000, false),
        Some("ten") => one_by_one(10, 100_000, false),
        Some("same") => one_by_one(10, 100_000, true),
        Some("storm") => join_storm(2500),
        // Memory of one run would hide that of the next: each has its process.
        _ => {
            let Ok(me) = std::env::current_exe() else {
                return;
            };
            for run in ["full", "ten", "same", "storm"] {
                if let Err(e) = std::process::Command::new(&me).arg(run).status() {
                    eprintln!("{run}: {e}");
                }
            }
        }
    }
}
