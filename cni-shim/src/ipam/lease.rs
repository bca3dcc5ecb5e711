//! Leases on disk: one file per address, named by it, with `container id CR LF interface` in it.
//!
//! The layout is that of `host-local` (`<dataDir>/<network>/<address>`, `last_reserved_ip.N`, `lock` under flock),
//! so that either program can take over from the other. Leases are read and changed with the lock held only: a lease
//! that names nobody was left by a call that was killed between making and writing the file.
//!
//! Nothing here is synchronised to the disk. A reboot ends all sandboxes, so that a lease says nothing after it. What
//! tells stale leases from others are two marks (ADR 18): a lease of this plugin ends with a line break, which
//! `host-local` ignores and does not write; and `.boot` names the boot in which this plugin gave an address last. The
//! first ADD of a boot finds another boot there, or nothing, and removes the leases of this plugin that no attachment
//! of a living sandbox stands behind.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::range::RangeSet;
use crate::fault;
use crate::spec::CniError;
use crate::spec::request::is_name;

/// Where leases are kept unless the configuration says otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";

/// The boot in which this plugin gave an address last.
const BOOT: &str = ".boot";

/// So many addresses are looked at one by one before the directory is listed.
const PROBES: usize = 16;

/// Who holds an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    /// `CNI_IFNAME`; empty in leases of very old programs.
    pub ifname: String,
}

impl Owner {
    /// With the line break at the end that marks a lease of this plugin.
    fn to_text(&self) -> String {
        format!("{}\r\n{}\r\n", self.container_id, self.ifname)
    }

    /// `None` for what no program writes on purpose: the file of a call that was killed is empty, a loss of power may
    /// leave zeros.
    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.trim().lines();
        let container_id = lines.next()?.trim().to_owned();
        let ifname = lines.next().unwrap_or_default().trim().to_owned();
        is_name(&container_id).then_some(Self {
            container_id,
            ifname,
        })
    }

    /// Whether a lease with `other` in it is this one's. Very old leases name no interface.
    fn owns(&self, other: &Self) -> bool {
        self.container_id == other.container_id
            && (self.ifname == other.ifname || other.ifname.is_empty())
    }
}

/// The leases of one network.
#[derive(Clone, Debug)]
pub struct Leases {
    dir: PathBuf,
}

impl Leases {
    /// Those in `dir`; nothing is touched.
    pub fn at(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Takes the lock, creating the directory where it is missing. Waits for whoever holds it: never long, as
    /// nothing but file operations happens under it.
    pub fn lock(&self) -> Result<Locked<'_>, CniError> {
        fs::create_dir_all(&self.dir).map_err(|e| CniError::file("create", &self.dir, &e))?;
        self.lock_in_place()
    }

    /// Takes the lock, or `None` if there is no directory and so no lease.
    pub fn lock_existing(&self) -> Result<Option<Locked<'_>>, CniError> {
        if self.dir.is_dir() {
            self.lock_in_place().map(Some)
        } else {
            Ok(None)
        }
    }

    fn lock_in_place(&self) -> Result<Locked<'_>, CniError> {
        let path = self.dir.join("lock");
        let mut options = OpenOptions::new();
        // A full disk must not keep DEL from its work: an existing lock file is opened without creating anything.
        let file = options
            .read(true)
            .open(&path)
            .or_else(|_| options.write(true).create(true).mode(0o644).open(&path))
            .map_err(|e| CniError::file("open", &path, &e))?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => {
                    return Ok(Locked {
                        dir: &self.dir,
                        _lock: file,
                    });
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(CniError::file("lock", &path, &e.into())),
            }
        }
    }
}

/// The leases, with the lock held.
#[derive(Debug)]
pub struct Locked<'a> {
    dir: &'a Path,
    _lock: File,
}

