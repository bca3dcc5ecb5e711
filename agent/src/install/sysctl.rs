//! Sysctls: which a node needs, writing them, and putting them back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use selvage_cni::attachment::boot_id;
use selvage_netlink::{Error, Protocol, Socket, addr, link, route};
use serde::{Deserialize, Serialize};

use crate::config::Features;
use crate::kernel::POD_LINK_GROUP;

/// Where the kernel shows them.
pub const ROOT: &str = "/proc/sys";

/// What was changed, in the state directory.
pub const RECORD: &str = "sysctls.json";

/// A sysctl that is not as it has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// As a path below [`ROOT`]: names of interfaces may have dots in them.
    pub name: String,
    /// What it is.
    pub is: String,
    /// What it has to be.
    pub wanted: &'static str,
    /// What goes wrong otherwise.
    pub why: &'static str,
    /// Whether nothing works otherwise.
    pub essential: bool,
}

impl Setting {
    /// As `sysctl` takes it: `net/ipv4/conf/eth0.7/rp_filter` has a dot in it, so that the slashes stay.
    pub fn assignment(&self) -> String {
        let dotted = match self.name.contains('.') {
            true => self.name.clone(),
            false => self.name.replace('/', "."),
        };
        format!("{dotted}={}", self.wanted)
    }
}

/// The interfaces that matter, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uplinks {
    /// With routes that a router advertises (RFC 4861).
    pub advertised: BTreeSet<String>,
    /// With a global IPv4 address; none of them a pod's.
    pub ipv4: BTreeSet<String>,
}

impl Uplinks {
    /// In the calling thread's network namespace.
    pub fn read() -> Result<Uplinks, Error> {
        /// `RTPROT_RA`.
        const ADVERTISED: u8 = 9;
        /// `RT_SCOPE_UNIVERSE`.
        const GLOBAL: u8 = 0;
        let mut socket = Socket::open(Protocol::Route)?;
        let names: BTreeMap<u32, String> = link::list(&mut socket)?
            .into_iter()
            .filter(|link| link.group != POD_LINK_GROUP && link.name != "lo")
            .map(|link| (link.index, link.name))
            .collect();
        let named = |index: u32| names.get(&index).cloned();
        let filter = route::Filter {
            protocol: Some(ADVERTISED),
            ..route::Filter::default()
        };
        let advertised = route::list(&mut socket, true, &filter)?;
        let addresses = addr::list(&mut socket)?;
        let global = |address: &addr::Address| {
            address.scope == GLOBAL && matches!(address.prefix.addr, IpAddr::V4(_))
        };
        Ok(Uplinks {
            advertised: advertised
                .iter()
                .flat_map(|route| interfaces(&route.target))
                .filter_map(named)
                .collect(),
            ipv4: addresses
                .iter()
                .filter(|address| global(address))
                .filter_map(|address| named(address.index))
                .collect(),
        })
    }
}

fn interfaces(target: &route::Target) -> Vec<u32> {
    match target {
        route::Target::Hop(hop) => hop.oif.into_iter().collect(),
        route::Target::Multipath(hops) => hops.iter().filter_map(|hop| hop.oif).collect(),
        _ => Vec::new(),
    }
}

/// What has to be changed, in the order in which it has to be: an uplink goes on listening to its routers before the
/// node becomes one itself, or the kernel drops their routes. `read` gives a sysctl's value, none where there is none.
pub fn differences(
    features: Features,
    uplinks: &Uplinks,
    read: impl Fn(&str) -> Option<String>,
) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut want = |name: String, wanted, essential, why, wrong: &dyn Fn(&str) -> bool| {
        if let Some(is) = read(&name).filter(|is| wrong(is)) {
            settings.push(Setting {
                name,
                is,
                wanted,
                why,
                essential,
            });
        }
    };
    let forwards = features.cni || features.kernel;
    if forwards {
        let is_off = |is: &str| is == "0";
        for uplink in &uplinks.advertised {
            let name = format!("net/ipv6/conf/{uplink}/accept_ra");
            // With 0, a program of the host's does the listening.
            let why = "a router's advertisements count on a node that forwards, too";
            want(name, "2", true, why, &|is| is == "1");
        }
        let why = "packets of pods are forwarded";
        want("net/ipv4/ip_forward".into(), "1", true, why, &is_off);
        let name = "net/ipv6/conf/all/forwarding";
        want(name.into(), "1", true, why, &is_off);
        let all_strict = read("net/ipv4/conf/all/rp_filter").as_deref() == Some("1");
        for uplink in &uplinks.ipv4 {
            let name = format!("net/ipv4/conf/{uplink}/rp_filter");
            let why = "an answer may come in by another way than a request goes out";
            // The kernel takes the greater of both.
            let strict = |is: &str| is == "1" || is == "0" && all_strict;
            want(name, "2", false, why, &strict);
        }
    }
    if features.kernel {
        let name = "net/ipv4/nexthop_compat_mode";
        let why = "a next hop that moves costs a notification for each route over it";
        want(name.into(), "0", false, why, &|is| is != "0");
    }
    settings
}

