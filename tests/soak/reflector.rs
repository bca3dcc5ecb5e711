//! The first world: a reflector, many light speakers of a range, some BIRDs. They come, announce, flap, fall silent, go and are
//! replaced; at every checkpoint each of them holds what a naive model says.
//!
//! The model: each speaker has a table, prefix by prefix a LOCAL_PREF that nobody else ever uses. Of the speakers that are there
//! the greatest one is the best path; everybody but its owner holds it, the owner holds nothing.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use ipnet::IpNet;
use selvage_lab::daemon::{Kind, Neighbour, Router, Speaker};
use selvage_lab::objects::Objects;
use selvage_lab::{Agent, Lab, Link, Netns, Network, cluster};
use selvage_netlink::{Prefix, addr, link};
use serde_json::json;

mod check;
mod limits;
mod steps;
mod wire;

use self::limits::Part;
use self::wire::{
    attributes, configure, end_of_rib, index, local_preference, network, prefix, shown,
};
use super::journal::{Journal, Random};
use super::resources::{Usage, load};
use super::{Plan, Report, Stop};
use crate::fleet::{self, Close, Event, Fleet, Spec};

/// The reflector's address, and its AS.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ASN: u32 = 64512;
/// The first address of a light speaker.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);
/// Prefixes that anybody may announce: 100.64.N.0/24.
const PREFIXES: usize = 1024;
/// Prefixes that only the reflector originates: 10.9.N.0/24, and that only one BIRD does: 10.200.N.0/24.
const NETWORKS: usize = 16;
const OF_BIRDS: usize = 32;
const ALL: usize = PREFIXES + NETWORKS + OF_BIRDS;
/// Prefixes of a speaker when it is quiet.
const AT_REST: usize = 8;
/// Messages that may wait to be sent before the next step.
const BACKLOG: usize = 4_000;
/// A speaker that sends nothing for so long may be dead to the reflector (hold time 9 s at least).
const LATE: Duration = Duration::from_secs(5);
/// How often each time limit is gone past.
const LIMITS_AGAIN: Duration = Duration::from_secs(300);
/// How long it may take until everybody holds what it should: hold times, restart times of 2 to 5 s, back-off of either side.
const SETTLE: Duration = Duration::from_secs(100);

/// How a light speaker is, as we want it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    /// Not there.
    Away,
    /// Connecting, or up. What it sent in an attempt that failed counts for nothing.
    Here,
    /// Sends no keepalives: the reflector ends the session.
    Silent,
    /// Reads nothing.
    Deaf,
    /// Meets a time limit, see [`Part`].
    Playing,
}

struct Client {
    address: Ipv4Addr,
    wanted: Wanted,
    /// Its table by prefix: LOCAL_PREF, 0 where it has none.
    table: Vec<u32>,
    /// What it was told.
    held: Vec<u32>,
    restart: Option<u16>,
    long_lived: Option<u32>,
    /// What it plays, or has played.
    part: Option<Part>,
    /// A player that reads nothing.
    deaf: bool,
    /// Attempts in a row that came to nothing, and when the next one is made.
    failed: (usize, Option<Instant>),
}

struct Bird {
    router: Router,
    _link: Link,
    /// Prefixes that it originates, of those that are its own.
    own: BTreeSet<usize>,
}

/// Figures of the run.
#[derive(Default)]
struct Counts {
    sent: u64,
    received: u64,
    ends: u64,
    changes: u64,
    replaced: u64,
    birds: u64,
    checks: u64,
    limits: u64,
}

pub(super) struct World<'a> {
    lab: Lab,
    plan: &'a Plan,
    stop: &'a Stop,
    journal: Journal,
    random: Random,
    agent: Agent,
    objects: Objects,
    rack: Network,
    fleet: Fleet,
    clients: Vec<Client>,
    birds: Vec<Bird>,
    networks: BTreeSet<usize>,
    /// The next address of a light speaker.
    next: u32,
    /// The next address of a speaker with a limit on its prefixes.
    next_strict: u32,
    /// The next version of the configuration.
    version: usize,
    bird_number: usize,
    counts: Counts,
    /// When people were told how it goes.
    told: Instant,
    /// Sessions that have come up.
    up: Vec<usize>,
    /// The last time that something was sent, and until when the reflector may have taken all for dead because this machine was
    /// too slow to send anything.
    turned: Instant,
    late_until: Option<Instant>,
    /// Sessions that were lost: who, whether it was up, and why.
    lost: Vec<(usize, bool, Option<(u8, u8)>)>,
}

