//! The words that Selvage speaks to the Linux kernel: netlink for links, addresses, routes,
//! nexthops, neighbours, queues, nf_tables and conntrack, and network namespaces.
//!
//! Everything is synchronous: the kernel answers a request before `sendmsg` returns, so nothing
//! here waits, except for [`Monitor`] and [`nft::Watch`], whose descriptor can be polled. Requests
//! are appended to a [`Batch`] (no allocation per message) and sent with one system call.
//!
//! ```no_run
//! use selvage_netlink::{Protocol, Socket, link};
//! # fn main() -> Result<(), selvage_netlink::Error> {
//! let mut socket = Socket::open(Protocol::Route)?;
//! for link in link::list(&mut socket)? {
//!     println!("{} {}", link.index, link.name);
//! }
//! socket.apply(|batch| link::set_up(batch, 1, true))?;
//! # Ok(())
//! # }
//! ```
//!
//! What arrives is decoded with bounds checks: no sequence of bytes makes a decoder panic.
//! Policy, BGP and async are not known here.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod addr;
pub mod attr;
pub mod batch;
pub mod conntrack;
mod decode;
pub mod deletion;
pub mod devconf;
pub mod error;
pub mod link;
pub mod monitor;
pub mod neigh;
pub mod netconf;
pub mod netns;
pub mod nexthop;
pub mod nft;
pub mod open;
pub mod prefix;
pub mod qdisc;
pub mod route;
pub mod socket;
mod sys;

pub use batch::Batch;
pub use decode::decode_any;
pub use deletion::delete_links;
pub use error::{Error, Failure, Refusal, Result};
pub use link::Mac;
pub use monitor::{Monitor, RouteEvent};
pub use open::{close_interface, open_interface};
pub use prefix::Prefix;
pub use socket::{Event, Message, Protocol, Report, Socket};
