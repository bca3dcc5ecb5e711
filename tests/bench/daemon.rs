//! The daemon under test: started for a role, its use of the machine read afterwards.

use std::{
    fmt::{self, Write as _},
    fs,
    net::Ipv4Addr,
    os::unix::fs::chown,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use selvage_lab::{Lab, Netns, Process, daemon::Kind, programs, usage};
use selvage_netlink::{
    Prefix, Protocol, Socket,
    addr::{self, Address},
    link,
};

use crate::report::Figures;

/// Who is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Daemon {
    Selvage,
    Bird,
    Frr,
    Gobgp,
}

impl fmt::Display for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Daemon::Selvage => "Selvage",
            Daemon::Bird => "BIRD",
            Daemon::Frr => "FRR",
            Daemon::Gobgp => "GoBGP",
        })
    }
}

/// What it is to do. It is at 10.0.0.1, and everything in 10.0.0.0/8 is local.
#[derive(Clone, Copy)]
pub(crate) enum Role<'a> {
    /// Reflects among whoever comes from 10.0.0.0/8, in its own AS.
    Reflector,
    /// Passes routes from each neighbour (address, AS) to the others.
    Transit(&'a [(Ipv4Addr, u32)]),
    /// Learns from internal neighbours, and programs the kernel.
    Node(&'a [Ipv4Addr]),
}

/// Its own AS.
pub(crate) const ASN: u32 = 64512;
/// Its own address.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A namespace in which all of 10.0.0.0/8 is local.
pub(crate) fn netns(lab: &Lab, name: &str) -> Result<Netns> {
    let netns = lab.netns(name)?;
    netns.run(|| {
        let mut socket = Socket::open(Protocol::Route)?;
        let lo = link::get_by_name(&mut socket, "lo")?;
        socket.apply(|batch| {
            addr::add(
                batch,
                &Address::new(lo.index, Prefix::new(ADDRESS.into(), 8)),
            )
        })?;
        Ok(())
    })?;
    Ok(netns)
}

/// A running daemon.
pub(crate) struct Running {
    processes: Vec<Process>,
}

impl Daemon {
    pub(crate) fn start(self, netns: &Netns, name: &str, role: Role<'_>) -> Result<Running> {
        let directory = netns.lab().subdirectory(name)?;
        let mut processes = Vec::new();
        let mut spawn = |log: &str, command: Command| -> Result<()> {
            processes.push(
                netns
                    .lab()
                    .spawn(netns, &format!("{name}-{log}"), command)?,
            );
            Ok(())
        };
        match self {
            Daemon::Selvage => {
                fs::write(directory.join("objects.yaml"), selvage(role))?;
                let mut command = Command::new(programs::find("selvage")?);
                let features = if matches!(role, Role::Node(_)) {
                    "bgp,kernel"
                } else {
                    "bgp"
                };
                command.args(["agent", "--node", "bench", "--features", features]);
                command.arg("--objects").arg(directory.join("objects.yaml"));
                command.arg("--run-dir").arg(directory.join("run"));
                command.arg("--state-dir").arg(directory.join("state"));
                spawn("selvage", command)?;
            }
            Daemon::Bird => {
                fs::write(directory.join("bird.conf"), bird(role))?;
                let mut command = Command::new(Kind::Bird.program("bird")?);
                command.current_dir(&directory).args([
                    "-f",
                    "-c",
                    "bird.conf",
                    "-s",
                    "bird.ctl",
                    "-P",
                    "bird.pid",
                ]);
                spawn("bird", command)?;
            }
            Daemon::Frr => frr(&directory, role, &mut spawn)?,
            Daemon::Gobgp => {
                fs::write(directory.join("gobgpd.toml"), gobgp(role))?;
                let mut command = Command::new(Kind::Gobgp.program("gobgpd")?);
                command.current_dir(&directory).args([
                    "-f",
                    "gobgpd.toml",
                    "--api-hosts",
                    "127.0.0.1:50051",
                ]);
                spawn("gobgpd", command)?;
            }
        }
        let mut running = Running { processes };
        let first = running.processes.last_mut().context("no process")?;
        first.wait_for(Duration::from_secs(20), "it listens on port 179", || {
            netns
                .run(|| {
                    Ok(std::net::TcpStream::connect_timeout(
                        &(ADDRESS, 179).into(),
                        Duration::from_secs(1),
                    )?)
                })
                .is_ok()
        })?;
        Ok(running)
    }
}

impl Running {
    /// CPU seconds so far and peak memory in MiB, of all its processes.
    pub(crate) fn usage(&self) -> Result<Figures> {
        let (mut cpu, mut peak) = (0.0, 0.0);
        for process in &self.processes {
            let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid()))
                .with_context(|| format!("{} has died: {}", process.name(), process.tail()))?;
            let fields: Vec<&str> = stat
                .rsplit(") ")
                .next()
                .unwrap_or_default()
                .split(' ')
                .collect();
            let ticks = |i: usize| {
                fields
                    .get(i)
                    .and_then(|f| f.parse::<f64>().ok())
                    .unwrap_or(0.0)
            };
            cpu += (ticks(11) + ticks(12)) / 100.0;
            peak += usage::status(process.pid(), "VmHWM")? as f64 / 1024.0;
        }
        Ok(vec![("CPU s", cpu), ("peak MiB", peak)])
    }
}

