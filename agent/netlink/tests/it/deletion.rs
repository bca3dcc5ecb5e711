//! Links that a child process deletes.

use std::fs;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use selvage_netlink::{delete_links, link, netns};

use crate::space::{PROGRAMS, Space};

impl Space {
    fn names(&self) -> Vec<String> {
        let links = link::list(&mut self.route()).unwrap();
        links.into_iter().map(|link| link.name).collect()
    }

    fn delete(&self, indexes: &[u32]) -> selvage_netlink::Result<()> {
        netns::within(std::os::fd::AsFd::as_fd(&self.netns), || {
            delete_links(indexes, None)
        })
        .unwrap()
    }
}

#[test]
fn both_ends_of_all_are_gone_when_the_call_returns() {
    let _program = PROGRAMS.read();
    let (host, pod) = (Space::new(), Space::new());
    for round in 0..10 {
        let (a, _) = host.veth("a", &pod, "eth0");
        let (b, _) = host.veth("b", &pod, "eth1");
        let mut socket = host.route();
        socket
            .apply(|batch| link::add_ifb(batch, "ifb", 1500, 1))
            .unwrap();
        let ifb = link::get_by_name(&mut socket, "ifb").unwrap().index;
        // The last one is not there.
        host.delete(&[a, b, ifb, 4_000_000]).unwrap();
        assert_eq!(host.names(), ["lo"], "round {round}");
        assert_eq!(pod.names(), ["lo"], "round {round}");
    }
}

#[test]
fn a_refusal_is_told() {
    let _program = PROGRAMS.read();
    let space = Space::new();
    let error = space.delete(&[1]).unwrap_err();
    assert!(error.is(Errno::OPNOTSUPP), "{error}");
    assert_eq!(space.names(), ["lo"]);
}

/// Whoever waits for the end of a program's output waits until all copies of the descriptor are closed.
#[test]
fn the_child_holds_no_descriptor_of_the_caller() {
    let _no_programs = PROGRAMS.write();
    let (host, pod) = (Space::new(), Space::new());
    for _ in 0..10 {
        let (index, _) = host.veth("a", &pod, "eth0");
        let (mut reader, writer) = io::pipe().unwrap();
        host.delete(&[index]).unwrap();
        drop(writer);
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let read = reader.read(&mut [0]);
        assert!(matches!(read, Ok(0)), "somebody holds the pipe: {read:?}");
    }
}

/// Before it has sent the message, or in the middle of it: the links are gone when the call returns.
#[test]
fn whoever_kills_the_child_changes_nothing() {
    let _no_programs = PROGRAMS.write();
    let (host, pod) = (Space::new(), Space::new());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for child in children() {
                    let _ = kill_process(child, Signal::KILL);
                }
            }
        });
        for round in 0..40 {
            let (a, _) = host.veth("a", &pod, "eth0");
            let (b, _) = host.veth("b", &pod, "eth1");
            host.delete(&[a, b]).unwrap();
            assert_eq!(host.names(), ["lo"], "round {round}");
            assert_eq!(pod.names(), ["lo"], "round {round}");
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// The children of this process: those of the caller, while it writes [`PROGRAMS`].
fn children() -> Vec<Pid> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let listed = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let pids = listed.split_whitespace().filter_map(|pid| pid.parse().ok());
        found.extend(pids.filter_map(Pid::from_raw));
    }
    found
}
