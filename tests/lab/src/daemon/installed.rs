//! Where the programs of a daemon are. Daemons of different projects share names (`bgpd` is FRR's, OpenBGPD's and Quagga's), so
//! each program is looked for where its package puts it, and asked who it is.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, bail};

use super::Kind;

/// A program of a daemon.
struct Program {
    kind: Kind,
    name: &'static str,
    /// The folders that packages put it into.
    places: &'static [&'static str],
    /// The argument that asks for its name or version, and a part of the answer. Absent for a client that cannot say who it
    /// is without its daemon.
    identity: Option<(&'static str, &'static str)>,
}

/// Folders of FRR's daemons: Debian's, Fedora's, those of a build from source.
const FRR: &[&str] = &["/usr/lib/frr", "/usr/libexec/frr", "/usr/local/sbin"];
const SYSTEM: &[&str] = &["/usr/sbin", "/usr/bin"];

const PROGRAMS: [Program; 7] = [
    Program::new(
        Kind::Bird,
        "bird",
        SYSTEM,
        Some(("--version", "BIRD version")),
    ),
    Program::new(Kind::Bird, "birdc", SYSTEM, None),
    Program::new(
        Kind::Frr,
        "zebra",
        FRR,
        Some(("--version", "Kunihiro Ishiguro")),
    ),
    Program::new(
        Kind::Frr,
        "bgpd",
        FRR,
        Some(("--version", "Kunihiro Ishiguro")),
    ),
    Program::new(Kind::Frr, "vtysh", SYSTEM, Some(("--help", "FRR"))),
    Program::new(
        Kind::Gobgp,
        "gobgpd",
        SYSTEM,
        Some(("--version", "gobgpd version")),
    ),
    Program::new(
        Kind::Gobgp,
        "gobgp",
        SYSTEM,
        Some(("--version", "gobgp version")),
    ),
];

impl Kind {
    /// Whether all programs of the daemon are there.
    #[must_use]
    pub fn is_installed(self) -> bool {
        PROGRAMS
            .iter()
            .filter(|program| program.kind == self)
            .all(|program| program.find().is_ok())
    }

    /// The program `name` of this daemon.
    ///
    /// # Errors
    /// When it is nowhere, or all programs of that name are another daemon's. The message names those, and the package.
    pub fn program(self, name: &str) -> Result<PathBuf> {
        let known = PROGRAMS
            .iter()
            .find(|program| program.kind == self && program.name == name);
        match known {
            Some(program) => program.find(),
            None => bail!("{self} has no program {name:?}"),
        }
    }
}

impl Program {
    const fn new(
        kind: Kind,
        name: &'static str,
        places: &'static [&'static str],
        identity: Option<(&'static str, &'static str)>,
    ) -> Program {
        Program {
            kind,
            name,
            places,
            identity,
        }
    }

    /// Asks each program once in the life of this process.
    fn find(&self) -> Result<PathBuf> {
        static FOUND: Mutex<BTreeMap<&str, PathBuf>> = Mutex::new(BTreeMap::new());
        let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = found.get(self.name) {
            return Ok(file.clone());
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let places = self.places.iter().map(PathBuf::from);
        let file = self.choose(places.chain(env::split_paths(&path)))?;
        found.insert(self.name, file.clone());
        Ok(file)
    }

    /// The first program of this name in `places` that is of this daemon.
    fn choose(&self, places: impl Iterator<Item = PathBuf>) -> Result<PathBuf> {
        let mut others = String::new();
        for file in places.map(|place| place.join(self.name)) {
            if !file.is_file() {
                continue;
            }
            let Some((argument, wanted)) = self.identity else {
                return Ok(file);
            };
            let said = answer(&file, argument);
            if said.contains(wanted) {
                return Ok(file);
            }
            let first = said.lines().next().unwrap_or("nothing");
            let another = format!("; {} is another program, it says {first:?}", file.display());
            // A folder may be in PATH twice.
            if !others.contains(&another) {
                others.push_str(&another);
            }
        }
        bail!(
            "{} of {} is not installed: apt-get install {}{others}",
            self.name,
            self.kind,
            self.kind.package()
        )
    }
}

/// All that a program prints when it is started with this argument.
fn answer(file: &Path, argument: &str) -> String {
    let output = Command::new(file)
        .arg(argument)
        .stdin(Stdio::null())
        .output();
    match output {
        Ok(output) => [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
        fs::create_dir_all(folder).expect("a folder");
        let file = folder.join(name);
        fs::write(&file, format!("#!/bin/sh\n{text}\n")).expect("a script");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).expect("executable");
        file
    }

    fn frr_bgpd() -> &'static Program {
        PROGRAMS
            .iter()
            .find(|program| program.kind == Kind::Frr && program.name == "bgpd")
            .expect("in the table")
    }

    #[test]
    fn a_program_of_the_same_name_is_not_taken_for_the_daemons_own() {
        let folder = env::temp_dir().join(format!("selvage-installed-{}", std::process::id()));
        let (openbgpd, frr) = (folder.join("sbin"), folder.join("frr"));
        // OpenBGPD's answer to an option that it does not have.
        let other = script(
            &openbgpd,
            "bgpd",
            "echo \"bgpd: invalid option -- '-'\" >&2; exit 1",
        );
        let error = frr_bgpd()
            .choose([openbgpd.clone(), openbgpd.clone()].into_iter())
            .expect_err("OpenBGPD is not FRR")
            .to_string();
        assert!(error.contains("apt-get install frr"), "{error}");
        assert_eq!(
            error.matches(&*other.to_string_lossy()).count(),
            1,
            "{error}"
        );

        let own = script(
            &frr,
            "bgpd",
            "echo 'bgpd version 8.4.4'; echo 'Copyright 1996-2005 Kunihiro Ishiguro, et al.'",
        );
        let found = frr_bgpd().choose([openbgpd, folder.join("absent"), frr].into_iter());
        assert_eq!(found.expect("FRR's"), own);
        fs::remove_dir_all(folder).expect("removed");
    }
}
