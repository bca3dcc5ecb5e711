//! Watches the folder of the CNI configuration with inotify: other networks write there, and people tidy up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use tokio::net::unix::pipe::Receiver;

use crate::source::folder::{AWAY, watch_folder, watch_or_await};

/// Endings of files that runtimes take for configurations (libcni's `ConfFiles`).
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// Tells when a file in `folder` may have come, gone or changed. Does not end.
///
/// # Errors
/// When there is no inotify to be had.
pub async fn watch(folder: PathBuf, tell: impl Fn()) -> io::Result<()> {
    let mut buffer = vec![0; 4 << 10];
    loop {
        let (watcher, there) = watch_or_await(&folder)?;
        // It is read as a pipe is; what it says does not matter, only that it does.
        let said = Receiver::from_owned_fd_unchecked(watcher.try_clone()?)?;
        let mut watched = there;
        loop {
            tell();
            tokio::select! {
                readable = said.readable() => readable?,
                () = tokio::time::sleep(AWAY), if !there => {}
            }
            while matches!(said.try_read(&mut buffer), Ok(read) if read > 0) {}
            // Each time, for a folder that was removed and made again is another one.
            watched &= watch_folder(&watcher, &folder).is_ok();
            if !watched {
                break;
            }
        }
    }
}

/// The configuration that runtimes take instead of ours at `path`: they take the first by name.
pub fn before(path: &Path) -> Option<PathBuf> {
    let ours = path.file_name()?;
    let entries = fs::read_dir(path.parent()?).ok()?;
    entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|other| {
            let ending = other.extension().and_then(|ending| ending.to_str());
            ending.is_some_and(|ending| ENDINGS.contains(&ending)) && other.is_file()
        })
        .filter(|other| other.file_name().is_some_and(|name| name < ours))
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_by_name_counts() {
        let dir = std::env::temp_dir().join(format!("selvage-net.d-{}", std::process::id()));
        fs::create_dir_all(dir.join("01-folder.conf")).unwrap();
        let ours = dir.join("10-selvage.conflist");
        for (name, before_ours) in [
            ("10-selvage.conflist", None),
            ("10-selvage.conflist.bak", None),
            ("05-calico.conflist.disabled", None),
            ("20-flannel.conflist", None),
            ("10-kindnet.conflist", Some("10-kindnet.conflist")),
            ("10-a.json", Some("10-a.json")),
            ("05-cilium.conf", Some("05-cilium.conf")),
        ] {
            fs::write(dir.join(name), "{}").unwrap();
            assert_eq!(
                before(&ours),
                before_ours.map(|name| dir.join(name)),
                "{name}"
            );
        }
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(before(&ours), None);
    }
}
