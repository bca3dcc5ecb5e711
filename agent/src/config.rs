//! What the daemon has to know before it can read its first object: flags, environment, `--config FILE`.
//!
//! A flag beats its environment variable, that beats the file, that beats the default.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use selvage_cni::conflist;
use selvage_cni::link::{DEFAULT_RUN_DIR, DEFAULT_STATE_DIR};
use selvage_policy::model::IfName;
use serde::Deserialize;

use crate::limits::Limits;
use crate::pod_interfaces::PodInterfaces;

/// Where health, the page and metrics are, unless told otherwise.
pub const DEFAULT_HEALTH_LISTEN: &str = "127.0.0.1:9179";

/// The daemon's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentConfig {
    /// Name of this node; not empty.
    pub node: String,
    /// Where objects come from.
    pub source: SourceConfig,
    /// What runs.
    pub features: Features,
    /// How the interfaces of pods are recognised.
    pub pod_interfaces: PodInterfaces,
    /// Sockets and the `ready` file; emptied by a reboot.
    pub run_dir: PathBuf,
    /// What outlives a reboot.
    pub state_dir: PathBuf,
    /// Where health, the page and metrics are; `None`: nowhere.
    pub health_listen: Option<SocketAddr>,
    /// Where metrics are, too, and nothing else; `None`: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// TCP port of BGP, if not the BGPConfiguration's.
    pub bgp_port: Option<u16>,
    /// Where the CNI configuration is written when the node can have pods; `None`: by somebody else.
    pub cni_conf: Option<PathBuf>,
    /// Whether pods take the node's address towards what is outside of the cluster.
    pub masquerade: bool,
    /// Prefixes outside of the cluster that know the way back to pods: not masqueraded.
    pub routable: Vec<IpNet>,
    /// Form of the log.
    pub log_format: LogFormat,
    /// What is logged, as in `info` or `info,selvage=debug`.
    pub log_level: String,
    /// Time limits that nothing but a test changes.
    pub limits: Limits,
}

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A file or a directory.
    Objects(PathBuf),
    /// The Kubernetes API.
    Api(ApiConfig),
}

/// How the API server is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ApiConfig {
    /// Files as kubectl reads them, merged; empty: the service account of the pod that we are.
    pub kubeconfig: Vec<PathBuf>,
    /// Servers to try in turn instead of the one that the credentials name, as `HOST:PORT`.
    pub servers: Vec<String>,
}

