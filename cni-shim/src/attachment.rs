//! The attachments on disk: `<stateDir>/attachments/<container id>@<interface>.json`.
//!
//! An attachment is written before the first thing that it describes is made, and removed after the last one is
//! gone: whatever a call that died has left behind, DEL finds the way to it. Files appear whole or not at all. A file
//! without an interface index belongs to an ADD that is under way, or died.
//!
//! Nothing here is synchronised to the disk (ADR 18): a reboot ends all sandboxes, and what a loss of power leaves of
//! these files is judged by the boot that they name, or by the interface where they cannot be read.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::Errno;

use crate::fault;
use crate::ipam::lease::write_file;
use crate::link::{ATTACHMENTS, Attachment, PolicyMode, attachment_file};
use crate::spec::{CniError, Code};
use crate::veth;

/// The lock of host ports, and the mark that there are some.
const PORTS: &str = ".ports";

/// The addresses of the node's Node object, one a line.
const NODE: &str = ".node";

/// Digits of the greatest `u32`: the room that a new file has for a number that is not known yet.
const NUMBER_WIDTH: usize = 10;

/// The members that are filled in when the interface is there, in this order.
const LATER: [&str; 2] = ["mtu", "hostIndex"];

/// The attachments below one state directory.
#[derive(Clone, Debug)]
pub struct Attachments {
    dir: PathBuf,
}

/// What is known about one attachment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// There is no file.
    Nothing,
    /// There is a file that makes no sense: the disk's fault, or somebody's hand.
    Unreadable,
    /// The attachment.
    This(Box<Attachment>),
}

