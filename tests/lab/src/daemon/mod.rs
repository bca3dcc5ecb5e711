//! Routing daemons of others as values: one description, each daemon's own configuration, one answer.
//!
//! A [`Speaker`] says what a router is to do. [`Router::start`] writes it in the daemon's own language, starts
//! the daemon in a namespace with a run directory of its own, and answers with [`Session`] and [`Route`]
//! whatever the daemon's command line looks like.

mod bird;
mod frr;
mod gobgp;
mod installed;

use std::env;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use ipnet::IpNet;

use crate::deadline::eventually_ok;
use crate::netns::Netns;
use crate::process::Process;

/// Which daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// BIRD 2 (Debian: bird2).
    Bird,
    /// FRR's zebra and bgpd (Debian: frr).
    Frr,
    /// GoBGP, which has no kernel routes of its own (Debian: gobgpd).
    Gobgp,
}

impl Kind {
    /// All of them.
    pub const ALL: [Kind; 3] = [Kind::Bird, Kind::Frr, Kind::Gobgp];

    /// The Debian package.
    #[must_use]
    pub fn package(self) -> &'static str {
        match self {
            Kind::Bird => "bird2",
            Kind::Frr => "frr",
            Kind::Gobgp => "gobgpd",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Bird => "BIRD",
            Kind::Frr => "FRR",
            Kind::Gobgp => "GoBGP",
        })
    }
}

/// A program of the system by name: in `PATH`, or in the places of daemons that an ordinary user's `PATH` lacks. A routing
/// daemon's own programs are found by [`Kind::program`], for some share their names.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let places = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(places)
        .map(|place| place.join(name))
        .find(|file| file.is_file())
}

/// A BGP speaker.
#[derive(Clone, Debug)]
pub struct Speaker {
    /// Its autonomous system.
    pub asn: u32,
    /// BGP identifier.
    pub router_id: Ipv4Addr,
    /// Where it listens.
    pub port: u16,
    /// Who it talks to.
    pub neighbours: Vec<Neighbour>,
    /// Prefixes it originates.
    pub networks: Vec<IpNet>,
    /// Own addresses, as next hop for the family that is not the session's.
    pub addresses: Vec<IpAddr>,
    /// Whether learned routes go to the kernel, so that it forwards.
    pub kernel: bool,
    /// Seconds a restarting neighbour's routes are kept.
    pub restart_time: u16,
    /// Seconds that routes are kept as a last resort after that (RFC 9494), where the daemon does not only help others
    /// with it.
    pub long_lived: Option<u32>,
    /// Short timers in place of the daemon's own. For daemons among themselves, whose connect timers are minutes; with
    /// our agent, which connects within a second, they keep their own.
    pub quick: bool,
}

impl Speaker {
    /// A speaker without neighbours on port 179 that forwards.
    #[must_use]
    pub fn new(asn: u32, router_id: Ipv4Addr) -> Speaker {
        Speaker {
            asn,
            router_id,
            port: 179,
            neighbours: Vec::new(),
            networks: Vec::new(),
            addresses: Vec::new(),
            kernel: true,
            restart_time: 120,
            long_lived: None,
            quick: false,
        }
    }

    /// Adds a neighbour.
    #[must_use]
    pub fn neighbour(mut self, neighbour: Neighbour) -> Speaker {
        self.neighbours.push(neighbour);
        self
    }

    /// Adds a prefix to originate.
    #[must_use]
    pub fn network(mut self, prefix: IpNet) -> Speaker {
        self.networks.push(prefix);
        self
    }

    /// Names an address of its own.
    #[must_use]
    pub fn address(mut self, address: IpAddr) -> Speaker {
        self.addresses.push(address);
        self
    }

    /// With short timers.
    #[must_use]
    pub fn quick(mut self) -> Speaker {
        self.quick = true;
        self
    }

    /// Learned routes stay out of the kernel.
    #[must_use]
    pub fn without_kernel(mut self) -> Speaker {
        self.kernel = false;
        self
    }

    fn own_v6(&self) -> Option<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv6)
    }

    fn own_v4(&self) -> Option<IpAddr> {
        self.addresses.iter().copied().find(IpAddr::is_ipv4)
    }
}

