//! The images of the tests: a pod's first process, and upstream's test server and client.

use std::path::PathBuf;

use anyhow::Result;

use super::programs::Programs;
use crate::image::Image;
use crate::lab::Lab;

/// Where the archives are within the lab.
pub(super) const FOLDER: &str = "images";

/// What holds a pod's namespaces.
pub(super) const PAUSE: &str = "localhost/pause:1";

/// Upstream's test server and client, by the name that its tests of this version ask for.
pub const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.63.0";

/// Writes the archives of both.
pub(super) fn write(lab: &Lab, programs: &Programs) -> Result<Vec<PathBuf>> {
    let folder = lab.subdirectory(FOLDER)?;
    let one = |name: &str, program: &str, command: &[&str]| {
        let mut image = Image::new(name)?;
        let path = format!("/{program}");
        image.add_static(&path, &programs.find(program)?)?;
        image.entrypoint = vec![path];
        image.command = command.iter().map(|word| (*word).to_owned()).collect();
        image.compressed = false;
        let archive = folder.join(format!("{program}.tar"));
        image.write(&archive)?;
        Ok::<_, anyhow::Error>(archive)
    };
    Ok(vec![
        one(PAUSE, "pause", &[])?,
        one(AGNHOST, "agnhost", &["pause"])?,
    ])
}
