//! Any bytes: no panic, and what is read is written and read again as the same.

use std::net::IpAddr;

use proptest::{collection::vec, prelude::*, sample::Index};

use super::*;
use crate::{
    ids::{Family, RouterId},
    prefix::Prefix,
    wire::{
        attr::{
            AsPath, AsPathBuilder, NextHop, Origin, PartialBits, PathAttributes, SegmentKind,
            UnknownAttribute,
        },
        capability::Capability,
        header,
        notification::Notification,
        open::Open,
        pack::{EncodeOptions, write_reach, write_unreach},
        refresh::RouteRefresh,
    },
};

fn contexts() -> impl Strategy<Value = Context> {
    (any::<[bool; 5]>(), any::<Option<u8>>()).prop_map(|(b, first)| Context {
        internal: b[0],
        four_octet_as: b[1],
        families: Family::ALL
            .into_iter()
            .filter(|f| b[2 + f.index()])
            .collect(),
        add_path: if b[4] {
            FamilySet::ALL
        } else {
            FamilySet::NONE
        },
        first_as: first.map(|a| Asn(a.into())),
        ..context(false)
    })
}

fn as_paths() -> impl Strategy<Value = AsPath> {
    let kinds = prop_oneof![
        4 => Just(SegmentKind::Sequence),
        1 => Just(SegmentKind::Set),
    ];
    vec((kinds, vec(prop_oneof![1..70000u32, 1..9u32], 1..5)), 0..4).prop_map(|segments| {
        let mut path = AsPathBuilder::default();
        for (kind, asns) in segments {
            path.segment(kind, asns.into_iter().map(Asn));
        }
        path.finish()
    })
}

fn attributes(family: Family) -> impl Strategy<Value = PathAttributes> {
    let next_hop = match family {
        Family::Ipv4 => (1..=126u8, any::<[u8; 3]>())
            .prop_map(|(a, [b, c, d])| NextHop::from(IpAddr::from([a, b, c, d])))
            .boxed(),
        Family::Ipv6 => (any::<[u16; 7]>(), any::<Option<u16>>())
            .prop_map(|([b, c, d, e, f, g, h], link)| NextHop {
                global: IpAddr::from([0xfd00, b, c, d, e, f, g, h]),
                link_local: link.map(|l| ([0xfe80, 0, 0, 0, 0, 0, 0, l].into(), IfIndex(7))),
            })
            .boxed(),
    };
    let unknown = vec((any::<u8>(), vec(any::<u8>(), 0..300)), 0..3).prop_map(|list| {
        let mut list: Vec<_> = list
            .into_iter()
            .filter(|(code, _)| !matches!(code, 1..=10 | 14..=18 | 32))
            .map(|(code, value)| UnknownAttribute {
                flags: 0xe0,
                code,
                value: value.into(),
            })
            .collect();
        list.sort_by_key(|u| u.code);
        list.dedup_by_key(|u| u.code);
        list
    });
    let lists = (
        vec(any::<u32>(), 0..70),
        vec(any::<[u8; 8]>(), 0..3),
        vec(any::<[u32; 3]>(), 0..3),
        vec(any::<u32>().prop_map(RouterId), 0..3),
        unknown,
    );
    let aggregator = proptest::option::of((1..70000u32, any::<[u8; 4]>()));
    let scalars = (
        prop_oneof![
            Just(Origin::Igp),
            Just(Origin::Egp),
            Just(Origin::Incomplete)
        ],
        any::<[Option<u32>; 3]>(),
        any::<bool>(),
        aggregator,
        any::<[bool; 4]>(),
    );
    (next_hop, as_paths(), scalars, lists).prop_map(|(next_hop, as_path, scalars, lists)| {
        let (origin, [med, local_pref, id], atomic, aggregator, partial) = scalars;
        let there = [
            (7, aggregator.is_some()),
            (8, !lists.0.is_empty()),
            (16, !lists.1.is_empty()),
            (32, !lists.2.is_empty()),
        ];
        let mut bits = PartialBits::default();
        for ((code, there), partial) in there.into_iter().zip(partial) {
            if there && partial {
                bits.insert(code);
            }
        }
        PathAttributes {
            origin,
            as_path,
            next_hop,
            med,
            local_pref,
            atomic_aggregate: atomic,
            aggregator: aggregator.map(|(a, addr)| (Asn(a), addr.into())),
            communities: lists.0.into(),
            ext_communities: lists.1.into(),
            large_communities: lists.2.into(),
            originator_id: id.map(RouterId),
            cluster_list: lists.3.into(),
            unknown: lists.4.into(),
            partial: bits,
        }
    })
}

