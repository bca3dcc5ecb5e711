//! The plugin, where the container runtime looks for it.
//!
//! A runtime may be running the old one at any moment: the new one is written aside and renamed into place. Runtimes
//! also call a plugin named `loopback` for each sandbox; ours answers to that name, and stands in where there is none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Its name.
pub const PLUGIN: &str = "selvage-cni";

/// The name that it answers to, too.
pub const LOOPBACK: &str = "loopback";

/// Puts the program `plugin` into `directory`. Somebody else's `loopback` is left alone. Returns what was written.
pub fn place(plugin: &Path, directory: &Path) -> io::Result<Vec<PathBuf>> {
    let wanted = fs::read(plugin).map_err(|error| named(plugin, &error))?;
    fs::create_dir_all(directory).map_err(|error| named(directory, &error))?;
    let (path, loopback) = (directory.join(PLUGIN), directory.join(LOOPBACK));
    let mut written = Vec::new();
    // First: it is ours if it is the same as the one that is there now.
    if is_ours(&loopback, &[fs::read(&path).ok().as_deref(), Some(&wanted)])? != Some(false)
        && write(&loopback, &wanted)?
    {
        written.push(loopback);
    }
    if write(&path, &wanted)? {
        written.push(path);
    }
    Ok(written)
}

/// Removes what [`place`] has put there; `plugin`: our own copy, should there be one. Returns what was removed.
pub fn remove(plugin: Option<&Path>, directory: &Path) -> io::Result<Vec<PathBuf>> {
    let own = plugin.and_then(|plugin| fs::read(plugin).ok());
    let (path, loopback) = (directory.join(PLUGIN), directory.join(LOOPBACK));
    let there = fs::read(&path).ok();
    let mut removed = Vec::new();
    if is_ours(&loopback, &[there.as_deref(), own.as_deref()])? == Some(true) {
        fs::remove_file(&loopback).map_err(|error| named(&loopback, &error))?;
        removed.push(loopback);
    }
    match fs::remove_file(&path) {
        Ok(()) => removed.push(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(named(&path, &error)),
    }
    Ok(removed)
}

/// Whether a file is one of these; `None` if there is no file.
fn is_ours(path: &Path, ours: &[Option<&[u8]>]) -> io::Result<Option<bool>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(ours.iter().flatten().any(|own| *own == bytes))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // A link that leads nowhere is somebody's all the same.
            Ok(fs::symlink_metadata(path).is_ok().then_some(false))
        }
        Err(error) => Err(named(path, &error)),
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<bool> {
    const MODE: u32 = 0o755;
    let is_there = fs::symlink_metadata(path)
        .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o777 == MODE);
    if is_there && fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(false);
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let aside = path.with_file_name(name);
    // A run that was killed may have left one, of whatever mode.
    let _ = fs::remove_file(&aside);
    let mut options = File::options();
    options.write(true).create_new(true).mode(MODE);
    let done = options.open(&aside).and_then(|mut file| {
        file.write_all(bytes)?;
        // Whatever the umask.
        file.set_permissions(fs::Permissions::from_mode(MODE))?;
        file.sync_all()
    });
    let done = done.and_then(|()| fs::rename(&aside, path));
    if let Err(error) = done {
        let _ = fs::remove_file(&aside);
        return Err(named(path, &error));
    }
    Ok(true)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("selvage-plugin-{name}-{}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }

        /// A plugin of this version.
        fn version(&self, text: &str) -> PathBuf {
            let path = self.0.join(format!("version-{text}"));
            fs::write(&path, text).unwrap();
            path
        }

        fn bin(&self) -> PathBuf {
            self.0.join("opt/cni/bin")
        }

        fn files(&self) -> Vec<(String, String)> {
            let mut files: Vec<_> = fs::read_dir(self.bin())
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    let name = entry.file_name().to_string_lossy().into_owned();
                    (name, fs::read_to_string(entry.path()).unwrap())
                })
                .collect();
            files.sort();
            files
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn pairs(files: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        files.iter().map(owned).collect()
    }

    #[test]
    fn placed_once_replaced_by_a_newer_one_and_removed() {
        let scratch = Scratch::new("whole");
        let (bin, old, new) = (scratch.bin(), scratch.version("1"), scratch.version("2"));
        assert_eq!(
            place(&old, &bin).unwrap(),
            [bin.join(LOOPBACK), bin.join(PLUGIN)]
        );
        assert_eq!(place(&old, &bin).unwrap(), [""; 0].map(PathBuf::from));
        let mode = fs::metadata(bin.join(PLUGIN)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
        // One that runs keeps its file.
        let running = File::open(bin.join(PLUGIN)).unwrap();
        assert_eq!(place(&new, &bin).unwrap().len(), 2);
        assert_eq!(io::read_to_string(running).unwrap(), "1");
        assert_eq!(scratch.files(), pairs(&[(LOOPBACK, "2"), (PLUGIN, "2")]));
        assert_eq!(remove(None, &bin).unwrap().len(), 2);
        assert_eq!(remove(Some(&new), &bin).unwrap().len(), 0);
        assert_eq!(scratch.files(), []);
    }

    #[test]
    fn what_is_anothers_stays() {
        let scratch = Scratch::new("others");
        let (bin, old, new) = (scratch.bin(), scratch.version("1"), scratch.version("2"));
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join(LOOPBACK), "another").unwrap();
        fs::write(bin.join("bridge"), "another").unwrap();
        for version in [&old, &new] {
            assert_eq!(place(version, &bin).unwrap(), [bin.join(PLUGIN)]);
        }
        assert_eq!(remove(Some(&new), &bin).unwrap(), [bin.join(PLUGIN)]);
        assert_eq!(
            scratch.files(),
            pairs(&[("bridge", "another"), (LOOPBACK, "another")])
        );
    }

    #[test]
    fn killed_in_between() {
        let scratch = Scratch::new("killed");
        let (bin, old, new) = (scratch.bin(), scratch.version("1"), scratch.version("2"));
        place(&old, &bin).unwrap();
        // After the first of two renames, and with half a file aside.
        fs::copy(&new, bin.join(LOOPBACK)).unwrap();
        fs::write(bin.join(".selvage-cni.new"), "half").unwrap();
        place(&new, &bin).unwrap();
        assert_eq!(scratch.files(), pairs(&[(LOOPBACK, "2"), (PLUGIN, "2")]));
        // A link in place of the file is replaced, not followed.
        fs::remove_file(bin.join(PLUGIN)).unwrap();
        std::os::unix::fs::symlink(&old, bin.join(PLUGIN)).unwrap();
        place(&new, &bin).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "1");
        assert_eq!(scratch.files(), pairs(&[(LOOPBACK, "2"), (PLUGIN, "2")]));
    }

    #[test]
    fn messages_name_the_file() {
        let scratch = Scratch::new("messages");
        let missing = scratch.0.join("missing");
        let error = place(&missing, &scratch.bin()).unwrap_err();
        assert!(
            error.to_string().contains("missing: No such file"),
            "{error}"
        );
        fs::write(scratch.0.join("file"), "").unwrap();
        let error = place(&scratch.version("1"), &scratch.0.join("file/bin")).unwrap_err();
        assert!(error.to_string().contains("file/bin"), "{error}");
    }
}