/// Below a directory: [`ROOT`], or a test's.
pub fn read_in(root: &Path) -> impl Fn(&str) -> Option<String> + '_ {
    |name| {
        let text = fs::read_to_string(root.join(name)).ok()?;
        Some(text.trim().to_owned())
    }
}

/// A sysctl that could not be written.
#[derive(Debug)]
pub struct Refused {
    /// Which.
    pub setting: Setting,
    /// Why.
    pub error: io::Error,
}

/// Writes them below `root`, each after it was written down in `record`. Returns those that were refused.
pub fn apply(root: &Path, settings: &[Setting], record: &mut Record) -> io::Result<Vec<Refused>> {
    let mut refused = Vec::new();
    if settings.is_empty() {
        return Ok(refused);
    }
    for setting in settings {
        record.note(setting);
    }
    record.save()?;
    for setting in settings {
        if let Err(error) = fs::write(root.join(&setting.name), setting.wanted) {
            record.forget(&setting.name);
            refused.push(Refused {
                setting: setting.clone(),
                error,
            });
        }
    }
    record.save()?;
    Ok(refused)
}

/// What sysctls were before we wrote them, in this boot.
#[derive(Debug)]
pub struct Record {
    path: PathBuf,
    kept: Kept,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Kept {
    boot_id: String,
    /// In the order in which they were written.
    sysctls: Vec<Written>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    name: String,
    was: String,
    wrote: String,
}

impl Record {
    /// That of a state directory. One of an earlier boot counts for nothing: the kernel has forgotten it, too.
    pub fn of(state_dir: &Path) -> Record {
        let path = state_dir.join(RECORD);
        let boot_id = boot_id();
        let kept = fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Kept>(&bytes).ok())
            .filter(|kept| kept.boot_id == boot_id);
        let fresh = Kept {
            boot_id,
            sysctls: Vec::new(),
        };
        Record {
            path,
            kept: kept.unwrap_or(fresh),
        }
    }

    fn note(&mut self, setting: &Setting) {
        self.forget(&setting.name);
        self.kept.sysctls.push(Written {
            name: setting.name.clone(),
            was: setting.is.clone(),
            wrote: setting.wanted.to_owned(),
        });
    }

    fn forget(&mut self, name: &str) {
        self.kept.sysctls.retain(|written| written.name != name);
    }