fn prefixes(family: Family) -> impl Strategy<Value = Prefix> {
    (any::<u128>(), any::<u8>()).prop_map(move |(bits, len)| match family {
        Family::Ipv4 => Prefix::v4((bits as u32).into(), len % 33).unwrap(),
        Family::Ipv6 => Prefix::v6(bits.into(), len % 129).unwrap(),
    })
}

/// Routes of one family with their attributes.
fn routes() -> impl Strategy<Value = (Family, PathAttributes, Vec<(u32, Prefix)>)> {
    prop_oneof![Just(Family::Ipv4), Just(Family::Ipv6)].prop_flat_map(|family| {
        (
            Just(family),
            attributes(family),
            vec((any::<u32>(), prefixes(family)), 1..40),
        )
    })
}

/// An internal session with these options.
fn internal(opts: &EncodeOptions) -> Context {
    Context {
        four_octet_as: opts.four_octet_as,
        add_path: if opts.add_path {
            FamilySet::ALL
        } else {
            FamilySet::NONE
        },
        ..context(true)
    }
}

fn encode(
    family: Family,
    attrs: &PathAttributes,
    opts: &EncodeOptions,
    nlri: &[(u32, Prefix)],
) -> BytesMut {
    let mut out = BytesMut::new();
    write_reach(&mut out, family, attrs, opts, &mut nlri.iter().copied()).unwrap();
    write_unreach(&mut out, family, opts, &mut nlri.iter().copied());
    out
}