impl Attachments {
    /// Those below `state_dir`; nothing is touched.
    pub fn of(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join(ATTACHMENTS),
        }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a new attachment, with room for what [`note_interface`](Self::note_interface) adds; fails with code 100
    /// if there is one of this container and interface.
    pub fn claim(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (aside, path) = self.paths(&attachment.container_id, &attachment.ifname);
        let mut json = encode(attachment)?;
        for key in LATER {
            if let Some((at, digits)) = number_at(&json, key) {
                let padding = NUMBER_WIDTH.saturating_sub(digits);
                json.splice(at..at, std::iter::repeat_n(b' ', padding));
            }
        }
        self.write_aside(&aside, &json)?;
        let named = match renameat_with(CWD, &aside, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(()),
            // A file system without it (NFS).
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::hard_link(&aside, &path),
            Err(errno) => Err(errno.into()),
        };
        let _ = fs::remove_file(&aside);
        named.map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists => already_attached(attachment),
            _ => CniError::file("write", &path, &e),
        })
    }

    /// Writes `host_index` and `mtu` into the file that [`claim`](Self::claim) has written, in place: on a disk that is
    /// busy each file that is made, renamed or removed waits, and overwriting a few bytes does not. Until then the
    /// agent does not know the attachment, and nobody else has a use for the two.
    pub fn note_interface(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (_, path) = self.paths(&attachment.container_id, &attachment.ifname);
        let failed = |e: io::Error| CniError::file("write", &path, &e);
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).open(&path).map_err(failed)?;
        let json = fs::read(&path).map_err(failed)?;
        for (key, value) in LATER
            .into_iter()
            .zip([attachment.mtu, attachment.host_index])
        {
            let Some((at, digits)) = number_at(&json, key) else {
                return self.update(attachment);
            };
            let text = format!(":{value:>NUMBER_WIDTH$}");
            let begin = (at + digits)
                .checked_sub(text.len())
                .filter(|&begin| json.get(begin) == Some(&b':'));
            let Some(begin) = begin else {
                return self.update(attachment);
            };
            file.write_all_at(text.as_bytes(), begin as u64)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Overwrites an attachment that [`claim`](Self::claim) has written. Whole or not at all for whoever reads it.
    pub fn update(&self, attachment: &Attachment) -> Result<(), CniError> {
        let (aside, path) = self.paths(&attachment.container_id, &attachment.ifname);
        self.write_aside(&aside, &encode(attachment)?)?;
        // Exchanging the two is as atomic as replacing one, and ext4 does not take it for a wish to have the content
        // on the disk at once, which takes long where the disk is busy.
        let replaced = match renameat_with(CWD, &aside, CWD, &path, RenameFlags::EXCHANGE) {
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => fs::rename(&aside, &path),
            other => other.map_err(io::Error::from),
        };
        let _ = fs::remove_file(&aside);
        replaced.map_err(|e| CniError::file("write", &path, &e))
    }

    /// What is known about (`container_id`, `ifname`).
    pub fn load(&self, container_id: &str, ifname: &str) -> Result<Known, CniError> {
        read(&self.paths(container_id, ifname).1)
    }

    /// The attachment that a lease in `network` belongs to, to find out whether it is stale. One that cannot be read
    /// is judged by its interface alone.
    pub fn behind_lease(
        &self,
        network: &str,
        container_id: &str,
        ifname: &str,
    ) -> Result<Option<Attachment>, CniError> {
        Ok(match self.load(container_id, ifname)? {
            Known::Nothing => None,
            Known::This(attachment) => Some(*attachment),
            Known::Unreadable => Some(Attachment {
                network: network.to_owned(),
                container_id: container_id.to_owned(),
                ifname: ifname.to_owned(),
                netns: String::new(),
                netns_dev: 0,
                netns_inode: 0,
                boot_id: boot_id(),
                host_if: veth::host_name(network, container_id, ifname),
                host_index: 0,
                addresses: Vec::new(),
                lease_dir: None,
                ipam_plugin: None,
                ip_masq: true,
                policy: PolicyMode::Required,
                pod: None,
                mtu: 0,
                port_mappings: Vec::new(),
                ports_end: false,
                bandwidth: None,
                other: BTreeMap::new(),
            }),
        })
    }

    /// Forgets an attachment, and what a call that died left of it.
    pub fn remove(&self, container_id: &str, ifname: &str) -> Result<(), CniError> {
        let (aside, path) = self.paths(container_id, ifname);
        for path in [aside, path] {
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(CniError::file("remove", &path, &e));
                }
                _ => fault::point()?,
            }
        }
        Ok(())
    }

    /// All attachments that can be read, by file name.
    pub fn list(&self) -> Result<Vec<Attachment>, CniError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(CniError::file("list", &self.dir, &e)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| CniError::file("list", &self.dir, &e))?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| !name.starts_with('.') && name.ends_with(".json"))
            {
                paths.push(entry.path());
            }
        }
        paths.sort_unstable();
        let mut attachments = Vec::new();
        for path in paths {
            if let Known::This(attachment) = read(&path)? {
                attachments.push(*attachment);
            }
        }
        Ok(attachments)
    }

    /// Removes what ADDs that died left half written. Only with [`exclude`](Self::exclude) held.
    pub fn remove_unfinished(&self) -> Result<(), CniError> {
        let entries = fs::read_dir(&self.dir).map_err(|e| CniError::file("list", &self.dir, &e))?;
        for entry in entries {
            let entry = entry.map_err(|e| CniError::file("list", &self.dir, &e))?;
            let name = entry.file_name();
            if name
                .to_str()
                .is_some_and(|name| name.starts_with('.') && name.ends_with(".json"))
            {
                let path = entry.path();
                fs::remove_file(&path).map_err(|e| CniError::file("remove", &path, &e))?;
            }
        }
        Ok(())
    }

    /// Keeps GC away while an ADD runs; the lock goes with the returned file.
    pub fn share(&self) -> Result<File, CniError> {
        let file = self.lock_file()?;
        self.flock(&file, FlockOperation::LockShared)?;
        Ok(file)
    }

    /// Keeps ADDs away while GC runs. Code 11 if one goes on for longer than `patience`.
    pub fn exclude(&self, patience: Duration) -> Result<File, CniError> {
        let file = self.lock_file()?;
        let deadline = Instant::now() + patience;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(Errno::WOULDBLOCK | Errno::INTR) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::WOULDBLOCK) => {
                    return Err(CniError::new(
                        Code::TryAgainLater,
                        "an ADD is under way; GC has to wait for it",
                    ));
                }
                Err(e) => return Err(CniError::file("lock", &self.dir, &e.into())),
            }
        }
    }

    /// Keeps others from changing host ports. From the first time on [`has_ports`](Self::has_ports) is true.
    pub fn lock_ports(&self) -> Result<File, CniError> {
        let file = self.open_lock(PORTS)?;
        self.flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// Whether a pod of this node has ever had host ports.
    pub fn has_ports(&self) -> bool {
        self.dir.join(PORTS).exists()
    }

    /// Notes the addresses of the node's Node object, for whoever has to know which addresses are its own. Says whether they
    /// are others than before. For the agent.
    pub fn set_node_addresses(&self, addresses: &[IpAddr]) -> Result<bool, CniError> {
        if self.node_addresses() == addresses {
            return Ok(false);
        }
        fs::create_dir_all(&self.dir).map_err(|e| CniError::file("create", &self.dir, &e))?;
        let text: String = addresses.iter().map(|addr| format!("{addr}\n")).collect();
        let (aside, path) = (self.dir.join(format!("{NODE}.new")), self.dir.join(NODE));
        write_file(&aside, text.as_bytes())
            .and_then(|_| fs::rename(&aside, &path))
            .map_err(|e| CniError::file("write", &path, &e))?;
        Ok(true)
    }

    /// The addresses of the node's Node object, as an agent has noted them last; none where there was no agent.
    pub fn node_addresses(&self) -> Vec<IpAddr> {
        let text = fs::read_to_string(self.dir.join(NODE)).unwrap_or_default();
        text.lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    }

    fn lock_file(&self) -> Result<File, CniError> {
        self.open_lock(".lock")
    }

    fn open_lock(&self, name: &str) -> Result<File, CniError> {
        fs::create_dir_all(&self.dir).map_err(|e| CniError::file("create", &self.dir, &e))?;
        let path = self.dir.join(name);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).mode(0o600);
        options
            .open(&path)
            .map_err(|e| CniError::file("open", &path, &e))
    }

    fn flock(&self, file: &File, operation: FlockOperation) -> Result<(), CniError> {
        loop {
            match flock(file, operation) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(CniError::file("lock", &self.dir, &e.into())),
            }
        }
    }

    fn write_aside(&self, aside: &Path, json: &[u8]) -> Result<(), CniError> {
        let written = write_file(aside, json).map_err(|e| CniError::file("write", aside, &e));
        written.and_then(|_| fault::point()).inspect_err(|_| {
            let _ = fs::remove_file(aside);
        })
    }

    fn paths(&self, container_id: &str, ifname: &str) -> (PathBuf, PathBuf) {
        let name = attachment_file(container_id, ifname);
        (self.dir.join(format!(".{name}")), self.dir.join(name))
    }
}

