//! Container images made from nothing: an archive that `ctr images import`, `podman load` and `docker load` take.
//!
//! ```text
//!  FILE.tar ── oci-layout, index.json ──► blobs/sha256/MANIFEST ──► CONFIG, LAYER     (OCI image layout)
//!           └─ manifest.json ───────────────────────────────────► the same blobs      (docker load of any age)
//! ```
//! One layer, no base image, no engine. The same files give the same archive, byte for byte: entries are sorted, owned by
//! root and dated [`Image::epoch`].

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use flate2::{Compression, GzBuilder};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// An image to be written.
#[derive(Clone, Debug)]
pub struct Image {
    /// How it is called, as in `localhost/selvage:0.1.0`.
    name: String,
    /// What a container runs; its arguments are the container's own.
    pub entrypoint: Vec<String>,
    /// Arguments where the container says nothing.
    pub command: Vec<String>,
    /// `org.opencontainers.image.*` and others.
    pub labels: BTreeMap<String, String>,
    /// When everything in it was made: seconds since 1970.
    pub epoch: u64,
    /// Whether the layer is compressed: smaller, and slower to write and to import.
    pub compressed: bool,
    architecture: &'static str,
    files: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug)]
enum Entry {
    File { from: PathBuf, mode: u32 },
    Bytes { bytes: Vec<u8>, mode: u32 },
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// `sha256:` of the manifest: how a registry would call it.
    pub digest: String,
    /// Bytes of the archive.
    pub size: u64,
}

/// A part of the image, found by its digest.
struct Blob {
    media_type: &'static str,
    digest: String,
    bytes: Vec<u8>,
}

impl Image {
    /// An empty image for this machine's architecture.
    ///
    /// # Errors
    /// When the name has no tag.
    pub fn new(name: &str) -> Result<Image> {
        let tag = name
            .rsplit('/')
            .next()
            .and_then(|last| last.split_once(':'));
        ensure!(
            tag.is_some_and(|(name, tag)| !name.is_empty() && !tag.is_empty()),
            "{name:?} is not NAME:TAG"
        );
        Ok(Image {
            name: name.to_owned(),
            entrypoint: Vec::new(),
            command: Vec::new(),
            labels: BTreeMap::new(),
            epoch: 0,
            compressed: true,
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
            files: BTreeMap::new(),
        })
    }

    /// Adds a file of this machine at `path`. Who may execute it here may there.
    ///
    /// # Errors
    /// When it is not a file, or `path` is not absolute and plain.
    pub fn add(&mut self, path: &str, from: &Path) -> Result<()> {
        let metadata =
            fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        ensure!(metadata.is_file(), "{} is not a file", from.display());
        let executable = metadata.permissions().mode() & 0o111 != 0;
        let entry = Entry::File {
            from: from.to_owned(),
            mode: if executable { 0o755 } else { 0o644 },
        };
        self.files.insert(inside(path)?, entry);
        Ok(())
    }