fn selvage(role: Role<'_>) -> String {
    let reflector = match role {
        Role::Reflector => format!(", routeReflector: {{clusterId: {ADDRESS}}}"),
        _ => String::new(),
    };
    let mut t = format!(
        "apiVersion: selvage.io/v1alpha1\nkind: BGPConfiguration\nmetadata: {{name: default}}\nspec: {{asn: {ASN}, routerId: {ADDRESS}, nodeMesh: {{mode: \"off\"}}{reflector}}}\n"
    );
    let mut peer = |name: &str, spec: &str| {
        let _ = write!(
            t,
            "---\napiVersion: selvage.io/v1alpha1\nkind: BGPPeer\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n"
        );
    };
    match role {
        Role::Reflector => peer(
            "clients",
            "range: 10.0.0.0/8, asn: internal, routeReflectorClient: true",
        ),
        Role::Transit(neighbours) => {
            for (i, (address, asn)) in neighbours.iter().enumerate() {
                let filters = "import: [accept-all], export: [accept-all]";
                peer(
                    &format!("n{i}"),
                    &format!(
                        "address: {address}, asn: {asn}, passive: true, multihop: 5, {filters}"
                    ),
                );
            }
        }
        Role::Node(neighbours) => {
            for (i, address) in neighbours.iter().enumerate() {
                peer(
                    &format!("n{i}"),
                    &format!("address: {address}, asn: internal, passive: true"),
                );
            }
        }
    }
    t
}

fn bird(role: Role<'_>) -> String {
    let mut t = format!("router id {ADDRESS};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}");
    let common = "passive on; hold time 9; keepalive time 3; ipv4 { import all; export where source = RTS_BGP;";
    // Writing to a String cannot fail.
    let _ = match role {
        Role::Reflector => writeln!(
            t,
            "protocol bgp clients {{ local {ADDRESS} as {ASN}; neighbor range 10.0.0.0/8 internal; multihop; rr client; {common} }}; }}"
        ),
        Role::Transit(neighbours) => neighbours.iter().enumerate().try_for_each(|(i, (address, asn))| {
            writeln!(t, "protocol bgp n{i} {{ local {ADDRESS} as {ASN}; neighbor {address} as {asn}; multihop; {common} }}; }}")
        }),
        Role::Node(neighbours) => {
            let _ = writeln!(t, "protocol kernel {{ ipv4 {{ import none; export where source = RTS_BGP; }}; }}");
            neighbours.iter().enumerate().try_for_each(|(i, address)| {
                writeln!(t, "protocol bgp n{i} {{ local {ADDRESS} as {ASN}; neighbor {address} as {ASN}; multihop; {common} }}; }}")
            })
        }
    };
    t
}