    fn save(&self) -> io::Result<()> {
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)?;
        let aside = self.path.with_extension("new");
        let mut file = File::create(&aside)?;
        file.write_all(&serde_json::to_vec_pretty(&self.kept)?)?;
        file.sync_all()?;
        fs::rename(&aside, &self.path)
    }

    /// Puts back what still is as we wrote it, the last one first. Returns what was put back, as `name=value`; what
    /// cannot be written stays in the record, and is the error.
    pub fn restore(mut self, root: &Path) -> Result<Vec<String>, (String, io::Error)> {
        let read = read_in(root);
        let mut restored = Vec::new();
        while let Some(written) = self.kept.sysctls.pop() {
            // Another's hand since then, or an interface that is gone.
            if read(&written.name).as_ref() != Some(&written.wrote) {
                continue;
            }
            if let Err(error) = fs::write(root.join(&written.name), &written.was) {
                let name = written.name.clone();
                self.kept.sysctls.push(written);
                // The next run reads what is left to do, or all of it again.
                let _ = self.save();
                return Err((name, error));
            }
            restored.push(format!("{}={}", written.name, written.was));
        }
        Ok(restored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str, sysctls: &[(&str, &str)]) -> Scratch {
            let name = format!("selvage-sysctl-{name}-{}", std::process::id());
            let scratch = Scratch(std::env::temp_dir().join(name));
            for (name, value) in sysctls {
                scratch.write(name, value);
            }
            scratch
        }

        fn write(&self, name: &str, value: &str) {
            let path = self.root().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }

        fn root(&self) -> PathBuf {
            self.0.join("sys")
        }

        fn state(&self) -> PathBuf {
            self.0.join("state")
        }

        fn read(&self, name: &str) -> String {
            read_in(&self.root())(name).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const FRESH: [(&str, &str); 8] = [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/eth0/accept_ra", "1"),
        ("net/ipv6/conf/eth1/accept_ra", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
        ("net/ipv4/conf/eth1/rp_filter", "0"),
        ("net/ipv4/nexthop_compat_mode", "1"),
    ];

    fn uplinks() -> Uplinks {
        let both = || ["eth0", "eth1"].map(str::to_owned).into();
        Uplinks {
            advertised: both(),
            ipv4: both(),
        }
    }

    fn names(settings: &[Setting]) -> Vec<String> {
        settings.iter().map(Setting::assignment).collect()
    }

    #[test]
    fn only_what_is_wrong_and_the_uplink_before_forwarding() {
        let scratch = Scratch::new("order", &FRESH);
        let root = scratch.root();
        let differ = |features| names(&differences(features, &uplinks(), read_in(&root)));
        assert_eq!(
            differ(Features::ALL),
            [
                "net.ipv6.conf.eth0.accept_ra=2",
                "net.ipv4.ip_forward=1",
                "net.ipv6.conf.all.forwarding=1",
                "net.ipv4.conf.eth0.rp_filter=2",
                "net.ipv4.nexthop_compat_mode=0",
            ]
        );
        let none = Features {
            kernel: false,
            cni: false,
            ..Features::ALL
        };
        assert!(differ(none).is_empty(), "a reflector forwards nothing");
        scratch.write("net/ipv4/conf/all/rp_filter", "1");
        let strict = differ(Features::ALL);
        assert!(
            strict.contains(&"net.ipv4.conf.eth1.rp_filter=2".into()),
            "{strict:?}"
        );
    }

    #[test]
    fn an_interface_with_a_dot_in_its_name() {
        let setting = Setting {
            name: "net/ipv4/conf/eth0.7/rp_filter".into(),
            is: "1".into(),
            wanted: "2",
            why: "",
            essential: false,
        };
        assert_eq!(setting.assignment(), "net/ipv4/conf/eth0.7/rp_filter=2");
    }

    #[test]
    fn written_once_and_put_back() {
        let scratch = Scratch::new("back", &FRESH);
        let (root, state) = (scratch.root(), scratch.state());
        let differ = || differences(Features::ALL, &uplinks(), read_in(&root));
        let mut record = Record::of(&state);
        assert!(apply(&root, &differ(), &mut record).unwrap().is_empty());
        assert_eq!(differ(), [], "nothing is left to do");
        // The next run finds the record; a value that somebody changed since is his.
        scratch.write("net/ipv4/conf/eth0/rp_filter", "0");
        fs::remove_file(root.join("net/ipv4/nexthop_compat_mode")).unwrap();
        let mut record = Record::of(&state);
        assert!(apply(&root, &differ(), &mut record).unwrap().is_empty());
        assert_eq!(
            Record::of(&state).restore(&root).unwrap(),
            [
                "net/ipv6/conf/all/forwarding=0",
                "net/ipv4/ip_forward=0",
                "net/ipv6/conf/eth0/accept_ra=1",
            ]
        );
        assert_eq!(scratch.read("net/ipv4/conf/eth0/rp_filter"), "0");
        assert_eq!(Record::of(&state).restore(&root).unwrap(), [""; 0]);
    }

    #[test]
    fn what_is_refused_is_named_and_not_written_down() {
        let scratch = Scratch::new("refused", &FRESH);
        let (root, state) = (scratch.root(), scratch.state());
        let mut settings = differences(Features::ALL, &uplinks(), read_in(&root));
        settings[1].name = "net/ipv4/there/is/none".into();
        let refused = apply(&root, &settings, &mut Record::of(&state)).unwrap();
        assert_eq!(refused.len(), 1);
        assert_eq!(refused[0].setting, settings[1]);
        let kept = fs::read_to_string(state.join(RECORD)).unwrap();
        assert!(
            !kept.contains("none") && kept.contains("accept_ra"),
            "{kept}"
        );
    }

    #[test]
    fn a_record_of_another_boot_counts_for_nothing() {
        let scratch = Scratch::new("boot", &FRESH);
        let state = scratch.state();
        fs::create_dir_all(&state).unwrap();
        for text in [
            r#"{"bootId": "another", "sysctls": [{"name": "net/ipv4/ip_forward", "was": "9", "wrote": "0"}]}"#,
            "{",
        ] {
            fs::write(state.join(RECORD), text).unwrap();
            let restored = Record::of(&state).restore(&scratch.root()).unwrap();
            assert_eq!(restored, [""; 0]);
        }
    }
}