impl Locked<'_> {
    /// Where the leases are.
    pub fn dir(&self) -> &Path {
        self.dir
    }

    /// Who holds `addr`; `Some(None)` if the file makes no sense.
    pub fn holder(&self, addr: IpAddr) -> Result<Option<Option<Owner>>, CniError> {
        let path = self.path(addr);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(Owner::parse(&String::from_utf8_lossy(&bytes)))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(CniError::file("read", &path, &e)),
        }
    }

    /// A free address from `set`, the one behind that of the last call.
    pub fn free(&self, set: &RangeSet, last: Option<IpAddr>) -> Result<Option<IpAddr>, CniError> {
        let mut listed: Option<BTreeSet<IpAddr>> = None;
        for (probe, addr) in set.candidates(last).enumerate() {
            let taken = match &listed {
                Some(taken) => taken.contains(&addr),
                None if probe < PROBES => self.path(addr).symlink_metadata().is_ok(),
                None => {
                    let taken: BTreeSet<_> = self.addresses()?.into_iter().collect();
                    // More leases than addresses in an endless range cannot be, so this ends soon.
                    let found = taken.contains(&addr);
                    listed = Some(taken);
                    found
                }
            };
            if !taken {
                return Ok(Some(addr));
            }
        }
        Ok(None)
    }

    /// Writes a lease. The caller knows the address to be free.
    pub fn write(&self, addr: IpAddr, owner: &Owner) -> Result<(), CniError> {
        let path = self.path(addr);
        let failed = |e: io::Error| CniError::file("write the lease", &path, &e);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&path).map_err(failed)?;
        let written = fault::point()
            .and_then(|()| file.write_all(owner.to_text().as_bytes()).map_err(failed));
        written.inspect_err(|_| {
            let _ = fs::remove_file(&path);
        })?;
        fault::point()
    }

    /// Whether `owner` holds `addr`.
    pub fn is_held_by(&self, addr: IpAddr, owner: &Owner) -> Result<bool, CniError> {
        Ok(self
            .holder(addr)?
            .flatten()
            .is_some_and(|holder| owner.owns(&holder)))
    }

    /// Whether `owner`, whose attachment names `addr`, holds it: a lease that names nobody is of a call for this
    /// attachment that was killed, as nobody else is given an address while its file is there.
    pub fn is_held_or_begun_by(&self, addr: IpAddr, owner: &Owner) -> Result<bool, CniError> {
        Ok(match self.holder(addr)? {
            None => false,
            Some(holder) => holder.is_none_or(|holder| owner.owns(&holder)),
        })
    }

    /// Whether this plugin wrote the lease of `addr`.
    pub fn is_ours(&self, addr: IpAddr) -> Result<bool, CniError> {
        let path = self.path(addr);
        match fs::read(&path) {
            Ok(bytes) => Ok(bytes.ends_with(b"\n")),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(CniError::file("read", &path, &e)),
        }
    }

    /// Whether this plugin has given an address in the boot `boot_id` before.
    pub fn is_of_boot(&self, boot_id: &str) -> bool {
        fs::read_to_string(self.dir.join(BOOT)).is_ok_and(|text| text.trim() == boot_id)
    }

    /// Notes that the leases of earlier boots are gone.
    pub fn set_boot(&self, boot_id: &str) -> Result<(), CniError> {
        let path = self.dir.join(BOOT);
        write_file(&path, boot_id.as_bytes())
            .map(drop)
            .map_err(|e| {
                // On a full disk the file is there, and empty: an ADD that fails leaves nothing.
                let _ = fs::remove_file(&path);
                CniError::file("write", &path, &e)
            })
    }

    /// Removes the lease of `addr`, whosever it is.
    pub fn remove(&self, addr: IpAddr) -> Result<(), CniError> {
        let path = self.path(addr);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(CniError::file("remove the lease", &path, &e))
            }
            _ => fault::point(),
        }
    }

    /// All leases, by address.
    pub fn all(&self) -> Result<Vec<(IpAddr, Option<Owner>)>, CniError> {
        let mut leases = Vec::new();
        for addr in self.addresses()? {
            if let Some(owner) = self.holder(addr)? {
                leases.push((addr, owner));
            }
        }
        Ok(leases)
    }

    /// The addresses that are leased, sorted.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, CniError> {
        addresses_in(self.dir)
    }

    /// The address that the `index`-th range set gave last.
    pub fn last_reserved(&self, index: usize) -> Option<IpAddr> {
        let text = fs::read_to_string(self.dir.join(format!("last_reserved_ip.{index}"))).ok()?;
        text.trim().parse().ok()
    }

    /// Notes the address that the `index`-th range set gave. Only the order of addresses depends on it, so nothing
    /// fails for it.
    pub fn set_last_reserved(&self, index: usize, addr: IpAddr) {
        let path = self.dir.join(format!("last_reserved_ip.{index}"));
        let text = addr.to_string();
        // Emptied first, it would be written through to the disk when it is closed (ext4).
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path);
        let _ = opened.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            let length = text.len() as u64;
            if file.metadata()?.len() == length {
                Ok(())
            } else {
                file.set_len(length)
            }
        });
    }

    fn path(&self, addr: IpAddr) -> PathBuf {
        self.dir.join(addr.to_string())
    }
}

/// The addresses that are leased in `dir`, sorted; none if there is no directory. Right without the lock as well,
/// for whoever only counts.
pub fn addresses_in(dir: &Path) -> Result<Vec<IpAddr>, CniError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(CniError::file("list", dir, &e)),
    };
    let mut addrs = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| CniError::file("list", dir, &e))?;
        addrs.extend(
            entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<IpAddr>().ok()),
        );
    }
    addrs.sort_unstable();
    Ok(addrs)
}

/// Who holds `addr` in `dir`, without the lock: for whoever only tells of it. `None` if there is no such lease.
pub fn owner_in(dir: &Path, addr: IpAddr) -> Option<Option<Owner>> {
    let bytes = fs::read(dir.join(addr.to_string())).ok()?;
    Some(Owner::parse(&String::from_utf8_lossy(&bytes)))
}

/// Writes a file, anew if it exists; the caller may synchronise what is returned.
pub(crate) fn write_file(path: &Path, content: &[u8]) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    Ok(file)
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(dir: &Path) -> Result<(), CniError> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| CniError::file("synchronise", dir, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_as_others_write_them() {
        let owner = |id: &str, ifname: &str| Owner {
            container_id: id.into(),
            ifname: ifname.into(),
        };
        for (text, expected) in [
            ("abc\r\neth0", Some(owner("abc", "eth0"))),
            ("abc\neth0\n", Some(owner("abc", "eth0"))),
            ("abc\r\neth0\r\n", Some(owner("abc", "eth0"))),
            ("abc", Some(owner("abc", ""))),
            ("", None),
            (" \r\n", None),
            ("\0\0\0", None),
        ] {
            assert_eq!(Owner::parse(text), expected, "{text:?}");
        }
        assert!(
            owner("a", "eth0").owns(&owner("a", ""))
                && !owner("a", "eth0").owns(&owner("a", "net1"))
        );
    }
}