fn frr(
    directory: &Path,
    role: Role<'_>,
    spawn: &mut impl FnMut(&str, Command) -> Result<()>,
) -> Result<()> {
    let kernel = matches!(role, Role::Node(_));
    let mut t = format!(
        "router bgp {ASN}\n bgp router-id {ADDRESS}\n no bgp ebgp-requires-policy\n no bgp network import-check\n timers bgp 3 9\n"
    );
    let mut neighbours = String::new();
    match role {
        Role::Reflector => {
            let _ = write!(
                t,
                " neighbor clients peer-group\n neighbor clients remote-as {ASN}\n neighbor clients passive\n bgp listen limit 5000\n bgp listen range 10.0.0.0/8 peer-group clients\n"
            );
            neighbours.push_str("  neighbor clients route-reflector-client\n");
        }
        Role::Transit(list) => list.iter().for_each(|(a, asn)| {
            let _ = write!(
                t,
                " neighbor {a} remote-as {asn}\n neighbor {a} passive\n neighbor {a} ebgp-multihop 5\n neighbor {a} disable-connected-check\n neighbor {a} advertisement-interval 0\n"
            );
        }),
        Role::Node(list) => list.iter().for_each(|a| {
            let _ = write!(t, " neighbor {a} remote-as {ASN}\n neighbor {a} passive\n");
        }),
    }
    let _ = write!(
        t,
        " address-family ipv4 unicast\n{neighbours} exit-address-family\n"
    );
    fs::write(directory.join("bgpd.conf"), t)?;
    fs::write(directory.join("zebra.conf"), "ip nht resolve-via-default\n")?;
    let passwd = fs::read_to_string("/etc/passwd")?;
    let ids = passwd
        .lines()
        .find_map(|l| l.strip_prefix("frr:"))
        .context("FRR is not installed")?;
    let id = |i: usize| ids.split(':').nth(i).and_then(|f| f.parse().ok());
    chown(directory, id(1), id(2))?;
    for name in ["zebra", "bgpd"] {
        if name == "zebra" && !kernel {
            continue;
        }
        let mut command = Command::new(Kind::Frr.program(name)?);
        command.current_dir(directory).args([
            "-f",
            &format!("{name}.conf"),
            "-i",
            &format!("{name}.pid"),
        ]);
        command
            .arg("-z")
            .arg(directory.join("zserv.api"))
            .arg("--vty_socket")
            .arg(directory);
        command.args(["-A", "127.0.0.1", "-P", "0", "--log", "stdout"]);
        if name == "bgpd" && !kernel {
            command.args(["--no_kernel", "--no_zebra"]);
        }
        spawn(name, command)?;
    }
    Ok(())
}

fn gobgp(role: Role<'_>) -> String {
    let mut t = format!("[global.config]\nas = {ASN}\nrouter-id = \"{ADDRESS}\"\n");
    match role {
        Role::Reflector => {
            let _ = write!(
                t,
                "[[peer-groups]]\n[peer-groups.config]\npeer-group-name = \"clients\"\npeer-as = {ASN}\n[peer-groups.route-reflector.config]\nroute-reflector-client = true\nroute-reflector-cluster-id = \"{ADDRESS}\"\n[[dynamic-neighbors]]\n[dynamic-neighbors.config]\nprefix = \"10.0.0.0/8\"\npeer-group = \"clients\"\n"
            );
        }
        Role::Transit(list) => list.iter().for_each(|(a, asn)| {
            let _ = write!(
                t,
                "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{a}\"\npeer-as = {asn}\n[neighbors.transport.config]\npassive-mode = true\n[neighbors.ebgp-multihop.config]\nenabled = true\nmultihop-ttl = 5\n"
            );
        }),
        Role::Node(list) => list.iter().for_each(|a| {
            let _ = write!(
                t,
                "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{a}\"\npeer-as = {ASN}\n[neighbors.transport.config]\npassive-mode = true\n"
            );
        }),
    }
    t
}
