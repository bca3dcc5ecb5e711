//! The reconcilers against the real kernel, each test in a network namespace of its own. Needs
//! root; the foreign hand is played by the programs `ip` and `nft`.

mod flows;
mod masquerade;
mod nft;
mod pod_routes;
mod rest;
mod routes;

use std::{
    os::fd::AsFd,
    process::Command,
    time::{Duration, Instant},
};

use selvage_netlink::netns;

/// Runs a test on a thread in a fresh namespace, loopback up.
fn in_netns(test: impl FnOnce() + Send) {
    let netns = netns::create_unnamed().expect("a network namespace: these tests need root");
    netns::within(netns.as_fd(), || {
        sh("ip link set lo up");
        test();
    })
    .expect("entering the namespace");
}

/// Runs a shell script in the calling thread's namespace and returns what it printed.
fn sh(script: &str) -> String {
    let output = Command::new("sh")
        .args(["-ec", script])
        .output()
        .expect("sh");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits for a condition; the machine may be slow, hence the generous end.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
