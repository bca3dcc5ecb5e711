//! B10: pods made and unmade one after the other, by our plugin and by the reference `ptp` with `host-local` (Debian's and the
//! newest), in turn; and with a host port, limits of bandwidth and masquerading, for which the reference takes a list of three
//! plugins.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use selvage_lab::{Lab, Netns, programs};
use serde_json::{Value, json};

use crate::report::Report;

/// Where Debian puts the reference plugins.
const DEBIAN: &str = "/usr/lib/cni";

/// Whose a plugin is: which folder has its programs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Maker {
    /// This project.
    Ours,
    /// The reference, version 1.1.1, as Debian packages it.
    Debian,
    /// The reference, version 1.10.0, as `tests/cluster/build.sh plugins` builds it.
    Reference,
}

impl Maker {
    /// The folder that a runtime would name in `CNI_PATH`.
    fn folder(self) -> Result<PathBuf> {
        match self {
            Maker::Ours => Ok(programs::find("selvage-cni")?
                .parent()
                .context("selvage-cni is in no folder")?
                .to_owned()),
            Maker::Debian => Ok(DEBIAN.into()),
            Maker::Reference => programs::reference_plugins(),
        }
    }
}

/// A plugin, or a list of them, as a runtime calls it.
struct Plugin {
    name: &'static str,
    maker: Maker,
    /// `type`s in the order of ADD.
    kinds: &'static [&'static str],
    dual: bool,
    /// With a host port of its own, limits of bandwidth, and masquerading.
    full: bool,
}

const OURS: &[&str] = &["selvage-cni"];
const PTP: &[&str] = &["ptp"];
const CHAIN: &[&str] = &["ptp", "portmap", "bandwidth"];

const PLUGINS: [Plugin; 9] = [
    Plugin::new("Selvage", Maker::Ours, OURS, false, false),
    Plugin::new("ptp 1.1.1", Maker::Debian, PTP, false, false),
    Plugin::new("ptp 1.10.0", Maker::Reference, PTP, false, false),
    Plugin::new("Selvage, dual stack", Maker::Ours, OURS, true, false),
    Plugin::new("ptp 1.1.1, dual stack", Maker::Debian, PTP, true, false),
    Plugin::new("ptp 1.10.0, dual stack", Maker::Reference, PTP, true, false),
    Plugin::new("Selvage, full", Maker::Ours, OURS, false, true),
    Plugin::new("chain 1.1.1, full", Maker::Debian, CHAIN, false, true),
    Plugin::new("chain 1.10.0, full", Maker::Reference, CHAIN, false, true),
];

pub(crate) fn run(lab: &Lab, pods: usize, runs: usize) -> Result<()> {
    let mut report = Report::new(&format!("B10 CNI, {pods} pods one after the other"));
    for run in 0..runs {
        for (i, plugin) in PLUGINS.iter().enumerate() {
            match plugin.measure(lab, &format!("b10-{i}-{run}"), pods) {
                Ok([add, del]) => report.add(
                    plugin.name,
                    vec![
                        ("ADD p50 ms", median(&add)),
                        ("ADD max ms", last(&add)),
                        ("DEL p50 ms", median(&del)),
                        ("DEL max ms", last(&del)),
                    ],
                ),
                Err(error) => report.fail(plugin.name, &format!("{error:#}")),
            }
        }
    }
    print!("{report}");
    Ok(())
}

pub(crate) fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn last(sorted: &[f64]) -> f64 {
    sorted.last().copied().unwrap_or(f64::NAN)
}

