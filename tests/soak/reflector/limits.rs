//! Time limits of the reflector: each has a player whose session, routes or pause only this limit ends.

use super::*;

/// Prefixes of a player.
const OWN: usize = 12;
/// How many prefixes a speaker from [`STRICT`] may announce.
pub(super) const MOST: usize = 40;
/// From here on speakers have a limit on their prefixes.
pub(super) const STRICT: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 2);
/// Who makes faults: a neighbour with a BGPPeer of its own, for nothing is remembered of one from a range when its pause is over.
pub(super) const FAULTY: Ipv4Addr = Ipv4Addr::new(10, 251, 0, 2);
/// The settings of the reflector, and how far its other limits are divided.
pub(super) const STALE_PATH: &str = "6s";
pub(super) const RETRY_AFTER: &str = "5s";
pub(super) const LONG_LIVED: u32 = 4;
pub(super) const RESTART: &str = "5s";
pub(super) const DIVISOR: &str = "10";
/// Faults in a row: as many as make the longest pause.
const FAULTS: u32 = 7;
/// Changes between two looks at the players.
const TALK: usize = 8;
/// How long all players may take on a loaded machine.
const PLAY: Duration = Duration::from_secs(240);

/// What somebody does to meet a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// Speaks, but reads nothing: the send hold time.
    Deaf,
    /// Its connection breaks, it is back at once, announces half of what it had, and never says End-of-RIB: the stale path time.
    Endless {
        /// It is back.
        back: bool,
    },
    /// Its connection breaks, and it stays away: the restart time, then the long-lived stale time.
    LongLived,
    /// Announces more than it may: the pause after that.
    TooMuch {
        /// It was told so, and announces less.
        told: bool,
    },
    /// Sends so many times what is no message: pauses that double.
    Faulty(u32),
    /// Connects and says nothing: how long a connection may take.
    Mute,
}

