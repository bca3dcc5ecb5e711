//! Addresses that a BGP session can run to or from, and why others cannot.

use std::net::IpAddr;

use ipnet::IpNet;

/// The rule of the CRD for a field with an address, in CEL: a subset of [`unusable`], for the usual ways of writing.
pub(super) const ADDRESS_RULE: &str = r"!self.lowerAscii().matches('^(0|127|22[4-9]|23[0-9]|24[0-9]|25[0-5])[.]|^[0:]*:0*[01]?$|^[0:]*:ffff:|^[0:]*:[0-9]+[.]|^ff|^fe[89ab]')";
/// The same for a field with a CIDR: a subset of [`unusable_range`].
pub(super) const RANGE_RULE: &str =
    r"!self.lowerAscii().matches('^(127|22[4-9]|23[0-9]|24[0-9]|25[0-5])[.]|^[0:]*:ffff:|^ff')";
/// The same for a BGP identifier.
pub(super) const IDENTIFIER_RULE: &str =
    r"!self.matches('^(0|127|22[4-9]|23[0-9]|24[0-9]|25[0-5])[.]')";
/// What the CRD says of them.
pub(super) const MESSAGE: &str = "not the address of one host: unspecified, loopback, multicast, broadcast, link-local, or IPv4 in IPv6 form";

/// What the CRD says of an identifier.
pub(super) const IDENTIFIER_MESSAGE: &str = "not a BGP identifier: the IPv4 address of a host, neither unspecified nor loopback, multicast or broadcast";

/// Why no session can run to or from this address; `None` if one can.
pub(super) fn unusable(address: IpAddr) -> Option<String> {
    let what = match address {
        IpAddr::V4(v4) => match v4.octets()[0] {
            _ if v4.is_unspecified() => "the unspecified address",
            _ if v4.is_broadcast() => "the broadcast address",
            0 => "in 0.0.0.0/8, which is no host's",
            127 => "a loopback address, which no neighbour has",
            224..=239 => "a multicast address",
            240..=255 => "in 240.0.0.0/4, which is reserved",
            _ => return None,
        },
        IpAddr::V6(v6) => {
            if let Some(v4) = v6.to_ipv4_mapped() {
                return Some(format!(
                    "{address} is an IPv4 address in IPv6 form; write {v4}"
                ));
            }
            match v6 {
                _ if v6.is_unspecified() => "the unspecified address",
                _ if v6.is_loopback() => "a loopback address, which no neighbour has",
                _ if v6.is_multicast() => "a multicast address",
                _ if v6.is_unicast_link_local() => {
                    "a link-local address, which means nothing without an interface"
                }
                _ if v6.segments()[..6] == [0; 6] => {
                    "an IPv4-compatible address, which is deprecated (RFC 4291 section 2.5.5.1)"
                }
                _ => return None,
            }
        }
    };
    Some(format!("{address} is {what}"))
}

/// Why nobody can connect from inside this range; `None` if somebody can.
pub(super) fn unusable_range(range: IpNet) -> Option<String> {
    // What is unusable is contiguous: a range that begins and ends in it lies in it, but for the whole address space.
    let (first, last) = (range.network(), range.broadcast());
    let link_local = matches!(first, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if range.prefix_len() == 0 || link_local || unusable(last).is_none() {
        return None;
    }
    if let IpAddr::V6(v6) = first
        && let Some(v4) = v6.to_ipv4_mapped()
        && range.prefix_len() >= 96
    {
        let len = range.prefix_len() - 96;
        return Some(format!(
            "{range} is an IPv4 range in IPv6 form; write {v4}/{len}"
        ));
    }
    unusable(first).map(|_| format!("nobody connects from {range}: no address in it is one host's"))
}
