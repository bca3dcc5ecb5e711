//! What is logged of neighbours that misbehave, however many they are.

use std::{
    fmt,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use selvage_bgp::core::session::Stop;
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::{
    neighbour::{Neighbour, open},
    space::{in_space, reflector, start},
};

/// Counts lines about faults, and what they say was left out.
#[derive(Clone, Default)]
struct Lines {
    lines: Arc<AtomicU64>,
    left_out_of_all: Arc<AtomicU64>,
}

impl Subscriber for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut &*self);
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

impl Visit for &Lines {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "left_out_of_all" {
            self.lines.fetch_add(1, Ordering::SeqCst);
            self.left_out_of_all.fetch_add(value, Ordering::SeqCst);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// Each neighbour says one thing wrong, and is under the limit for a neighbour; together they would flood the log.
#[test]
fn many_neighbours_do_not_flood_the_log_together() {
    const NEIGHBOURS: u8 = 200;
    let lines = Lines::default();
    // The speaker's threads are to be heard, so it is the subscriber of the whole test program.
    tracing::subscriber::set_global_default(lines.clone()).expect("no other subscriber");
    in_space(|| {
        let begin = Instant::now();
        let (speaker, ..) = start(reflector());
        for n in 0..NEIGHBOURS {
            let address = Ipv4Addr::new(127, 0, 7, n);
            let mut neighbour = Neighbour::connect(address, None);
            let mut open = open(address);
            open.my_as = 65009;
            open.capabilities.retain(|c| c.code() != 65);
            neighbour.write(&open.encode());
            let (told, _) = neighbour.read_to_end();
            assert!(told.is_some(), "neighbour {n} was not refused");
        }
        let periods = begin.elapsed().as_secs() / 10 + 1;
        let logged = lines.lines.load(Ordering::SeqCst);
        assert!(logged >= 20, "{logged}");
        assert!(
            logged <= 20 * (periods + 1),
            "{logged} lines in {periods} periods"
        );
        speaker.stop(Stop::Restart);
    });
}
