//! The lab's own control plane: who is let in, what goes wrong in front of it.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use selvage_lab::kubernetes::{ControlPlane, Settings, User};
use selvage_lab::{Lab, Netns, Network, eventually, eventually_ok};

use super::CONTROL_PLANE;
use crate::harness::Case;
use crate::scene::SOON;

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "kubernetes::an_api_server_of_its_own",
            CONTROL_PLANE,
            api_server,
        ),
        Case::new(
            "kubernetes::what_goes_wrong_before_an_api_server",
            CONTROL_PLANE,
            proxy,
        ),
    ]
}

/// An API server and somebody on the same network.
struct Scene {
    control: ControlPlane,
    outside: Netns,
    _rack: Network,
}

fn start(lab: &Lab) -> Result<Scene> {
    let rack = lab.network("rack", &["192.0.2.0/24".parse()?, "2001:db8::/64".parse()?])?;
    let (netns, outside) = (lab.netns("control")?, lab.netns("outside")?);
    let link = rack.join(&netns)?;
    rack.join(&outside)?;
    Ok(Scene {
        control: ControlPlane::start(&netns, link.addresses(), &Settings::default())?,
        outside,
        _rack: rack,
    })
}

fn api_server(lab: &Lab) -> Result<()> {
    let Scene {
        mut control,
        outside,
        _rack,
    } = start(lab)?;
    let admin = control.kubectl_in(&outside, &User::admin())?;
    eventually_ok(SOON, "there is a namespace to make it in", || {
        admin.apply(
            "{apiVersion: v1, kind: ServiceAccount, metadata: {name: reader, namespace: default}}",
        )
    })?;
    let account = control.service_account_kubeconfig("default", "reader")?;
    let account = account.to_str().context("a path that is not UTF-8")?;
    let who = admin.json(&["--kubeconfig", account, "auth", "whoami"])?;
    ensure!(
        who["status"]["userInfo"]["username"] == "system:serviceaccount:default:reader",
        "{who}"
    );

    let stranger = control.kubectl_in(&outside, &User::new("stranger", &[]))?;
    let refused = stranger.run(&["get", "pods"]);
    let refused = refused.err().context("a stranger sees pods")?.to_string();
    ensure!(refused.contains("Forbidden"), "{refused}");

    control.stop_apiserver()?;
    let away = admin.run(&["get", "serviceaccounts"]);
    let away = away.err().context("who answers?")?.to_string();
    ensure!(away.contains("refused"), "{away}");
    control.start_apiserver()?;
    let kept = admin.run(&["get", "serviceaccounts", "-o", "name"])?;
    ensure!(kept.contains("serviceaccount/reader"), "{kept}");
    Ok(())
}

fn proxy(lab: &Lab) -> Result<()> {
    let Scene {
        control,
        outside,
        _rack,
    } = start(lab)?;
    let admin = control.kubectl_in(&outside, &User::admin())?;
    let proxy = control.proxy();

    let watch = ["get", "namespaces", "--watch", "-o", "name"];
    let mut watching = lab.spawn(&outside, "watch", admin.command(&watch))?;
    watching.wait_line("namespace/default", SOON)?;
    proxy.pause();
    let short = ["--request-timeout=1s", "get", "namespaces"];
    let stalled = admin.run(&short);
    ensure!(stalled.is_err(), "{stalled:?}");
    control
        .kubectl()
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")?;
    ensure!(!watching.output().contains("shop"), "{}", watching.output());
    proxy.resume();
    watching.wait_line("namespace/shop", SOON)?;
    proxy.cut();
    watching.wait_end(SOON)?;

    let server = *control.servers().first().context("no address")?;
    let mut silent = outside.run(|| Ok(TcpStream::connect(server)?))?;
    eventually(SOON, "the proxy has it", || proxy.connections() == 1)?;
    proxy.refuse();
    ensure!(silent.read(&mut [0]).is_ok_and(|length| length == 0));
    // A child of another trial that is about to be may hold a copy of the listener for a moment.
    eventually(SOON, "connections are refused", || {
        outside.run(|| Ok(TcpStream::connect(server)?)).is_err()
    })?;
    proxy.accept()?;
    proxy.delay(Duration::from_millis(100));
    eventually_ok(SOON, "slow, but an answer", || {
        admin.run(&["get", "namespaces"])
    })?;
    Ok(())
}
