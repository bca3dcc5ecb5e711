//! The daemon: every thread and channel, made here.
//!
//! ```text
//!   source ──┐                        ┌──► bgp-io ◄──► bgp-rib ◄─► routes ──► kernel
//!   watch ───┼──► Inbox<Work> ► world ┼──────────────────────────►   ▲
//!   tokio ───┘    (control, cni,      ├──► nft ──► kernel
//!                  web, signals)      └──► conntrack ──► kernel
//! ```
//! All of them report to the world. The control server asks the RIB for routes itself.
//! What ends: `Work::Stop` makes the world's thread end; then the others are told to. Kernel state stays.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    panic,
    path::Path,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use selvage_cni::{attachment, link};
use selvage_netlink::{Protocol, Socket, link as netlink};
use tokio::{
    net::TcpListener,
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
};
use tracing::{info, warn};

use crate::{
    api,
    bgp::{Bgp, Speaking},
    config::{AgentConfig, Features, SourceConfig},
    control::{self, Ask, Asker, lock::Lock},
    desired::Local,
    inbox::{Inbox, Sender},
    kernel::{Shutdown, conntrack, host_ports, nft, pod_routes, routes, watch as links},
    limits::Limits,
    pod_interfaces::PodInterfaces,
    publish,
    pulses::Pulses,
    source,
    store::Observed,
    web,
    world::{Found, Outlets, Setup, Work, World},
};

/// Runs the daemon until it is told to stop.
pub fn agent(config: AgentConfig) -> Result<()> {
    let started = Instant::now();
    end_on_panic();
    let _lock = Lock::take().context("this network namespace has an agent")?;
    for dir in [&config.run_dir, &config.state_dir] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let features = config.features;
    refuse_uplinks(&config.pod_interfaces)?;
    info!(
        node = config.node,
        features = features.names().join(","),
        version = env!("CARGO_PKG_VERSION"),
        "starting"
    );
    if config.limits != Limits::default() {
        warn!("--test-divide-time-limits: this agent is part of a test, its time limits are short");
    }
    // The file outlives us, not a reboot: if it is there, the kernel still has what the run before has written.
    let restarting = config.run_dir.join(link::READY).exists();
    let speaking = Speaking::default();
    let pulses = Pulses::new(speaking.clone());
    let (world, inbox) = Inbox::new()?;
    let inbox = inbox.with_pulse(pulses.thread("world"));

    let mut threads = Threads::new(pulses.clone());
    let routes = features
        .kernel
        .then(|| threads.routes(&world, &speaking, config.limits.leftovers))
        .transpose()?;
    let host_ports = features
        .cni
        .then(|| threads.host_ports(&config.state_dir, &world))
        .transpose()?;
    let nft = (features.policy || features.cni)
        .then(|| threads.nft(&world, host_ports.clone()))
        .transpose()?;
    let flows = features.policy.then(|| threads.flows(&world)).transpose()?;
    threads.watch(&world, features, &config.pod_interfaces)?;
    if config.pod_interfaces.are_named() {
        threads.pod_routes(&world, &config.pod_interfaces)?;
    }

    let mut local = Local::new(config.node.clone());
    local.bgp_port = config.bgp_port;
    local.kernel = features.kernel;
    local.limits = config.limits.speaker;
    let to_world = world.clone();
    let sink = Box::new(move |events| {
        to_world.send(Work::Objects(events));
        true
    });
    let source = Source::start(&config, &world, &pulses, sink)?;
    if let Source::Api(api) = &source {
        local.secret_namespaces = vec![api.namespace().to_owned()];
    }

    let (turns, turned) = watch::channel(0);
    let out = Outlets {
        bgp: features.bgp.then(|| {
            Bgp::new(
                restarting,
                config.state_dir.clone(),
                routes.clone(),
                world.clone(),
                speaking.clone(),
            )
        }),
        routes,
        nft,
        host_ports,
        flows,
        publisher: source.publisher(&world),
        world: world.clone(),
        pulses: pulses.clone(),
        turns,
        reach: Box::new(move |mark| source.reach(mark)),
    };
    let setup = Setup {
        local,
        features,
        pods: config.pod_interfaces.clone(),
        from: source_name(&config.source),
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        cni_conf: config.cni_conf.clone(),
        masquerade: config.masquerade,
        routable: config.routable.clone(),
        started,
        limits: config.limits,
    };
    let to_world = world.clone();
    let ask: Ask<control::Query> = Arc::new(move |query| to_world.send(Work::Ask(query)));
    let mut asker = Asker::new(ask).with_signs(turned, pulses);
    if features.bgp {
        asker = asker.with_speaker(speaking, features.kernel);
    }
    let servers = Servers::start(&config, &world, asker)?;
    // After the plugin can reach us: who could not has written what we read now, or has removed the interface.
    let attachments = if features.cni {
        attachments(&config.state_dir)?
    } else {
        Vec::new()
    };
    let how = World::new(setup, out, attachments).run(&inbox);
    info!(?how, "stopping; routes and rules stay");
    threads.stop(how);
    servers.stop();
    for socket in [api::SOCKET, link::SOCKET] {
        // A file that is left behind is replaced by the next start.
        let _ = fs::remove_file(config.run_dir.join(socket));
    }
    Ok(())
}

