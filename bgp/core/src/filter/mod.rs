//! Which routes pass, in and out. The built-in filters only; all that a peer names must let a route pass.
//!
//! | | external peer | internal peer |
//! |---|---|---|
//! | `default` in | all but default routes, our links' prefixes, and our own networks or parts of them | all |
//! | `default` out | what we originate | all |
//! | none named | as `default`; nothing if a policy is required (RFC 8212) | the same |

use crate::{
    config::{FilterRef, SpeakerConfig},
    prefix::Prefix,
    rib::RouteOrigin,
};

/// The filters of one direction of one peer, as they are applied.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FilterChain {
    filters: Vec<FilterRef>,
    external: bool,
}

impl FilterChain {
    /// What `named` means for an external or internal peer.
    pub fn new(named: &[FilterRef], require_policy: bool, external: bool) -> FilterChain {
        let filters = match named {
            [] if require_policy => vec![FilterRef::RejectAll],
            [] => vec![FilterRef::Default],
            named => named.to_vec(),
        };
        FilterChain { filters, external }
    }

    /// Whether a route from the peer is accepted.
    pub fn accepts(&self, config: &SpeakerConfig, prefix: &Prefix) -> bool {
        self.filters.iter().all(|f| match f {
            FilterRef::AcceptAll => true,
            FilterRef::RejectAll => false,
            FilterRef::Default => !self.external || accepts_from_external(config, prefix),
        })
    }

    /// Whether a route is announced to the peer.
    pub fn announces(&self, origin: RouteOrigin) -> bool {
        self.filters.iter().all(|f| match f {
            FilterRef::AcceptAll => true,
            FilterRef::RejectAll => false,
            FilterRef::Default => !self.external || origin == RouteOrigin::Local,
        })
    }
}

/// A prefix inside one of our links' prefixes may well be elsewhere (an address that moves between hosts); one inside our
/// own networks may not.
fn accepts_from_external(config: &SpeakerConfig, prefix: &Prefix) -> bool {
    !prefix.is_default()
        && !config.connected.contains(prefix)
        && !config.networks.iter().any(|own| own.covers(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rib::tests::speaker;

    #[test]
    fn built_in_rules_in() {
        let mut config = speaker(64512);
        config.networks = vec!["10.244.1.0/24".parse().unwrap()];
        config.connected = vec!["192.0.2.0/24".parse().unwrap()];
        use FilterRef::*;
        for (named, required, external, prefix, passes) in [
            (&[][..], false, true, "10.9.0.0/16", true),
            (&[], false, true, "0.0.0.0/0", false),
            (&[], false, true, "::/0", false),
            (&[], false, true, "192.0.2.0/24", false),
            (&[], false, true, "192.0.2.7/32", true),
            (&[], false, true, "10.244.1.0/24", false),
            (&[], false, true, "10.244.1.7/32", false),
            (&[], false, true, "10.244.0.0/16", true),
            (&[], false, false, "0.0.0.0/0", true),
            (&[], false, false, "10.244.1.7/32", true),
            (&[], true, true, "10.9.0.0/16", false),
            (&[Default], true, true, "10.9.0.0/16", true),
            (&[AcceptAll], true, true, "0.0.0.0/0", true),
            (&[AcceptAll, RejectAll], false, true, "10.9.0.0/16", false),
            (&[AcceptAll, Default], false, true, "0.0.0.0/0", false),
        ] {
            let chain = FilterChain::new(named, required, external);
            assert_eq!(
                chain.accepts(&config, &prefix.parse().unwrap()),
                passes,
                "{named:?} {required} {external} {prefix}"
            );
        }
    }

    #[test]
    fn built_in_rules_out() {
        use FilterRef::*;
        use RouteOrigin::*;
        for (named, required, external, origin, passes) in [
            (&[][..], false, true, Local, true),
            (&[], false, true, Ebgp, false),
            (&[], false, true, Ibgp, false),
            (&[], false, false, Ebgp, true),
            (&[], false, false, Ibgp, true),
            (&[], true, true, Local, false),
            (&[AcceptAll], true, true, Ibgp, true),
            (&[RejectAll], false, false, Local, false),
        ] {
            let chain = FilterChain::new(named, required, external);
            assert_eq!(chain.announces(origin), passes, "{named:?} {origin:?}");
        }
    }
}
