//! The lab itself: links carry packets, cuts differ, nothing outlives a lab.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use selvage_lab::network::add_route;
use selvage_lab::probe::flow::Flow;
use selvage_lab::probe::ping::ping;
use selvage_lab::probe::server::EchoServer;
use selvage_lab::probe::tcp::{self, Conversation};
use selvage_lab::probe::{Answer, udp};
use selvage_lab::{Cut, Lab, eventually, eventually_ok, programs};

use crate::harness::{Case, Need};

const SECOND: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(30);

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "lab::a_network_carries_packets_of_both_families",
            &[],
            carries,
        ),
        Case::new("lab::a_router_forwards", &[], forwards),
        Case::new("lab::a_cut_carrier_is_seen_and_a_drop_is_not", &[], cuts),
        Case::new("lab::a_flow_counts_exactly_what_was_lost", &[], counts),
        Case::new("lab::labs_of_one_name_do_not_share", &[], names),
        Case::new(
            "lab::kill_9_outside_leaves_nothing",
            &[Need::Own("selvage-lab")],
            |lab| killed(lab, End::Outside),
        ),
        Case::new(
            "lab::kill_9_inside_leaves_nothing",
            &[Need::Own("selvage-lab")],
            |lab| killed(lab, End::Inside),
        ),
        Case::new(
            "lab::ctrl_c_leaves_nothing",
            &[Need::Own("selvage-lab")],
            |lab| killed(lab, End::Interrupt),
        ),
    ]
}

fn prefixes(texts: &[&str]) -> Result<Vec<ipnet::IpNet>> {
    texts
        .iter()
        .map(|text| text.parse().with_context(|| (*text).to_owned()))
        .collect()
}

fn carries(lab: &Lab) -> Result<()> {
    let network = lab.network("lan", &prefixes(&["192.0.2.0/24", "2001:db8::/64"])?)?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    network.join(&a)?;
    let to = network.join(&b)?;
    let _server = EchoServer::start(&b, 7)?;
    for address in [to.ipv4()?, to.ipv6()?] {
        let (answer, _) = ping(&a, address, SECOND)?;
        ensure!(answer == Answer::Yes, "ping {address}: {answer:?}");
        let at = SocketAddr::new(address, 7);
        ensure!(udp::ask(&a, at, SECOND)? == Answer::Yes, "UDP to {at}");
        ensure!(
            Conversation::open(&a, at, SECOND)?.say(SECOND)? == Answer::Yes,
            "TCP to {at}"
        );
        let closed = tcp::connect(&a, SocketAddr::new(address, 9), SECOND)?;
        ensure!(closed == Answer::Refused, "a closed port: {closed:?}");
    }
    // Nobody has this address, and there is no way to that one.
    let nobody = tcp::connect(&a, "198.51.100.1:7".parse()?, SECOND)?;
    ensure!(nobody == Answer::Unreachable, "no route: {nobody:?}");
    Ok(())
}

fn forwards(lab: &Lab) -> Result<()> {
    let left = lab.network("left", &prefixes(&["192.0.2.0/25", "2001:db8:1::/64"])?)?;
    let right = lab.network("right", &prefixes(&["192.0.2.128/25", "2001:db8:2::/64"])?)?;
    let (router, a, b) = (lab.netns("router")?, lab.netns("a")?, lab.netns("b")?);
    router.forward()?;
    let (near, far) = (left.join(&router)?, right.join(&router)?);
    let (from, to) = (left.join(&a)?, right.join(&b)?);
    for default in ["0.0.0.0/0", "::/0"] {
        let v4 = default.contains('.');
        let pick = |link: &selvage_lab::Link| if v4 { link.ipv4() } else { link.ipv6() };
        add_route(&a, default.parse()?, pick(&near)?)?;
        add_route(&b, default.parse()?, pick(&far)?)?;
        let (answer, _) = ping(&a, pick(&to)?, SECOND)?;
        ensure!(answer == Answer::Yes, "{default} from a: {answer:?}");
        let (answer, _) = ping(&b, pick(&from)?, SECOND)?;
        ensure!(answer == Answer::Yes, "{default} from b: {answer:?}");
    }
    Ok(())
}

fn cuts(lab: &Lab) -> Result<()> {
    let network = lab.network("lan", &prefixes(&["192.0.2.0/24"])?)?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let from = network.join(&a)?;
    let to = network.join(&b)?;
    let reaches = || Ok::<_, anyhow::Error>(ping(&a, to.ipv4()?, Duration::from_millis(200))?.0);
    for (how, carrier) in [(Cut::Carrier, false), (Cut::Drop, true)] {
        ensure!(reaches()? == Answer::Yes, "before {how:?}");
        from.cut(how)?;
        eventually(SOON, "the carrier follows the cut", || {
            from.has_carrier().is_ok_and(|has| has == carrier)
        })?;
        ensure!(reaches()? != Answer::Yes, "{how:?} lets packets through");
        ensure!(
            to.has_carrier()?,
            "{how:?} takes the other member's carrier"
        );
        from.repair()?;
        eventually_ok(SOON, "packets pass after the repair", || match reaches()? {
            Answer::Yes => Ok(()),
            other => bail!("{other:?}"),
        })?;
    }
    Ok(())
}

