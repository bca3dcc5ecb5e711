//! Which addresses can be next hops: the special-purpose address registries of IANA (RFC 6890), as far as they say that an
//! address is no destination.
//!
//! Documentation prefixes are no destinations in the registries, but labs are full of them: they are usable here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What a block is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Use {
    /// Its addresses can be next hops.
    Yes,
    /// Never a next hop.
    No,
    /// A next hop only in a session from an address of the same block: the block means something on that link or in that
    /// network only.
    OnLink,
}

use Use::{No, OnLink, Yes};

/// IPv4, most specific rows first. What no row names is usable.
const V4: [(Ipv4Addr, u8, Use); 14] = [
    // "This network" (RFC 791), the unspecified address among it.
    (Ipv4Addr::new(0, 0, 0, 0), 8, No),
    // Loopback (RFC 1122).
    (Ipv4Addr::new(127, 0, 0, 0), 8, No),
    // Link-local (RFC 3927).
    (Ipv4Addr::new(169, 254, 0, 0), 16, OnLink),
    // The dummy address (RFC 7600); NAT64 and DNS64 discovery (RFC 8880, RFC 7050).
    (Ipv4Addr::new(192, 0, 0, 8), 32, No),
    (Ipv4Addr::new(192, 0, 0, 170), 31, No),
    // Service continuity (RFC 7335), and two anycast addresses (RFC 7723, RFC 8155).
    (Ipv4Addr::new(192, 0, 0, 0), 29, Yes),
    (Ipv4Addr::new(192, 0, 0, 9), 32, Yes),
    (Ipv4Addr::new(192, 0, 0, 10), 32, Yes),
    // The rest of the protocol assignments (RFC 6890).
    (Ipv4Addr::new(192, 0, 0, 0), 24, No),
    // Documentation (RFC 5737).
    (Ipv4Addr::new(192, 0, 2, 0), 24, Yes),
    // Multicast (RFC 5771).
    (Ipv4Addr::new(224, 0, 0, 0), 4, No),
    // Limited broadcast (RFC 919).
    (Ipv4Addr::BROADCAST, 32, No),
    // Reserved, "class E" (RFC 1112); some networks number their hosts from it.
    (Ipv4Addr::new(240, 0, 0, 0), 4, OnLink),
    (Ipv4Addr::new(0, 0, 0, 0), 0, Yes),
];

const fn v6(a: u16, b: u16, c: u16, d: u16, e: u16, f: u16, g: u16, h: u16) -> Ipv6Addr {
    Ipv6Addr::new(a, b, c, d, e, f, g, h)
}

