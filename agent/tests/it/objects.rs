//! Good and bad objects as files: beside each bad one lies what `selvage check` has to say about it.
//!
//! `SELVAGE_BLESS=1` writes what is said now; read the difference before committing it.

use std::fs;
use std::path::{Path, PathBuf};

use selvage::objects::crd;
use selvage::source::yaml;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/objects")
        .join(name)
}

fn files(name: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "yaml")
    });
    files.sort();
    files
}

fn said(path: &Path) -> String {
    let name = Path::new(path.file_name().unwrap());
    let contents = yaml::read(name, &fs::read_to_string(path).unwrap());
    contents
        .problems
        .iter()
        .map(|problem| format!("{problem}\n"))
        .collect()
}

/// Compares with the file, or writes it.
pub fn blessed(path: &Path, text: &str) {
    if std::env::var_os("SELVAGE_BLESS").is_some() {
        return fs::write(path, text).unwrap();
    }
    let expected = fs::read_to_string(path).unwrap_or_default();
    assert!(
        expected == text,
        "{} is not what it was; SELVAGE_BLESS=1 accepts it\n--- now ---\n{text}",
        path.display()
    );
}

#[test]
fn good_ones_have_no_problems() {
    let mut objects = 0;
    for path in files("good") {
        assert_eq!(said(&path), "", "{}", path.display());
        objects += yaml::read(&path, &fs::read_to_string(&path).unwrap())
            .objects
            .len();
    }
    assert_eq!(objects, 8);
}

#[test]
fn bad_ones_are_refused_with_place_field_reason_and_hint() {
    let bad = files("bad");
    assert!(bad.len() >= 7);
    for path in bad {
        let text = said(&path);
        assert_ne!(text, "", "{}", path.display());
        blessed(&path.with_extension("txt"), &text);
    }
}

#[test]
fn the_definitions_in_manifests_are_current() {
    for file in crd::files().unwrap() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../manifests/crds")
            .join(file.name);
        blessed(&path, &file.text);
    }
}