impl SourceConfig {
    fn load(
        args: &AgentArgs,
        file: &File,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<SourceConfig, ConfigError> {
        let kubeconfig = args.kubeconfig.clone().or(file.kubeconfig.clone());
        let servers = args.kube_api.clone().or(file.kube_api.clone());
        let servers = servers.unwrap_or_default();
        if let Some(objects) = args.objects.clone().or(file.objects.clone()) {
            if kubeconfig.is_some() || !servers.is_empty() {
                return Err(ConfigError::new(
                    "objects come from a directory or from the Kubernetes API, not from both",
                    "leave out --objects, or --kubeconfig and --kube-api",
                ));
            }
            return Ok(SourceConfig::Objects(objects));
        }
        for server in &servers {
            check_server(server)?;
        }
        let kubeconfig = match kubeconfig {
            Some(path) => vec![path],
            None => environment("KUBECONFIG")
                .map(|paths| {
                    std::env::split_paths(&paths)
                        .filter(|path| !path.as_os_str().is_empty())
                        .collect()
                })
                .unwrap_or_default(),
        };
        let in_cluster = environment("KUBERNETES_SERVICE_HOST").is_some();
        if kubeconfig.is_empty() && servers.is_empty() && !in_cluster {
            return Err(ConfigError::new(
                "no source of objects",
                "name a file or directory with --objects, or a cluster with --kubeconfig; in a pod of a cluster neither is needed",
            ));
        }
        Ok(SourceConfig::Api(ApiConfig {
            kubeconfig,
            servers,
        }))
    }
}

/// Whether a text is `HOST:PORT`, `ADDRESS:PORT` or `[ADDRESS]:PORT`.
fn check_server(text: &str) -> Result<(), ConfigError> {
    let fits = text.parse::<SocketAddr>().is_ok()
        || text.rsplit_once(':').is_some_and(|(host, port)| {
            let host_fits = !host.is_empty()
                && host
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-".contains(&byte));
            host_fits && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if fits {
        return Ok(());
    }
    Err(ConfigError::new(
        format!("`{text}` is no API server"),
        "write HOST:PORT, ADDRESS:PORT or [ADDRESS]:PORT, several with commas between them",
    ))
}

/// Parts of the daemon that can be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// The BGP speaker.
    pub bgp: bool,
    /// Learned routes go into the kernel.
    pub kernel: bool,
    /// The plugin is served.
    pub cni: bool,
    /// NetworkPolicy is enforced.
    pub policy: bool,
}

impl Features {
    /// Everything that there is.
    pub const ALL: Features = Features {
        bgp: true,
        kernel: true,
        cni: true,
        policy: true,
    };

    /// Their names, in a fixed order.
    pub fn names(&self) -> Vec<&'static str> {
        let pairs = [
            ("bgp", self.bgp),
            ("kernel", self.kernel),
            ("cni", self.cni),
            ("policy", self.policy),
        ];
        pairs
            .into_iter()
            .filter(|(_, on)| *on)
            .map(|(name, _)| name)
            .collect()
    }

    /// From names; those that this version does not have are refused.
    pub(crate) fn parse<'a>(
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Features, ConfigError> {
        let mut features = Features {
            bgp: false,
            kernel: false,
            cni: false,
            policy: false,
        };
        for name in names {
            match name.trim() {
                "bgp" => features.bgp = true,
                "kernel" => features.kernel = true,
                "cni" => features.cni = true,
                "policy" => features.policy = true,
                name @ ("services" | "overlay") => {
                    return Err(ConfigError::new(
                        format!("the feature `{name}` is not implemented in this version"),
                        "leave it out of --features",
                    ));
                }
                name => {
                    return Err(ConfigError::new(
                        format!("there is no feature `{name}`"),
                        "features are bgp, kernel, cni and policy",
                    ));
                }
            }
        }
        if features.names().is_empty() {
            return Err(ConfigError::new(
                "no feature is left",
                "name at least one in --features",
            ));
        }
        if features.kernel && !features.bgp {
            return Err(ConfigError::new(
                "the feature `kernel` installs what BGP learns, and `bgp` is off",
                "name both or neither in --features",
            ));
        }
        Ok(features)
    }
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one object per line.
    Json,
}

/// A setting that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ConfigError {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl ConfigError {
    fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        ConfigError {
            message: message.into(),
            hint: hint.into(),
        }
    }
}