/// IPv6, most specific rows first. What no row names is usable. Link-local addresses are judged with their interface, in
/// `update`.
const V6: [(Ipv6Addr, u8, Use); 16] = [
    // IPv4-mapped (RFC 4291): an IPv4 address in an API, never in a packet.
    (v6(0, 0, 0, 0, 0, 0xffff, 0, 0), 96, No),
    // IPv4-compatible, deprecated (RFC 4291), the unspecified address and loopback among them.
    (v6(0, 0, 0, 0, 0, 0, 0, 0), 96, No),
    // Translated IPv4 addresses (RFC 6052, RFC 8215).
    (v6(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96, Yes),
    (v6(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, Yes),
    // The rest of what the IETF keeps back (RFC 4291).
    (v6(0, 0, 0, 0, 0, 0, 0, 0), 8, No),
    // Discard-only (RFC 6666), and the dummy prefix (RFC 9780).
    (v6(0x100, 0, 0, 0, 0, 0, 0, 0), 64, No),
    (v6(0x100, 0, 0, 1, 0, 0, 0, 0), 64, No),
    // Of the protocol assignments (RFC 2928): Teredo (RFC 4380), anycast (RFC 7723, RFC 8155, RFC 9665), benchmarks
    // (RFC 5180), AMT (RFC 7450), AS112 (RFC 7535), ORCHIDv2 (RFC 7343), drones (RFC 9374).
    (v6(0x2001, 0, 0, 0, 0, 0, 0, 0), 32, Yes),
    (v6(0x2001, 1, 0, 0, 0, 0, 0, 0), 126, Yes),
    (v6(0x2001, 2, 0, 0, 0, 0, 0, 0), 48, Yes),
    (v6(0x2001, 3, 0, 0, 0, 0, 0, 0), 32, Yes),
    (v6(0x2001, 4, 0x112, 0, 0, 0, 0, 0), 48, Yes),
    (v6(0x2001, 0x20, 0, 0, 0, 0, 0, 0), 27, Yes),
    (v6(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, No),
    // Multicast (RFC 4291).
    (v6(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, No),
    (v6(0, 0, 0, 0, 0, 0, 0, 0), 0, Yes),
];

/// Whether packets can be sent to this address, in a session from `local` (RFC 4271 section 6.3: "a valid IP host address").
pub(crate) fn is_host(addr: IpAddr, local: IpAddr) -> bool {
    match addr {
        IpAddr::V4(a) => {
            let bits = u32::from(a);
            let row = V4.iter().find(|(net, len, _)| in_v4(bits, *net, *len));
            row.is_none_or(|(net, len, usable)| match usable {
                Yes => true,
                No => false,
                OnLink => matches!(local, IpAddr::V4(l) if in_v4(l.into(), *net, *len)),
            })
        }
        IpAddr::V6(a) => {
            let bits = u128::from(a);
            let row = V6.iter().find(|(net, len, _)| in_v6(bits, *net, *len));
            row.is_none_or(|(.., usable)| *usable == Yes)
        }
    }
}

fn in_v4(addr: u32, net: Ipv4Addr, len: u8) -> bool {
    let differs = addr ^ u32::from(net);
    differs.checked_shr(32 - u32::from(len)).unwrap_or(0) == 0
}

fn in_v6(addr: u128, net: Ipv6Addr, len: u8) -> bool {
    let differs = addr ^ u128::from(net);
    differs.checked_shr(128 - u32::from(len)).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_addresses_can_be_next_hops() {
        let usable = [
            "1.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "169.253.0.1",
            "172.16.0.1",
            "192.0.0.1",
            "192.0.0.9",
            "192.0.0.10",
            "192.0.2.1",
            "192.31.196.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "223.255.255.255",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100:0:0:2::1",
            "2000::1",
            "2001::1",
            "2001:1::1",
            "2001:1::3",
            "2001:2::1",
            "2001:20::1",
            "2001:30::1",
            "2001:200::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "2a00::1",
            "3fff::1",
            "5f00::1",
            "fc00::1",
            "fd00::1",
        ];
        let useless = [
            "0.0.0.0",
            "0.1.2.3",
            "127.0.0.1",
            "127.255.255.255",
            "169.254.1.1",
            "192.0.0.8",
            "192.0.0.11",
            "192.0.0.170",
            "192.0.0.171",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.254",
            "255.255.255.255",
            "::",
            "::1",
            "::2",
            "::10.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:0:10.0.0.1",
            "64:ff9b:2::1",
            "100::1",
            "100:0:0:1::1",
            "2001:1::4",
            "2001:5::1",
            "2001:1ff::1",
            "ff02::1",
            "ff0e::1",
        ];
        let local = "192.0.2.9".parse().unwrap();
        for (list, wanted) in [(&usable[..], true), (&useless[..], false)] {
            for text in list {
                assert_eq!(is_host(text.parse().unwrap(), local), wanted, "{text}");
            }
        }
        // A session between such addresses shows that they mean something here.
        for (local, text, wanted) in [
            ("169.254.0.1", "169.254.1.1", true),
            ("240.1.0.1", "250.0.0.1", true),
            ("240.1.0.1", "255.255.255.255", false),
            ("240.1.0.1", "169.254.1.1", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("fd00::1", "169.254.1.1", false),
        ] {
            let is = is_host(text.parse().unwrap(), local.parse().unwrap());
            assert_eq!(is, wanted, "{text} from {local}");
        }
    }
}
