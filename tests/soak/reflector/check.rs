//! What each speaker should hold, and who does not.

use std::fmt::Write as _;

use super::*;

impl World<'_> {
    /// LOCAL_PREF and owner of the best path to each prefix; an owner that is no light speaker has no number.
    pub(super) fn best(&self) -> Vec<(u32, Option<usize>)> {
        let mut best = vec![(0, None); ALL];
        for (i, client) in self.clients.iter().enumerate() {
            if client.wanted != Wanted::Away {
                for (p, preference) in client.table.iter().enumerate() {
                    if *preference > best[p].0 {
                        best[p] = (*preference, Some(i));
                    }
                }
            }
        }
        let of_birds = self.birds.iter().flat_map(|bird| &bird.own);
        for p in self.networks.iter().chain(of_birds) {
            best[*p] = (100, None);
        }
        best
    }

    /// Who does not hold what it should, for people; empty if nobody.
    pub(super) fn differences(&self) -> String {
        let best = self.best();
        let mut text = String::new();
        let mut number = 0;
        for (i, client) in self.clients.iter().enumerate() {
            if client.wanted != Wanted::Here {
                continue;
            }
            if !self.fleet.is_up(i) {
                let _ = writeln!(text, "{} is not up", client.address);
                continue;
            }
            for (p, (preference, owner)) in best.iter().enumerate() {
                let wanted = if *owner == Some(i) { 0 } else { *preference };
                if client.held[p] != wanted {
                    number += 1;
                    if number <= 20 {
                        let owner = owner.map(|o| self.clients[o].address.to_string());
                        let _ = writeln!(
                            text,
                            "{} holds {} with {}, wanted is {wanted} of {}",
                            client.address,
                            shown(p),
                            client.held[p],
                            owner.unwrap_or_else(|| "nobody among the speakers".into())
                        );
                    }
                }
            }
        }
        if number > 20 {
            let _ = writeln!(text, "and {} more", number - 20);
        }
        text
    }

    pub(super) fn birds_differ(&mut self) -> Result<String> {
        let best = self.best();
        let mut text = String::new();
        let tables = self.with_birds(|birds| {
            let tables = birds.iter().map(|bird| bird.router.routes());
            tables.collect::<Result<Vec<_>>>()
        })?;
        for (bird, routes) in self.birds.iter().zip(tables) {
            let mut held = vec![0; ALL];
            for route in routes.iter().filter(|route| route.next_hop.is_some()) {
                if let IpNet::V4(net) = route.prefix
                    && let Some(p) = index((net.network().into(), net.prefix_len()))
                {
                    held[p] = route.local_pref.unwrap_or(u32::MAX);
                }
            }
            for (p, (preference, _)) in best.iter().enumerate() {
                let wanted = if bird.own.contains(&p) {
                    0
                } else {
                    *preference
                };
                if held[p] != wanted && text.len() < 2_000 {
                    let _ = writeln!(
                        text,
                        "BIRD {} holds {} with {}, wanted is {wanted}",
                        bird.router.speaker().router_id,
                        shown(p),
                        held[p]
                    );
                }
            }
        }
        Ok(text)
    }

    /// Everybody holds what the model says, after a while.
    pub(super) fn check(&mut self) -> Result<()> {
        self.journal.step("a checkpoint");
        for i in 0..self.clients.len() {
            if self.clients[i].wanted == Wanted::Deaf {
                self.hear(i)?;
            }
        }
        let end = Instant::now() + SETTLE;
        loop {
            self.pump(Duration::from_millis(50), |_| false)?;
            let silent = self.clients.iter().any(|c| c.wanted == Wanted::Silent);
            let mut text = self.differences();
            if text.is_empty() && !silent && self.fleet.backlog() == 0 {
                text = self.birds_differ()?;
                if text.is_empty() {
                    break;
                }
            }
            if let Some(status) = self.agent.process().ended() {
                bail!(
                    "the reflector has ended: {status}\n{}",
                    self.agent.process().tail()
                );
            }
            if Instant::now() >= end {
                let said = self.agent.ask(&["peers"]).unwrap_or_default();
                let first = text.split_whitespace().nth(2).unwrap_or_default();
                let route = self.agent.ask(&["routes", first]).unwrap_or_default();
                bail!("not within {SETTLE:?}:\n{text}\n{route}\n{said}");
            }
        }
        self.counts.checks += 1;
        Ok(())
    }
}