fn counts(lab: &Lab) -> Result<()> {
    let network = lab.network("lan", &prefixes(&["192.0.2.0/24", "2001:db8::/64"])?)?;
    let (a, b) = (lab.netns("a")?, lab.netns("b")?);
    let from = network.join(&a)?;
    let to = network.join(&b)?;
    for (address, port) in [(to.ipv4()?, 5001), (to.ipv6()?, 5002)] {
        // Resolve the neighbour first: at most three packets wait for it.
        ensure!(ping(&a, address, SECOND)?.0 == Answer::Yes, "{address}");
        let flow = Flow::start(&a, &b, SocketAddr::new(address, port), 500)?;
        eventually(SOON, "some packets came", || flow.received() >= 20)?;
        let account = flow.stop(SOON)?;
        ensure!(
            account.lost == 0 && account.sent == account.received,
            "{account:?}"
        );

        let flow = Flow::start(&a, &b, SocketAddr::new(address, port), 500)?;
        eventually(SOON, "some packets came", || flow.received() >= 20)?;
        from.cut(Cut::Drop)?;
        let at_cut = flow.sent();
        eventually(SOON, "packets are lost", || flow.sent() >= at_cut + 50)?;
        from.repair()?;
        let so_far = flow.received();
        eventually(SOON, "packets come again", || {
            flow.received() >= so_far + 20
        })?;
        let account = flow.stop(SECOND)?;
        ensure!(account.lost >= 40 && account.received >= 40, "{account:?}");
        ensure!(
            account.sent == account.received + account.lost,
            "{account:?}"
        );
        ensure!(
            account.longest_gap >= Duration::from_millis(80),
            "{account:?}"
        );
    }
    Ok(())
}

fn names(lab: &Lab) -> Result<()> {
    ensure!(Lab::new(lab.name()).is_err(), "a name was given twice");
    ensure!(Lab::new("../x").is_err(), "a path is not a name");
    let _one = lab.netns("one")?;
    ensure!(lab.netns("one").is_err(), "a namespace was made twice");
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Outside,
    Inside,
    Interrupt,
}

/// A lab within this lab, with a program in it that would run for ever.
fn killed(lab: &Lab, end: End) -> Result<()> {
    let host = lab.netns("host")?;
    let marker = format!("{}.5", 800_000 + end as u32);
    let mut command = Command::new(programs::find("selvage-lab")?);
    command.args(["run", "--", "sleep", &marker]);
    let mut outer = lab.spawn(&host, "nested", command)?;
    outer.wait_for(SOON, "the program runs", || find_sleep(&marker).is_some())?;
    let sleep = find_sleep(&marker).context("it runs")?;
    let netns = fs::read_link(sleep.join("ns/net"))?;
    ensure!(
        netns != fs::read_link("/proc/self/ns/net")?,
        "the nested lab shares a network namespace"
    );
    match end {
        End::Outside => outer.kill()?,
        End::Inside => {
            let inner = parent_of(&sleep)?;
            kill_process(Pid::from_raw(inner).context("pid")?, Signal::KILL)?;
            let status = outer.wait_end(SOON)?;
            ensure!(status.code() == Some(137), "ended with {status}");
        }
        End::Interrupt => {
            outer.signal(Signal::INT)?;
            let status = outer.wait_end(SOON)?;
            ensure!(status.code() == Some(130), "ended with {status}");
            ensure!(
                find_sleep(&marker).is_none(),
                "it returned before everything was gone"
            );
        }
    }
    eventually(SOON, "the program is gone", || {
        find_sleep(&marker).is_none()
    })?;
    eventually(SOON, "nobody is in its namespace", || {
        processes()
            .all(|process| fs::read_link(process.join("ns/net")).is_ok_and(|other| other != netns))
    })?;
    Ok(())
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let number = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().iter().all(u8::is_ascii_digit));
        number && fs::read_link(path.join("exe")).is_ok()
    })
}

fn find_sleep(marker: &str) -> Option<PathBuf> {
    let wanted = format!("sleep\0{marker}\0");
    processes()
        .find(|path| fs::read(path.join("cmdline")).is_ok_and(|line| line == wanted.as_bytes()))
}

fn parent_of(process: &std::path::Path) -> Result<i32> {
    let status = fs::read_to_string(process.join("status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("PPid:"))
        .context("no PPid")?;
    Ok(line.trim().parse()?)
}
