//! Random faults in a network: what must hold holds at every step (see `network`), and peace brings every session up.

use proptest::{collection::vec, prelude::*};

use super::{network::Network, *};
use crate::session::{Input, Stop};

#[derive(Clone, Debug)]
enum Step {
    Pass(u16),
    Reset,
    Silence(u8),
    Kill {
        node: usize,
        noticed: bool,
        away: u16,
        restarted: bool,
    },
    Stop {
        node: usize,
        how: u8,
        away: u16,
    },
    Inject {
        node: usize,
        bytes: Vec<u8>,
    },
    Delay(u16),
    Refuse {
        node: usize,
        away: u16,
    },
    Refresh(usize),
    TooMany(usize),
    Touch {
        node: usize,
        hold: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..3usize;
    let step = prop_oneof![
        4 => (0..20_000u16).prop_map(Step::Pass),
        2 => Just(Step::Reset),
        1 => (1..30u8).prop_map(Step::Silence),
        2 => (node.clone(), any::<bool>(), 0..20_000u16, any::<bool>())
            .prop_map(|(node, noticed, away, restarted)| Step::Kill { node, noticed, away, restarted }),
        1 => (node.clone(), 0..3u8, 0..5000u16).prop_map(|(node, how, away)| Step::Stop { node, how, away }),
        1 => (node.clone(), vec(prop_oneof![Just(255u8), any::<u8>()], 1..60))
            .prop_map(|(node, bytes)| Step::Inject { node, bytes }),
        1 => (0..700u16).prop_map(Step::Delay),
        1 => (node.clone(), 0..5000u16).prop_map(|(node, away)| Step::Refuse { node, away }),
        1 => node.clone().prop_map(Step::Refresh),
        1 => node.clone().prop_map(Step::TooMany),
        1 => (node, 3..30u8).prop_map(|(node, hold)| Step::Touch { node, hold }),
    ];
    vec(step, 1..25)
}

fn millis(ms: u16) -> Duration {
    Duration::from_millis(ms.into())
}

fn apply(network: &mut Network, step: &Step) {
    match step {
        Step::Pass(ms) => network.run(millis(*ms)),
        Step::Reset => network.reset_connections(),
        Step::Silence(s) => {
            network.silent = true;
            network.run(secs((*s).into()));
            network.silent = false;
        }
        Step::Kill {
            node,
            noticed,
            away,
            restarted,
        } => {
            network.kill(*node, *noticed);
            network.run(millis(*away));
            network.boot(*node, *restarted);
            network.start(*node);
        }
        Step::Stop { node, how, away } => {
            let how = match how {
                0 => Stop::Shutdown("maintenance".into()),
                1 => Stop::Restart,
                _ => Stop::Removed,
            };
            network.stop(*node, &how);
            network.run(millis(*away));
            network.start(*node);
        }
        Step::Inject { node, bytes } => {
            for slot in 0..network.nodes[*node].slots.len() {
                if network.nodes[*node].slots[slot]
                    .peer
                    .established_conn()
                    .is_some()
                {
                    network.inject(*node, slot, bytes);
                }
            }
        }
        Step::Delay(ms) => network.delay = millis(*ms),
        Step::Refuse { node, away } => {
            network.nodes[*node].listening = false;
            network.run(millis(*away));
            network.nodes[*node].listening = true;
        }
        Step::Refresh(node) => {
            network.input(*node, 0, Input::RequestRefresh);
        }
        Step::TooMany(node) => {
            network.input(*node, 0, Input::TooManyPrefixes);
            // The operator looks at it.
            let config = network.nodes[*node].slots[0].config.clone();
            let mut other = (*config).clone();
            other.description.push('x');
            network.nodes[*node].slots[0].config = arc(other);
            let (speaker, config) = (
                network.nodes[*node].speaker.clone(),
                network.nodes[*node].slots[0].config.clone(),
            );
            network.input(*node, 0, Input::Configure(speaker, config));
        }
        Step::Touch { node, hold } => {
            let speaker = network.nodes[*node].speaker.clone();
            let mut config = (*network.nodes[*node].slots[0].config).clone();
            config.timers.hold = secs((*hold).into());
            network.nodes[*node].slots[0].config = arc(config);
            let config = network.nodes[*node].slots[0].config.clone();
            network.input(*node, 0, Input::Configure(speaker, config));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_peace_brings_every_session_up(steps in steps(), delay in 0..300u64) {
        let mut network = Network::mesh(&[(64512, 1), (64512, 2), (64513, 2)], delay);
        network.start_all();
        for step in &steps {
            apply(&mut network, step);
        }
        // The longest wait: a minute in idle hold, after a connection that nobody will ever answer.
        prop_assert!(network.run_until(secs(240), Network::all_established));
        network.run(secs(120));
        prop_assert!(network.all_established());
        let at = network.now;
        network.run(secs(60));
        for slot in network.nodes.iter().flat_map(|n| &n.slots) {
            prop_assert!(!slot.words(at).iter().any(|w| w.starts_with("down")));
        }
    }
}