/// What is taken for a pod's interface is closed until its pod is known: a prefix that the node's own uplink has would cut
/// the node off.
fn refuse_uplinks(interfaces: &PodInterfaces) -> Result<()> {
    if !interfaces.are_named() {
        return Ok(());
    }
    let uplink = pod_routes::uplink_among(interfaces).context("cannot read routes")?;
    if let Some(name) = uplink {
        anyhow::bail!(
            "the interface `{name}` has the default route, and its name begins as --pod-interface-prefix says ({}): policy \
             would cut this node off; name a prefix that only interfaces of pods have",
            interfaces.patterns().join(", ")
        );
    }
    Ok(())
}

/// Where objects come from.
enum Source {
    Directory(source::watch::Watcher),
    Api(source::api::Api),
}

impl Source {
    fn start(
        config: &AgentConfig,
        world: &Sender<Work>,
        pulses: &Pulses,
        sink: source::watch::Sink,
    ) -> Result<Source> {
        let api = match &config.source {
            SourceConfig::Objects(path) => {
                let watcher = source::watch::spawn(path, pulses.thread("source"), sink)
                    .with_context(|| format!("cannot watch {}", path.display()))?;
                return Ok(Source::Directory(watcher));
            }
            SourceConfig::Api(api) => api.clone(),
        };
        let settings = source::api::Settings {
            api,
            account: source::api::SERVICE_ACCOUNT.into(),
            node: config.node.clone(),
            state_dir: config.state_dir.clone(),
            all_pods: config.features.policy,
            bgp: config.features.bgp,
            pods: Some(Arc::new({
                let world = world.clone();
                move |after| {
                    let (reply, answer) = oneshot::channel();
                    world.send(Work::Pods(after, reply));
                    answer
                }
            })),
            patience: source::api::Patience::default(),
            pulse: pulses.thread("kubernetes"),
        };
        let world = world.clone();
        let tell = Box::new(move |name, text: Option<String>| {
            world.send(Work::Observed(match text {
                Some(text) => Observed::Lacking(name, text),
                None => Observed::NotLacking(name),
            }));
        });
        Ok(Source::Api(source::api::spawn(&settings, sink, tell)?))
    }

    /// Who writes to the API server, if that is where objects come from.
    fn publisher(&self, world: &Sender<Work>) -> Option<publish::Publisher> {
        let Source::Api(api) = self else {
            return None;
        };
        let world = world.clone();
        let trouble = Box::new(move |text: Option<String>| {
            world.send(Work::Observed(match text {
                Some(text) => Observed::Lacking("api-writes", text),
                None => Observed::NotLacking("api-writes"),
            }));
        });
        Some(publish::spawn(&api.handle(), api.client(), trouble))
    }

    fn reach(&self, mark: u64) {
        match self {
            Source::Directory(watcher) => watcher.reach(mark),
            Source::Api(api) => api.reach(mark),
        }
    }
}

/// For people.
fn source_name(source: &SourceConfig) -> String {
    match source {
        SourceConfig::Objects(path) => path.display().to_string(),
        SourceConfig::Api(_) => "the Kubernetes API".into(),
    }
}

/// A thread that panics takes the process with it: half an agent would look alive. Routes and rules stay, neighbours keep
/// ours, and the next start takes over.
fn end_on_panic() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        report(info);
        std::process::abort();
    }));
}