fn encode(attachment: &Attachment) -> Result<Vec<u8>, CniError> {
    serde_json::to_vec(attachment)
        .map_err(|e| CniError::new(Code::Io, format!("cannot write the attachment: {e}")))
}

/// Where the digits of the number `key` are in the JSON of an attachment, and how many. Quotes in a text are escaped, so
/// that no text has `"key":` in it.
fn number_at(json: &[u8], key: &str) -> Option<(usize, usize)> {
    let name = format!("\"{key}\":");
    let found = json
        .windows(name.len())
        .position(|window| window == name.as_bytes())?;
    let after = found + name.len();
    let blanks = json
        .get(after..)?
        .iter()
        .take_while(|&&byte| byte == b' ')
        .count();
    let at = after + blanks;
    let digits = json
        .get(at..)?
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    (digits > 0).then_some((at, digits))
}

fn read(path: &Path) -> Result<Known, CniError> {
    match fs::read(path) {
        Ok(bytes) => {
            Ok(serde_json::from_slice(&bytes)
                .map_or(Known::Unreadable, |a| Known::This(Box::new(a))))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Known::Nothing),
        Err(e) => Err(CniError::file("read", path, &e)),
    }
}

/// The error of a second ADD.
pub(crate) fn already_attached(attachment: &Attachment) -> CniError {
    let (id, ifname) = (&attachment.container_id, &attachment.ifname);
    CniError::new(
        Code::AlreadyAttached,
        format!("container {id} has an attachment of {ifname} already; DEL it first"),
    )
}

