//! A folder that is watched with inotify, also while it does not exist.
//!
//! While the folder is missing, its nearest ancestor that exists is watched for the next step of the way to the folder.
//! What comes without a notification (a mount on an existing folder, the target of a symbolic link) is found by a look
//! every [`AWAY`].

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};

/// How often a missing folder is looked for without a notification.
pub(crate) const AWAY: Duration = Duration::from_secs(30);
/// So many folders may appear on the way while the watch is set up.
const STEPS: usize = 16;

/// Has `inotify` tell of files in a folder that come, go or change, and of the folder's own end. A second call for the same
/// folder is no error.
pub(crate) fn watch_folder(inotify: &OwnedFd, folder: &Path) -> io::Result<()> {
    let flags = WatchFlags::CLOSE_WRITE
        | WatchFlags::MOVED_TO
        | WatchFlags::MOVED_FROM
        | WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::DELETE_SELF
        | WatchFlags::MOVE_SELF
        | WatchFlags::ONLYDIR;
    inotify::add_watch(inotify, folder, flags)?;
    Ok(())
}

/// A fresh inotify (close-on-exec, non-blocking), and whether it watches `folder` itself. If not, the folder is missing:
/// call again after the next notification, and after [`AWAY`].
///
/// # Errors
/// When the process or the user has no inotify instances left.
pub(crate) fn watch_or_await(folder: &Path) -> io::Result<(OwnedFd, bool)> {
    let mut steps = 0;
    loop {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        if watch_folder(&inotify, folder).is_ok() {
            return Ok((inotify, true));
        }
        let flags = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        let mut missing = folder;
        for ancestor in folder.ancestors().skip(1) {
            if inotify::add_watch(&inotify, ancestor, flags).is_ok() {
                break;
            }
            missing = ancestor;
        }
        // The next step may have been made before the watch was.
        steps += 1;
        if !missing.exists() || steps == STEPS {
            return Ok((inotify, false));
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// Whether the inotify has something to say within 10 s.
    fn speaks(inotify: &OwnedFd) -> bool {
        let mut fds = [PollFd::new(inotify, PollFlags::IN)];
        let limit = Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        poll(&mut fds, Some(&limit)).unwrap() == 1
    }

    #[test]
    fn a_missing_folder_is_awaited_step_by_step() {
        let root = std::env::temp_dir().join(format!("selvage-await-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let folder = root.join("a/b/c");
        for step in ["a", "a/b", "a/b/c"] {
            let (inotify, there) = watch_or_await(&folder).unwrap();
            assert!(!there, "{step}");
            std::fs::create_dir(root.join(step)).unwrap();
            assert!(speaks(&inotify), "{step}");
        }
        let (inotify, there) = watch_or_await(&folder).unwrap();
        assert!(there);
        std::fs::write(folder.join("x"), "").unwrap();
        assert!(speaks(&inotify));
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_folder_is_no_folder() {
        let file = std::env::temp_dir().join(format!("selvage-file-{}", std::process::id()));
        std::fs::write(&file, "").unwrap();
        assert!(!watch_or_await(&file).unwrap().1);
        std::fs::remove_file(&file).unwrap();
        assert!(!watch_or_await(&file).unwrap().1);
    }
}
