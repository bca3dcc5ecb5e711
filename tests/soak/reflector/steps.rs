//! What may happen in the reflector's world, one random step at a time, and the way back to rest.

use super::*;

impl World<'_> {
    pub(super) fn step(&mut self) -> Result<()> {
        match self.random.below(100) {
            0..34 => self.announce(40),
            34..50 => self.withdraw(40),
            50..58 => self.storm(),
            58..76 => self.end_sessions()?,
            76..80 => self.come_back()?,
            80..82 => self.silence(),
            82..84 => self.deafen()?,
            84..86 => self.malformed(),
            86..95 => self.configure()?,
            95..97 => self.bird()?,
            97..99 => {
                let time = Duration::from_millis(self.random.below(3_000) as u64);
                self.journal.step(format!("{time:?} go by"));
                self.pump(time, |_| false)?;
            }
            _ => {}
        }
        // The settings change beside everything else.
        if self.random.percent(25) {
            self.configure()?;
        }
        let end = Instant::now() + SETTLE;
        let pause = Duration::from_millis(self.random.below(60) as u64);
        self.pump(pause, |_| false)?;
        while self.fleet.backlog() > BACKLOG {
            ensure!(Instant::now() < end, "nothing is read by the reflector");
            self.pump(Duration::from_millis(20), |_| true)?;
        }
        Ok(())
    }

    /// One of those that are so, and are no players.
    pub(super) fn some(&mut self, wanted: Wanted) -> Option<usize> {
        let all: Vec<usize> = (0..self.clients.len())
            .filter(|i| self.clients[*i].wanted == wanted && self.clients[*i].part.is_none())
            .collect();
        self.random.pick(&all)
    }

    pub(super) fn announce(&mut self, most: usize) {
        let Some(i) = self.some(Wanted::Here) else {
            return;
        };
        let number = 1 + self.random.below(most);
        let preference = self.preference(i);
        let prefixes: Vec<usize> = (0..number).map(|_| self.random.below(PREFIXES)).collect();
        self.journal.step(format!(
            "{} announces {number} prefixes with preference {preference}",
            self.clients[i].address
        ));
        self.tell(i, &prefixes, preference);
    }

    pub(super) fn withdraw(&mut self, most: usize) {
        let Some(i) = self.some(Wanted::Here) else {
            return;
        };
        let held: Vec<usize> = (0..PREFIXES)
            .filter(|p| self.clients[i].table[*p] != 0)
            .collect();
        let number = self.random.below(most.min(held.len()) + 1);
        let prefixes: Vec<usize> = (0..number)
            .filter_map(|_| self.random.pick(&held))
            .collect();
        self.journal.step(format!(
            "{} withdraws {number} prefixes",
            self.clients[i].address
        ));
        self.tell(i, &prefixes, 0);
    }

    /// A few prefixes announced and withdrawn many times, as fast as they can be sent.
    pub(super) fn storm(&mut self) {
        let Some(i) = self.some(Wanted::Here) else {
            return;
        };
        let rounds = 20 + self.random.below(self.plan.storm);
        let number = 1 + self.random.below(30);
        let prefixes: Vec<usize> = (0..number).map(|_| self.random.below(PREFIXES)).collect();
        self.journal.step(format!(
            "{} changes {number} prefixes {rounds} times",
            self.clients[i].address
        ));
        for _ in 0..rounds {
            let preference = match self.random.percent(40) {
                true => 0,
                false => self.preference(i),
            };
            self.tell(i, &prefixes, preference);
        }
    }

    /// Sets prefixes of a client's table, 0 to withdraw them, and sends what says so.
    pub(super) fn tell(&mut self, i: usize, prefixes: &[usize], preference: u32) {
        let mut messages = Vec::new();
        for some in prefixes.chunks(20) {
            let some: BTreeSet<usize> = some.iter().copied().collect();
            let nlri = some.iter().map(|p| prefix(*p));
            messages.push(match preference {
                0 => fleet::withdraw(nlri),
                _ => fleet::announce(&attributes(self.clients[i].address, preference), nlri),
            });
            self.counts.sent += some.len() as u64;
        }
        for p in prefixes {
            self.clients[i].table[*p] = preference;
        }
        if self.fleet.is_up(i) {
            self.fleet.send(i, &messages);
        }
    }

    /// An ORIGIN that does not exist: what the message announces counts as withdrawn (RFC 7606 section 7.1).
    pub(super) fn malformed(&mut self) {
        let Some(i) = self.some(Wanted::Here) else {
            return;
        };
        let number = 1 + self.random.below(5);
        let prefixes: BTreeSet<usize> = (0..number).map(|_| self.random.below(PREFIXES)).collect();
        self.journal.step(format!(
            "{} announces {} prefixes with a bad ORIGIN",
            self.clients[i].address,
            prefixes.len()
        ));
        let mut bad = attributes(self.clients[i].address, 500);
        bad[3] = 9;
        for p in &prefixes {
            self.clients[i].table[*p] = 0;
        }
        if self.fleet.is_up(i) {
            let message = fleet::announce(&bad, prefixes.iter().map(|p| prefix(*p)));
            self.fleet.send(i, &[message]);
        }
    }

    pub(super) fn end_sessions(&mut self) -> Result<()> {
        let number = 1 + self.random.below(self.plan.ends);
        for _ in 0..number {
            let Some(i) = self.some(Wanted::Here) else {
                return Ok(());
            };
            let ways = [Close::Fin, Close::Reset, Close::Cease];
            let how = self.random.pick(&ways).unwrap_or(Close::Fin);
            let then = self.random.below(10);
            let word = match then {
                0..5 => "and comes back at once",
                5..8 => "and another one comes",
                _ => "and stays away",
            };
            self.journal.step(format!(
                "{} goes by {how:?} {word}",
                self.clients[i].address
            ));
            self.fleet.close(i, how);
            self.counts.ends += 1;
            self.clients[i].wanted = Wanted::Away;
            self.clients[i].held.fill(0);
            match then {
                0..5 => self.open(i)?,
                5..8 => self.replace(i)?,
                _ => {}
            }
        }
        Ok(())
    }

    pub(super) fn replace(&mut self, i: usize) -> Result<()> {
        self.clients[i] = self.newcomer();
        self.counts.replaced += 1;
        self.fleet.replace(i, self.clients[i].spec());
        self.open(i)
    }

    /// Those that went come back, or others come in their place.
    pub(super) fn come_back(&mut self) -> Result<()> {
        for i in 0..self.clients.len() {
            match self.clients[i].wanted {
                Wanted::Away if self.random.percent(50) => {
                    self.journal
                        .step(format!("{} is back", self.clients[i].address));
                    self.open(i)?;
                }
                Wanted::Away => {
                    self.replace(i)?;
                    self.journal
                        .step(format!("{} is new", self.clients[i].address));
                }
                Wanted::Deaf => self.hear(i)?,
                Wanted::Here | Wanted::Silent | Wanted::Playing => {}
            }
        }
        Ok(())
    }

    pub(super) fn silence(&mut self) {
        let Some(i) = self.some(Wanted::Here).filter(|i| self.fleet.is_up(*i)) else {
            return;
        };
        self.journal
            .step(format!("{} falls silent", self.clients[i].address));
        self.clients[i].wanted = Wanted::Silent;
        self.fleet.silence(i, true);
    }

    pub(super) fn deafen(&mut self) -> Result<()> {
        let Some(i) = self.some(Wanted::Here).filter(|i| self.fleet.is_up(*i)) else {
            return Ok(());
        };
        self.journal
            .step(format!("{} reads no more", self.clients[i].address));
        self.clients[i].wanted = Wanted::Deaf;
        self.fleet.deafen(i, true)
    }

    pub(super) fn hear(&mut self, i: usize) -> Result<()> {
        self.journal
            .step(format!("{} reads again", self.clients[i].address));
        self.clients[i].wanted = Wanted::Here;
        self.fleet.deafen(i, false)
    }

    /// What is changed resets no session.
    pub(super) fn configure(&mut self) -> Result<()> {
        self.counts.changes += 1;
        self.version += 1;
        if self.random.percent(50) {
            let network = PREFIXES + self.random.below(NETWORKS);
            let word = match self.networks.remove(&network) {
                true => "no longer originates",
                false => {
                    self.networks.insert(network);
                    "originates"
                }
            };
            self.journal
                .step(format!("the reflector {word} {}", shown(network)));
            return configure(&self.objects, self.plan.hold, &self.networks, self.version);
        }
        let number = self.random.below(4);
        let name = format!("extra{number}");
        let path = self.objects.directory().join(format!("{name}.yaml"));
        if path.exists() {
            self.journal.step(format!("BGPPeer {name} goes"));
            return self.objects.remove(&name);
        }
        self.journal.step(format!("BGPPeer {name} comes"));
        // Nobody is there.
        let spec = json!({"address": format!("172.31.0.{}", number + 1), "asn": "internal", "passive": true,
            "description": format!("version {}", self.version)});
        self.objects
            .write(&name, &cluster::object("BGPPeer", &name, spec))
    }

    pub(super) fn add_bird(&mut self) -> Result<()> {
        self.bird_number += 1;
        let (lab, rack) = (self.lab.clone(), self.rack.clone());
        let name = format!("bird{}", self.bird_number);
        let (netns, link) = self.beside(move || {
            let netns = lab.netns(&name)?;
            let link = rack.join(&netns)?;
            Ok((netns, link))
        })?;
        let std::net::IpAddr::V4(address) = link.ipv4()? else {
            bail!("no IPv4 address")
        };
        let place = self.birds.len();
        let own = PREFIXES + NETWORKS + place * 4;
        let mut neighbour = Neighbour::new("172.30.0.1".parse()?, ASN);
        neighbour.ipv6 = false;
        let mut speaker = Speaker::new(ASN, address)
            .neighbour(neighbour)
            .without_kernel();
        // The time for which it asks the reflector to keep its routes.
        speaker.restart_time = 5;
        speaker = speaker.network(network(own)?);
        self.journal.step(format!("BIRD {address} comes"));
        let router = self.beside(move || Router::start(Kind::Bird, &netns, speaker))?;
        self.birds.push(Bird {
            router,
            _link: link,
            own: [own].into(),
        });
        Ok(())
    }

    pub(super) fn bird(&mut self) -> Result<()> {
        let place = self.random.below(self.birds.len());
        if place >= self.birds.len() {
            return Ok(());
        }
        match self.random.below(10) {
            0..3 => {
                // The last one goes, a new one with another address comes.
                let mut bird = self.birds.pop().context("no BIRD")?;
                self.journal.step(format!(
                    "BIRD {} is killed for good",
                    bird.router.speaker().router_id
                ));
                self.beside(move || bird.router.kill())?;
                self.counts.birds += 1;
                self.add_bird()
            }
            3..5 => {
                let router_id = self.birds[place].router.speaker().router_id;
                self.journal.step(format!("BIRD {router_id} restarts"));
                self.with_birds(|birds| {
                    birds[place].router.kill()?;
                    birds[place].router.restart()
                })
            }
            _ => {
                let p = PREFIXES + NETWORKS + place * 4 + 1 + self.random.below(3);
                let bird = &mut self.birds[place];
                let router_id = bird.router.speaker().router_id;
                let prefix = network(p)?;
                if bird.own.remove(&p) {
                    self.journal
                        .step(format!("BIRD {router_id} withdraws {prefix}"));
                    self.with_birds(|birds| birds[place].router.withdraw(prefix))
                } else {
                    bird.own.insert(p);
                    self.journal
                        .step(format!("BIRD {router_id} announces {prefix}"));
                    self.with_birds(|birds| birds[place].router.announce(prefix))
                }
            }
        }
    }

    /// Back to the state of the start: everybody is there, with a few prefixes each.
    pub(super) fn rest(&mut self) -> Result<()> {
        self.journal.step("everybody comes to rest");
        self.networks.clear();
        configure(
            &self.objects,
            self.plan.hold,
            &self.networks,
            self.version + 1,
        )?;
        for number in 0..4 {
            let name = format!("extra{number}");
            if self
                .objects
                .directory()
                .join(format!("{name}.yaml"))
                .exists()
            {
                self.objects.remove(&name)?;
            }
        }
        self.with_birds(|birds| {
            for (place, bird) in birds.iter_mut().enumerate() {
                let first = PREFIXES + NETWORKS + place * 4;
                for p in bird.own.split_off(&(first + 1)) {
                    bird.router.withdraw(network(p)?)?;
                }
            }
            Ok(())
        })?;
        for i in 0..self.clients.len() {
            if self.clients[i].wanted == Wanted::Deaf {
                self.hear(i)?;
            }
            if self.clients[i].wanted != Wanted::Here {
                self.fleet.close(i, Close::Fin);
                self.clients[i].held.fill(0);
                self.open(i)?;
            }
            let all: Vec<usize> = (0..PREFIXES)
                .filter(|p| self.clients[i].table[*p] != 0)
                .collect();
            self.tell(i, &all, 0);
            let few: Vec<usize> = (0..AT_REST).map(|k| (i * AT_REST + k) % PREFIXES).collect();
            self.tell(i, &few, 1_000 + i as u32);
        }
        Ok(())
    }
}
