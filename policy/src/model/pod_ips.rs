//! The addresses of a pod, in little room.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// `status.podIPs` in its order. The usual lists (one address, or one of each family) take no memory of their own.
#[derive(Clone, PartialEq, Eq)]
pub struct PodIps(Form);

#[derive(Clone, PartialEq, Eq)]
enum Form {
    None,
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    /// IPv4 first.
    Both(Ipv4Addr, Ipv6Addr),
    /// Any list that is none of those above.
    Other(Box<[IpAddr]>),
}

impl PodIps {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        match &self.0 {
            Form::None => 0,
            Form::V4(_) | Form::V6(_) => 1,
            Form::Both(..) => 2,
            Form::Other(all) => all.len(),
        }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let (v4, v6, other): (_, _, &[IpAddr]) = match &self.0 {
            Form::None => (None, None, &[]),
            Form::V4(v4) => (Some(*v4), None, &[]),
            Form::V6(v6) => (None, Some(*v6), &[]),
            Form::Both(v4, v6) => (Some(*v4), Some(*v6), &[]),
            Form::Other(all) => (None, None, all),
        };
        let usual = v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6));
        usual.chain(other.iter().copied())
    }
}

impl PodIps {
    /// The IPv6 address, if there is exactly one.
    pub(crate) fn only_v6(&self) -> Option<Ipv6Addr> {
        match &self.0 {
            Form::None | Form::V4(_) => None,
            Form::V6(v6) | Form::Both(_, v6) => Some(*v6),
            Form::Other(all) => {
                let mut found = all.iter().filter_map(|addr| match addr {
                    IpAddr::V6(v6) => Some(*v6),
                    IpAddr::V4(_) => None,
                });
                found.next().filter(|_| found.next().is_none())
            }
        }
    }
}

impl From<&[IpAddr]> for PodIps {
    fn from(all: &[IpAddr]) -> Self {
        PodIps(match *all {
            [] => Form::None,
            [IpAddr::V4(v4)] => Form::V4(v4),
            [IpAddr::V6(v6)] => Form::V6(v6),
            [IpAddr::V4(v4), IpAddr::V6(v6)] => Form::Both(v4, v6),
            _ => Form::Other(all.into()),
        })
    }
}

impl From<Vec<IpAddr>> for PodIps {
    fn from(all: Vec<IpAddr>) -> Self {
        all.as_slice().into()
    }
}

impl fmt::Debug for PodIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_comes_back_as_it_was() {
        let addresses =
            ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|text| text.parse().expect("an address"));
        let [a, b, c]: [IpAddr; 3] = addresses;
        for list in [
            vec![],
            vec![a],
            vec![b],
            vec![a, b],
            vec![b, a],
            vec![a, c],
            vec![a, b, c],
        ] {
            let ips = PodIps::from(list.clone());
            assert_eq!(ips.iter().collect::<Vec<_>>(), list);
            assert_eq!((ips.len(), ips.is_empty()), (list.len(), list.is_empty()));
        }
    }
}