impl World<'_> {
    /// Three go for good and players come in the place of others. When all of them are through and the time for which an agent
    /// may remember somebody is over, everybody holds what the model says; then newcomers take all these places.
    pub(super) fn limits(&mut self) -> Result<()> {
        // Those who stay away are needed: somebody has to talk to the deaf one.
        self.come_back()?;
        self.check()?;
        let over = Instant::now() + self.plan.linger;
        let mut places = Vec::new();
        for _ in 0..3 {
            places.extend(self.leave("goes for good"));
        }
        let parts = [
            Part::Deaf,
            Part::Endless { back: false },
            Part::LongLived,
            Part::TooMuch { told: false },
            Part::Faulty(FAULTS),
            Part::Mute,
        ];
        for part in parts {
            if let Some(i) = self.leave("makes room") {
                self.play(i, part)?;
                places.push(i);
            }
        }
        let end = Instant::now() + PLAY;
        while self.players() > 0 || Instant::now() < over {
            ensure!(
                Instant::now() < end,
                "time limits are not kept: {:?}",
                self.clients
                    .iter()
                    .filter(|c| c.wanted == Wanted::Playing)
                    .map(|c| (c.address, c.part))
                    .collect::<Vec<_>>()
            );
            // What the deaf one does not read. Many small changes: those of one prefix would be told once.
            for _ in 0..TALK {
                self.talk();
            }
            self.pump(Duration::from_millis(100), |_| false)?;
            self.moves()?;
            self.tell_of_it()?;
        }
        // Stale routes of those who are away or have announced less are gone, too.
        self.check()?;
        for i in places {
            if self.clients[i].wanted != Wanted::Away {
                // It keeps nothing after this.
                self.fleet.close(i, Close::Cease);
                self.counts.ends += 1;
            }
            self.replace(i)?;
            self.journal
                .step(format!("{} is new", self.clients[i].address));
        }
        self.counts.limits += 1;
        self.check()
    }

    /// Somebody announces a few prefixes.
    fn talk(&mut self) {
        let Some(i) = self.some(Wanted::Here) else {
            return;
        };
        let preference = self.preference(i);
        let prefixes: Vec<usize> = (0..40).map(|_| self.random.below(PREFIXES)).collect();
        self.tell(i, &prefixes, preference);
    }

    /// Somebody who is there goes away.
    fn leave(&mut self, word: &str) -> Option<usize> {
        let i = self.some(Wanted::Here)?;
        self.journal
            .step(format!("{} {word}", self.clients[i].address));
        self.fleet.close(i, Close::Fin);
        self.counts.ends += 1;
        self.clients[i].wanted = Wanted::Away;
        self.clients[i].held.fill(0);
        Some(i)
    }

    fn players(&self) -> usize {
        let playing = |client: &&Client| client.wanted == Wanted::Playing;
        self.clients.iter().filter(playing).count()
    }

    fn play(&mut self, i: usize, part: Part) -> Result<()> {
        let mut client = self.newcomer();
        client.table.fill(0);
        client.part = Some(part);
        (client.restart, client.long_lived) = match part {
            // Its routes are kept until it is back, and not because it may be away for so long.
            Part::Endless { .. } => (Some(600), None),
            Part::LongLived => (Some(1), Some(LONG_LIVED)),
            _ => (None, None),
        };
        let number = match part {
            Part::TooMuch { .. } => MOST + 20,
            _ => OWN,
        };
        let first = match part {
            Part::Endless { .. } => 100,
            Part::LongLived => 200,
            Part::TooMuch { .. } => 300,
            _ => 0,
        };
        match part {
            Part::TooMuch { .. } => {
                client.address = Ipv4Addr::from(self.next_strict);
                self.next_strict += 1;
            }
            Part::Faulty(_) => client.address = FAULTY,
            _ => {}
        }
        if !matches!(part, Part::Faulty(_) | Part::Mute) {
            for k in 0..number {
                client.table[(first + k) % PREFIXES] = 900_000 + i as u32;
            }
        }
        self.journal.step(format!("{} is {part:?}", client.address));
        self.counts.replaced += 1;
        self.clients[i] = client;
        let spec = Spec {
            narrow: part == Part::Deaf,
            mute: part == Part::Mute,
            ..self.clients[i].spec()
        };
        self.fleet.replace(i, spec);
        self.open(i)?;
        self.clients[i].wanted = Wanted::Playing;
        Ok(())
    }

    /// Whether everybody who is there holds the first route of a player.
    fn is_heard(&self, i: usize) -> bool {
        let own = self.clients[i].table.iter().position(|p| *p != 0);
        let Some(p) = own else { return false };
        let mut others = self.clients.iter().enumerate();
        self.fleet.is_up(i)
            && others.all(|(k, other)| {
                other.wanted != Wanted::Here
                    || !self.fleet.is_up(k)
                    || other.held[p] == self.clients[i].table[p]
            })
    }

    /// Players that wait for something to go on.
    fn moves(&mut self) -> Result<()> {
        for i in 0..self.clients.len() {
            if self.clients[i].wanted != Wanted::Playing || !self.is_heard(i) {
                continue;
            }
            match self.clients[i].part {
                Some(Part::Deaf) if !self.clients[i].deaf => {
                    self.journal
                        .step(format!("{} reads no more", self.clients[i].address));
                    self.clients[i].deaf = true;
                    self.fleet.deafen(i, true)?;
                }
                Some(Part::Endless { back: false }) => {
                    self.journal.step(format!(
                        "{} breaks off and comes back with half",
                        self.clients[i].address
                    ));
                    let client = &mut self.clients[i];
                    client.part = Some(Part::Endless { back: true });
                    let own = client.table.iter_mut().filter(|p| **p != 0);
                    own.take(OWN / 2).for_each(|p| *p = 0);
                    client.held.fill(0);
                    self.counts.ends += 1;
                    self.fleet.close(i, Close::Reset);
                    self.fleet.open(i)?;
                }
                Some(Part::Endless { back: true }) => self.clients[i].wanted = Wanted::Here,
                Some(Part::LongLived) => {
                    self.journal
                        .step(format!("{} breaks off", self.clients[i].address));
                    self.counts.ends += 1;
                    self.fleet.close(i, Close::Reset);
                    self.clients[i].held.fill(0);
                    self.clients[i].wanted = Wanted::Away;
                }
                Some(Part::TooMuch { told: true }) => self.clients[i].wanted = Wanted::Here,
                _ => {}
            }
        }
        Ok(())
    }

    /// A player's session is up. True if it says what its table says.
    pub(super) fn player_is_up(&mut self, i: usize) -> bool {
        let Some(Part::Faulty(left)) = self.clients[i].part else {
            return true;
        };
        if self.clients[i].wanted != Wanted::Playing {
            return true;
        }
        match left.checked_sub(1) {
            Some(left) => {
                self.clients[i].part = Some(Part::Faulty(left));
                self.fleet.send(i, &[Bytes::from_static(&[0; 19])]);
                false
            }
            None => {
                self.clients[i].wanted = Wanted::Here;
                true
            }
        }
    }

    /// The reflector has ended the session of a player, or an attempt. True if it is to try again.
    pub(super) fn player_is_lost(
        &mut self,
        i: usize,
        established: bool,
        why: Option<(u8, u8)>,
    ) -> Result<bool> {
        let client = &mut self.clients[i];
        let part = client.part;
        let word = format!("{} ({part:?}): up {established}, {why:?}", client.address);
        if established || part == Some(Part::Mute) {
            self.journal.step(word.clone());
        }
        let client = &mut self.clients[i];
        self.counts.ends += u64::from(established);
        match (part, established, why) {
            (Some(Part::Deaf), true, _) if client.deaf => client.wanted = Wanted::Away,
            // Connection not synchronised.
            (Some(Part::Faulty(_)), true, Some((1, 1))) => return Ok(true),
            // Too many prefixes, by a session that keeps no routes.
            (Some(Part::TooMuch { told: false }), true, Some((6, 1))) => {
                client.part = Some(Part::TooMuch { told: true });
                let own = client.table.iter_mut().filter(|p| **p != 0);
                own.skip(OWN).for_each(|p| *p = 0);
                return Ok(true);
            }
            (Some(Part::Mute), false, Some(_)) => client.wanted = Wanted::Away,
            (_, false, _) => return Ok(true),
            _ => bail!("the reflector ended this session for another reason: {word}"),
        }
        Ok(false)
    }

    /// The reflector ends and starts again; everybody comes back.
    pub(super) fn restart_reflector(&mut self, kill: bool) -> Result<()> {
        self.journal.step(match kill {
            true => "kill -9 on the reflector",
            false => "SIGTERM on the reflector",
        });
        match kill {
            true => self.agent.process().kill()?,
            false => drop(self.agent.process().stop(SETTLE)?),
        }
        for i in 0..self.clients.len() {
            self.fleet.close(i, Close::Fin);
            self.clients[i].held.fill(0);
            self.counts.ends += 1;
        }
        self.agent.restart()?;
        for i in 0..self.clients.len() {
            self.open(i)?;
        }
        let all = self.clients.len() + self.birds.len();
        let end = Instant::now() + SETTLE;
        loop {
            self.pump(Duration::from_millis(200), |_| false)?;
            // It does not answer before it has started.
            let peers = self.agent.peers().unwrap_or_default();
            let up = peers.iter().filter(|p| p.state == "Established").count();
            if up == all {
                return self.check();
            }
            ensure!(
                Instant::now() < end,
                "{up} of {all} sessions are up again: {peers:?}"
            );
        }
    }
}
