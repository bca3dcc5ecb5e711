//! How much a pod may receive and send: token buckets on the node's side, out of the pod's reach.
//!
//! What goes to the pod waits at the node's end of its veth. What comes from it is sent by way of an `ifb` interface,
//! `si` and the hash of the veth's name, and waits there. Queues at the veth go with it; the `ifb` is in our link
//! group, and is removed by its name. Rates and bursts are bits, as everywhere in CNI; the kernel's are bytes.

use rustix::io::Errno;
use selvage_netlink::devconf;
use selvage_netlink::link::{self, Link};
use selvage_netlink::qdisc::{self, Tbf};
use selvage_netlink::{Batch, Error, Socket};
use serde::{Deserialize, Serialize};

use crate::fault;
use crate::link::Attachment;
use crate::spec::field::Field;
use crate::spec::{CniError, Code};
use crate::veth::{self, GROUP, kernel};

/// `runtimeConfig.bandwidth`, as it is kept in the attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// To the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Limit>,
    /// From the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Limit>,
}

/// A limit of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Bits a second.
    pub rate: u64,
    /// Bits that may be sent at once after a pause; none leaves it to us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// What runtimes send as a burst when nobody asked for one. Taken at its word, a pod's first 512 MB were not limited.
const NO_WISH: [u64; 2] = [(1 << 31) - 1, (1 << 32) - 1];

/// Without a wish, what the rate gives in a 20th of a second.
const BURST_PER_SECOND: u64 = 20;

/// And at least this many packets.
const BURST_PACKETS: u64 = 16;

/// A packet's link header.
const ETHERNET: u64 = 14;

/// Packets wait for at most a 40th of a second: 25 ms.
const LATENCY_PER_SECOND: u64 = 40;

impl Bandwidth {
    /// From `runtimeConfig.bandwidth`, or the members of the same names of the configuration itself. Nothing is limited
    /// where no rate is given.
    pub fn read(root: &Field<'_>) -> Result<Option<Self>, CniError> {
        let runtime = root
            .get("runtimeConfig")?
            .map(|runtime| runtime.get("bandwidth"))
            .transpose()?
            .flatten();
        let place = runtime.as_ref().unwrap_or(root);
        let read = Self {
            ingress: limit(place, "ingressRate", "ingressBurst")?,
            egress: limit(place, "egressRate", "egressBurst")?,
        };
        Ok(Some(read).filter(|b| b.ingress.or(b.egress).is_some()))
    }
}

/// As the reference plugin has it: rate and burst both, or neither.
fn limit(place: &Field<'_>, rate_key: &str, burst_key: &str) -> Result<Option<Limit>, CniError> {
    let number = |key: &str| {
        place
            .get_of_runtime(key)?
            .map(|field| field.u64())
            .transpose()
    };
    let (rate, burst) = (
        number(rate_key)?.unwrap_or(0),
        number(burst_key)?.unwrap_or(0),
    );
    match (rate, burst) {
        (0, 0) => Ok(None),
        (0, _) => Err(place.invalid(&format!("{burst_key} is given, but no {rate_key}"))),
        (_, 0) => Err(place.invalid(&format!("{rate_key} is given, but no {burst_key}"))),
        (1..8, _) => Err(place.invalid(&format!("{rate_key}: less than 8 bits a second"))),
        _ if burst / 8 >= 1 << 32 => Err(place.invalid(&format!("{burst_key}: at most 4 GiB"))),
        _ => Ok(Some(Limit {
            rate,
            burst: Some(burst).filter(|burst| !NO_WISH.contains(burst)),
        })),
    }
}

impl Limit {
    /// For an interface of this MTU. No burst is too small for a packet.
    fn tbf(&self, mtu: u32) -> Tbf {
        let rate = self.rate / 8;
        let packet = u64::from(mtu) + ETHERNET;
        let burst = match self.burst {
            Some(bits) => (bits / 8).max(packet),
            None => (rate / BURST_PER_SECOND).max(BURST_PACKETS * packet),
        };
        let limit = burst.saturating_add(rate / LATENCY_PER_SECOND);
        let bytes = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Tbf {
            rate,
            burst: bytes(burst),
            limit: bytes(limit),
        }
    }
}

/// The `ifb` interface that belongs to a host's end.
pub fn ifb_name(host_if: &str) -> String {
    format!("si{}", host_if.strip_prefix("sv").unwrap_or(host_if))
}

