//! What may happen in the nodes' world, one random step at a time, and the way back to rest.

use super::*;

impl World<'_> {
    pub(super) fn step(&mut self) -> Result<()> {
        match self.random.below(100) {
            0..18 => self.add_pod(),
            18..30 => self.remove_pod(),
            30..38 => self.relabel(),
            38..52 => self.add_policy(),
            52..60 => self.remove_policy(),
            60..66 => self.kill_agent(),
            66..71 => self.stop_agent(),
            71..77 => self.replace_node(),
            77..83 => self.cut_link(),
            83..92 => self.announce(),
            92..95 => self.restart_router(),
            95..98 => self.configure(),
            _ => self.toggle_peer(),
        }
    }

    /// At `place`, where another one was, or behind the others.
    pub(super) fn add_node(&mut self, place: Option<usize>) -> Result<()> {
        self.number += 1;
        let n = self.number;
        let name = format!("n{n}");
        let netns = self.lab.netns(&name)?;
        netns.forward()?;
        for (sysctl, value) in cluster::NODE_SYSCTLS {
            netns.set_sysctl(sysctl, value)?;
        }
        let link = self.rack.join(&netns)?;
        let cidrs: Vec<IpNet> = vec![
            format!("10.{}.{}.0/24", 100 + n / 250, n % 250).parse()?,
            format!("fd00:10:{n:x}::/64").parse()?,
        ];
        self.journal.step(format!(
            "node {name} comes with {:?} and {cidrs:?}",
            addresses(&link)
        ));
        let internal: Vec<Value> = addresses(&link)
            .iter()
            .map(|address| json!({"type": "InternalIP", "address": address}))
            .collect();
        let object = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "uid": format!("node-{name}")},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
            "status": {"addresses": internal},
        });
        self.objects.write(&format!("node-{name}"), &object)?;
        let directory = self.objects.directory();
        let agent = Agent::start(
            &netns,
            &name,
            directory,
            &["--cni-conf", "off", "--test-divide-time-limits", "10"],
        )?;
        let (run, state) = (agent.run_dir(), agent.state_dir());
        let kubelet = Kubelet::new(&netns, &self.objects, run, state, &cidrs)?;
        let node = Node {
            name,
            netns,
            link,
            agent,
            kubelet,
            cidrs,
            pods: BTreeMap::new(),
        };
        let mut neighbours = self.router.speaker().neighbours.clone();
        let neighbour = Neighbour::new(node.link.ipv4()?, NODES);
        match place {
            Some(place) => {
                neighbours[place] = neighbour;
                self.nodes[place] = node;
            }
            None => {
                neighbours.push(neighbour);
                self.nodes.push(node);
            }
        }
        self.router.set_neighbours(neighbours)
    }

    pub(super) fn replace_node(&mut self) -> Result<()> {
        let place = 1 + self.random.below(self.nodes.len() - 1);
        let sudden = self.random.percent(50);
        let node = &mut self.nodes[place];
        let names: Vec<String> = node.pods.keys().cloned().collect();
        if sudden {
            self.journal.step(format!("node {} burns down", node.name));
            node.agent.process().kill()?;
            for name in names {
                let pod = node.pods.remove(&name).context("a pod")?;
                self.objects
                    .remove(&format!("pod-{}-{name}", pod.identity.namespace))?;
            }
        } else {
            self.journal
                .step(format!("node {} is taken out of service", node.name));
            for name in names {
                let pod = node.pods.remove(&name).context("a pod")?;
                drop(pod._servers);
                node.kubelet.stop(&pod.running)?;
            }
            node.agent.process().stop(SETTLE)?;
        }
        self.objects.remove(&format!("node-{}", node.name))?;
        self.counts.replaced += 1;
        self.add_node(Some(place))?;
        self.nodes[place].agent.wait_ready(SETTLE)?;
        Ok(())
    }

    pub(super) fn kill_agent(&mut self) -> Result<()> {
        let place = 1 + self.random.below(self.nodes.len() - 1);
        let node = &mut self.nodes[place];
        self.journal.step(format!("kill -9 on {}", node.name));
        node.agent.process().kill()?;
        self.counts.killed += 1;
        self.stay_away();
        self.nodes[place].agent.restart()
    }

    pub(super) fn stop_agent(&mut self) -> Result<()> {
        let place = 1 + self.random.below(self.nodes.len() - 1);
        let node = &mut self.nodes[place];
        self.journal.step(format!("SIGTERM on {}", node.name));
        node.agent.process().stop(SETTLE)?;
        self.counts.stopped += 1;
        self.stay_away();
        self.nodes[place].agent.restart()
    }

    /// An agent is down for longer than its restart time, every third time: others have no routes of its node then.
    fn stay_away(&mut self) {
        if self.random.percent(33) {
            self.journal.step(format!("it stays away for {AWAY:?}"));
            self.counts.away += 1;
            // That it lasts is what is tried.
            std::thread::sleep(AWAY);
        }
    }

    pub(super) fn cut_link(&mut self) -> Result<()> {
        let place = self.random.below(self.nodes.len());
        let how = match self.random.percent(50) {
            true => Cut::Carrier,
            false => Cut::Drop,
        };
        let millis = 200
            + self
                .random
                .below(self.plan.time.as_millis().min(12_000) as usize);
        let node = &self.nodes[place];
        self.journal.step(format!(
            "the link of {} is cut ({how:?}) for {millis} ms",
            node.name
        ));
        node.link.cut(how)?;
        // That the cut lasts is what is tried.
        std::thread::sleep(Duration::from_millis(millis as u64));
        self.counts.cuts += 1;
        self.nodes[place].link.repair()
    }

    pub(super) fn add_pod(&mut self) -> Result<()> {
        let all: usize = self.nodes.iter().map(|node| node.pods.len()).sum();
        if all >= MOST_PODS {
            return Ok(());
        }
        let place = self.random.below(self.nodes.len());
        let namespace = self.random.pick(&NAMESPACES).unwrap_or("red");
        let app = self.random.pick(&APPS).unwrap_or("a");
        self.start_pod(place, namespace, app)
    }

    pub(super) fn start_pod(
        &mut self,
        place: usize,
        namespace: &'static str,
        app: &'static str,
    ) -> Result<()> {
        self.number += 1;
        let name = format!("p{}", self.number);
        let node = &mut self.nodes[place];
        self.journal.step(format!(
            "pod {namespace}/{name} (app={app}) starts on {}",
            node.name
        ));
        let pod = pod(&name, namespace, &node.name, app)?;
        let running = node.kubelet.start(&pod)?;
        let servers = PORTS
            .iter()
            .map(|port| EchoServer::start(&running.netns, *port))
            .collect::<Result<_>>()?;
        let pod = PodOn {
            running,
            identity: Identity { namespace, app },
            _servers: servers,
        };
        node.pods.insert(name, pod);
        self.counts.pods += 1;
        Ok(())
    }

    /// Node and name of any pod.
    pub(super) fn any_pod(&mut self) -> Option<(usize, String)> {
        let nodes = self.nodes.iter().enumerate();
        let all: Vec<(usize, String)> = nodes
            .flat_map(|(place, node)| node.pods.keys().map(move |name| (place, name.clone())))
            .collect();
        self.random.pick(&all)
    }

    pub(super) fn remove_pod(&mut self) -> Result<()> {
        match self.any_pod() {
            Some((place, name)) => self.stop_pod(place, &name),
            None => Ok(()),
        }
    }

    pub(super) fn stop_pod(&mut self, place: usize, name: &str) -> Result<()> {
        let node = &mut self.nodes[place];
        self.journal
            .step(format!("pod {name} ends on {}", node.name));
        let pod = node.pods.remove(name).context("no such pod")?;
        drop(pod._servers);
        node.kubelet.stop(&pod.running)
    }

    pub(super) fn relabel(&mut self) -> Result<()> {
        let (Some((place, name)), Some(app)) = (self.any_pod(), self.random.pick(&APPS)) else {
            return Ok(());
        };
        self.journal.step(format!("pod {name} becomes app={app}"));
        let node = &mut self.nodes[place];
        let pod = node.pods.get_mut(&name).context("no such pod")?;
        pod.identity.app = app;
        pod.running.pod.labels.insert("app".into(), app.into());
        node.kubelet.update(&pod.running)
    }

    pub(super) fn add_policy(&mut self) -> Result<()> {
        // One of a few names: many of them replace another.
        let name = format!("policy{}", self.random.below(MOST_POLICIES));
        let policy = Policy::random(&mut self.random);
        // One of the same name in the other namespace is another object.
        if self.policies.remove(&name).is_some() {
            self.objects.remove(&name)?;
        }
        let object = policy.object(&name);
        self.journal.step(format!("policy {object}"));
        self.objects.write(&name, &object)?;
        self.policies.insert(name, policy);
        self.counts.policies += 1;
        Ok(())
    }

    pub(super) fn remove_policy(&mut self) -> Result<()> {
        let names: Vec<String> = self.policies.keys().cloned().collect();
        let Some(name) = self.random.pick(&names) else {
            return Ok(());
        };
        self.journal.step(format!("policy {name} goes"));
        self.policies.remove(&name);
        self.objects.remove(&name)
    }

    pub(super) fn announce(&mut self) -> Result<()> {
        let n = self.random.below(8);
        if self.outside.remove(&n) {
            self.journal.step(format!("the router withdraws {n}"));
            outside(n)?
                .into_iter()
                .try_for_each(|prefix| self.router.withdraw(prefix))
        } else {
            self.outside.insert(n);
            self.journal.step(format!("the router announces {n}"));
            outside(n)?
                .into_iter()
                .try_for_each(|prefix| self.router.announce(prefix))
        }
    }

    pub(super) fn restart_router(&mut self) -> Result<()> {
        self.journal.step("kill -9 on the router");
        self.router.kill()?;
        self.router.restart()
    }

    pub(super) fn configure(&mut self) -> Result<()> {
        let (paths, restart) = (1 + self.random.below(16), 3 + self.random.below(10));
        self.counts.changes += 1;
        self.set(paths, restart)
    }

    /// Writes the BGPConfiguration, with limits that a run outlives.
    pub(super) fn set(&mut self, paths: usize, restart: usize) -> Result<()> {
        let spec = json!({
            "maximumPaths": paths,
            "timers": {"sendHold": "18s"},
            "gracefulRestart": {
                "restartTime": format!("{restart}s"),
                "stalePathTime": "6s",
                "longLived": {"staleTime": "4s"},
            },
        });
        self.journal.step(format!("BGPConfiguration {spec}"));
        let object = cluster::object("BGPConfiguration", "default", spec);
        self.objects.write("configuration", &object)
    }

    pub(super) fn toggle_peer(&mut self) -> Result<()> {
        self.counts.changes += 1;
        if self.peered {
            self.peered = false;
            self.journal.step("BGPPeer tor goes");
            return self.objects.remove("tor");
        }
        self.peer()
    }

    pub(super) fn peer(&mut self) -> Result<()> {
        self.journal.step("BGPPeer tor comes");
        self.peered = true;
        let spec = json!({"address": self.router_link.ipv4()?, "asn": ROUTER});
        self.objects
            .write("tor", &cluster::object("BGPPeer", "tor", spec))
    }

    /// Back to the state of the start: one pod on each node, no policy, one prefix of the router.
    pub(super) fn rest(&mut self) -> Result<()> {
        self.journal.step("everybody comes to rest");
        for place in 0..self.nodes.len() {
            let names: Vec<String> = self.nodes[place].pods.keys().cloned().collect();
            for name in names {
                self.stop_pod(place, &name)?;
            }
            self.start_pod(place, "red", "a")?;
        }
        for name in std::mem::take(&mut self.policies).into_keys() {
            self.objects.remove(&name)?;
        }
        if !self.peered {
            self.peer()?;
        }
        for n in std::mem::take(&mut self.outside) {
            for prefix in outside(n)? {
                self.router.withdraw(prefix)?;
            }
        }
        self.outside.insert(0);
        for prefix in outside(0)? {
            self.router.announce(prefix)?;
        }
        Ok(())
    }
}
