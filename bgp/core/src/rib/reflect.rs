//! What is announced to whom, and in which form (RFC 4271 sections 5 and 9.2, RFC 1997, RFC 4456, RFC 7705).

use std::net::IpAddr;

use super::{
    RouteOrigin,
    attrs::{Attr, DEFAULT_LOCAL_PREF},
};
use crate::{
    config::{PeerConfig, SpeakerConfig},
    event::Negotiated,
    filter::FilterChain,
    ids::{Asn, Family, FamilySet, RouterId},
    own_next_hop::{LocalEnd, own_next_hop},
    wire::{
        attr::{NextHop, PathAttributes},
        update::EncodeOptions,
    },
};

/// Where a path came from, as far as its announcement depends on that.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Source {
    pub(crate) origin: RouteOrigin,
    /// An internal peer that is our client.
    pub(crate) client: bool,
    /// The peer's BGP identifier.
    pub(crate) router_id: RouterId,
}

/// How a peer sees us: peers with equal views are sent equal bytes.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct View {
    pub(crate) families: FamilySet,
    external: bool,
    client: bool,
    /// What we put in front of the AS_PATH for external peers, the nearest first.
    prepend: Vec<Asn>,
    four_octet_as: bool,
    add_path: FamilySet,
    max_message: usize,
    /// It understands routes that are a last resort (RFC 9494).
    long_lived: bool,
    /// Ourselves as next hop, per family.
    next_hop: [Option<NextHop>; 2],
    next_hop_self: bool,
    next_hop_unchanged: bool,
    cluster_id: RouterId,
    export: FilterChain,
}

impl View {
    /// The view of a peer in a session.
    pub(crate) fn new(speaker: &SpeakerConfig, config: &PeerConfig, session: &Negotiated) -> View {
        let external = !session.internal;
        let mut prepend = Vec::new();
        if external {
            prepend.push(session.local_asn);
            if session.local_asn != speaker.asn {
                prepend.push(speaker.asn);
            }
        }
        let end = LocalEnd {
            addr: session.local_addr,
            interface: session.interface,
        };
        View {
            families: session.families,
            external,
            client: !external && config.route_reflector_client,
            prepend,
            four_octet_as: session.four_octet_as,
            add_path: session.add_path_send,
            max_message: session.max_message,
            long_lived: session
                .graceful_restart
                .is_some_and(|r| r.understands_long_lived),
            next_hop: Family::ALL.map(|f| own_next_hop(speaker, config, end, f).ok()),
            next_hop_self: !external && config.next_hop_self,
            next_hop_unchanged: external && config.next_hop_unchanged,
            cluster_id: speaker.cluster_id.unwrap_or(speaker.router_id),
            export: FilterChain::new(&config.export, config.require_policy, external),
        }
    }

    /// How routes of a family are written.
    pub(crate) fn encoding(&self, family: Family) -> EncodeOptions {
        EncodeOptions {
            four_octet_as: self.four_octet_as,
            add_path: self.add_path.contains(family),
            max_message: self.max_message,
        }
    }

    /// Whether a best path is announced (to others than its source, that is).
    pub(crate) fn announces(&self, family: Family, source: Source, attr: &Attr) -> bool {
        use RouteOrigin::{Ebgp, Ibgp, Local};
        let may = match (source.origin, self.external) {
            (Local | Ebgp, _) | (Ibgp, true) => true,
            // RFC 4456 section 6: from a client to all, from a non-client to clients.
            (Ibgp, false) => source.client || self.client,
        };
        may && self.families.contains(family)
            && !attr.no_advertise()
            // Who does not know that a route is a last resort must not get it (RFC 9494 section 4.3).
            && (self.long_lived || !attr.llgr_stale())
            && !(self.external && attr.no_export())
            && (self.keeps_next_hop(source) || self.next_hop[family.index()].is_some())
            && self.export.announces(source.origin)
    }

    fn keeps_next_hop(&self, source: Source) -> bool {
        match source.origin {
            RouteOrigin::Local => false,
            RouteOrigin::Ebgp if self.external => self.next_hop_unchanged,
            RouteOrigin::Ebgp => !self.next_hop_self,
            // A reflector leaves the next hop alone (RFC 4456 section 10).
            RouteOrigin::Ibgp => !self.external || self.next_hop_unchanged,
        }
    }

    /// The attributes as they are sent.
    pub(crate) fn export(
        &self,
        family: Family,
        source: Source,
        mut attrs: PathAttributes,
    ) -> PathAttributes {
        attrs.next_hop = self.export_next_hop(family, source, attrs.next_hop);
        if self.external {
            for asn in self.prepend.iter().rev() {
                attrs.as_path = attrs.as_path.prepend(*asn, 1);
            }
            attrs.local_pref = None;
            // The MED of another AS goes no further (RFC 4271 section 5.1.4).
            attrs.med = None;
            attrs.originator_id = None;
            attrs.cluster_list = Box::default();
            if attrs.ext_communities.iter().any(is_non_transitive) {
                attrs.ext_communities = attrs
                    .ext_communities
                    .iter()
                    .filter(|c| !is_non_transitive(c))
                    .copied()
                    .collect();
            }
            return attrs;
        }
        attrs.local_pref = attrs.local_pref.or(Some(DEFAULT_LOCAL_PREF));
        if source.origin == RouteOrigin::Ibgp {
            attrs.originator_id = attrs.originator_id.or(Some(source.router_id));
            attrs.cluster_list = std::iter::once(self.cluster_id)
                .chain(attrs.cluster_list.iter().copied())
                .collect();
        }
        attrs
    }

