//! How we stand with the API server, in words for `selvage status`.

use std::collections::BTreeMap;

use super::resource::Resource;
use crate::objects::Timestamp;

/// How it is with one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing was heard yet.
    #[default]
    Starting,
    /// It is followed.
    Live,
    /// The API server does not know the kind.
    Absent,
    /// We may not read it; in the API server's words.
    Forbidden(String),
    /// It cannot be read, for this reason.
    Away(Timestamp, String),
}

/// What is known of a kind whatever the API server says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Basis {
    Nothing,
    /// Of an earlier run, of this time.
    Snapshot(Timestamp),
    /// The API server has said it to us.
    Heard,
}

/// The names under which it is told.
const AWAY: &str = "api";
const RIGHTS: &str = "api-rights";
const KINDS: &str = "api-kinds";

/// What is not as it should be, by name.
pub(super) fn texts<'a>(
    kinds: impl Iterator<Item = (&'a Resource, &'a Phase, Basis)> + Clone,
    forbidden_policies: impl Iterator<Item = &'a String>,
) -> BTreeMap<&'static str, String> {
    let mut texts = BTreeMap::new();
    if let Some(text) = away(kinds.clone()) {
        texts.insert(AWAY, text);
    }
    let forbidden: Vec<&str> = kinds
        .clone()
        .filter_map(|(_, phase, _)| match phase {
            Phase::Forbidden(message) => Some(message.as_str()),
            _ => None,
        })
        .chain(forbidden_policies.map(String::as_str))
        .collect();
    if !forbidden.is_empty() {
        let text = format!(
            "the API server refuses what we ask: {}; the ClusterRole and the Role that come with Selvage grant it",
            forbidden.join("; ")
        );
        texts.insert(RIGHTS, text);
    }
    let absent = kinds.filter(|(_, phase, _)| **phase == Phase::Absent);
    let absent: Vec<&str> = absent.map(|(resource, ..)| resource.kind.name()).collect();
    if !absent.is_empty() {
        let text = format!(
            "the API server does not know {}, so there are none: `selvage crds | kubectl apply -f -` installs them",
            list(&absent)
        );
        texts.insert(KINDS, text);
    }
    texts
}

fn away<'a>(kinds: impl Iterator<Item = (&'a Resource, &'a Phase, Basis)>) -> Option<String> {
    let (mut names, mut others) = (Vec::new(), false);
    let (mut first, mut bases): (Option<(Timestamp, &str)>, Vec<Basis>) = (None, Vec::new());
    for (resource, phase, basis) in kinds {
        let Phase::Away(since, reason) = phase else {
            others |= *phase == Phase::Live;
            continue;
        };
        names.push(resource.name());
        bases.push(basis);
        if first.is_none_or(|(earliest, _)| *since < earliest) {
            first = Some((*since, reason));
        }
    }
    let (since, reason) = first?;
    let snapshot = bases.iter().find_map(|basis| match basis {
        Basis::Snapshot(time) => Some(*time),
        _ => None,
    });
    let consequence = match snapshot {
        _ if bases.contains(&Basis::Nothing) => {
            "no snapshot of an earlier run tells what it would say, so this node waits".to_owned()
        }
        Some(time) => format!("working from the snapshot of {time}"),
        None => "what it said last stays in force".to_owned(),
    };
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Some(match others {
        true => format!(
            "the Kubernetes API does not let us read {} since {since} ({reason}); {consequence}",
            list(&names)
        ),
        false => format!("the Kubernetes API is away since {since} ({reason}); {consequence}"),
    })
}

/// `a, b and c`.
fn list(names: &[&str]) -> String {
    match names {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [firsts @ .., last] => format!("{} and {last}", firsts.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Kind;

    fn told(kinds: &[(Kind, Phase, Basis)]) -> Vec<String> {
        let kinds: Vec<_> = kinds
            .iter()
            .map(|(kind, phase, basis)| (Resource::new(*kind, "net", None), phase, *basis))
            .collect();
        let texts = texts(
            kinds
                .iter()
                .map(|(resource, phase, basis)| (resource, *phase, *basis)),
            std::iter::empty(),
        );
        texts
            .into_iter()
            .map(|(name, text)| format!("{name}: {text}"))
            .collect()
    }

    #[test]
    fn what_is_told() {
        let away = |second| Phase::Away(Timestamp(second), "refused".into());
        let snapshot = Basis::Snapshot(Timestamp(0));
        assert_eq!(
            told(&[(Kind::Pod, Phase::Live, Basis::Heard)]),
            Vec::<String>::new()
        );
        assert_eq!(
            told(&[(Kind::Pod, Phase::Starting, Basis::Nothing)]),
            Vec::<String>::new()
        );
        for (kinds, text) in [
            (
                vec![
                    (Kind::Pod, away(60), Basis::Heard),
                    (Kind::Node, away(61), Basis::Heard),
                ],
                "api: the Kubernetes API is away since 1970-01-01T00:01:00Z (refused); what it said last stays in force",
            ),
            (
                vec![
                    (Kind::Pod, away(60), snapshot),
                    (Kind::BgpPeer, Phase::Starting, Basis::Nothing),
                ],
                "api: the Kubernetes API is away since 1970-01-01T00:01:00Z (refused); working from the snapshot of 1970-01-01T00:00:00Z",
            ),
            (
                vec![(Kind::Pod, away(60), Basis::Nothing)],
                "api: the Kubernetes API is away since 1970-01-01T00:01:00Z (refused); no snapshot of an earlier run tells what it would say, so this node waits",
            ),
            (
                vec![
                    (Kind::Secret, away(60), Basis::Heard),
                    (Kind::Node, Phase::Live, Basis::Heard),
                ],
                "api: the Kubernetes API does not let us read secrets in the namespace net since 1970-01-01T00:01:00Z (refused); what it said last stays in force",
            ),
            (
                vec![(
                    Kind::Secret,
                    Phase::Forbidden("cannot list secrets".into()),
                    Basis::Nothing,
                )],
                "api-rights: the API server refuses what we ask: cannot list secrets; the ClusterRole and the Role that come with Selvage grant it",
            ),
            (
                vec![
                    (Kind::BgpConfiguration, Phase::Absent, Basis::Heard),
                    (Kind::BgpPeer, Phase::Absent, Basis::Heard),
                ],
                "api-kinds: the API server does not know BGPConfiguration and BGPPeer, so there are none: `selvage crds | kubectl apply -f -` installs them",
            ),
        ] {
            assert_eq!(told(&kinds), [text]);
        }
    }
}