/// This boot, as the kernel names it; empty where it does not say.
pub fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Whether the sandbox of an attachment is gone for certain: made before this boot, or neither its namespace is at
/// its path any more nor its host end in this namespace, which dies with the other one.
pub fn is_gone(
    attachment: &Attachment,
    boot_id: &str,
    interface_exists: impl FnOnce(&str) -> bool,
) -> bool {
    if attachment.boot_id != boot_id && !boot_id.is_empty() {
        return true;
    }
    let same = |file: &fs::Metadata| {
        (file.dev(), file.ino()) == (attachment.netns_dev, attachment.netns_inode)
    };
    let in_place = fs::metadata(&attachment.netns).is_ok_and(|file| same(&file));
    !in_place && !interface_exists(&attachment.host_if)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link;
    use crate::tests::Scratch;

    fn attachment(id: &str) -> Attachment {
        let json = format!(
            r#"{{"network":"n","containerId":"{id}","ifname":"eth0","netns":"/nonexistent","netnsDev":1,"netnsInode":2,
                "bootId":"boot","hostIf":"sv0","hostIndex":0,"addresses":[]}}"#
        );
        serde_json::from_str(&json).unwrap()
    }

    #[test]
    fn claimed_once_and_updated() {
        let scratch = Scratch::new();
        let store = Attachments::of(&scratch.0);
        assert_eq!(store.list().unwrap(), []);
        let _lock = store.share().unwrap();
        let (mut a, b) = (attachment("a"), attachment("b"));
        store.claim(&b).unwrap();
        store.claim(&a).unwrap();
        assert_eq!(store.claim(&a).unwrap_err().code, 100);
        assert_eq!(
            store.load("b", "eth0").unwrap(),
            Known::This(Box::new(b.clone()))
        );
        (a.host_index, a.mtu) = (u32::MAX, 1500);
        store.note_interface(&a).unwrap();
        assert_eq!(
            store.load("a", "eth0").unwrap(),
            Known::This(Box::new(a.clone()))
        );
        a.host_index = 7;
        store.update(&a).unwrap();
        // Without the room for it.
        a.host_index = 70_000;
        store.note_interface(&a).unwrap();
        fs::write(store.dir().join("c@eth0.json"), "{").unwrap();
        fs::write(store.dir().join(".d@eth0.json"), "{").unwrap();
        assert_eq!(store.list().unwrap(), [a.clone(), b]);
        assert_eq!(store.load("a", "eth0").unwrap(), Known::This(Box::new(a)));
        assert_eq!(store.load("c", "eth0").unwrap(), Known::Unreadable);
        assert_eq!(store.load("x", "eth0").unwrap(), Known::Nothing);
        let garbled = store.behind_lease("n", "c", "eth0").unwrap().unwrap();
        assert!(
            is_gone(&garbled, &boot_id(), |_| false) && !is_gone(&garbled, &boot_id(), |_| true)
        );
        assert_eq!(store.behind_lease("n", "x", "eth0").unwrap(), None);
        store.remove_unfinished().unwrap();
        for id in ["a", "b", "c", "a"] {
            store.remove(id, "eth0").unwrap();
        }
        assert_eq!(
            fs::read_dir(store.dir()).unwrap().count(),
            1,
            "the lock's file"
        );
        assert_eq!(store.exclude(Duration::ZERO).unwrap_err().code, 11);
    }

    #[test]
    fn a_sandbox_is_gone_only_for_certain() {
        let own = fs::metadata("/proc/self/ns/net").unwrap();
        let here = link::Attachment {
            netns: "/proc/self/ns/net".into(),
            netns_dev: own.dev(),
            netns_inode: own.ino(),
            ..attachment("a")
        };
        let another = link::Attachment {
            netns_inode: own.ino() + 1,
            ..here.clone()
        };
        for (attachment, boot, exists, gone) in [
            (&here, "boot", false, false),
            (&here, "later", true, true),
            (&here, "", false, false),
            (&another, "boot", true, false),
            (&another, "boot", false, true),
            (&self::attachment("a"), "boot", true, false),
            (&self::attachment("a"), "boot", false, true),
        ] {
            assert_eq!(
                is_gone(attachment, boot, |_| exists),
                gone,
                "{} {boot} {exists}",
                attachment.netns
            );
        }
    }
}