/// Whatever is read from an UPDATE is written and read again as the same.
fn check_update(body: &Bytes, ctx: &Context) -> Result<(), TestCaseError> {
    let Ok(update) = decode(body, ctx) else {
        return Ok(());
    };
    for (attrs, nlri) in &update.reach {
        let opts = EncodeOptions {
            four_octet_as: true,
            add_path: ctx.add_path.contains(nlri.family()),
            max_message: 65535,
        };
        let routes: Vec<_> = nlri.iter().collect();
        let mut out = BytesMut::new();
        let written = write_reach(
            &mut out,
            nlri.family(),
            attrs,
            &opts,
            &mut routes.iter().copied(),
        );
        prop_assert!(written.is_ok());
        let mut again = Vec::new();
        while let Some(frame) = header::next_frame(&mut out, 65535).unwrap() {
            let ctx = Context {
                internal: true,
                four_octet_as: true,
                first_as: None,
                ..ctx.clone()
            };
            let update = decode(&frame.body, &ctx).unwrap();
            prop_assert_eq!(&update.faults, &[]);
            let (a, block) = &update.reach[0];
            prop_assert_eq!(a, attrs);
            again.extend(block.iter());
        }
        prop_assert_eq!(again, routes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn routes_survive_the_way((family, attrs, nlri) in routes(), four_octet_as: bool, add_path: bool) {
        let opts = EncodeOptions { four_octet_as, add_path, ..EncodeOptions::default() };
        let mut stream = encode(family, &attrs, &opts, &nlri);
        let ctx = internal(&opts);
        let (mut announced, mut withdrawn) = (Vec::new(), Vec::new());
        let mut cache = AttributeCache::default();
        while let Some(frame) = header::next_frame(&mut stream, 4096).unwrap() {
            let update = update::decode(&frame.body, &ctx, &mut cache).unwrap();
            prop_assert_eq!(&update.faults, &[]);
            for (a, block) in &update.reach {
                prop_assert_eq!(&a.as_path.to_string(), &attrs.as_path.to_string());
                if four_octet_as {
                    prop_assert_eq!(&**a, &attrs);
                }
                announced.extend(block.iter());
            }
            update.withdrawn.iter().for_each(|b| withdrawn.extend(b.iter()));
        }
        let expected: Vec<_> = nlri.iter().map(|(id, p)| (if add_path { *id } else { 0 }, *p)).collect();
        prop_assert_eq!(&announced, &expected);
        prop_assert_eq!(&withdrawn, &expected);
    }

    #[test]
    fn any_update(bytes in vec(any::<u8>(), 0..200), ctx in contexts()) {
        check_update(&bytes.into(), &ctx)?;
    }

    #[test]
    fn any_attributes(bytes in vec(any::<u8>(), 0..200), nlri in vec(any::<u8>(), 0..10), ctx in contexts()) {
        check_update(&body(&[], &bytes, &nlri), &ctx)?;
    }

    #[test]
    fn damaged_updates(
        (family, attrs, nlri) in routes(),
        damage in vec((any::<Index>(), any::<u8>()), 1..4),
        cut in any::<Option<Index>>(),
        ctx in contexts(),
    ) {
        let opts = EncodeOptions { four_octet_as: ctx.four_octet_as, add_path: ctx.add_path != FamilySet::NONE, ..EncodeOptions::default() };
        let mut bytes = encode(family, &attrs, &opts, &nlri[..1]).split_off(header::HEADER).to_vec();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len() + 1));
        }
        check_update(&bytes.into(), &ctx)?;
    }

    #[test]
    fn any_open(
        head in prop_oneof![Just(vec![4, 0xfd, 0xe8, 0, 9, 1, 1, 1, 1]), vec(any::<u8>(), 0..12)],
        tail in vec(prop_oneof![any::<u8>(), 0..10u8, Just(2), Just(65), Just(255)], 0..60),
    ) {
        let bytes = Bytes::from([head, tail].concat());
        if let Ok(open) = Open::decode(&bytes) {
            prop_assert_eq!(Open::decode(&open.encode().slice(19..)), Ok(open));
        }
    }

    #[test]
    fn open_with_any_capabilities(list in vec((any::<u8>(), vec(any::<u8>(), 0..9)), 0..40)) {
        let mut raw = Vec::new();
        for (code, value) in list {
            Capability::Other { code, value }.put(&mut raw);
        }
        let mut b = vec![4, 0xfd, 0xe8, 0, 9, 1, 1, 1, 1, 255, 255];
        b.extend((raw.len() as u16 + 3).to_be_bytes());
        b.push(2);
        b.extend((raw.len() as u16).to_be_bytes());
        b.extend(raw);
        if let Ok(open) = Open::decode(&b.into()) {
            prop_assert_eq!(Open::decode(&open.encode().slice(19..)), Ok(open));
        }
    }

    #[test]
    fn any_notification_and_refresh(bytes in vec(any::<u8>(), 2..400)) {
        let bytes = Bytes::from(bytes);
        let n = Notification::decode(&bytes);
        let _ = (n.to_string(), n.shutdown_text(), n.hard_reset_reason());
        prop_assert_eq!(Notification::decode(&n.encode().slice(19..)), n);
        if let Some(r) = RouteRefresh::decode(&bytes) {
            prop_assert_eq!(RouteRefresh::decode(&r.encode()[19..]), Some(r));
        }
    }

    #[test]
    fn any_stream(bytes in vec(prop_oneof![5 => Just(255u8), 1 => any::<u8>()], 0..300), limit in 19..70000usize) {
        let mut stream = BytesMut::from(&bytes[..]);
        let mut left = stream.len();
        while let Ok(Some(frame)) = header::next_frame(&mut stream, limit) {
            prop_assert_eq!(left, frame.body.len() + header::HEADER + stream.len());
            left = stream.len();
        }
    }
}
