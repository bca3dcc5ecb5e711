//! The scripts of the build and the installation, as a newcomer meets them: with programs of their own instead of cargo, rustup,
//! Go and curl.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use selvage_lab::Lab;

use crate::harness::{Case, Need};

const BASH: &[Need] = &[Need::System("bash", "bash")];

pub fn cases() -> Vec<Case> {
    vec![
        Case::new(
            "scripts::an_image_with_too_large_a_plugin_is_refused_for_that",
            BASH,
            too_large,
        ),
        Case::new(
            "scripts::without_musl_the_image_has_a_plugin_of_glibc",
            BASH,
            without_musl,
        ),
        Case::new("scripts::the_musl_target_is_added", BASH, musl_added),
        Case::new(
            "scripts::go_comes_from_the_module_proxy_that_is_set_up",
            BASH,
            go_from_proxy,
        ),
        Case::new(
            "scripts::a_build_of_the_cluster_says_how_far_it_is",
            BASH,
            how_far,
        ),
    ]
}

/// A folder with programs that stand in for those of the machine, and what they were asked.
struct Stage {
    folder: PathBuf,
}

/// What a script has printed, and how it ended.
struct Ended {
    code: Option<i32>,
    /// Standard output, then standard error.
    text: String,
}

impl Stage {
    fn new(lab: &Lab, name: &str) -> Result<Stage> {
        let stage = Stage {
            folder: lab.subdirectory(name)?,
        };
        fs::create_dir_all(stage.folder.join("bin"))?;
        Ok(stage)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A program of this name, first in `PATH`.
    fn program(&self, name: &str, script: &str) -> Result<PathBuf> {
        let file = self.folder.join("bin").join(name);
        executable(&file, &format!("#!/bin/bash\n{script}\n"))?;
        Ok(file)
    }

    /// What the programs have written into `asked`.
    fn asked(&self) -> String {
        fs::read_to_string(self.path("asked")).unwrap_or_default()
    }

    /// Runs a script of `tests/` on this stage. The namespace of the lab has no way out, so nothing is fetched.
    fn run(&self, lab: &Lab, script: &Path, argument: Option<&str>) -> Result<Ended> {
        let name = self.folder.file_name().context("a name")?;
        let host = lab.netns(&name.to_string_lossy())?;
        let path = format!(
            "{}:/usr/sbin:/usr/bin:/sbin:/bin",
            self.path("bin").display()
        );
        // Go's usual place is hidden from the script alone.
        let hide = "[ ! -d /usr/local/go ] || mount -t tmpfs none /usr/local/go; exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "bash", "-c", hide, "hide"]);
        command.arg(script).args(argument);
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.path("home"))
            .env("STAGE", &self.folder)
            .env("CARGO", self.path("bin/cargo"))
            .env("CARGO_TARGET_DIR", self.path("target"));
        let output = host.run(|| command.output().context("unshare"))?;
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        Ok(Ended {
            code: output.status.code(),
            text,
        })
    }

    /// `rustc` and `rustup` of a toolchain without musl, which `rustup` adds if it `can`.
    fn toolchain(&self, can: bool) -> Result<()> {
        self.program("rustc", "echo \"$STAGE/sysroot\"")?;
        let add = match can {
            true => "mkdir -p \"$STAGE/sysroot/lib/rustlib/$3\"",
            false => "exit 1",
        };
        let rustup = format!("echo \"rustup $*\" >>\"$STAGE/asked\"\n{add}");
        self.program("rustup", &rustup)?;
        self.program("cargo", "exit 0")?;
        self.program("cc", "exit 0")?;
        Ok(())
    }

