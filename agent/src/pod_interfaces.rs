//! How the host's ends of pods are told from other interfaces.

use std::sync::Arc;

use selvage_policy::plan::IfaceMatch;

use crate::store::POD_LINK_GROUP;

/// Whose the pods of this node are, and how their interfaces are recognised.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PodInterfaces {
    /// Our plugin's: they are in a link group of their own, and attachments say whose they are.
    #[default]
    Ours,
    /// Another plugin's: their names begin with one of these, and host routes say which addresses are behind them. No
    /// prefix begins with another one; there is at least one.
    Named(Vec<Arc<str>>),
}

impl PodInterfaces {
    /// Interfaces whose names begin with one of these. A prefix that another one covers is left out.
    pub fn named<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> PodInterfaces {
        let mut all: Vec<&str> = prefixes.into_iter().collect();
        // A prefix stands before those that it covers.
        all.sort_unstable();
        let mut kept: Vec<Arc<str>> = Vec::new();
        for prefix in all {
            if kept.last().is_none_or(|last| !prefix.starts_with(&**last)) {
                kept.push(prefix.into());
            }
        }
        PodInterfaces::Named(kept)
    }

    /// Whether pods are another plugin's.
    pub fn are_named(&self) -> bool {
        matches!(self, PodInterfaces::Named(_))
    }

    /// Whether an interface leads to a pod.
    pub fn contain(&self, name: &str, group: u32) -> bool {
        match self {
            PodInterfaces::Ours => group == POD_LINK_GROUP,
            PodInterfaces::Named(prefixes) => {
                prefixes.iter().any(|prefix| name.starts_with(&**prefix))
            }
        }
    }

    /// In the words of the policy compiler.
    pub fn matches(&self) -> Vec<IfaceMatch> {
        match self {
            PodInterfaces::Ours => vec![IfaceMatch::Group(POD_LINK_GROUP)],
            PodInterfaces::Named(prefixes) => prefixes
                .iter()
                .map(|prefix| IfaceMatch::Prefix(Arc::clone(prefix)))
                .collect(),
        }
    }

    /// As nft and people write them: `veth*`; none for our own.
    pub fn patterns(&self) -> Vec<String> {
        match self {
            PodInterfaces::Ours => Vec::new(),
            PodInterfaces::Named(prefixes) => {
                prefixes.iter().map(|prefix| format!("{prefix}*")).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_another_one_covers_is_left_out() {
        let named = PodInterfaces::named(["veth", "cali1", "cali", "cal2", "cali"]);
        assert_eq!(named.patterns(), ["cal2*", "cali*", "veth*"]);
        for (name, is) in [
            ("cali1", true),
            ("cal2", true),
            ("cal", false),
            ("xveth", false),
        ] {
            assert_eq!(named.contain(name, POD_LINK_GROUP), is, "{name}");
        }
    }
}
