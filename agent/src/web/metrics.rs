//! Metrics, made from a view at every scrape: nothing is counted twice, nothing is kept here.

use std::time::Duration;

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::api::StatusView;

/// The text format of Prometheus.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// The metrics of one moment. `threads`: how long the present turn of each has lasted; `None`: it waits for work.
pub(super) fn text(
    status: &StatusView,
    threads: &[(&'static str, Option<Duration>)],
) -> prometheus::Result<String> {
    let sheet = Sheet(Registry::new());
    sheet.labelled(
        "selvage_thread_busy_seconds",
        "How long the thread has been at its present piece of work; 0 while it waits for more",
        &["thread"],
        |gauge| {
            for (name, turn) in threads {
                let seconds = turn.unwrap_or_default().as_secs();
                gauge.with_label_values(&[name]).set(number(seconds));
            }
        },
    )?;
    sheet.labelled(
        "selvage_build_info",
        "Version of the daemon",
        &["version"],
        |gauge| {
            gauge.with_label_values(&[&status.version]).set(1);
        },
    )?;
    sheet.gauge(
        "selvage_ready",
        "Whether the node can serve pods",
        status.ready.ready.into(),
    )?;
    sheet.gauge(
        "selvage_uptime_seconds",
        "Time since the start",
        number(status.uptime),
    )?;
    sheet.gauge(
        "selvage_problems",
        "What is wrong at the moment",
        count(status.wrong.len()),
    )?;
    sheet.gauge(
        "selvage_source_synced",
        "Whether the source was read completely",
        status.source.synced.into(),
    )?;
    let problems = count(status.source.problem_count);
    sheet.gauge(
        "selvage_source_problems",
        "Objects and files that could not be used",
        problems,
    )?;
    sheet.labelled("selvage_objects", "Objects in force", &["kind"], |gauge| {
        for (kind, number) in &status.source.objects {
            gauge.with_label_values(&[kind]).set(count(*number));
        }
    })?;
    sheet.bgp(status)?;
    if let Some(routes) = &status.routes {
        sheet.labelled(
            "selvage_kernel_routes",
            "Learned routes in the kernel",
            &["family"],
            |gauge| {
                gauge.with_label_values(&["ipv4"]).set(number(routes.ipv4));
                gauge.with_label_values(&["ipv6"]).set(number(routes.ipv6));
            },
        )?;
        let unresolved = number(routes.unresolved);
        sheet.gauge(
            "selvage_kernel_routes_unresolved",
            "Routes without a next hop that can be reached",
            unresolved,
        )?;
        sheet.gauge(
            "selvage_kernel_routes_failed",
            "Routes that the kernel refused",
            number(routes.failed),
        )?;
    }
    if let Some(policy) = &status.policy {
        sheet.gauge(
            "selvage_policy_generation_planned",
            "Newest policy generation",
            number(policy.planned),
        )?;
        sheet.gauge(
            "selvage_policy_generation_enforced",
            "Generation in the kernel",
            number(policy.enforced),
        )?;
        sheet.gauge(
            "selvage_policy_failing",
            "Whether the newest attempt failed",
            policy.failure.is_some().into(),
        )?;
        sheet.gauge(
            "selvage_local_pods",
            "Pods of this node that have an interface",
            count(policy.local_pods),
        )?;
        sheet.gauge(
            "selvage_local_pods_waiting",
            "Pods that are closed: their policy is not in the kernel, or no such Pod is known",
            count(policy.waiting),
        )?;
        sheet.gauge(
            "selvage_local_pods_unrouted",
            "Pods of this node with an address that no interface of another plugin's pods has: not judged by policy",
            count(policy.unrouted),
        )?;
        sheet.labelled(
            "selvage_policies_not_enforced",
            "Policies that exist and that this version does not enforce",
            &["kind"],
            |gauge| {
                for of_kind in &policy.not_enforced {
                    gauge
                        .with_label_values(&[&of_kind.kind])
                        .set(count(of_kind.count));
                }
            },
        )?;
        sheet.counter(
            "selvage_policy_repairs_total",
            "Foreign changes that were repaired",
            policy.repaired,
        )?;
    }
    TextEncoder::new().encode_to_string(&sheet.0.gather())
}

struct Sheet(Registry);

impl Sheet {
    fn gauge(&self, name: &str, help: &str, value: i64) -> prometheus::Result<()> {
        let gauge = IntGauge::new(name, help)?;
        gauge.set(value);
        self.0.register(Box::new(gauge))
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.0.register(Box::new(counter))
    }

    fn labelled(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        fill: impl FnOnce(&IntGaugeVec),
    ) -> prometheus::Result<()> {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        fill(&gauge);
        self.0.register(Box::new(gauge))
    }

    fn bgp(&self, status: &StatusView) -> prometheus::Result<()> {
        let Some(bgp) = &status.bgp else {
            return Ok(());
        };
        self.labelled(
            "selvage_bgp_peer_up",
            "Whether the session is Established",
            &["peer", "asn"],
            |gauge| {
                for peer in &bgp.peers {
                    gauge
                        .with_label_values(&[&peer.address.to_string(), &peer.asn])
                        .set(peer.up.into());
                }
            },
        )?;
        for (name, help, received) in [
            (
                "selvage_bgp_peer_prefixes_received",
                "Prefixes accepted from the neighbour",
                true,
            ),
            (
                "selvage_bgp_peer_prefixes_advertised",
                "Prefixes announced to the neighbour",
                false,
            ),
        ] {
            self.labelled(name, help, &["peer", "family"], |gauge| {
                for peer in &bgp.peers {
                    let counts = if received {
                        peer.received
                    } else {
                        peer.advertised
                    };
                    for (family, prefixes) in ["ipv4", "ipv6"].into_iter().zip(counts) {
                        gauge
                            .with_label_values(&[&peer.address.to_string(), family])
                            .set(number(prefixes));
                    }
                }
            })?;
        }
        self.counter(
            "selvage_bgp_unknown_connections_total",
            "Connections from addresses that no neighbour has",
            bgp.unknown_connections,
        )?;
        for (name, help, messages) in [
            (
                "selvage_bgp_peer_faults_total",
                "Messages with a fault that the session survived",
                true,
            ),
            (
                "selvage_bgp_peer_fault_prefixes_total",
                "Prefixes announced in messages with a fault that the session survived",
                false,
            ),
        ] {
            let counters = IntCounterVec::new(Opts::new(name, help), &["peer", "kind"])?;
            for peer in &bgp.peers {
                for fault in &peer.faults {
                    let count = if messages {
                        fault.messages
                    } else {
                        fault.prefixes
                    };
                    counters
                        .with_label_values(&[&peer.address.to_string(), &fault.kind])
                        .inc_by(count);
                }
            }
            self.0.register(Box::new(counters))?;
        }
        let help = "How often the session was Established";
        self.labelled(
            "selvage_bgp_peer_established_count",
            help,
            &["peer"],
            |gauge| {
                for peer in &bgp.peers {
                    gauge
                        .with_label_values(&[&peer.address.to_string()])
                        .set(number(peer.established));
                }
            },
        )
    }
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn count(value: usize) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