    /// Adds a file with these bytes.
    ///
    /// # Errors
    /// When `path` is not absolute and plain.
    pub fn add_bytes(&mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Result<()> {
        let entry = Entry::Bytes {
            bytes: bytes.into(),
            mode,
        };
        self.files.insert(inside(path)?, entry);
        Ok(())
    }

    /// Adds a program. One that asks for a dynamic loader is refused: nothing else is in the image.
    ///
    /// # Errors
    /// As [`Image::add`], and when it is not static.
    pub fn add_static(&mut self, path: &str, from: &Path) -> Result<()> {
        if let Some(loader) = interpreter(from)? {
            bail!(
                "{} asks for {loader}, which the image does not have: build it static, or take its libraries along \
                 (--libraries)",
                from.display()
            );
        }
        self.add(path, from)
    }

    /// Adds a program with the loader and the libraries of this machine that it asks for, at their own paths. For
    /// tests: what is shipped is static.
    ///
    /// # Errors
    /// As [`Image::add`], and when a library is missing.
    pub fn add_with_libraries(&mut self, path: &str, from: &Path) -> Result<()> {
        self.add(path, from)?;
        if interpreter(from)?.is_none() {
            return Ok(());
        }
        // The loader answers in place of the program.
        let output = Command::new(from)
            .env("LD_TRACE_LOADED_OBJECTS", "1")
            .output()
            .with_context(|| format!("cannot ask {} for its libraries", from.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(
            output.status.success() && !text.contains("not found"),
            "libraries of {}: {text}",
            from.display()
        );
        for library in libraries(&text) {
            self.add(library, Path::new(library))?;
        }
        Ok(())
    }

    /// Writes the archive: whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be read or the archive not written.
    pub fn write(&self, output: &Path) -> Result<Written> {
        let layer = self.layer().context("cannot make the layer")?;
        let layer_digest = digest(&layer);
        let layer = match self.compressed {
            true => Blob::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&layer)?),
            false => Blob::new("application/vnd.oci.image.layer.v1.tar", layer),
        };
        let config = self.config(&layer_digest);
        let config = Blob::json("application/vnd.oci.image.config.v1+json", &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        let manifest = Blob::json("application/vnd.oci.image.manifest.v1+json", &manifest)?;
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::from([
            (
                "oci-layout".into(),
                serde_json::to_vec(&json!({"imageLayoutVersion": "1.0.0"}))?,
            ),
            (
                "index.json".into(),
                serde_json::to_vec(&self.index(&manifest))?,
            ),
            (
                "manifest.json".into(),
                serde_json::to_vec(&self.docker(&config, &layer))?,
            ),
        ]);
        let digest = manifest.digest.clone();
        for blob in [layer, config, manifest] {
            files.insert(blob.path(), blob.bytes);
        }
        let size = replace(output, &self.archive(&files)?)
            .with_context(|| format!("cannot write {}", output.display()))?;
        Ok(Written { digest, size })
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        let mut made = Vec::new();
        for (path, entry) in &self.files {
            for directory in directories(path) {
                if !made.contains(&directory) {
                    self.append(&mut tar, EntryType::Directory, directory, 0o755, &[])?;
                    made.push(directory);
                }
            }
            match entry {
                Entry::Bytes { bytes, mode } => {
                    self.append(&mut tar, EntryType::Regular, path, *mode, bytes)?;
                }
                Entry::File { from, mode } => {
                    let bytes = fs::read(from)
                        .with_context(|| format!("cannot read {}", from.display()))?;
                    self.append(&mut tar, EntryType::Regular, path, *mode, &bytes)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    fn append(
        &self,
        tar: &mut tar::Builder<Vec<u8>>,
        kind: EntryType,
        path: &str,
        mode: u32,
        bytes: &[u8],
    ) -> io::Result<()> {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path)?;
        header.set_mode(mode);
        header.set_mtime(self.epoch);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes)
    }

    fn archive(&self, files: &BTreeMap<String, Vec<u8>>) -> io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for directory in ["blobs", "blobs/sha256"] {
            self.append(&mut tar, EntryType::Directory, directory, 0o755, &[])?;
        }
        for (path, bytes) in files {
            self.append(&mut tar, EntryType::Regular, path, 0o644, bytes)?;
        }
        tar.into_inner()
    }

    fn config(&self, layer: &str) -> Value {
        json!({
            "created": rfc3339(self.epoch),
            "architecture": self.architecture,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.command,
                "Labels": self.labels,
                "User": "0:0",
                "WorkingDir": "/",
            },
            "rootfs": {"type": "layers", "diff_ids": [layer]},
            "history": [{"created": rfc3339(self.epoch), "created_by": "selvage-lab image"}],
        })
    }

    fn index(&self, manifest: &Blob) -> Value {
        let mut descriptor = manifest.descriptor();
        let tag = self.name.rsplit(':').next().unwrap_or_default();
        descriptor["platform"] = json!({"architecture": self.architecture, "os": "linux"});
        descriptor["annotations"] = json!({
            "io.containerd.image.name": self.name,
            "org.opencontainers.image.ref.name": tag,
        });
        json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        })
    }

