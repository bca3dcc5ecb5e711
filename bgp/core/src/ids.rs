//! Identifiers: one type for each role, so that two numbers or two addresses cannot be swapped.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// An autonomous system number, four octets (RFC 6793).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Asn(pub u32);

impl Asn {
    /// AS_TRANS, which stands for a four-octet number in a two-octet field (RFC 6793 section 9).
    pub const TRANS: Asn = Asn(23456);
    /// Zero, which must not be used (RFC 7607).
    pub const ZERO: Asn = Asn(0);

    /// The number in a two-octet field: itself, or [`Asn::TRANS`] when it does not fit.
    pub fn two_octet(self) -> u16 {
        u16::try_from(self.0).unwrap_or(23456)
    }
}

impl fmt::Display for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Asn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AS{}", self.0)
    }
}

/// A BGP identifier (RFC 4271 section 4.2, RFC 6286) or a cluster id (RFC 4456): four octets, written as an address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouterId(pub u32);

impl From<Ipv4Addr> for RouterId {
    fn from(a: Ipv4Addr) -> Self {
        RouterId(a.into())
    }
}

impl fmt::Display for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ipv4Addr::from(self.0).fmt(f)
    }
}

impl fmt::Debug for RouterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A peer inside the speaker: its place in every per-peer table. Another peer may have the place as soon as the peer is
/// gone, so a `PeerIdx` that is kept, or sent to another thread, is kept and sent beside an [`Epoch`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerIdx(pub u16);

/// The number of a session. No two sessions of a speaker have the same number, whichever peers they are with, and a later
/// session has a higher one. What carries another epoch than a peer's present session is ignored. 0: no session.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// The counter of a speaker's sessions. All peers of a speaker hold a clone of one counter.
#[derive(Clone, Debug, Default)]
pub struct Epochs(Arc<AtomicU64>);

impl Epochs {
    /// The number of a session that begins now; the first is 1.
    pub fn next(&self) -> Epoch {
        Epoch(self.0.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// An update group of the RIB: peers that are sent the same bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u32);

/// A kernel interface index, which gives a link-local address its meaning.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct IfIndex(pub u32);

/// A neighbour as people and configuration name it: its address and, for a link-local one, its interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerKey {
    /// The address that the session runs to.
    pub addr: IpAddr,
    /// The interface of a link-local address.
    pub scope: Option<IfIndex>,
}

impl From<IpAddr> for PeerKey {
    fn from(addr: IpAddr) -> Self {
        PeerKey { addr, scope: None }
    }
}

impl fmt::Display for PeerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.scope {
            Some(i) => write!(f, "{}%{}", self.addr, i.0),
            None => self.addr.fmt(f),
        }
    }
}

/// An address family that the speaker carries (RFC 4760: AFI 1 or 2, SAFI 1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Family {
    /// IPv4 unicast.
    Ipv4 = 0,
    /// IPv6 unicast.
    Ipv6 = 1,
}

impl Family {
    /// All of them, in the order of [`Family::index`].
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// Its place in a per-family array.
    pub fn index(self) -> usize {
        self as usize
    }

    /// The address family number (IANA "Address Family Numbers").
    pub fn afi(self) -> u16 {
        self as u16 + 1
    }

    /// The subsequent address family: unicast.
    pub fn safi(self) -> u8 {
        1
    }

    /// The family of AFI and SAFI, if we carry it.
    pub fn from_afi_safi(afi: u16, safi: u8) -> Option<Family> {
        match (afi, safi) {
            (1, 1) => Some(Family::Ipv4),
            (2, 1) => Some(Family::Ipv6),
            _ => None,
        }
    }

    /// The family that an address belongs to.
    pub fn of(addr: &IpAddr) -> Family {
        match addr {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        })
    }
}

/// A set of [`Family`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FamilySet(u8);

impl FamilySet {
    /// No family.
    pub const NONE: FamilySet = FamilySet(0);
    /// Both families.
    pub const ALL: FamilySet = FamilySet(3);

    /// Adds `family`.
    pub fn insert(&mut self, family: Family) {
        self.0 |= 1 << family.index();
    }

    /// Takes `family` out.
    pub fn remove(&mut self, family: Family) {
        self.0 &= !(1 << family.index());
    }

    /// Whether `family` is in it.
    pub fn contains(self, family: Family) -> bool {
        self.0 & (1 << family.index()) != 0
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// What is in both.
    pub fn and(self, other: FamilySet) -> FamilySet {
        FamilySet(self.0 & other.0)
    }

    /// The families in it, in the order of [`Family::ALL`].
    pub fn iter(self) -> impl Iterator<Item = Family> {
        Family::ALL.into_iter().filter(move |f| self.contains(*f))
    }
}

impl FromIterator<Family> for FamilySet {
    fn from_iter<T: IntoIterator<Item = Family>>(families: T) -> Self {
        let mut set = FamilySet::NONE;
        for family in families {
            set.insert(family);
        }
        set
    }
}

impl fmt::Debug for FamilySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
