//! `selvage install`: makes a node ready for an agent without privileges. A second run changes nothing.

use std::env;
use std::io;
use std::path::{Path, PathBuf};

use selvage_cni::link::DEFAULT_STATE_DIR;
use serde::Serialize;

use super::screen::Screen;
use super::{Failure, Outcome, OutputArgs, print};
use crate::config::{ConfigError, Features, pod_interfaces};
use crate::install::sysctl::{self, Record, Refused};
use crate::install::{kernel, plugin};
use crate::kernel::sysctl::{ROOT, Setting, verify};
use crate::pod_interfaces::PodInterfaces;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// Where the container runtime looks for plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// The plugin [default: selvage-cni beside this program]
    #[arg(long, value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// State that outlives a reboot; what sysctls were is written down here
    #[arg(long, value_name = "DIR", env = "SELVAGE_STATE_DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// What will run [default: bgp,kernel,cni,policy]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        env = "SELVAGE_FEATURES"
    )]
    features: Option<Vec<String>>,
    /// How the names of pods' interfaces begin, where another plugin makes them; as for the agent
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        env = "SELVAGE_POD_INTERFACE_PREFIX"
    )]
    pod_interface_prefix: Option<Vec<String>>,
    #[command(flatten)]
    output: OutputArgs,
}

/// What was changed, and what should be.
#[derive(Debug, Default, Serialize)]
struct Installed {
    files: Vec<PathBuf>,
    sysctls: Vec<String>,
    /// What is not as it should be, while the node works.
    warnings: Vec<String>,
}

pub(super) fn run(args: &Args) -> Outcome {
    let refused = |error: ConfigError| Failure::new(&error).hint(error.hint).usage();
    let features = match &args.features {
        Some(names) => Features::parse(names.iter().map(String::as_str)).map_err(refused)?,
        None => Features::ALL,
    };
    let pods = pod_interfaces(features, args.pod_interface_prefix.as_deref()).map_err(refused)?;
    let mut installed = Installed::default();
    probe(features, &mut installed)?;
    set_sysctls(features, &pods, &args.state_dir, &mut installed)?;
    if features.cni {
        let plugin = args.plugin.clone().unwrap_or_else(own_plugin);
        installed.files = plugin::place(&plugin, &args.cni_bin_dir).map_err(|error| {
            Failure::new(error).hint("--cni-bin-dir and --plugin say where to, and which")
        })?;
    }
    print(args.output.output, &installed, |screen| {
        render(screen, &installed)
    })?;
    Ok(true)
}

/// The plugin beside this program.
pub(super) fn own_plugin() -> PathBuf {
    let own = env::current_exe().unwrap_or_default();
    own.with_file_name(plugin::PLUGIN)
}

fn probe(features: Features, installed: &mut Installed) -> Result<(), Failure> {
    let lacks = kernel::probe(features).map_err(|error| {
        Failure::new(format!(
            "cannot try the kernel in a network namespace: {error}"
        ))
        .hint("this takes root; in a container, `privileged: true`")
    })?;
    if let Some(lack) = lacks.iter().find(|lack| lack.essential) {
        return Err(Failure::new(&lack.what).hint(lack.hint));
    }
    let say = |lack: kernel::Lack| format!("{}; {}", lack.what, lack.hint);
    installed.warnings.extend(lacks.into_iter().map(say));
    Ok(())
}

fn set_sysctls(
    features: Features,
    pods: &PodInterfaces,
    state_dir: &Path,
    installed: &mut Installed,
) -> Result<(), Failure> {
    let root = Path::new(ROOT);
    let settings = verify(features, pods)
        .map_err(|error| Failure::new(format!("cannot read interfaces: {error}")))?;
    let mut record = Record::of(state_dir);
    let refused = sysctl::apply(root, &settings, &mut record).map_err(|error| {
        let path = state_dir.join(sysctl::RECORD);
        Failure::new(format!("{}: {error}", path.display())).hint(
            "what sysctls were is written down before they are changed; --state-dir says where",
        )
    })?;
    let is_refused = |setting: &&Setting| refused.iter().any(|one| one.setting == **setting);
    installed.sysctls = settings
        .iter()
        .filter(|setting| !is_refused(setting))
        .map(Setting::assignment)
        .collect();
    if let Some(one) = refused.iter().find(|one| one.setting.essential) {
        let command = format!("sysctl -w {}", one.setting.assignment());
        return Err(Failure::new(said(one)).hint(format!(
            "in a container this takes `privileged: true`; or on the node, and for every boot: {command}"
        )));
    }
    installed.warnings.extend(refused.iter().map(said));
    Ok(())
}

fn said(refused: &Refused) -> String {
    let Refused { setting, error } = refused;
    let path = Path::new(ROOT).join(&setting.name);
    format!(
        "{} is {} and cannot be set to {} ({}): {}",
        path.display(),
        setting.is,
        setting.wanted,
        reason(error),
        setting.why
    )
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => "/proc/sys is read-only here".into(),
        _ => error.to_string(),
    }
}

fn render(screen: &Screen, installed: &Installed) -> String {
    let mut text = String::new();
    for path in &installed.files {
        text.push_str(&format!("wrote {}\n", path.display()));
    }
    for assignment in &installed.sysctls {
        text.push_str(&format!("set {assignment}\n"));
    }
    if text.is_empty() {
        text.push_str("Everything was in place.\n");
    }
    for warning in &installed.warnings {
        text.push_str(&format!("{} {warning}\n", screen.warn("warning:")));
    }
    text
}