    /// What `docker load` reads.
    fn docker(&self, config: &Blob, layer: &Blob) -> Value {
        json!([{"Config": config.path(), "RepoTags": [self.name], "Layers": [layer.path()]}])
    }
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Blob {
        Blob {
            media_type,
            digest: digest(&bytes),
            bytes,
        }
    }

    fn json(media_type: &'static str, value: &Value) -> Result<Blob> {
        Ok(Blob::new(media_type, serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex = |byte: u8| format!("{byte:02x}");
    let sum: String = Sha256::digest(bytes).into_iter().map(hex).collect();
    format!("sha256:{sum}")
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    // Neither a name nor a time in the header.
    let mut gzip = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), Compression::best());
    gzip.write_all(bytes)?;
    gzip.finish()
}

fn replace(output: &Path, bytes: &[u8]) -> io::Result<u64> {
    let mut draft = output.as_os_str().to_owned();
    draft.push(".draft");
    let written = File::create(&draft)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&draft, output));
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written.map(|()| bytes.len() as u64)
}

/// The path of an entry: without the slash at its beginning.
fn inside(path: &str) -> Result<String> {
    let relative = path.strip_prefix('/').unwrap_or_default();
    let plain = Path::new(relative)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    ensure!(
        plain && !relative.is_empty() && !relative.ends_with('/'),
        "{path:?} is not an absolute and plain path"
    );
    Ok(relative.to_owned())
}