/// The flags of `selvage agent`.
#[derive(Args, Clone, Debug, Default)]
pub struct AgentArgs {
    /// A YAML file with these settings, in camelCase
    #[arg(long, value_name = "FILE", env = "SELVAGE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Name of this node [default: the host's name]
    #[arg(long, value_name = "NAME", env = "SELVAGE_NODE")]
    pub node: Option<String>,
    /// File or directory of objects, watched for changes [default: objects come from the Kubernetes API]
    #[arg(long, value_name = "PATH", env = "SELVAGE_OBJECTS")]
    pub objects: Option<PathBuf>,
    /// How to reach the Kubernetes API [default: KUBECONFIG, else the service account of the pod that this is]
    #[arg(long, value_name = "FILE", env = "SELVAGE_KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// API servers, tried in turn, for clusters whose service address works only with us [default: the one that the
    /// credentials name]
    #[arg(
        long,
        value_name = "HOST:PORT,…",
        value_delimiter = ',',
        env = "SELVAGE_KUBE_API"
    )]
    pub kube_api: Option<Vec<String>>,
    /// What runs [default: bgp,kernel,cni,policy]
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        env = "SELVAGE_FEATURES"
    )]
    pub features: Option<Vec<String>>,
    /// How the names of pods' interfaces begin, where another plugin makes them: for the feature `policy` without `cni`
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        env = "SELVAGE_POD_INTERFACE_PREFIX"
    )]
    pub pod_interface_prefix: Option<Vec<String>>,
    /// State that outlives a reboot [default: /var/lib/selvage]
    #[arg(long, value_name = "DIR", env = "SELVAGE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where health, the page and metrics are, or `off` [default: 127.0.0.1:9179]
    #[arg(long, value_name = "ADDRESS:PORT", env = "SELVAGE_HEALTH_LISTEN")]
    pub health_listen: Option<String>,
    /// Where metrics are, too, for who asks from elsewhere [default: off]
    #[arg(long, value_name = "ADDRESS:PORT", env = "SELVAGE_METRICS_LISTEN")]
    pub metrics_listen: Option<String>,
    /// TCP port of BGP [default: the BGPConfiguration's, 179]
    #[arg(long, value_name = "PORT", env = "SELVAGE_BGP_PORT")]
    pub bgp_port: Option<u16>,
    /// Where the CNI configuration is written when the node can have pods, or `off` [default: off with --objects, else
    /// /etc/cni/net.d/10-selvage.conflist]
    #[arg(long, value_name = "FILE", env = "SELVAGE_CNI_CONF")]
    pub cni_conf: Option<PathBuf>,
    /// Whether pods take the node's address towards what is outside of the cluster [default: true]
    #[arg(long, value_name = "BOOL", env = "SELVAGE_MASQUERADE")]
    pub masquerade: Option<bool>,
    /// Prefixes outside of the cluster that know the way back to pods, so that nothing is masqueraded towards them
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        env = "SELVAGE_ROUTABLE"
    )]
    pub routable: Option<Vec<String>>,
    /// Form of the log [default: text]
    #[arg(long, value_enum, env = "SELVAGE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What is logged, as in `debug` or `info,selvage::kernel=trace` [default: info]
    #[arg(long, value_name = "FILTER", env = "SELVAGE_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// For tests of this program: divides time limits that are no setting, see ADR 22
    ///
    /// No environment variable and no file sets it, and it is not in the help: a production agent cannot get it by accident.
    #[arg(long, value_name = "N", hide = true, value_parser = clap::value_parser!(u32).range(2..=100))]
    pub test_divide_time_limits: Option<u32>,
}

/// The same settings in a file.
#[derive(Deserialize, Debug, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    node: Option<String>,
    objects: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
    kube_api: Option<Vec<String>>,
    features: Option<Vec<String>>,
    pod_interface_prefix: Option<Vec<String>>,
    run_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    health_listen: Option<String>,
    metrics_listen: Option<String>,
    bgp_port: Option<u16>,
    cni_conf: Option<PathBuf>,
    masquerade: Option<bool>,
    routable: Option<Vec<String>>,
    log_format: Option<LogFormat>,
    log_level: Option<String>,
}

