//! Faults of a neighbour that its session survives: counted by kind, the last one kept, each told to the shell for the
//! log (RFC 7606 section 6).

use std::fmt;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::{
    clock::Now,
    prefix::Prefix,
    wire::{
        attribute,
        error::{Action, Fault},
        nlri::NlriBlock,
        update::Update,
    },
};

/// What kind of fault a session survives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FaultKind {
    /// Announced routes were treated as withdrawn (RFC 7606 section 2).
    TreatAsWithdraw = 0,
    /// An attribute was left out (RFC 7606 section 2).
    AttributeDiscard = 1,
    /// An OPEN did not fit what is configured; the connection was closed.
    OpenRefused = 2,
    /// Routes are not used for their next hop.
    UnusableNextHop = 3,
}

impl FaultKind {
    /// All of them, in the order of [`FaultKind::index`].
    pub const ALL: [FaultKind; 4] = [
        FaultKind::TreatAsWithdraw,
        FaultKind::AttributeDiscard,
        FaultKind::OpenRefused,
        FaultKind::UnusableNextHop,
    ];

    /// Its place in an array.
    pub fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultKind::TreatAsWithdraw => "routes treated as withdrawn",
            FaultKind::AttributeDiscard => "attribute left out",
            FaultKind::OpenRefused => "OPEN refused",
            FaultKind::UnusableNextHop => "next hop unusable",
        })
    }
}

/// How often a kind of fault was seen.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct FaultCount {
    /// In how many messages.
    pub messages: u64,
    /// How many prefixes these announced.
    pub prefixes: u64,
}

/// A fault that a session has survived.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SurvivedFault {
    /// Which kind.
    pub kind: FaultKind,
    /// Code and subcode of the NOTIFICATION that would name it; `None` where there is none.
    pub code: Option<(u8, u8)>,
    /// The type code of the attribute at fault.
    pub attribute: Option<u8>,
    /// How many prefixes the message announced.
    pub prefixes: u32,
    /// For people.
    pub what: String,
}

impl fmt::Display for SurvivedFault {
    /// `routes treated as withdrawn: the next hop is no host's address (NEXT_HOP, code 3/8, 2 prefixes)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.what)?;
        let mut notes: SmallVec<[String; 3]> = SmallVec::new();
        notes.extend(self.attribute.map(attribute::name));
        notes.extend(self.code.map(|(code, sub)| format!("code {code}/{sub}")));
        match self.prefixes {
            0 => {}
            1 => notes.push("1 prefix".into()),
            n => notes.push(format!("{n} prefixes")),
        }
        match notes.is_empty() {
            true => Ok(()),
            false => write!(f, " ({})", notes.join(", ")),
        }
    }
}

/// A fault as it is logged: with the prefixes and with the message.
#[derive(Clone, Debug)]
pub struct FaultReport {
    /// The fault.
    pub fault: SurvivedFault,
    /// What the message announced or, where that cannot be told apart, withdrew.
    pub nlri: SmallVec<[NlriBlock; 2]>,
    /// The body of the message; empty where there is none.
    pub message: Bytes,
}

impl FaultReport {
    /// The first prefixes, for people, and how many more there are.
    pub fn prefixes(&self, limit: usize) -> String {
        let mut all = self.nlri.iter().flat_map(|block| block.into_iter());
        let first: Vec<Prefix> = all.by_ref().take(limit).map(|(_, p)| p).collect();
        let mut text = first
            .iter()
            .map(Prefix::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        match all.count() {
            0 => {}
            more => text += &format!(" and {more} more"),
        }
        text
    }
}

/// The counts of a peer.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Faults {
    /// By kind, see [`FaultKind::index`].
    pub counts: [FaultCount; FaultKind::ALL.len()],
    /// The last one, and when.
    pub last: Option<(Now, SurvivedFault)>,
}

impl Faults {
    /// Takes note of a fault.
    pub(super) fn note(&mut self, now: Now, fault: &SurvivedFault) {
        if let Some(count) = self.counts.get_mut(fault.kind.index()) {
            count.messages += 1;
            count.prefixes += u64::from(fault.prefixes);
        }
        self.last = Some((now, fault.clone()));
    }
}

/// What is to be reported of an UPDATE, the worst last: one report for routes treated as withdrawn, one for each
/// attribute that was left out.
pub(super) fn reports(update: &Update, body: &Bytes) -> SmallVec<[FaultReport; 1]> {
    let mut faults: SmallVec<[&Fault; 4]> = update.faults.iter().collect();
    if let Some(first) = faults
        .iter()
        .position(|f| f.action == Action::TreatAsWithdraw)
    {
        let worst = faults.remove(first);
        faults.retain(|f| f.action != Action::TreatAsWithdraw);
        faults.push(worst);
    }
    faults
        .into_iter()
        .map(|fault| {
            let withdrawn = fault.action == Action::TreatAsWithdraw;
            let nlri: SmallVec<[NlriBlock; 2]> = match withdrawn {
                true => update.treated_as_withdrawn.iter().cloned().collect(),
                false => update
                    .reach
                    .iter()
                    .map(|(_, block)| block.clone())
                    .collect(),
            };
            let count: usize = nlri.iter().map(|block| block.into_iter().count()).sum();
            FaultReport {
                fault: SurvivedFault {
                    kind: match withdrawn {
                        true => FaultKind::TreatAsWithdraw,
                        false => FaultKind::AttributeDiscard,
                    },
                    code: Some((3, fault.error as u8)),
                    attribute: fault.attribute,
                    prefixes: u32::try_from(count).unwrap_or(u32::MAX),
                    what: fault.what.to_owned(),
                },
                nlri,
                message: body.clone(),
            }
        })
        .collect()
}