/// Limits a pod whose interface does not let packets pass yet. The `ifb` interface, if one was made.
pub fn begin(
    host: &mut Socket,
    host_if: &Link,
    bandwidth: &Bandwidth,
) -> Result<Option<Link>, CniError> {
    let index = host_if.index;
    if let Some(limit) = &bandwidth.ingress {
        let tbf = limit.tbf(host_if.mtu);
        let name = &host_if.name;
        apply(host, &format!("a queue at {name}"), "sch_tbf", |batch| {
            qdisc::add_tbf(batch, index, &tbf);
        })?;
        fault::point()?;
    }
    let Some(limit) = &bandwidth.egress else {
        return Ok(None);
    };
    let ifb = make_ifb(host, &ifb_name(&host_if.name), host_if.mtu)?;
    fault::point()?;
    let tbf = limit.tbf(host_if.mtu);
    apply(
        host,
        &format!("a queue at {}", ifb.name),
        "sch_tbf",
        |batch| {
            qdisc::add_tbf(batch, ifb.index, &tbf);
            link::set_up(batch, ifb.index, true);
        },
    )?;
    fault::point()?;
    let what = format!("a filter at {}", host_if.name);
    apply(
        host,
        &what,
        "sch_ingress, cls_u32 and act_mirred",
        |batch| {
            qdisc::add_ingress(batch, index);
            qdisc::add_redirect(batch, index, ifb.index);
        },
    )?;
    Ok(Some(ifb))
}

/// Makes it anew if there is one of that name: its pod is gone, or has never been.
fn make_ifb(host: &mut Socket, name: &str, mtu: u32) -> Result<Link, CniError> {
    let what = format!("the interface {name}");
    let make = |host: &mut Socket| host.apply(|batch| link::add_ifb(batch, name, mtu, GROUP));
    match make(host) {
        Err(e) if e.is(Errno::EXIST) => {
            veth::delete(host, &[name], None)?;
            make(host).map_err(|e| failed(&what, "ifb", &e))?;
        }
        made => made.map_err(|e| failed(&what, "ifb", &e))?,
    }
    let (ifb, settings) = devconf::get(host, name)
        .map_err(|e| kernel(&format!("{what} vanished while it was set up"), &e))?;
    // It has no addresses, and asks for none.
    if settings.ipv6.is_some() {
        host.apply(|batch| devconf::set(batch, ifb.index, &[], true))
            .map_err(|e| kernel(&format!("cannot set up {what}"), &e))?;
    }
    Ok(ifb)
}

/// Removes what does not go with the host's end. What is not there, or not ours, is no error.
pub fn end(host_if: &str) -> Result<(), CniError> {
    veth::delete(&mut veth::host_socket()?, &[&ifb_name(host_if)], None)
}

fn is_ours(link: &Link) -> bool {
    link.group == GROUP && link.kind == "ifb"
}

/// Removes each `ifb` interface of ours whose veth is gone. Only while no ADD runs.
pub fn sweep() -> Result<(), CniError> {
    let mut host = veth::host_socket()?;
    let links = link::list(&mut host).map_err(|e| kernel("cannot list interfaces", &e))?;
    let has_veth = |ifb: &Link| {
        links
            .iter()
            .any(|link| link.kind == "veth" && ifb_name(&link.name) == ifb.name)
    };
    let stale = links.iter().filter(|link| is_ours(link) && !has_veth(link));
    for ifb in stale {
        veth::delete(&mut host, &[&ifb.name], None)?;
    }
    Ok(())
}

/// The first thing that is not as the attachment says.
pub fn check(host: &mut Socket, attachment: &Attachment, host_if: &Link) -> Result<(), CniError> {
    let Some(bandwidth) = &attachment.bandwidth else {
        return Ok(());
    };
    let listed = qdisc::list(host).map_err(|e| kernel("cannot list queues", &e))?;
    let limited = |link: &Link, limit: &Limit| {
        let wanted = limit.tbf(host_if.mtu);
        let is = |tbf: &Tbf| (tbf.rate, tbf.limit) == (wanted.rate, wanted.limit);
        let found = listed.iter().any(|q| {
            (q.index, q.parent) == (link.index, qdisc::ROOT) && q.tbf.as_ref().is_some_and(is)
        });
        if found {
            return Ok(());
        }
        let (name, rate) = (&link.name, limit.rate);
        Err(differs(format!(
            "{name} is not limited to {rate} bits a second"
        )))
    };
    if let Some(limit) = &bandwidth.ingress {
        limited(host_if, limit)?;
    }
    if let Some(limit) = &bandwidth.egress {
        let name = ifb_name(&host_if.name);
        let ifb = veth::find(host, &name)?
            .filter(|ifb| is_ours(ifb) && ifb.is_up())
            .ok_or_else(|| {
                differs(format!(
                    "the interface {name} is missing on the host, or down"
                ))
            })?;
        limited(&ifb, limit)?;
        let to = qdisc::redirects(host, host_if.index)
            .map_err(|e| kernel(&format!("cannot list the filters of {}", host_if.name), &e))?;
        if !to.contains(&ifb.index) {
            let from = &host_if.name;
            return Err(differs(format!(
                "what comes in over {from} does not go by way of {name}"
            )));
        }
    }
    Ok(())
}

