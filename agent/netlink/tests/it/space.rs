//! A namespace for one test.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::RwLock;

use selvage_netlink::{Protocol, Socket, link, netns};

/// Read by whoever has a child process; written by tests that must be alone with theirs: one kills whatever child there
/// is, and a child that is only just there holds a copy of each descriptor of the process.
pub static PROGRAMS: RwLock<()> = RwLock::new(());

/// A namespace that lives as long as this value.
pub struct Space {
    pub netns: OwnedFd,
}

impl Space {
    pub fn new() -> Self {
        Self {
            netns: netns::create_unnamed().expect("root is needed to make a namespace"),
        }
    }

    pub fn route(&self) -> Socket {
        Socket::open_in(self.netns.as_fd(), Protocol::Route).unwrap()
    }

    /// Makes a veth pair with the peer in `other`; returns the indices here and there.
    pub fn veth(&self, name: &str, other: &Space, peer: &str) -> (u32, u32) {
        let mut socket = self.route();
        let host = link::VethEnd {
            name,
            ..Default::default()
        };
        let far = link::VethEnd {
            name: peer,
            netns: Some(other.netns.as_fd()),
            ..Default::default()
        };
        socket
            .apply(|batch| link::add_veth(batch, &host, &far))
            .unwrap();
        let here = link::get_by_name(&mut socket, name).unwrap().index;
        let there = link::get_by_name(&mut other.route(), peer).unwrap().index;
        (here, there)
    }
}