/// Runs the first world to its end.
pub(super) fn run(lab: &Lab, plan: &Plan, stop: &Stop) -> Result<Report> {
    let netns = lab.netns("rr")?;
    let mut socket = netns.rtnetlink()?;
    let lo = link::get_by_name(&mut socket, "lo")?.index;
    socket.apply(|batch| {
        let all = Prefix::new(ADDRESS.into(), 8);
        addr::add(batch, &addr::Address::new(lo, all));
    })?;
    // Of what is under way to a speaker that reads nothing, little is with the kernel.
    netns.set_sysctl("net.ipv4.tcp_wmem", "4096 16384 131072")?;
    let rack = lab.network("birds", &["172.30.0.0/16".parse()?])?;
    let uplink = rack.join(&netns)?;
    let inside = netns.clone();
    // The sockets of the light speakers belong to the namespace in which this thread is.
    netns.run(move || {
        let mut world = World::new(lab, plan, stop, &inside, rack)?;
        let done = world.day();
        let _uplink = uplink;
        done.with_context(|| {
            let (steps, log) = (world.journal.tail(), world.agent.process().tail());
            format!("seed {}\n{steps}\nthe reflector says:\n{log}", plan.seed)
        })
    })
}

impl<'a> World<'a> {
    fn new(
        lab: &Lab,
        plan: &'a Plan,
        stop: &'a Stop,
        netns: &Netns,
        rack: Network,
    ) -> Result<World<'a>> {
        let objects = Objects::create(lab.directory().join("objects-rr"))?;
        let client = |key: &str, value: String| json!({key: value, "asn": "internal", "routeReflectorClient": true});
        let mut strict = client("range", format!("{}/16", limits::STRICT));
        strict["maxPrefix"] = json!({"limit": limits::MOST, "retryAfter": limits::RETRY_AFTER});
        let mut faulty = client("address", limits::FAULTY.to_string());
        faulty["passive"] = json!(true);
        for (name, spec) in [
            ("clients", client("range", "10.0.0.0/8".into())),
            ("birds", client("range", "172.30.0.0/16".into())),
            ("strict", strict),
            ("faulty", faulty),
        ] {
            objects.write(name, &cluster::object("BGPPeer", name, spec))?;
        }
        configure(&objects, plan.hold, &BTreeSet::new(), 0)?;
        let flags = [
            "--features",
            "bgp",
            "--test-divide-time-limits",
            limits::DIVISOR,
        ];
        let agent = Agent::start(netns, "rr", objects.directory(), &flags)?;
        let mut fleet = Fleet::new(SocketAddrV4::new(ADDRESS, 179))?;
        fleet.told = true;
        Ok(World {
            lab: lab.clone(),
            plan,
            stop,
            journal: Journal::new("the reflector's world", plan.loud),
            random: Random::new(plan.seed),
            agent,
            objects,
            rack,
            fleet,
            clients: Vec::new(),
            birds: Vec::new(),
            networks: BTreeSet::new(),
            next: FIRST.into(),
            next_strict: limits::STRICT.into(),
            version: 0,
            bird_number: 0,
            counts: Counts::default(),
            told: Instant::now(),
            up: Vec::new(),
            lost: Vec::new(),
            turned: Instant::now(),
            late_until: None,
        })
    }

    fn day(&mut self) -> Result<Report> {
        self.agent.wait_ready(Duration::from_secs(60))?;
        for _ in 0..self.plan.clients {
            let client = self.newcomer();
            self.fleet.add(client.spec());
            self.clients.push(client);
        }
        for i in 0..self.clients.len() {
            self.open(i)?;
        }
        for _ in 0..self.plan.birds {
            self.add_bird()?;
        }
        self.check()?;
        let pid = self.agent.process().pid();
        let before = self.quiet(pid)?;
        self.journal.step(format!("quiet: {before}"));
        self.limits()?;
        let mut again = Instant::now() + LIMITS_AGAIN;
        let end = Instant::now() + self.plan.time;
        let mut steps = 0;
        while Instant::now() < end && !self.stop.is_told() {
            self.step()?;
            steps += 1;
            if steps % self.plan.between == 0 {
                self.check()?;
            }
            if Instant::now() >= again {
                self.limits()?;
                again = Instant::now() + LIMITS_AGAIN;
            }
            self.tell_of_it()?;
        }
        self.rest()?;
        self.check()?;
        let after = self.quiet(pid)?;
        self.journal.step(format!("quiet again: {after}"));
        after.is_as_before(&before).context("the reflector")?;
        self.restart_reflector(true)?;
        if self.plan.told.is_some() {
            self.restart_reflector(false)?;
        }
        let c = &self.counts;
        Ok(Report {
            name: "reflector",
            lines: vec![
                format!(
                    "{} prefixes announced or withdrawn by speakers, {} received by them; {} session ends, {} speakers and {} BIRDs replaced",
                    c.sent, c.received, c.ends, c.replaced, c.birds
                ),
                format!(
                    "{} changes of the configuration, each time limit gone past {} times, {} steps, {} checkpoints",
                    c.changes,
                    c.limits,
                    self.journal.number(),
                    c.checks
                ),
            ],
            usage: (before, after),
        })
    }

    /// What the agent uses while the sessions are kept up and nothing else happens.
    fn quiet(&mut self, pid: u32) -> Result<Usage> {
        self.pump(Duration::from_secs(2), |_| false)?;
        let window = self.plan.watched;
        self.beside(move || Usage::of(pid, window))
    }

    /// Does what takes a while, and keeps the sessions of the speakers up meanwhile.
    fn beside<T: Send>(&mut self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let running = scope.spawn(work);
            while !running.is_finished() {
                self.pump(Duration::from_millis(20), |_| false)?;
            }
            let done = running.join();
            done.map_err(|_| anyhow!("a thread has failed"))?
        })
    }

    /// As [`World::beside`], with the BIRDs.
    fn with_birds<T: Send>(
        &mut self,
        work: impl FnOnce(&mut Vec<Bird>) -> Result<T> + Send,
    ) -> Result<T> {
        let mut birds = std::mem::take(&mut self.birds);
        let done = self.beside(|| work(&mut birds));
        self.birds = birds;
        done
    }

    /// Tells people how it goes, if they want to know.
    pub(super) fn tell_of_it(&mut self) -> Result<()> {
        let Some(every) = self.plan.told else {
            return Ok(());
        };
        if self.told.elapsed() < every {
            return Ok(());
        }
        self.told = Instant::now();
        let usage = Usage::of(self.agent.process().pid(), Duration::ZERO)?;
        let (c, at) = (&self.counts, self.journal.elapsed().as_secs());
        let changed = c.sent + c.received;
        println!(
            "{at:>5} s  reflector: {} steps, {changed} prefixes, {} session ends, {} replaced, {} changes, limits {} times, {} checkpoints; \
             RSS {:.1} MiB, anonymous {:.1} MiB, {} descriptors, {} threads; load {}",
            self.journal.number(),
            c.ends,
            c.replaced,
            c.changes,
            c.limits,
            c.checks,
            usage.rss as f64 / 1024.0,
            usage.anonymous as f64 / 1024.0,
            usage.descriptors,
            usage.threads,
            load(),
        );
        Ok(())
    }

    fn newcomer(&mut self) -> Client {
        let address = Ipv4Addr::from(self.next);
        self.next += 1;
        let seconds = 2 + self.random.below(4) as u16;
        let restart = self.random.percent(40).then_some(seconds);
        let long_lived = 1 + self.random.below(limits::LONG_LIVED as usize) as u32;
        let long_lived = restart.and(self.random.percent(50).then_some(long_lived));
        let mut client = Client {
            address,
            wanted: Wanted::Away,
            table: vec![0; PREFIXES],
            held: vec![0; ALL],
            restart,
            long_lived,
            part: None,
            deaf: false,
            failed: (0, None),
        };
        let number = (self.next - u32::from(FIRST)) as usize;
        for k in 0..AT_REST {
            client.table[(number * AT_REST + k) % PREFIXES] = 1;
        }
        client
    }

    /// A LOCAL_PREF that only this client ever uses.
    fn preference(&mut self, i: usize) -> u32 {
        1_000 + self.random.below(200) as u32 * 256 + i as u32
    }

    fn open(&mut self, i: usize) -> Result<()> {
        self.clients[i].wanted = Wanted::Here;
        self.clients[i].failed = (0, None);
        for preference in 0..PREFIXES {
            // Of a newcomer: the mark becomes a preference of its own.
            if self.clients[i].table[preference] == 1 {
                self.clients[i].table[preference] = 1_000 + i as u32;
            }
        }
        self.fleet.open(i)
    }

    /// Sends and receives for `time`, or until `enough` after something has come.
    fn pump(&mut self, time: Duration, mut enough: impl FnMut(&World<'a>) -> bool) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            let now = Instant::now();
            if now - self.turned > LATE {
                self.journal
                    .step(format!("this machine was slow: {:?}", now - self.turned));
                self.late_until = Some(now + 2 * LATE);
            }
            self.turned = now;
            let left = end.saturating_duration_since(now);
            let (clients, counts) = (&mut self.clients, &mut self.counts);
            let (up, lost) = (&mut self.up, &mut self.lost);
            let mut on = |i: usize, event: Event<'_>| {
                match event {
                    Event::Established => up.push(i),
                    Event::Lost { established, why } => lost.push((i, established, why)),
                    Event::Drained => {}
                    Event::Update {
                        withdrawn,
                        attributes,
                        announced,
                    } => {
                        let held = &mut clients[i].held;
                        for p in fleet::prefixes(withdrawn) {
                            counts.received += 1;
                            if let Some(p) = index(p) {
                                held[p] = 0;
                            }
                        }
                        if !announced.is_empty() {
                            let preference = local_preference(attributes).unwrap_or(u32::MAX);
                            for p in fleet::prefixes(announced) {
                                counts.received += 1;
                                if let Some(p) = index(p) {
                                    held[p] = preference;
                                }
                            }
                        }
                    }
                }
                false
            };
            self.fleet
                .turn(left.min(Duration::from_millis(20)), &mut on)?;
            self.greet();
            self.mourn()?;
            if Instant::now() >= end || enough(self) {
                return Ok(());
            }
        }
    }

    /// Who has come up says all that it has, and that this was all.
    fn greet(&mut self) {
        for i in std::mem::take(&mut self.up) {
            self.clients[i].failed = (0, None);
            if !self.player_is_up(i) {
                continue;
            }
            let mut by_preference: std::collections::BTreeMap<u32, Vec<usize>> =
                std::collections::BTreeMap::new();
            for p in 0..PREFIXES {
                let preference = self.clients[i].table[p];
                if preference != 0 {
                    by_preference.entry(preference).or_default().push(p);
                }
            }
            let mut messages = Vec::new();
            for (preference, prefixes) in by_preference {
                let attributes = attributes(self.clients[i].address, preference);
                for some in prefixes.chunks(200) {
                    self.counts.sent += some.len() as u64;
                    messages.push(fleet::announce(
                        &attributes,
                        some.iter().map(|p| prefix(*p)),
                    ));
                }
            }
            if self.clients[i].part != Some(Part::Endless { back: true }) {
                messages.push(end_of_rib());
            }
            self.fleet.send(i, &messages);
        }
    }

    /// Sessions that the reflector ended: some were to be ended, attempts are made again, all others are its fault.
    fn mourn(&mut self) -> Result<()> {
        for (i, established, why) in std::mem::take(&mut self.lost) {
            let client = &mut self.clients[i];
            client.held.fill(0);
            match client.wanted {
                Wanted::Playing => {
                    if self.player_is_lost(i, established, why)? {
                        self.clients[i].failed.1 =
                            Some(Instant::now() + Duration::from_millis(100));
                    }
                }
                Wanted::Silent | Wanted::Deaf => {
                    self.counts.ends += 1;
                    client.wanted = Wanted::Away;
                }
                Wanted::Here => {
                    let expired = why == Some((4, 0));
                    let late = expired && self.late_until.is_some_and(|at| at > Instant::now());
                    self.counts.ends += u64::from(late);
                    ensure!(
                        !established || late,
                        "the reflector ended the session of {} without a reason: {why:?}",
                        client.address
                    );
                    client.failed.0 += 1;
                    ensure!(
                        client.failed.0 < 600,
                        "{} is not let in: {why:?}",
                        client.address
                    );
                    client.failed.1 = Some(Instant::now() + Duration::from_millis(100));
                }
                Wanted::Away => {}
            }
        }
        let now = Instant::now();
        for i in 0..self.clients.len() {
            if self.clients[i].failed.1.is_some_and(|at| at <= now) {
                self.clients[i].failed.1 = None;
                if matches!(self.clients[i].wanted, Wanted::Here | Wanted::Playing) {
                    self.fleet.open(i)?;
                }
            }
        }
        Ok(())
    }
}

impl Client {
    fn spec(&self) -> Spec {
        Spec {
            restart: self.restart,
            long_lived: self.long_lived,
            ..Spec::new(self.address, ASN)
        }
    }
}
