//! Sysctls: writing those that a node needs, and putting them back.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use selvage_cni::attachment::boot_id;
use serde::{Deserialize, Serialize};

use crate::kernel::sysctl::{Setting, read_in};

/// What was changed, in the state directory.
pub const RECORD: &str = "sysctls.json";

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
    use crate::config::Features;
    use crate::kernel::sysctl::{Uplinks, differences};

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

    const FRESH: [(&str, &str); 10] = [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/eth0/accept_ra", "1"),
        ("net/ipv6/conf/eth1/accept_ra", "0"),
        ("net/ipv4/conf/all/rp_filter", "0"),
        ("net/ipv4/conf/eth0/rp_filter", "1"),
        ("net/ipv4/conf/eth1/rp_filter", "0"),
        ("net/ipv4/nexthop_compat_mode", "1"),
        ("net/ipv4/fib_multipath_hash_policy", "0"),
        ("net/ipv6/fib_multipath_hash_policy", "0"),
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
                "net.ipv4.fib_multipath_hash_policy=1",
                "net.ipv6.fib_multipath_hash_policy=1",
            ]
        );
        let none = Features {
            kernel: false,
            cni: false,
            policy: false,
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

    /// A hash that somebody has chosen stays.
    #[test]
    fn only_the_default_of_the_multipath_hash_is_wrong() {
        let scratch = Scratch::new("hash", &FRESH);
        let root = scratch.root();
        for (value, wrong) in [("0", true), ("1", false), ("2", false), ("3", false)] {
            let sysctls = ["ipv4", "ipv6"].map(|v| format!("net/{v}/fib_multipath_hash_policy"));
            sysctls.iter().for_each(|name| scratch.write(name, value));
            let settings = differences(Features::ALL, &uplinks(), read_in(&root));
            let named = |name: &String| settings.iter().any(|setting| setting.name == *name);
            assert_eq!(
                sysctls.iter().filter(|name| named(name)).count(),
                2 * usize::from(wrong)
            );
        }
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
                "net/ipv6/fib_multipath_hash_policy=0",
                "net/ipv4/fib_multipath_hash_policy=0",
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