impl AgentConfig {
    /// Puts flags, environment, file and defaults together. `run_dir`: the flag that all commands share.
    pub fn load(args: AgentArgs, run_dir: Option<PathBuf>) -> Result<AgentConfig, ConfigError> {
        let file = args
            .config
            .as_deref()
            .map(read)
            .transpose()?
            .unwrap_or_default();
        let source = SourceConfig::load(&args, &file, |name| std::env::var_os(name))?;
        let node = args
            .node
            .or(file.node)
            .or_else(host_name)
            .filter(|name| !name.is_empty());
        let features = args.features.or(file.features);
        let prefixes_of_pods = args.pod_interface_prefix.or(file.pod_interface_prefix);
        let health = args.health_listen.or(file.health_listen);
        let metrics = args.metrics_listen.or(file.metrics_listen);
        let bgp_port = args.bgp_port.or(file.bgp_port);
        if bgp_port == Some(0) {
            return Err(ConfigError::new(
                "0 is not a port for BGP",
                "leave out --bgp-port, or give 1 to 65535",
            ));
        }
        let features = match &features {
            Some(names) => Features::parse(names.iter().map(String::as_str))?,
            None => Features::ALL,
        };
        let pod_interfaces = pod_interfaces(features, prefixes_of_pods.as_deref())?;
        // A directory of objects may describe a node whose runtime is another's; without the plugin's feature it is.
        let ours = features.cni && matches!(source, SourceConfig::Api(_));
        let by_default = ours.then(|| conflist::DEFAULT_PATH.into());
        Ok(AgentConfig {
            node: node
                .ok_or_else(|| ConfigError::new("the node has no name", "give one with --node"))?,
            source,
            features,
            pod_interfaces,
            run_dir: run_dir
                .or(file.run_dir)
                .unwrap_or_else(|| DEFAULT_RUN_DIR.into()),
            state_dir: args
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| DEFAULT_STATE_DIR.into()),
            health_listen: listen(health.as_deref().unwrap_or(DEFAULT_HEALTH_LISTEN))?,
            metrics_listen: listen(metrics.as_deref().unwrap_or("off"))?,
            bgp_port,
            cni_conf: args
                .cni_conf
                .or(file.cni_conf)
                .or(by_default)
                .filter(|path| path != Path::new("off")),
            masquerade: args.masquerade.or(file.masquerade).unwrap_or(true),
            routable: prefixes(&args.routable.or(file.routable).unwrap_or_default())?,
            log_format: args.log_format.or(file.log_format).unwrap_or_default(),
            log_level: args
                .log_level
                .or(file.log_level)
                .unwrap_or_else(|| "info".into()),
            limits: Limits::divided_by(args.test_divide_time_limits.unwrap_or(1)),
        })
    }
}

/// Prefixes that pods' interfaces may have: each costs every new flow some comparisons.
const MOST_PREFIXES: usize = 8;

/// How pods' interfaces are recognised: by these prefixes of their names, or as our own.
pub(crate) fn pod_interfaces(
    features: Features,
    prefixes: Option<&[String]>,
) -> Result<PodInterfaces, ConfigError> {
    const FLAG: &str = "--pod-interface-prefix";
    let Some(prefixes) = prefixes else {
        if features.policy && !features.cni {
            return Err(ConfigError::new(
                "the feature `policy` without `cni` does not know which interfaces lead to pods",
                format!(
                    "name how those of the other plugin begin, as in {FLAG} veth (ptp), cali (Calico), eni (AWS)"
                ),
            ));
        }
        return Ok(PodInterfaces::Ours);
    };
    if features.cni {
        return Err(ConfigError::new(
            format!(
                "{FLAG} is for pods of another plugin, and the feature `cni` makes them by ours"
            ),
            "leave out `cni`, as in --features policy, or leave out the prefix",
        ));
    }
    if !features.policy {
        return Err(ConfigError::new(
            format!("{FLAG} tells the feature `policy` where pods are, and that is off"),
            "name `policy` in --features, or leave out the prefix",
        ));
    }
    let prefixes: Vec<&str> = prefixes.iter().map(|prefix| prefix.trim()).collect();
    for prefix in &prefixes {
        check_prefix(prefix, FLAG)?;
    }
    if prefixes.is_empty() || prefixes.len() > MOST_PREFIXES {
        return Err(ConfigError::new(
            format!("{} prefixes in {FLAG}", prefixes.len()),
            format!("name 1 to {MOST_PREFIXES}"),
        ));
    }
    Ok(PodInterfaces::named(prefixes))
}

fn check_prefix(prefix: &str, flag: &str) -> Result<(), ConfigError> {
    if prefix.is_empty() {
        return Err(ConfigError::new(
            format!("an empty prefix in {flag} takes every interface of the node for a pod's"),
            "name how the interfaces of pods begin, as in veth",
        ));
    }
    if prefix.len() > 15 {
        return Err(ConfigError::new(
            format!("`{prefix}` in {flag} is longer than the name of an interface: 15 bytes"),
            "name how the interfaces of pods begin, as in veth",
        ));
    }
    if prefix.parse::<IfName>().is_err() || prefix.contains(['/', ':']) {
        return Err(ConfigError::new(
            format!("no name of an interface begins with `{prefix}`, as {flag} says"),
            "write veth for all that begin with it, without `*`; several with commas between them",
        ));
    }
    if "lo".starts_with(prefix) {
        return Err(ConfigError::new(
            format!("`{prefix}` in {flag} is how the loopback interface begins, too"),
            "name a longer prefix: what is taken for a pod's interface is closed until its pod is known",
        ));
    }
    Ok(())
}