    /// A tree with the scripts of the image. `cargo` makes a plugin of `size` bytes, and programs of none.
    fn tree(&self, size: u32) -> Result<PathBuf> {
        let tests = self.path("tree/tests");
        fs::create_dir_all(&tests)?;
        for name in ["image.sh", "shim.sh", "static.sh"] {
            fs::copy(source(name), tests.join(name)).with_context(|| name.to_owned())?;
        }
        fs::write(
            self.path("tree/Cargo.toml"),
            "[workspace.package]\nversion = \"0.1.0\"\n",
        )?;
        let cargo = format!(
            r#"target= profile= program=
while [ $# -gt 0 ]; do
  case $1 in
    --target) target=$2/ ;;
    --profile) profile=$2 ;;
    --bin) program=$2 ;;
  esac
  shift
done
folder=$CARGO_TARGET_DIR/$target$profile
mkdir -p "$folder"
case $program in
  selvage-cni) head -c {size} /dev/zero >"$folder/$program" ;;
  selvage-lab)
    printf '#!/bin/bash\necho "image $*" >>"$STAGE/asked"\nwhile [ "$1" != --output ]; do shift; done\n: >"$2"\n' >"$folder/$program"
    chmod 755 "$folder/$program"
    ;;
  *) : >"$folder/$program" ;;
esac"#
        );
        self.program("cargo", &cargo)?;
        self.program("rustc", "echo \"$STAGE/sysroot\"")?;
        Ok(tests.join("image.sh"))
    }

    fn add_musl(&self) -> Result<()> {
        let name = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
        fs::create_dir_all(self.path("sysroot/lib/rustlib").join(name))?;
        Ok(())
    }
}

