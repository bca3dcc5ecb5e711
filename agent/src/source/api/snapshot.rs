//! The last good objects on disk, for a start at which the API server is away.
//!
//! Two files of one form in the state directory: `snapshot` has all kinds but pods and is written soon after a change;
//! `snapshot.pods` is larger and written seldom. They hold passwords: mode 0600. A file appears whole or not at all:
//!
//! ```text
//!   selvage snapshot 1 2026-11-24T12:00:00Z
//!   {"apiVersion":"v1","kind":"Node",…}            an object a line, as the API server would write it
//!   end 17 0123456789abcdef                        how many, and a checksum of all lines before
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use selvage_policy::model::{Phase, PodFact, Proto};
use serde_json::{Value, json};

use crate::objects::{Node, Timestamp};

/// In the state directory: all kinds but pods.
pub(super) const OBJECTS: &str = "snapshot";
/// In the state directory: pods.
pub(super) const PODS: &str = "snapshot.pods";

/// A larger file is none of ours.
const LARGEST: u64 = 1 << 30;
const HEAD: &str = "selvage snapshot 1 ";

/// A snapshot under way. Dropped before it is finished, it leaves the one before in place.
pub(super) struct Writer {
    path: PathBuf,
    aside: PathBuf,
    file: BufWriter<File>,
    sum: Sum,
    lines: u64,
    bytes: u64,
}

impl Writer {
    /// `aside`: the end of its name while it is written; whoever writes beside somebody else needs one of his own.
    pub(super) fn begin(
        folder: &Path,
        name: &str,
        aside: &str,
        time: Timestamp,
    ) -> io::Result<Writer> {
        let path = folder.join(name);
        let aside = folder.join(format!("{name}.{aside}"));
        // One that is left over may have any mode.
        let _ = fs::remove_file(&aside);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&aside)?;
        let mut writer = Writer {
            path,
            aside,
            file: BufWriter::with_capacity(64 << 10, file),
            sum: Sum::default(),
            lines: 0,
            bytes: 0,
        };
        writer.put(&format!("{HEAD}{time}"))?;
        Ok(writer)
    }

    pub(super) fn object(&mut self, text: &str) -> io::Result<()> {
        self.lines += 1;
        self.put(text)
    }

    fn put(&mut self, line: &str) -> io::Result<()> {
        self.sum.add(line.as_bytes());
        self.sum.add(b"\n");
        self.bytes += line.len() as u64 + 1;
        self.file.write_all(line.as_bytes())?;
        self.file.write_all(b"\n")
    }

    /// Puts it in place; how many bytes it has.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        writeln!(self.file, "end {} {:016x}", self.lines, self.sum.0)?;
        self.file.flush()?;
        self.file.get_ref().sync_data()?;
        fs::rename(&self.aside, &self.path)?;
        Ok(self.bytes)
    }
}

/// A snapshot that was read.
#[derive(Debug)]
pub(super) struct Snapshot {
    text: String,
    pub(super) time: Timestamp,
}

/// A snapshot that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error(transparent)]
    Unreadable(#[from] io::Error),
    #[error("{0}")]
    Malformed(&'static str),
}

impl Snapshot {
    /// `Ok(None)`: there is none.
    pub(super) fn read(folder: &Path, name: &str) -> Result<Option<Snapshot>, Unusable> {
        let file = match File::open(folder.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if file.metadata()?.len() > LARGEST {
            return Err(Unusable::Malformed("too large"));
        }
        let mut text = String::new();
        file.take(LARGEST).read_to_string(&mut text)?;
        let time = check(&text).map_err(Unusable::Malformed)?;
        Ok(Some(Snapshot { text, time }))
    }

    /// The objects, as text.
    pub(super) fn objects(&self) -> impl Iterator<Item = &str> {
        let lines = self.text.lines().skip(1);
        lines.filter(|line| line.starts_with('{'))
    }
}

fn check(text: &str) -> Result<Timestamp, &'static str> {
    let head = text.lines().next().and_then(|line| line.strip_prefix(HEAD));
    let time = head.ok_or("of another version, or no snapshot")?;
    let time = time.parse::<Timestamp>()?;
    let cut = "cut off";
    let body = text.strip_suffix('\n').ok_or(cut)?;
    let end = body.rfind('\n').ok_or(cut)? + 1;
    let (body, end) = body.split_at_checked(end).ok_or(cut)?;
    let (lines, sum) = end
        .strip_prefix("end ")
        .and_then(|end| end.split_once(' '))
        .ok_or(cut)?;
    let mut real = Sum::default();
    real.add(body.as_bytes());
    let number = body.lines().count().saturating_sub(1);
    match lines.parse() == Ok(number) && u64::from_str_radix(sum, 16) == Ok(real.0) {
        true => Ok(time),
        false => Err("its checksum is wrong"),
    }
}

/// FNV-1a: against accidents, not against people.
struct Sum(u64);

impl Default for Sum {
    fn default() -> Self {
        Sum(0xcbf2_9ce4_8422_2325)
    }
}

impl Sum {
    fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

/// A node as the API server would write it, as far as it matters.
pub(super) fn node(node: &Node) -> String {
    let address = |address: &IpAddr| {
        let internal = node.internal_ips.contains(address);
        let name = if internal { "InternalIP" } else { "ExternalIP" };
        json!({"type": name, "address": address})
    };
    // In the order in which they are read again.
    let addresses: Vec<Value> = node.addresses.iter().map(address).collect();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": node.meta.key.name,
            "uid": node.meta.uid,
            "labels": node.meta.labels,
            "annotations": node.meta.annotations,
            "creationTimestamp": node.meta.created.map(|time| time.to_string()),
        },
        "spec": {"podCIDRs": node.pod_cidrs},
        "status": {"addresses": addresses},
    })
    .to_string()
}