/// One neighbour of a speaker.
#[derive(Clone, Debug)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Its autonomous system.
    pub asn: u32,
    /// TCP-MD5 key.
    pub password: Option<String>,
    /// Routes are reflected to and from it (iBGP).
    pub reflector_client: bool,
    /// The speaker puts itself as next hop (iBGP; always so for eBGP).
    pub next_hop_self: bool,
    /// Waits for the neighbour to connect.
    pub passive: bool,
    /// It may be some hops away.
    pub multihop: bool,
    /// IPv4 unicast on the session.
    pub ipv4: bool,
    /// IPv6 unicast on the session.
    pub ipv6: bool,
}

impl Neighbour {
    /// A neighbour on the same link with both families and nothing special.
    #[must_use]
    pub fn new(address: IpAddr, asn: u32) -> Neighbour {
        Neighbour {
            address,
            port: 179,
            asn,
            password: None,
            reflector_client: false,
            next_hop_self: false,
            passive: false,
            multihop: false,
            ipv4: true,
            ipv6: true,
        }
    }

    /// With a TCP-MD5 key.
    #[must_use]
    pub fn password(mut self, key: &str) -> Neighbour {
        self.password = Some(key.to_owned());
        self
    }

    /// As a route reflector client.
    #[must_use]
    pub fn reflector_client(mut self) -> Neighbour {
        self.reflector_client = true;
        self
    }

    /// With the speaker as next hop.
    #[must_use]
    pub fn next_hop_self(mut self) -> Neighbour {
        self.next_hop_self = true;
        self
    }

    /// The neighbour connects.
    #[must_use]
    pub fn passive(mut self) -> Neighbour {
        self.passive = true;
        self
    }
}

/// A session as the daemon sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The neighbour.
    pub peer: IpAddr,
    /// Established.
    pub established: bool,
    /// The state and last error in the daemon's own words.
    pub state: String,
    /// Routes from before the neighbour's restart are kept, where the daemon says so here and not at the route.
    pub stale: bool,
}

/// A path in the daemon's table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Destination.
    pub prefix: IpNet,
    /// NEXT_HOP as received; none for its own.
    pub next_hop: Option<IpAddr>,
    /// AS_PATH, sets flattened.
    pub as_path: Vec<u32>,
    /// LOCAL_PREF where the daemon shows it.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC where the daemon shows it.
    pub med: Option<u32>,
    /// Chosen as best.
    pub best: bool,
    /// Kept from a neighbour that is restarting.
    pub stale: bool,
}

/// A running daemon.
#[derive(Debug)]
pub struct Router {
    kind: Kind,
    speaker: Speaker,
    netns: Netns,
    directory: PathBuf,
    processes: Vec<Process>,
}

impl Router {
    /// Starts a daemon in `netns`, waits until it answers its own command line.
    ///
    /// # Errors
    /// When it is not installed, or does not come up within ten seconds.
    pub fn start(kind: Kind, netns: &Netns, speaker: Speaker) -> Result<Router> {
        let directory =
            netns
                .lab()
                .subdirectory(&format!("{}-{}", netns.name(), kind.package()))?;
        let mut router = Router {
            kind,
            speaker,
            netns: netns.clone(),
            directory,
            processes: Vec::new(),
        };
        router.launch(false)?;
        Ok(router)
    }

    fn launch(&mut self, restarting: bool) -> Result<()> {
        match self.kind {
            Kind::Bird => bird::start(self, restarting),
            Kind::Frr => frr::start(self),
            Kind::Gobgp => gobgp::start(self, restarting),
        }
    }

    /// Kills its processes, the one that speaks BGP first.
    ///
    /// # Errors
    /// When one had ended by itself.
    pub fn kill(&mut self) -> Result<()> {
        self.processes.iter_mut().rev().try_for_each(Process::kill)
    }