fn read(path: &Path) -> Result<File, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        ConfigError::new(
            format!("{}: {error}", path.display()),
            "is it the right file?",
        )
    })?;
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(&text, options).map_err(|error| {
        let place = error
            .location()
            .map(|place| format!(":{}:{}", place.line(), place.column()))
            .unwrap_or_default();
        let reason = error.without_snippet().to_string();
        let message = format!(
            "{}{place}: {}",
            path.display(),
            reason.lines().next().unwrap_or_default()
        );
        ConfigError::new(
            message,
            "keys are the long flags in camelCase, as in `runDir`",
        )
    })
}

fn prefixes(texts: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    let prefix = |text: &String| {
        let parsed = text.trim().parse::<IpNet>();
        parsed.map(|net| net.trunc()).map_err(|_| {
            ConfigError::new(
                format!("`{text}` in --routable is no prefix"),
                "write it as in 10.0.0.0/8 or fd00::/8",
            )
        })
    };
    texts
        .iter()
        .filter(|text| !text.trim().is_empty())
        .map(prefix)
        .collect()
}

fn host_name() -> Option<String> {
    rustix::system::uname()
        .nodename()
        .to_str()
        .ok()
        .map(str::to_owned)
}

fn listen(text: &str) -> Result<Option<SocketAddr>, ConfigError> {
    if matches!(text, "off" | "") {
        return Ok(None);
    }
    // Brackets around an IPv4 address, too: a manifest that puts in a node's address does not know its family.
    let plain = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if !address.contains(':') => format!("{address}{port}"),
        _ => text.to_owned(),
    };
    plain.parse().map(Some).map_err(|_| {
        ConfigError::new(
            format!("`{text}` is no address to listen at"),
            "write ADDRESS:PORT, [ADDRESS]:PORT or `off`",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args() -> AgentArgs {
        AgentArgs {
            node: Some("n1".into()),
            objects: Some("objects".into()),
            ..AgentArgs::default()
        }
    }

    #[test]
    fn defaults() {
        let config = AgentConfig::load(args(), None).unwrap();
        assert_eq!(config.features, Features::ALL);
        assert_eq!(config.run_dir, Path::new("/run/selvage"));
        assert_eq!(config.state_dir, Path::new("/var/lib/selvage"));
        assert_eq!(config.health_listen, DEFAULT_HEALTH_LISTEN.parse().ok());
        assert_eq!(config.metrics_listen, None);
        assert_eq!(config.cni_conf, None);
    }

    /// No environment variable and no file makes limits short, and the help does not name the flag.
    #[test]
    fn only_a_test_divides_time_limits() {
        use clap::{Command, FromArgMatches};
        let command = AgentArgs::augment_args(Command::new("agent"));
        let flag = command
            .get_arguments()
            .find(|arg| arg.get_id() == "test_divide_time_limits")
            .unwrap();
        assert!(flag.is_hide_set() && flag.get_env().is_none());
        let load = |words: &[&str]| {
            let words = ["agent", "--node", "n1", "--objects", "o"]
                .iter()
                .chain(words);
            let matches = command.clone().try_get_matches_from(words).map_err(drop)?;
            let args = AgentArgs::from_arg_matches(&matches).map_err(drop)?;
            AgentConfig::load(args, None)
                .map(|config| config.limits)
                .map_err(drop)
        };
        assert_eq!(load(&[]), Ok(Limits::default()));
        let tenth = load(&["--test-divide-time-limits", "10"]).unwrap();
        assert_eq!(tenth.leftovers.as_millis(), 1_200);
        assert_eq!(tenth.speaker.steady.as_secs(), 6);
        for refused in ["0", "1", "101", "x"] {
            assert_eq!(load(&["--test-divide-time-limits", refused]), Err(()));
        }
        let file: Result<File, _> = serde_saphyr::from_str("testDivideTimeLimits: 10");
        assert!(file.is_err());
    }

    #[test]
    fn with_the_api_the_runtime_is_told_of_us() {
        let load = |cni_conf: Option<&str>| {
            let args = AgentArgs {
                objects: None,
                kubeconfig: Some("/c".into()),
                cni_conf: cni_conf.map(PathBuf::from),
                ..args()
            };
            AgentConfig::load(args, None).unwrap().cni_conf
        };
        assert_eq!(load(None), Some(conflist::DEFAULT_PATH.into()));
        assert_eq!(load(Some("/x")), Some("/x".into()));
        assert_eq!(load(Some("off")), None);
        let policy_only = AgentArgs {
            objects: None,
            kubeconfig: Some("/c".into()),
            features: Some(vec!["policy".into()]),
            pod_interface_prefix: Some(vec!["veth".into()]),
            ..args()
        };
        let config = AgentConfig::load(policy_only, None).unwrap();
        assert_eq!(config.cni_conf, None, "pods are another network's");
    }

    #[test]
    fn where_to_listen() {
        for (text, addr) in [
            ("192.0.2.1:9179", "192.0.2.1:9179"),
            ("[192.0.2.1]:9179", "192.0.2.1:9179"),
            ("[2001:db8::1]:9179", "[2001:db8::1]:9179"),
        ] {
            assert_eq!(listen(text).unwrap(), addr.parse().ok(), "{text}");
        }
        assert_eq!(listen("off").unwrap(), None);
        for text in ["9179", "2001:db8::1:9179x", "[192.0.2.1", "[]:9179"] {
            assert!(listen(text).is_err(), "{text}");
        }
    }

    #[test]
    fn where_objects_come_from() {
        let in_cluster =
            |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| OsString::from("10.96.0.1"));
        let by_variable = |name: &str| (name == "KUBECONFIG").then(|| OsString::from("/a:/b"));
        let nothing = |_: &str| None;
        let load = |args: AgentArgs, environment: &dyn Fn(&str) -> Option<OsString>| {
            let args = AgentArgs {
                objects: None,
                ..args
            };
            SourceConfig::load(&args, &File::default(), environment)
        };
        let api = |kubeconfig: &[&str], servers: &[&str]| {
            Ok(SourceConfig::Api(ApiConfig {
                kubeconfig: kubeconfig.iter().map(PathBuf::from).collect(),
                servers: servers.iter().map(ToString::to_string).collect(),
            }))
        };
        let kubeconfig = Some(PathBuf::from("/c"));
        let servers = |list: &[&str]| AgentArgs {
            kube_api: Some(list.iter().map(ToString::to_string).collect()),
            ..args()
        };
        assert_eq!(load(args(), &in_cluster), api(&[], &[]));
        assert_eq!(load(args(), &by_variable), api(&["/a", "/b"], &[]));
        let given = AgentArgs {
            kubeconfig,
            ..args()
        };
        assert_eq!(load(given.clone(), &by_variable), api(&["/c"], &[]));
        let two = ["10.0.0.1:6443", "[fd00::1]:6443", "api.example.org:443"];
        assert_eq!(load(servers(&two), &nothing), api(&[], &two));
        let refused = |args, environment| load(args, environment).unwrap_err().message;
        assert_eq!(refused(args(), &nothing), "no source of objects");
        for bad in [
            "10.0.0.1",
            "fd00::1",
            ":6443",
            "https://a:1",
            "a:0",
            "a:65536",
            "",
        ] {
            assert_eq!(
                refused(servers(&[bad]), &nothing),
                format!("`{bad}` is no API server")
            );
        }
        let both = AgentArgs {
            objects: Some("objects".into()),
            ..given
        };
        let error = SourceConfig::load(&both, &File::default(), nothing).unwrap_err();
        assert!(error.message.contains("not from both"), "{error}");
    }

    #[test]
    fn features_that_cannot_be() {
        for (names, message) in [
            (vec!["bgp", "teleport"], "there is no feature `teleport`"),
            (
                vec!["services"],
                "the feature `services` is not implemented in this version",
            ),
            (
                vec!["kernel"],
                "the feature `kernel` installs what BGP learns, and `bgp` is off",
            ),
            (vec![], "no feature is left"),
        ] {
            let features = Some(names.iter().map(ToString::to_string).collect());
            let error = AgentConfig::load(AgentArgs { features, ..args() }, None).unwrap_err();
            assert_eq!(error.message, message);
        }
    }

    #[test]
    fn interfaces_of_another_plugins_pods() {
        let load = |features: &str, prefixes: Option<&[&str]>| {
            let list = |names: &[&str]| names.iter().map(ToString::to_string).collect();
            let args = AgentArgs {
                features: Some(features.split(',').map(Into::into).collect()),
                pod_interface_prefix: prefixes.map(list),
                ..args()
            };
            AgentConfig::load(args, None).map(|config| config.pod_interfaces)
        };
        let named = load("policy", Some(&["veth", " cali", "cali1"])).unwrap();
        assert_eq!(named.patterns(), ["cali*", "veth*"]);
        assert!(load("bgp,kernel,policy", Some(&["a23456789012345"])).is_ok());
        assert_eq!(load("cni,policy", None), Ok(PodInterfaces::Ours));
        let nine = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        for (features, prefixes, message) in [
            (
                "policy",
                None,
                "the feature `policy` without `cni` does not know",
            ),
            (
                "cni,policy",
                Some(&["veth"][..]),
                "is for pods of another plugin",
            ),
            (
                "bgp,kernel",
                Some(&["veth"]),
                "tells the feature `policy` where pods are",
            ),
            ("policy", Some(&[""]), "an empty prefix"),
            ("policy", Some(&["veth", " "]), "an empty prefix"),
            ("policy", Some(&[]), "0 prefixes"),
            ("policy", Some(&nine), "9 prefixes"),
            (
                "policy",
                Some(&["a234567890123456"]),
                "`a234567890123456` in",
            ),
            (
                "policy",
                Some(&["veth*"]),
                "no name of an interface begins with `veth*`",
            ),
            ("policy", Some(&["ve th"]), "no name of an interface"),
            ("policy", Some(&["ve/th"]), "no name of an interface"),
            (
                "policy",
                Some(&["l"]),
                "`l` in --pod-interface-prefix is how the loopback",
            ),
            (
                "policy",
                Some(&["lo"]),
                "`lo` in --pod-interface-prefix is how the loopback",
            ),
        ] {
            let error = load(features, prefixes).unwrap_err();
            assert!(
                error.message.contains(message),
                "{features} {prefixes:?}: {error}"
            );
            assert!(!error.hint.is_empty());
        }
    }

    #[test]
    fn flags_beat_the_file() {
        let dir = std::env::temp_dir().join(format!("selvage-config-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("selvage.yaml");
        std::fs::write(
            &path,
            "node: other\nfeatures: [bgp]\nmetricsListen: 'off'\nbgpPort: 1790\n",
        )
        .unwrap();
        let config = AgentConfig::load(
            AgentArgs {
                config: Some(path.clone()),
                ..args()
            },
            None,
        )
        .unwrap();
        assert_eq!(config.node, "n1");
        assert_eq!(config.features.names(), ["bgp"]);
        assert_eq!((config.metrics_listen, config.bgp_port), (None, Some(1790)));
        std::fs::write(&path, "node: n1\nbgpport: 1\n").unwrap();
        let error = AgentConfig::load(
            AgentArgs {
                config: Some(path),
                ..args()
            },
            None,
        )
        .unwrap_err();
        assert!(
            error.message.contains("selvage.yaml:2:1"),
            "{}",
            error.message
        );
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