fn executable(file: &Path, text: &str) -> Result<()> {
    fs::write(file, text)?;
    fs::set_permissions(file, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// A script of this folder of the source tree.
fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn too_large(lab: &Lab) -> Result<()> {
    for (name, musl, size, limit) in [
        ("musl", true, 1_790_000, "1048576"),
        ("glibc", false, 2_200_000, "2097152"),
    ] {
        let stage = Stage::new(lab, name)?;
        let script = stage.tree(size)?;
        if musl {
            stage.add_musl()?;
        }
        let ended = stage.run(lab, &script, None)?;
        ensure!(ended.code == Some(1), "{:?}: {}", ended.code, ended.text);
        let last = ended.text.lines().last().unwrap_or_default();
        let wanted = format!("selvage-cni has {size} bytes, {limit} is the limit");
        ensure!(last.contains(&wanted), "{name}: {}", ended.text);
        ensure!(stage.asked().is_empty(), "{name}: {}", stage.asked());
    }
    Ok(())
}

fn without_musl(lab: &Lab) -> Result<()> {
    let stage = Stage::new(lab, "glibc")?;
    // The size that the plugin has with glibc.
    let script = stage.tree(1_790_000)?;
    let ended = stage.run(lab, &script, None)?;
    ensure!(ended.code == Some(0), "{:?}: {}", ended.code, ended.text);
    ensure!(
        ended
            .text
            .contains("selvage-cni is linked with glibc instead"),
        "{}",
        ended.text
    );
    let asked = stage.asked();
    ensure!(
        asked.contains("-unknown-linux-gnu/shim/selvage-cni"),
        "{asked}"
    );
    Ok(())
}

fn musl_added(lab: &Lab) -> Result<()> {
    let wanted = format!(
        "rustup target add {}-unknown-linux-musl",
        std::env::consts::ARCH
    );
    for scope in ["image", "kubernetes"] {
        let stage = Stage::new(lab, scope)?;
        stage.toolchain(true)?;
        let ended = stage.run(lab, &source("install.sh"), Some(scope))?;
        ensure!(stage.asked().contains(&wanted), "{scope}: {}", ended.text);
        ensure!(
            ended.text.contains("added the Rust target"),
            "{}",
            ended.text
        );

        // A toolchain that has none to add is no reason to stop: static programs are linked with glibc then.
        let stage = Stage::new(lab, &format!("{scope}-not"))?;
        stage.toolchain(false)?;
        let ended = stage.run(lab, &source("install.sh"), Some(scope))?;
        ensure!(ended.code == Some(0), "{:?}: {}", ended.code, ended.text);
        ensure!(
            ended.text.contains("SKIPPED Rust target") && ended.text.contains("glibc"),
            "{}",
            ended.text
        );
    }
    Ok(())
}

fn go_from_proxy(lab: &Lab) -> Result<()> {
    let curl = "echo \"curl $*\" >>\"$STAGE/asked\"; exit 22";
    let start = |name: &str, go: &str| {
        let stage = Stage::new(lab, name)?;
        stage.toolchain(true)?;
        stage.program("curl", curl)?;
        stage.program("unzip", "exit 1")?;
        stage.program("go", go)?;
        Ok::<_, anyhow::Error>(stage)
    };
    // A Go that is too old to build the programs, and knows where modules come from.
    let stage = start(
        "client",
        "[ \"$*\" = 'env GOPROXY' ] && echo 'https://modules.example/go,direct'",
    )?;
    let ended = stage.run(lab, &source("install.sh"), Some("kubernetes"))?;
    ensure!(
        stage
            .asked()
            .contains("https://modules.example/go/golang.org/toolchain/@v/"),
        "{}\n{}",
        stage.asked(),
        ended.text
    );

    // The file that a Go client keeps its settings in.
    let stage = start("file", "exit 1")?;
    fs::create_dir_all(stage.path("home/.config/go"))?;
    fs::write(
        stage.path("home/.config/go/env"),
        "GOPROXY=off|https://other.example\n",
    )?;
    stage.run(lab, &source("install.sh"), Some("kubernetes"))?;
    ensure!(
        stage.asked().contains(" https://other.example/golang.org/"),
        "{}",
        stage.asked()
    );

    // Neither: nothing is fetched from a place that nobody has named.
    let stage = start("nothing", "exit 1")?;
    let ended = stage.run(lab, &source("install.sh"), Some("kubernetes"))?;
    ensure!(!stage.asked().contains("curl"), "{}", stage.asked());
    ensure!(
        ended.text.contains("SKIPPED Go: ") && ended.text.contains("install Go "),
        "{}",
        ended.text
    );
    Ok(())
}

fn how_far(lab: &Lab) -> Result<()> {
    let stage = Stage::new(lab, "build")?;
    // A Go that builds everything at once, but etcd only when it was said how far that is.
    let go = r#"echo "go $*" >>"$STAGE/asked"
case " $* " in
  *" -deps "*) printf 'a\nb\nc\n' ;;
  *" ./etcd ")
    echo a >&2
    until grep -q ' packages, ' "$STAGE/said" || [ $SECONDS -ge 120 ]; do sleep 0.2; done
    ;;
esac
while [ $# -gt 0 ]; do
  [ "$1" != -o ] || { : >"$2"; chmod 755 "$2"; }
  shift
done"#;
    stage.program("go", go)?;
    let build = format!(
        "set -o pipefail\n'{}' \"$@\" 2>&1 | tee \"$STAGE/said\"",
        source("cluster/build.sh").display()
    );
    let script = stage.program("build", &build)?;
    let ended = stage.run(lab, &script, Some("conformance"))?;
    ensure!(ended.code == Some(0), "{:?}: {}", ended.code, ended.text);
    let (under_way, lines): (Vec<&str>, Vec<&str>) = ended
        .text
        .lines()
        .filter_map(|line| line.strip_prefix("build.sh: "))
        .partition(|line| line.contains(" packages, "));
    ensure!(
        under_way.first().is_some_and(|line| {
            line.starts_with("1 of ") && line.contains(", etcd (") && line.contains(": 1 of 3 ")
        }),
        "{}",
        ended.text
    );
    let (first, each) = lines.split_first().context("it says nothing")?;
    let all = each.len();
    ensure!(
        first.starts_with(&format!("{all} programs of Kubernetes v"))
            && first.ends_with(" on two idle cores"),
        "{}",
        ended.text
    );
    for (number, line) in (1..).zip(each) {
        ensure!(
            line.starts_with(&format!("{number} of {all}, "))
                && line.contains("; left: about ") == (number < all),
            "{line}"
        );
    }
    // Upstream's packages were vetted by upstream, which takes longer than to build them.
    let asked = stage.asked();
    ensure!(asked.contains(" test -c -vet=off "), "{asked}");
    // All there: nothing is built.
    let again = stage.run(lab, &script, Some("conformance"))?;
    ensure!(!again.text.contains("build.sh: "), "{}", again.text);
    Ok(())
}