impl Plugin {
    const fn new(
        name: &'static str,
        maker: Maker,
        kinds: &'static [&'static str],
        dual: bool,
        full: bool,
    ) -> Plugin {
        Plugin {
            name,
            maker,
            kinds,
            dual,
            full,
        }
    }

    /// Sorted times of ADD and of DEL in milliseconds.
    fn measure(&self, lab: &Lab, name: &str, pods: usize) -> Result<[Vec<f64>; 2]> {
        let folder = self.maker.folder()?;
        let mut programs = Vec::new();
        for kind in self.kinds {
            let program = folder.join(kind);
            ensure!(program.exists(), "{} is not installed", program.display());
            programs.push(program);
        }
        let node = lab.netns(name)?;
        node.forward()?;
        let directory = lab.subdirectory(name)?;
        let namespaces = (0..pods)
            .map(|i| lab.netns(&format!("{name}-{i}")))
            .collect::<Result<Vec<_>>>()?;
        // As on a node, where the lab turns duplicate address detection off.
        for netns in namespaces.iter().chain([&node]) {
            for (key, value) in [
                ("all/accept_dad", "1"),
                ("default/accept_dad", "1"),
                ("default/dad_transmits", "1"),
            ] {
                netns.set_sysctl(&format!("net/ipv6/conf/{key}"), value)?;
            }
        }
        let mut times = [Vec::new(), Vec::new()];
        let mut results = Vec::new();
        for (i, pod) in namespaces.iter().enumerate() {
            let (mut sum, mut result) = (0.0, Value::Null);
            for (kind, program) in self.kinds.iter().zip(&programs) {
                let configuration = self.configuration(kind, &directory, i, &result);
                let (printed, took) = self.call(&node, program, "ADD", i, pod, &configuration)?;
                result = serde_json::from_slice(&printed)?;
                sum += took;
            }
            times[0].push(sum);
            results.push(result);
        }
        for ((i, pod), result) in namespaces.iter().enumerate().zip(&results) {
            let mut sum = 0.0;
            for (kind, program) in self.kinds.iter().zip(&programs).rev() {
                let configuration = self.configuration(kind, &directory, i, result);
                sum += self.call(&node, program, "DEL", i, pod, &configuration)?.1;
            }
            times[1].push(sum);
        }
        times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
        Ok(times)
    }

    /// What a runtime writes to the standard input of a plugin for pod `i`.
    fn configuration(&self, kind: &str, directory: &Path, i: usize, previous: &Value) -> Value {
        let mut configuration = json!({"cniVersion": "1.0.0", "name": "bench", "type": kind});
        if !previous.is_null() {
            configuration["prevResult"] = previous.clone();
        }
        if self.full {
            // Of each kind what it has a use for; ours has one for all of it.
            let (rate, burst) = (1_000_000_000_u64, 8_000_000_u64);
            configuration["runtimeConfig"] = json!({
                "portMappings": [{"hostPort": 20_000 + i, "containerPort": 80, "protocol": "tcp"}],
                "bandwidth": {"ingressRate": rate, "ingressBurst": burst, "egressRate": rate, "egressBurst": burst},
            });
            configuration["snat"] = json!(true);
            configuration["ipMasq"] = json!(true);
        }
        if self.maker == Maker::Ours {
            configuration["policy"] = json!("none");
            configuration["runDir"] = json!(directory.join("run"));
            configuration["stateDir"] = json!(directory.join("state"));
            // A runtime gives the first plugin none.
            configuration["prevResult"] = Value::Null;
        }
        if self.kinds.first() == Some(&kind) {
            configuration["ipam"] = self.ipam(directory);
        }
        configuration
    }

    fn ipam(&self, directory: &Path) -> Value {
        let mut ranges = vec![json!([{"subnet": "10.244.0.0/16"}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if self.dual {
            ranges.push(json!([{"subnet": "fd00:10:244::/64"}]));
            routes.push(json!({"dst": "::/0"}));
        }
        json!({"type": "host-local", "dataDir": directory.join("leases"), "ranges": ranges, "routes": routes})
    }

    /// What the program printed, and how long it took in milliseconds.
    fn call(
        &self,
        node: &Netns,
        program: &Path,
        verb: &str,
        i: usize,
        pod: &Netns,
        configuration: &Value,
    ) -> Result<(Vec<u8>, f64)> {
        let mut command = Command::new(program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("pod{i}"))
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", program.parent().unwrap_or(Path::new("/")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let input = configuration.to_string();
        let (output, took) = node.run(|| {
            let begin = Instant::now();
            let mut child = command.spawn().context("cannot start the plugin")?;
            child
                .stdin
                .take()
                .context("no stdin")?
                .write_all(input.as_bytes())?;
            let output = child.wait_with_output()?;
            Ok((output, begin.elapsed()))
        })?;
        if !output.status.success() {
            bail!(
                "{verb} of {}: {}",
                program.display(),
                String::from_utf8_lossy(&output.stdout).replace('\n', " ")
            );
        }
        Ok((output.stdout, milliseconds(took)))
    }
}

pub(crate) fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