fn differs(what: String) -> CniError {
    CniError::new(Code::CheckFailed, what)
}

fn apply(
    host: &mut Socket,
    what: &str,
    modules: &str,
    build: impl FnOnce(&mut Batch),
) -> Result<(), CniError> {
    host.apply(build).map_err(|e| failed(what, modules, &e))
}

/// A kernel that was built without something says so by one of these numbers.
fn failed(what: &str, modules: &str, error: &Error) -> CniError {
    if error.is(Errno::NOENT) || error.is(Errno::OPNOTSUPP) {
        let message = format!(
            "cannot limit the bandwidth of the pod: the kernel does not have {modules}, which {what} needs"
        );
        return CniError::new(Code::Kernel, message).with_details(error.to_string());
    }
    kernel(
        &format!("cannot limit the bandwidth of the pod by {what}"),
        error,
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(conf: Value) -> Result<Option<Bandwidth>, CniError> {
        Bandwidth::read(&Field::root(&conf))
    }

    #[test]
    fn asked_for_at_run_time_or_in_the_configuration() {
        let limit = |rate, burst| Some(Limit { rate, burst });
        for (conf, expected) in [
            (json!({}), None),
            (
                json!({"runtimeConfig": {"bandwidth": {"ingressRate": 0, "ingressBurst": 0}}}),
                None,
            ),
            (
                json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1000, "ingressBurst": 80_000}}}),
                Some((limit(1000, Some(80_000)), None)),
            ),
            // As containerd writes it.
            (
                json!({"runtimeConfig": {"bandwidth": {"IngressRate": 100_000_000, "IngressBurst": u32::MAX,
                    "EgressRate": 100_000_000, "EgressBurst": u32::MAX}}}),
                Some((limit(100_000_000, None), limit(100_000_000, None))),
            ),
            (
                json!({"egressRate": 1000, "egressBurst": u32::MAX}),
                Some((None, limit(1000, None))),
            ),
            (
                json!({"egressRate": 1000, "egressBurst": 800,
                    "runtimeConfig": {"bandwidth": {"ingressRate": 9, "ingressBurst": i32::MAX}}}),
                Some((limit(9, None), None)),
            ),
            (
                json!({"ingressRate": 1e15 as u64, "ingressBurst": 1, "egressRate": 8, "egressBurst": 1}),
                Some((limit(1_000_000_000_000_000, Some(1)), limit(8, Some(1)))),
            ),
        ] {
            let expected = expected.map(|(ingress, egress)| Bandwidth { ingress, egress });
            assert_eq!(read(conf.clone()).unwrap(), expected, "{conf}");
        }
    }

    #[test]
    fn refusals_name_the_member() {
        for (bandwidth, part) in [
            (
                json!({"ingressRate": 1000}),
                "ingressRate is given, but no ingressBurst",
            ),
            (
                json!({"egressBurst": 1000}),
                "egressBurst is given, but no egressRate",
            ),
            (
                json!({"egressRate": 7, "egressBurst": 1}),
                "egressRate: less",
            ),
            (
                json!({"egressRate": 8, "egressBurst": 1_u64 << 35}),
                "egressBurst: at most",
            ),
            (json!({"egressRate": -8}), "bandwidth.egressRate"),
            (json!({"egressRate": "8"}), "bandwidth.egressRate"),
        ] {
            let error = read(json!({"runtimeConfig": {"bandwidth": bandwidth}})).unwrap_err();
            assert!(error.code == 7 && error.message.contains(part), "{error}");
            assert!(error.message.contains("runtimeConfig.bandwidth"), "{error}");
        }
    }

    #[test]
    fn buckets() {
        for (rate, burst, expected) in [
            // 1 Mbit/s: a burst of 16 packets.
            (1_000_000, None, (125_000, 24_224, 27_349)),
            // 1 Gbit/s: 50 ms of it.
            (1_000_000_000, None, (125_000_000, 6_250_000, 9_375_000)),
            (1_000_000, Some(800_000), (125_000, 100_000, 103_125)),
            // No packet fits into it.
            (1_000_000, Some(80), (125_000, 1514, 4639)),
            // More than the kernel has room for.
            (
                1_000_000_000_000_000,
                None,
                (125_000_000_000_000, u32::MAX, u32::MAX),
            ),
        ] {
            let tbf = Limit { rate, burst }.tbf(1500);
            assert_eq!(
                (tbf.rate, tbf.burst, tbf.limit),
                expected,
                "{rate} {burst:?}"
            );
        }
    }
}