    fn export_next_hop(&self, family: Family, source: Source, received: NextHop) -> NextHop {
        let own = self.next_hop[family.index()];
        if !self.keeps_next_hop(source) {
            return own.unwrap_or(received);
        }
        // A link-local address means nothing on other links (RFC 2545 section 3).
        match received.global {
            IpAddr::V6(a) if a.is_unicast_link_local() => own.unwrap_or(received),
            global => NextHop::from(global),
        }
    }
}

/// The T bit (RFC 4360 section 2): not across the border of an AS.
fn is_non_transitive(community: &[u8; 8]) -> bool {
    community[0] & 0x40 != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::FilterRef,
        rib::{
            attrs::Attrs,
            nexthop::NextHops,
            tests::{attrs_via, negotiated, peer_config, speaker},
        },
    };

    const LOCAL: Source = source(RouteOrigin::Local, false);
    const EBGP: Source = source(RouteOrigin::Ebgp, false);
    const CLIENT: Source = source(RouteOrigin::Ibgp, true);
    const NON_CLIENT: Source = source(RouteOrigin::Ibgp, false);

    const fn source(origin: RouteOrigin, client: bool) -> Source {
        Source {
            origin,
            client,
            router_id: RouterId(9),
        }
    }

    fn view(asn: u32, change: impl Fn(&mut PeerConfig)) -> View {
        let speaker = speaker(64512);
        let mut config = peer_config(1, asn);
        change(&mut config);
        View::new(&speaker, &config, &negotiated(&speaker, &config, 1))
    }

    fn announces(view: &View, source: Source, communities: &[u32]) -> bool {
        let mut a = attrs_via([10, 0, 0, 1], &[]);
        a.communities = communities.into();
        let (mut attrs, mut next_hops) = (Attrs::default(), NextHops::default());
        let id = attrs.intern(&a, &mut next_hops);
        view.announces(Family::Ipv4, source, attrs.get(id))
    }

    #[test]
    fn who_is_told_of_what() {
        let client = view(64512, |c| c.route_reflector_client = true);
        let non_client = view(64512, |_| ());
        let external = view(65001, |_| ());
        let transit = view(65001, |c| c.export = vec![FilterRef::AcceptAll]);
        for (source, told) in [
            (LOCAL, [true, true, true, true]),
            (EBGP, [true, true, false, true]),
            (CLIENT, [true, true, false, true]),
            (NON_CLIENT, [true, false, false, true]),
        ] {
            let got =
                [&client, &non_client, &external, &transit].map(|v| announces(v, source, &[]));
            assert_eq!(got, told, "{source:?}");
        }
    }

    #[test]
    fn well_known_communities() {
        let internal = view(64512, |_| ());
        let external = view(65001, |c| c.export = vec![FilterRef::AcceptAll]);
        for (community, told) in [
            (0xffff_ff01, [true, false]),
            (0xffff_ff02, [false, false]),
            (0xffff_ff03, [true, false]),
            (0xffff_ff04, [true, true]),
        ] {
            let got = [&internal, &external].map(|v| announces(v, EBGP, &[7, community]));
            assert_eq!(got, told, "{community:x}");
        }
    }

    #[test]
    fn to_external_peers() {
        let mut a = attrs_via([10, 9, 9, 9], &[7]);
        a.med = Some(3);
        a.local_pref = Some(200);
        a.originator_id = Some(RouterId(4));
        a.cluster_list = [RouterId(5)].into();
        a.ext_communities = [[0x40, 0, 0, 0, 0, 0, 0, 1], [0, 2, 0, 0, 0, 0, 0, 1]].into();
        let v = view(65001, |_| ());
        let sent = v.export(Family::Ipv4, CLIENT, a.clone());
        assert_eq!(sent.as_path.to_string(), "64512 7");
        assert_eq!(sent.next_hop.global, IpAddr::from([10, 0, 0, 100]));
        assert_eq!(
            (sent.med, sent.local_pref, sent.originator_id),
            (None, None, None)
        );
        assert!(sent.cluster_list.is_empty());
        assert_eq!(sent.ext_communities.len(), 1);

        let v = view(65001, |c| {
            c.local_asn = Some(Asn(65100));
            c.next_hop_unchanged = true;
        });
        let sent = v.export(Family::Ipv4, CLIENT, a.clone());
        assert_eq!(sent.as_path.to_string(), "65100 64512 7");
        assert_eq!(sent.next_hop, a.next_hop);
    }

    #[test]
    fn to_internal_peers() {
        let a = attrs_via([10, 9, 9, 9], &[7]);
        let v = view(64512, |_| ());
        let sent = v.export(Family::Ipv4, EBGP, a.clone());
        assert_eq!((sent.local_pref, sent.next_hop), (Some(100), a.next_hop));
        assert_eq!(
            (sent.originator_id, sent.as_path),
            (None, a.as_path.clone())
        );

        let own = NextHop::from(IpAddr::from([10, 0, 0, 100]));
        assert_eq!(v.export(Family::Ipv4, LOCAL, a.clone()).next_hop, own);
        let v = view(64512, |c| c.next_hop_self = true);
        assert_eq!(v.export(Family::Ipv4, EBGP, a.clone()).next_hop, own);
        assert_eq!(
            v.export(Family::Ipv4, CLIENT, a.clone()).next_hop,
            a.next_hop
        );

        let mut reflected = v.export(Family::Ipv4, CLIENT, a.clone());
        assert_eq!(reflected.originator_id, Some(RouterId(9)));
        assert_eq!(*reflected.cluster_list, [RouterId(1)]);
        reflected = v.export(Family::Ipv4, CLIENT, reflected);
        assert_eq!(*reflected.cluster_list, [RouterId(1), RouterId(1)]);
        assert_eq!(reflected.originator_id, Some(RouterId(9)));
    }
}