    /// Starts it once more, as one that restarts gracefully (RFC 4724), with what it originates by now.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self) -> Result<()> {
        self.processes.clear();
        self.launch(true)
    }

    /// Which daemon it is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What it was told, changes included.
    #[must_use]
    pub fn speaker(&self) -> &Speaker {
        &self.speaker
    }

    /// Where it runs.
    #[must_use]
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its run directory: configuration, sockets, logs.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Its processes; the one that speaks BGP is the last.
    pub fn processes(&mut self) -> &mut [Process] {
        &mut self.processes
    }

    /// The sessions.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn sessions(&self) -> Result<Vec<Session>> {
        match self.kind {
            Kind::Bird => bird::sessions(self),
            Kind::Frr => frr::sessions(self),
            Kind::Gobgp => gobgp::sessions(self),
        }
    }

    /// All paths of both families, its own included, sorted.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn routes(&self) -> Result<Vec<Route>> {
        let mut routes = match self.kind {
            Kind::Bird => bird::routes(self),
            Kind::Frr => frr::routes(self),
            Kind::Gobgp => gobgp::routes(self),
        }?;
        routes.sort();
        Ok(routes)
    }

    /// The paths that are kept as a last resort: they carry the community LLGR_STALE (RFC 9494).
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn last_resorts(&self) -> Result<Vec<Route>> {
        match self.kind {
            Kind::Bird => bird::last_resorts(self),
            Kind::Frr => frr::last_resorts(self),
            Kind::Gobgp => gobgp::last_resorts(self),
        }
    }

    /// The best path to exactly `prefix`.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn route(&self, prefix: IpNet) -> Result<Option<Route>> {
        Ok(self
            .routes()?
            .into_iter()
            .find(|route| route.best && route.prefix == prefix))
    }

    /// Originates one more prefix.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn announce(&mut self, prefix: IpNet) -> Result<()> {
        self.speaker.networks.push(prefix);
        match self.kind {
            Kind::Bird => bird::reconfigure(self),
            Kind::Frr => frr::announce(self, prefix),
            Kind::Gobgp => gobgp::announce(self, prefix),
        }
    }

    /// Withdraws a prefix of its own.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn withdraw(&mut self, prefix: IpNet) -> Result<()> {
        self.speaker.networks.retain(|network| *network != prefix);
        match self.kind {
            Kind::Bird => bird::reconfigure(self),
            Kind::Frr => frr::withdraw(self, prefix),
            Kind::Gobgp => gobgp::withdraw(self, prefix),
        }
    }

    /// Changes who it talks to; sessions with those that keep their place in the list stay up.
    ///
    /// # Errors
    /// When the daemon refuses, or is one that this is not written for.
    pub fn set_neighbours(&mut self, neighbours: Vec<Neighbour>) -> Result<()> {
        self.speaker.neighbours = neighbours;
        match self.kind {
            Kind::Bird => bird::reconfigure(self),
            kind => bail!("{kind} cannot be given other neighbours"),
        }
    }

    /// Waits until the session with `peer` is established.
    ///
    /// # Errors
    /// With the daemon's own words for the state when it is not within `limit`.
    pub fn wait_established(&self, peer: IpAddr, limit: Duration) -> Result<()> {
        let what = format!(
            "{} on {} has a session with {peer}",
            self.kind,
            self.netns.name()
        );
        eventually_ok(limit, &what, || {
            let sessions = self.sessions()?;
            match sessions.iter().find(|session| session.peer == peer) {
                Some(session) if session.established => Ok(()),
                Some(session) => bail!("the session is {}", session.state),
                None => bail!("no such session among {sessions:?}"),
            }
        })
    }

    /// Waits until the best path to `prefix` is there and returns it.
    ///
    /// # Errors
    /// When it is not within `limit`; the message lists what is there.
    pub fn wait_route(&self, prefix: IpNet, limit: Duration) -> Result<Route> {
        let what = format!(
            "{} on {} has a route to {prefix}",
            self.kind,
            self.netns.name()
        );
        eventually_ok(limit, &what, || match self.route(prefix)? {
            Some(route) => Ok(route),
            None => bail!("routes: {:?}", self.prefixes()?),
        })
    }

    /// Waits until no path to `prefix` is left.
    ///
    /// # Errors
    /// When one is still there after `limit`.
    pub fn wait_no_route(&self, prefix: IpNet, limit: Duration) -> Result<()> {
        let what = format!(
            "{} on {} has no route to {prefix}",
            self.kind,
            self.netns.name()
        );
        eventually_ok(limit, &what, || {
            match self
                .routes()?
                .into_iter()
                .find(|route| route.prefix == prefix)
            {
                Some(route) => bail!("{route:?}"),
                None => Ok(()),
            }
        })
    }

    fn prefixes(&self) -> Result<Vec<String>> {
        Ok(self
            .routes()?
            .iter()
            .map(|route| route.prefix.to_string())
            .collect())
    }
}

/// The community 65535:6 (RFC 9494).
const LLGR_STALE: u32 = 0xffff_0006;

/// How long a daemon may take to answer its own command line.
const START: Duration = Duration::from_secs(60);