/// What the plugin has attached in this boot.
fn attachments(state_dir: &Path) -> Result<Vec<Found>> {
    let all = attachment::Attachments::of(state_dir)
        .list()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let boot = attachment::boot_id();
    // Asked of the kernel: a /sys that was mounted in another network namespace shows that one's interfaces.
    let links: BTreeMap<String, netlink::Link> = Socket::open(Protocol::Route)
        .and_then(|mut socket| netlink::list(&mut socket))
        .context("cannot list interfaces")?
        .into_iter()
        .map(|link| (link.name.clone(), link))
        .collect();
    let number = all.len();
    let mut present = Vec::new();
    for attachment in all {
        // Without an interface it is on its way out, or on its way in: then the plugin will tell us.
        let link = links
            .get(&attachment.host_if)
            .filter(|link| link.index == attachment.host_index);
        if let Some(link) = link
            && !attachment::is_gone(&attachment, &boot, |_| true)
        {
            let open = link.is_up();
            present.push(Found { attachment, open });
        }
    }
    if present.len() < number {
        info!(
            number = number - present.len(),
            "attachments without their interface are ignored; the plugin reclaims them"
        );
    }
    Ok(present)
}

/// The threads that talk to the kernel, and how they are told to end.
struct Threads {
    pulses: Pulses,
    ends: Vec<Box<dyn FnOnce(Shutdown)>>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn new(pulses: Pulses) -> Threads {
        Threads {
            pulses,
            ends: Vec::new(),
            handles: Vec::new(),
        }
    }

    fn keep<T: Send + 'static>(
        &mut self,
        sender: &Sender<T>,
        end: fn(Shutdown) -> T,
        handle: JoinHandle<()>,
    ) {
        let sender = sender.clone();
        self.ends.push(Box::new(move |how| sender.send(end(how))));
        self.handles.push(handle);
    }

    fn routes(
        &mut self,
        world: &Sender<Work>,
        speaking: &Speaking,
        leftovers: Duration,
    ) -> Result<Sender<routes::RouteWork>> {
        let (sender, inbox) = Inbox::new()?;
        let inbox = inbox.with_pulse(self.pulses.thread("routes"));
        let (world, speaking) = (world.clone(), speaking.clone());
        let output = move |event| match event {
            // Straight to the RIB: it waits for this, and the world has nothing to add.
            routes::RouteEvent::Reachability { next_hop, metric } => {
                speaking.reachability(next_hop, metric)
            }
            event => world.send(Work::Routes(event)),
        };
        let settings = routes::Settings {
            leftovers,
            ..routes::Settings::default()
        };
        let handle =
            routes::spawn(settings, inbox, output).context("cannot read the kernel's routes")?;
        self.keep(&sender, routes::RouteWork::Shutdown, handle);
        Ok(sender)
    }

    /// The writer of our tables. What it hears of the plugin's table goes to the keeper of that, if there is one.
    fn nft(
        &mut self,
        world: &Sender<Work>,
        host_ports: Option<Sender<host_ports::HostPortWork>>,
    ) -> Result<Sender<nft::NftWork>> {
        let (sender, inbox) = Inbox::new()?;
        let inbox = inbox.with_pulse(self.pulses.thread("nft"));
        let world = world.clone();
        let settings = nft::Settings {
            shared: host_ports.iter().map(|_| host_ports::TABLE).collect(),
        };
        let handle = nft::spawn(settings, inbox, move |event| match (event, &host_ports) {
            (nft::NftEvent::Damaged { by, .. }, Some(host_ports)) => {
                host_ports.send(host_ports::HostPortWork::Look { by });
            }
            (event, _) => world.send(Work::Nft(event)),
        })
        .context("cannot speak to nf_tables")?;
        self.keep(&sender, nft::NftWork::Shutdown, handle);
        Ok(sender)
    }

    fn host_ports(
        &mut self,
        state_dir: &Path,
        world: &Sender<Work>,
    ) -> Result<Sender<host_ports::HostPortWork>> {
        let (sender, inbox) = Inbox::new()?;
        let inbox = inbox.with_pulse(self.pulses.thread("host-ports"));
        let world = world.clone();
        let tell = move |event| world.send(Work::HostPorts(event));
        let handle = host_ports::spawn(state_dir, inbox, tell)
            .context("cannot look after the plugin's table")?;
        self.keep(&sender, host_ports::HostPortWork::Shutdown, handle);
        Ok(sender)
    }

    fn flows(&mut self, world: &Sender<Work>) -> Result<Sender<conntrack::FlowWork>> {
        let (sender, inbox) = Inbox::new()?;
        let inbox = inbox.with_pulse(self.pulses.thread("conntrack"));
        let world = world.clone();
        let handle = conntrack::spawn(conntrack::REVOKED, inbox, move |event| {
            world.send(Work::Flows(event))
        })
        .context("cannot speak to conntrack")?;
        self.keep(&sender, conntrack::FlowWork::Shutdown, handle);
        Ok(sender)
    }

    fn watch(
        &mut self,
        world: &Sender<Work>,
        features: Features,
        pods: &PodInterfaces,
    ) -> Result<()> {
        let (sender, inbox) = Inbox::new()?;
        let inbox = inbox.with_pulse(self.pulses.thread("watch"));
        let world = world.clone();
        let handle = links::spawn(inbox, features, pods.clone(), move |observed| {
            world.send(Work::Observed(observed))
        })
        .context("cannot read links and addresses")?;
        self.keep(&sender, |how| how, handle);
        Ok(())
    }

    fn pod_routes(&mut self, world: &Sender<Work>, pods: &PodInterfaces) -> Result<()> {
        let (sender, inbox) = Inbox::new()?;
        let inbox = inbox.with_pulse(self.pulses.thread("pod-routes"));
        let world = world.clone();
        let handle = pod_routes::spawn(inbox, pods.clone(), move |observed| {
            world.send(Work::Observed(observed))
        })
        .context("cannot read the routes to pods")?;
        self.keep(&sender, |how| how, handle);
        Ok(())
    }

    fn stop(self, how: Shutdown) {
        for end in self.ends {
            end(how);
        }
        for handle in self.handles {
            // A panic in it has been reported by the panic hook.
            let _ = handle.join();
        }
    }
}