/// The directories above a path, the topmost first.
fn directories(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`; the kernel's own has no path.
fn libraries(text: &str) -> impl Iterator<Item = &str> {
    text.split_whitespace().filter(|word| word.starts_with('/'))
}

/// The loader that a program asks for, if it does: `PT_INTERP` of a 64-bit little-endian ELF file.
fn interpreter(path: &Path) -> Result<Option<String>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let number = |at: usize, size: usize| -> Option<usize> {
        let mut word = [0; 8];
        word[..size].copy_from_slice(bytes.get(at..at + size)?);
        usize::try_from(u64::from_le_bytes(word)).ok()
    };
    let find = || -> Option<Option<String>> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for header in (0..count).map(|index| table + index * size) {
            const PT_INTERP: usize = 3;
            if number(header, 4)? == PT_INTERP {
                let (start, length) = (number(header + 8, 8)?, number(header + 32, 8)?);
                let name = bytes.get(start..start + length)?;
                let name = String::from_utf8_lossy(name);
                return Some(Some(name.trim_end_matches('\0').to_owned()));
            }
        }
        Some(None)
    };
    ensure!(
        bytes.starts_with(b"\x7fELF\x02\x01"),
        "{} is not a 64-bit program",
        path.display()
    );
    find().with_context(|| format!("{} is cut short", path.display()))
}

/// Seconds since 1970 as OCI writes a time.
fn rfc3339(epoch: u64) -> String {
    let (days, seconds) = (epoch / 86_400, epoch % 86_400);
    // Years that begin in March end with the leap day; 400 of them have 146,097 days.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let (month, day) = (1 + (march + 2) % 12, day - (153 * march + 2) / 5 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("selvage-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn image() -> Image {
        let mut image = Image::new("localhost/x:1").unwrap();
        image.entrypoint = vec!["/bin/x".into()];
        image.labels.insert("b".into(), "2".into());
        image.epoch = 1_700_000_000;
        image.add_bytes("/usr/share/x", "text", 0o644).unwrap();
        image.add_bytes("/bin/x", vec![7; 100_000], 0o755).unwrap();
        image
    }

    fn entries(tar: &[u8]) -> BTreeMap<String, (Vec<u8>, Header)> {
        let mut archive = tar::Archive::new(tar);
        let read = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, (bytes, entry.header().clone()))
        };
        archive.entries().unwrap().map(read).collect()
    }

    #[test]
    fn every_reference_leads_to_its_blob() {
        let scratch = Scratch::new("image");
        for compressed in [true, false] {
            let path = scratch.0.join("x.tar");
            let image = Image {
                compressed,
                ..image()
            };
            let written = image.write(&path).unwrap();
            let archive = fs::read(&path).unwrap();
            assert_eq!(written.size, archive.len() as u64);
            let files = entries(&archive);
            let blob = |descriptor: &Value| {
                let name = descriptor["digest"].as_str().unwrap();
                let bytes = &files[&format!("blobs/{}", name.replace(':', "/"))].0;
                assert_eq!(digest(bytes), name);
                assert_eq!(descriptor["size"], bytes.len());
                bytes.clone()
            };
            let read = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
            let index = read(&files["index.json"].0);
            let first = &index["manifests"][0];
            assert_eq!(first["digest"], written.digest);
            assert_eq!(
                first["annotations"]["io.containerd.image.name"],
                "localhost/x:1"
            );
            let manifest = read(&blob(first));
            let config = read(&blob(&manifest["config"]));
            assert_eq!(config["config"]["Entrypoint"], json!(["/bin/x"]));
            let mut layer = blob(&manifest["layers"][0]);
            if compressed {
                let mut plain = Vec::new();
                flate2::read::GzDecoder::new(&layer[..])
                    .read_to_end(&mut plain)
                    .unwrap();
                layer = plain;
            }
            assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
            let docker = &read(&files["manifest.json"].0)[0];
            for (file, descriptor) in [
                (&docker["Config"], &manifest["config"]),
                (&docker["Layers"][0], &manifest["layers"][0]),
            ] {
                let name = descriptor["digest"].as_str().unwrap().replace(':', "/");
                assert_eq!(*file, format!("blobs/{name}"));
            }
            let layer = entries(&layer);
            let names: Vec<&str> = layer.keys().map(String::as_str).collect();
            assert_eq!(names, ["bin", "bin/x", "usr", "usr/share", "usr/share/x"]);
            let (bytes, header) = &layer["bin/x"];
            assert_eq!((bytes.len(), header.mode().unwrap()), (100_000, 0o755));
            assert_eq!(header.mtime().unwrap(), 1_700_000_000);
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let scratch = Scratch::new("image-again");
        let (a, b) = (scratch.0.join("a"), scratch.0.join("b"));
        let mut other_order = Image {
            files: BTreeMap::new(),
            ..image()
        };
        other_order
            .add_bytes("/bin/x", vec![7; 100_000], 0o755)
            .unwrap();
        other_order
            .add_bytes("/usr/share/x", "text", 0o644)
            .unwrap();
        assert_eq!(image().write(&a).unwrap(), other_order.write(&b).unwrap());
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        other_order.epoch += 1;
        other_order.write(&b).unwrap();
        assert_ne!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
        assert_eq!(fs::read_dir(&scratch.0).unwrap().count(), 2);
    }

    #[test]
    fn names_and_paths_that_cannot_be() {
        for name in ["x", "localhost:5000/x", "x:", ":1"] {
            assert!(Image::new(name).is_err(), "{name}");
        }
        let mut image = image();
        for path in ["x", "/", "/../x", "/a/../b", "/a/", ""] {
            assert!(image.add_bytes(path, "", 0o644).is_err(), "{path}");
        }
    }

    #[test]
    fn a_dynamic_program_brings_what_it_needs() {
        let program = std::env::current_exe().unwrap();
        let mut image = image();
        let Some(loader) = interpreter(&program).unwrap() else {
            image.add_static("/test", &program).unwrap();
            return;
        };
        let refused = image.add_static("/test", &program).unwrap_err();
        assert!(refused.to_string().contains(&loader), "{refused}");
        image.add_with_libraries("/test", &program).unwrap();
        assert!(image.files.contains_key(&loader[1..]), "{:?}", image.files);
        assert!(image.files.keys().any(|path| path.ends_with("/libc.so.6")));
    }

    #[test]
    fn times() {
        for (epoch, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (1_735_689_600, "2025-01-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(epoch), text);
        }
    }
}