/// A pod as the API server would write it, as far as it matters.
pub(super) fn pod(fact: &PodFact) -> String {
    let protocol = |proto: Proto| match proto {
        Proto::Tcp => "TCP",
        Proto::Udp => "UDP",
        Proto::Sctp => "SCTP",
    };
    let ports: Vec<Value> = fact
        .ports
        .iter()
        .map(|port| json!({"name": *port.name, "protocol": protocol(port.protocol), "containerPort": port.port}))
        .collect();
    let ips: Vec<Value> = fact.ips.iter().map(|ip| json!({ "ip": ip })).collect();
    let created = (fact.created != 0).then(|| Timestamp(fact.created.into()).to_string());
    let phase = match fact.phase {
        Phase::Live => "Running",
        Phase::Finished => "Failed",
    };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": *fact.key.namespace,
            "name": *fact.key.name,
            "uid": fact.uid.to_string(),
            "labels": fact.labels,
            "creationTimestamp": created,
        },
        "spec": {
            "nodeName": fact.node.as_deref(),
            "hostNetwork": fact.host_network,
            "containers": [{"ports": ports}],
        },
        "status": {"phase": phase, "podIPs": ips},
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::objects::{Kind, Object, Pod};
    use crate::source::ObjectEvent;
    use crate::store::Store;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir()
                .join(format!("selvage-snapshot-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn write(folder: &Folder, lines: &[&str]) {
        let mut writer = Writer::begin(&folder.0, OBJECTS, "new", Timestamp(60)).unwrap();
        for line in lines {
            writer.object(line).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = Folder::new("read");
        assert!(Snapshot::read(&folder.0, OBJECTS).unwrap().is_none());
        for lines in [&[][..], &["{\"a\":1}", "{}"]] {
            write(&folder, lines);
            let snapshot = Snapshot::read(&folder.0, OBJECTS).unwrap().unwrap();
            assert_eq!(snapshot.objects().collect::<Vec<_>>(), lines);
            assert_eq!(snapshot.time, Timestamp(60));
        }
        let mode = fs::metadata(folder.0.join(OBJECTS))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        // One that was not finished changes nothing.
        drop(Writer::begin(&folder.0, OBJECTS, "new", Timestamp(90)).unwrap());
        write(&folder, &["{}"]);
        let snapshot = Snapshot::read(&folder.0, OBJECTS).unwrap().unwrap();
        assert_eq!(snapshot.time, Timestamp(60));
    }

    /// Cut anywhere, or with any byte changed, it is refused.
    #[test]
    fn what_is_damaged_is_refused() {
        let folder = Folder::new("damaged");
        write(&folder, &["{\"a\":1}", "{\"b\":2}"]);
        let path = folder.0.join(OBJECTS);
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(
                Snapshot::read(&folder.0, OBJECTS).is_err(),
                "{length} bytes"
            );
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(Snapshot::read(&folder.0, OBJECTS).is_err(), "byte {place}");
        }
        fs::write(
            &path,
            String::from_utf8(whole)
                .unwrap()
                .replace("shot 1", "shot 2"),
        )
        .unwrap();
        let error = Snapshot::read(&folder.0, OBJECTS).unwrap_err();
        assert_eq!(error.to_string(), "of another version, or no snapshot");
    }

    #[test]
    fn nodes_come_back_as_they_were() {
        for text in [
            r#"{"metadata":{"name":"n"}}"#,
            r#"{"metadata":{"name":"n","uid":"u","labels":{"a":"b"},"annotations":{"c":"d"},"creationTimestamp":"2026-01-02T03:04:05Z"},
                "spec":{"podCIDR":"10.0.0.0/24","podCIDRs":["10.0.0.0/24","fd00::/64"]},
                "status":{"addresses":[{"type":"Hostname","address":"n"},{"type":"ExternalIP","address":"1.2.3.4"},
                    {"type":"InternalIP","address":"10.0.0.1"},{"type":"InternalIP","address":"10.0.0.2"},{"type":"InternalIP","address":"fd00::1"}]}}"#,
        ] {
            let before = Node::from_json(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(Node::from_json(&node(&before)), Some(before));
        }
    }

    #[test]
    fn pods_come_back_as_they_were() {
        for text in [
            r#"{"metadata":{"name":"a","namespace":"x"}}"#,
            r#"{"metadata":{"name":"a","namespace":"x","uid":"u","labels":{"a":"b"},"creationTimestamp":"2026-01-02T03:04:05Z"},
                "spec":{"nodeName":"n","hostNetwork":true,"containers":[{"ports":[{"name":"dns","protocol":"UDP","containerPort":53},{"containerPort":1}]}]},
                "status":{"phase":"Succeeded","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}]}}"#,
            r#"{"metadata":{"name":"a","namespace":"x","uid":"u","annotations":{"kubernetes.io/config.mirror":"m"}},"status":{"phase":"Running"}}"#,
        ] {
            let fact = |text: &str| {
                let mut store = Store::default();
                let pod = Pod::from_json(text).unwrap_or_else(|| panic!("{text}"));
                store.apply([ObjectEvent::Applied(Object::Pod(pod.into()))]);
                assert_eq!(store.count(Kind::Pod), 1);
                store.pods().next().cloned().unwrap()
            };
            let before = fact(text);
            assert_eq!(fact(&pod(&before)), before);
        }
    }
}