/// What waits for people, programs, the plugin and signals: one thread runs all of it.
struct Servers {
    end: oneshot::Sender<()>,
    thread: JoinHandle<()>,
}

impl Servers {
    fn start(config: &AgentConfig, world: &Sender<Work>, asker: Asker) -> Result<Servers> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        spawn_all(&runtime, config, world, asker)?;
        let (end, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("tokio".into()).spawn(move || {
            // A sender that is gone is an end as well.
            let _ = runtime.block_on(ended);
            runtime.shutdown_timeout(Duration::from_millis(200));
        })?;
        Ok(Servers { end, thread })
    }

    fn stop(self) {
        // Either end may have gone already.
        let _ = self.end.send(());
        let _ = self.thread.join();
    }
}

fn spawn_all(
    runtime: &Runtime,
    config: &AgentConfig,
    world: &Sender<Work>,
    asker: Asker,
) -> Result<()> {
    let _inside = runtime.enter();
    let path = config.run_dir.join(api::SOCKET);
    let listener = control::server::bind(&path)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    spawn(
        runtime,
        "control",
        control::server::serve(listener, asker.clone()),
    );
    if config.features.cni {
        let to_world = world.clone();
        let ask: Ask<control::LinkQuery> = Arc::new(move |query| to_world.send(Work::Link(query)));
        let path = config.run_dir.join(link::SOCKET);
        let listener = control::server::bind(&path)
            .with_context(|| format!("cannot listen on {}", path.display()))?;
        spawn(runtime, "plugin", control::cni::serve(listener, ask));
    }
    if let Some(folder) = config.cni_conf.as_deref().and_then(Path::parent) {
        let world = world.clone();
        let tell = move || world.send(Work::CniFolder);
        let watch = publish::folder::watch(folder.to_owned(), tell);
        spawn(runtime, "the look at the CNI configuration", watch);
    }
    let metrics_only = config
        .metrics_listen
        .filter(|_| config.metrics_listen != config.health_listen);
    for (addr, routes) in [
        (config.health_listen, web::router(asker.clone())),
        (metrics_only, web::metrics_router(asker)),
    ] {
        let Some(addr) = addr else { continue };
        match listen(addr) {
            Ok(listener) => spawn(runtime, "web", web::serve(listener, routes)),
            // Not worth a node without network.
            Err(error) => warn!(%addr, %error, "no metrics and no health: cannot listen"),
        }
    }
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let world = world.clone();
        runtime.spawn(async move {
            while signals.recv().await.is_some() {
                world.send(Work::Stop(Shutdown::Graceful));
            }
        });
    }
    Ok(())
}

fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn spawn(
    runtime: &Runtime,
    what: &'static str,
    serve: impl Future<Output = std::io::Result<()>> + Send + 'static,
) {
    runtime.spawn(async move {
        if let Err(error) = serve.await {
            warn!(%error, "{what} has ended");
        }
    });
}
