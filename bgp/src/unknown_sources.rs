//! Connections from addresses that are no neighbour's: counted, the last sources kept.

use std::net::IpAddr;

use selvage_bgp_core::clock::Now;

use crate::log_limit::LogLimit;

/// How many sources are kept.
const MOST_SOURCES: usize = 8;

/// Connections that were closed because nobody with their address is configured.
#[derive(Clone, Default, Debug)]
pub struct UnknownSources {
    /// All of them.
    pub connections: u64,
    /// The last sources, the latest first; eight at most.
    pub last: Vec<UnknownSource>,
}

/// Where such connections came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownSource {
    /// The address.
    pub address: IpAddr,
    /// How many, since it was last among the eight.
    pub connections: u64,
    /// When the last one came.
    pub at: Now,
}

/// Takes note of them.
#[derive(Default, Debug)]
pub(crate) struct Watch {
    pub(crate) sources: UnknownSources,
    limit: LogLimit,
}

impl Watch {
    /// A connection came from `address`. Whether it is to be logged; then with the number of those that were not.
    pub(crate) fn note(&mut self, now: Now, address: IpAddr) -> Option<u64> {
        self.sources.connections += 1;
        let last = &mut self.sources.last;
        let known = last.iter().position(|source| source.address == address);
        let before = known.map_or(0, |at| last.remove(at).connections);
        last.truncate(MOST_SOURCES - 1);
        last.insert(
            0,
            UnknownSource {
                address,
                connections: before + 1,
                at: now,
            },
        );
        self.limit.pass(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_eight_are_kept_whoever_comes() {
        let mut watch = Watch::default();
        for i in 0..100u8 {
            let logged = watch.note(Now(u64::from(i)), [10, 0, 0, i].into());
            assert_eq!(logged.is_some(), i == 0);
            watch.note(Now(u64::from(i)), [10, 0, 1, 1].into());
        }
        let sources = watch.sources;
        assert_eq!((sources.connections, sources.last.len()), (200, 8));
        let latest = sources.last.first().map(|s| (s.address, s.connections));
        assert_eq!(latest, Some(([10, 0, 1, 1].into(), 100)));
        assert_eq!(sources.last[1].address, IpAddr::from([10, 0, 0, 99]));
    }
}
