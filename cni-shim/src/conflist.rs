//! The network configuration list that a runtime finds in `/etc/cni/net.d`.
//!
//! Written whole or not at all, as runtimes watch the directory; and by the agent last, when the node can serve pods.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::ipam::lease::{sync_dir, write_file};
use crate::link::PolicyMode;
use crate::spec::{Cidr, CniError, Version};

/// Where runtimes look, unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/cni/net.d/10-selvage.conflist";

/// What differs from node to node.
#[derive(Clone, Debug)]
pub struct Conflist {
    /// The network's name; leases are kept under it.
    pub name: String,
    /// The node's pod CIDRs: a pod gets one address of each family that is here.
    pub pod_cidrs: Vec<Cidr>,
    /// MTU of pods' interfaces; 0 leaves it to the kernel.
    pub mtu: u32,
    /// Whether what leaves the cluster is masqueraded.
    pub ip_masq: bool,
    /// When pods' interfaces are opened.
    pub policy: PolicyMode,
    /// The agent's run directory.
    pub run_dir: PathBuf,
    /// The agent's state directory.
    pub state_dir: PathBuf,
}

impl Conflist {
    /// The list, in the newest version.
    pub fn to_json(&self) -> Value {
        let family = |v6: bool| {
            let of_family = self.pod_cidrs.iter().filter(|cidr| cidr.is_v6() == v6);
            of_family
                .map(|cidr| json!({"subnet": cidr.to_string()}))
                .collect::<Vec<_>>()
        };
        let (mut ranges, mut routes) = (Vec::new(), Vec::new());
        for v6 in [false, true] {
            let subnets = family(v6);
            if !subnets.is_empty() {
                ranges.push(subnets);
                routes.push(json!({"dst": Cidr::all(v6).to_string()}));
            }
        }
        json!({
            "cniVersion": Version::NEWEST.as_str(),
            "name": self.name,
            "plugins": [{
                "type": "selvage-cni",
                "mtu": self.mtu,
                "ipMasq": self.ip_masq,
                "policy": self.policy,
                "runDir": self.run_dir,
                "stateDir": self.state_dir,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
                "capabilities": {"portMappings": true, "bandwidth": true, "ips": true, "mac": true},
            }],
        })
    }

    /// Whether `path` has this list already.
    pub fn is_at(&self, path: &Path) -> bool {
        fs::read(path).is_ok_and(|there| there == self.text().as_bytes())
    }

    fn text(&self) -> String {
        format!("{:#}\n", self.to_json())
    }

    /// Writes the list to `path`, in one step for whoever watches. What is there already as it should be is left
    /// alone. Returns whether anything was written.
    pub fn write(&self, path: &Path) -> Result<bool, CniError> {
        if self.is_at(path) {
            return Ok(false);
        }
        let text = self.text();
        let dir = path.parent().unwrap_or(Path::new("/"));
        // Runtimes take files by their endings; this one has none that they know.
        let aside = path.with_extension("new");
        let written = write_file(&aside, text.as_bytes()).and_then(|file| file.sync_all());
        let written = written.and_then(|()| fs::rename(&aside, path));
        if let Err(e) = written {
            let _ = fs::remove_file(&aside);
            return Err(CniError::file("write", path, &e));
        }
        sync_dir(dir)?;
        Ok(true)
    }
}

/// Removes the list; the node takes no new pods then. What is not there is no error.
pub fn remove(path: &Path) -> Result<(), CniError> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(CniError::file("remove", path, &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ipam::range;
    use crate::spec::field::Field;
    use crate::spec::{Command, NetConf};
    use crate::tests::Scratch;

    fn conflist() -> Conflist {
        Conflist {
            name: "selvage".into(),
            pod_cidrs: ["10.244.1.0/24", "fd00:10:244:1::/64"]
                .iter()
                .filter_map(|text| Cidr::parse(text))
                .collect(),
            mtu: 0,
            ip_masq: true,
            policy: PolicyMode::Required,
            run_dir: "/run/selvage".into(),
            state_dir: "/var/lib/selvage".into(),
        }
    }

    #[test]
    fn the_plugin_reads_what_it_says() {
        let list = conflist().to_json();
        // As a runtime does it.
        let mut plugin = list["plugins"][0].clone();
        plugin["cniVersion"] = list["cniVersion"].clone();
        plugin["name"] = list["name"].clone();
        let conf = NetConf::parse(plugin.to_string().into_bytes(), Command::Add).unwrap();
        assert_eq!(
            (conf.policy, conf.ip_masq, conf.mtu),
            (PolicyMode::Required, true, 0)
        );
        assert_eq!(range::read(&Field::root(&plugin)).unwrap().len(), 2);
        let v4_only = Conflist {
            pod_cidrs: vec![Cidr::parse("10.0.0.0/24").unwrap()],
            ..conflist()
        };
        assert_eq!(
            v4_only.to_json()["plugins"][0]["ipam"]["routes"],
            json!([{"dst": "0.0.0.0/0"}])
        );
    }

    #[test]
    fn written_once_and_whole() {
        let scratch = Scratch::new();
        let path = scratch.0.join("10-selvage.conflist");
        assert!(conflist().write(&path).unwrap());
        assert!(!conflist().write(&path).unwrap(), "nothing has changed");
        assert!(
            Conflist {
                mtu: 1400,
                ..conflist()
            }
            .write(&path)
            .unwrap()
        );
        assert_eq!(
            serde_json::from_slice::<Value>(&fs::read(&path).unwrap()).unwrap()["plugins"][0]["mtu"],
            1400
        );
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 1);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(
            conflist()
                .write(&scratch.0.join("missing/x.conflist"))
                .is_err()
        );
    }
}
