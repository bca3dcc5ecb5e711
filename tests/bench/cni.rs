//! B10: pods made and unmade one after the other, by our plugin and by the reference `ptp` with `host-local`, in turn.

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
const REFERENCE: &str = "/usr/lib/cni";

struct Plugin {
    name: &'static str,
    program: PathBuf,
    kind: &'static str,
    dual: bool,
}

pub(crate) fn run(lab: &Lab, pods: usize, runs: usize) -> Result<()> {
    let shim = programs::find("selvage-cni")?;
    let plugins = [
        Plugin {
            name: "Selvage",
            program: shim.clone(),
            kind: "selvage-cni",
            dual: false,
        },
        Plugin {
            name: "ptp + host-local 1.1.1",
            program: Path::new(REFERENCE).join("ptp"),
            kind: "ptp",
            dual: false,
        },
        Plugin {
            name: "Selvage, dual stack",
            program: shim,
            kind: "selvage-cni",
            dual: true,
        },
        Plugin {
            name: "ptp, dual stack",
            program: Path::new(REFERENCE).join("ptp"),
            kind: "ptp",
            dual: true,
        },
    ];
    let mut report = Report::new(&format!("B10 CNI, {pods} pods one after the other"));
    for run in 0..runs {
        for (i, plugin) in plugins.iter().enumerate() {
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

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn last(sorted: &[f64]) -> f64 {
    sorted.last().copied().unwrap_or(f64::NAN)
}

impl Plugin {
    /// Sorted times of ADD and of DEL in milliseconds.
    fn measure(&self, lab: &Lab, name: &str, pods: usize) -> Result<[Vec<f64>; 2]> {
        ensure!(
            self.program.exists(),
            "{} is not installed",
            self.program.display()
        );
        let node = lab.netns(name)?;
        let directory = lab.subdirectory(name)?;
        let configuration = self.configuration(&directory).to_string();
        let namespaces = (0..pods)
            .map(|i| lab.netns(&format!("{name}-{i}")))
            .collect::<Result<Vec<_>>>()?;
        let mut times = [Vec::new(), Vec::new()];
        for (i, pod) in namespaces.iter().enumerate() {
            times[0].push(self.call(&node, "ADD", i, pod, &configuration)?);
        }
        for (i, pod) in namespaces.iter().enumerate() {
            times[1].push(self.call(&node, "DEL", i, pod, &configuration)?);
        }
        times.iter_mut().for_each(|t| t.sort_by(f64::total_cmp));
        Ok(times)
    }

    fn configuration(&self, directory: &Path) -> Value {
        let mut ranges = vec![json!([{"subnet": "10.244.0.0/16"}])];
        let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
        if self.dual {
            ranges.push(json!([{"subnet": "fd00:10:244::/64"}]));
            routes.push(json!({"dst": "::/0"}));
        }
        let mut configuration = json!({
            "cniVersion": "1.0.0", "name": "bench", "type": self.kind,
            "ipam": {"type": "host-local", "dataDir": directory.join("leases"), "ranges": ranges, "routes": routes},
        });
        if self.kind == "selvage-cni" {
            configuration["policy"] = json!("none");
            configuration["runDir"] = json!(directory.join("run"));
            configuration["stateDir"] = json!(directory.join("state"));
        }
        configuration
    }

    fn call(
        &self,
        node: &Netns,
        verb: &str,
        i: usize,
        pod: &Netns,
        configuration: &str,
    ) -> Result<f64> {
        let mut command = Command::new(&self.program);
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", format!("pod{i}"))
            .env("CNI_NETNS", pod.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", REFERENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let (output, took) = node.run(|| {
            let begin = Instant::now();
            let mut child = command.spawn().context("cannot start the plugin")?;
            child
                .stdin
                .take()
                .context("no stdin")?
                .write_all(configuration.as_bytes())?;
            let output = child.wait_with_output()?;
            Ok((output, begin.elapsed()))
        })?;
        if !output.status.success() {
            bail!(
                "{verb} of {}: {}",
                self.name,
                String::from_utf8_lossy(&output.stdout).replace('\n', " ")
            );
        }
        Ok(milliseconds(took))
    }
}

fn milliseconds(d: Duration) -> f64 {
    d.as_secs_f64() * 1e3
}
