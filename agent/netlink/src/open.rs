//! Opening a pod's interface on the host: the one step after which packets reach the pod.
//!
//! The host end of a veth is created down and stays down until the pod's policy is in the kernel.
//! *Open* is: up, then a route to each of the pod's addresses. In this order, because the kernel
//! refuses a route over a device that is down. Both directions can be repeated.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::batch::Batch;
use crate::error::Result;
use crate::link::{self, OperState};
use crate::prefix::Prefix;
use crate::route;
use crate::route::{Hop, Route, Target};
use crate::socket::{Report, Socket};

/// The maker of routes to local pods (`RTPROT_*`), no other program's number.
pub const PROTOCOL_POD: u8 = 86;

/// How long the kernel may take to note a carrier: it looks once a second.
pub const CARRIER_WAIT: Duration = Duration::from_secs(2);

/// Between the first two questions whether it has; doubled each time.
const CARRIER_PAUSE: Duration = Duration::from_micros(500);

/// Raises interface `index` and routes the pod's addresses over it (/32 and /128, table main,
/// [`PROTOCOL_POD`]). A route to one of them over another interface is moved here. Repeating it
/// changes nothing. The first refusal is the error: then close it again.
///
/// Both ends can send when this returns: until the kernel has taken note of a carrier, for up to a second, it discards
/// what is sent. Since Linux 6.8 to ask for a link makes it take note; before, the other end is asked until it has, at
/// most [`CARRIER_WAIT`].
pub fn open_interface(socket: &mut Socket, index: u32, addrs: &[IpAddr]) -> Result<()> {
    socket.apply(|batch| {
        link::set_up(batch, index, true);
        for &addr in addrs {
            route::replace(batch, &pod_route(index, addr));
        }
    })?;
    let host = link::get(socket, index)?;
    let Some(peer) = host.link else {
        return Ok(());
    };
    let begin = Instant::now();
    let mut pause = CARRIER_PAUSE;
    // Where the other end may not be asked for, its first packets are late.
    while let Ok(end) = match host.link_netns {
        Some(netns) => link::get_in(socket, netns, peer),
        None => link::get(socket, peer),
    } {
        if !end.is_up() || end.oper_state == OperState::Up || begin.elapsed() >= CARRIER_WAIT {
            break;
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
    Ok(())
}

/// Removes the routes of [`open_interface`] and lowers the interface. What is gone already, the
/// interface included, is no error.
pub fn close_interface(socket: &mut Socket, index: u32, addrs: &[IpAddr]) -> Result<()> {
    let mut report = socket.report(|batch| close(batch, index, addrs))?;
    let gone = [Errno::SRCH, Errno::NODEV].map(Errno::raw_os_error);
    report
        .failures
        .retain(|failure| !gone.contains(&failure.refusal.errno));
    report.into_result()
}

/// The route to a local pod's address.
pub fn pod_route(index: u32, addr: IpAddr) -> Route {
    let hop = Hop {
        oif: Some(index),
        weight: 1,
        ..Hop::default()
    };
    Route::new(Prefix::host(addr), Target::Hop(hop), PROTOCOL_POD)
}

fn close(batch: &mut Batch, index: u32, addrs: &[IpAddr]) {
    for &addr in addrs {
        route::delete(batch, &pod_route(index, addr));
    }
    link::set_up(batch, index, false);
}

/// The report of closing many interfaces in one batch; for draining a node.
pub fn close_interfaces(socket: &mut Socket, pods: &[(u32, Vec<IpAddr>)]) -> Result<Report> {
    socket.report(|batch| {
        pods.iter()
            .for_each(|(index, addrs)| close(batch, *index, addrs))
    })
}
