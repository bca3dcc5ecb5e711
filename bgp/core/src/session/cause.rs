//! Why a session does not come up, or ended: one cause for each thing that can go wrong, and for each cause the sentence
//! that says what to do.

use std::fmt;

use crate::wire::notification::{CEASE, Notification};

/// What went wrong with a session or with an attempt at one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Cause {
    /// We ended it by a NOTIFICATION of this code and subcode. Of a hard reset (RFC 8538): what is inside.
    Sent(u8, u8),
    /// The neighbour ended it by a NOTIFICATION of this code and subcode. Of a hard reset: what is inside.
    Received(u8, u8),
    /// Its host answers that nobody listens (`ECONNREFUSED`).
    ConnectionRefused,
    /// The network says that its host is not there (`EHOSTUNREACH`).
    HostUnreachable,
    /// The network says so, and an external neighbour that is on no link of ours is tried with a TTL of 1.
    NotOnLink,
    /// We have no route to it (`ENETUNREACH`).
    NetworkUnreachable,
    /// Nobody has answered an attempt to connect (`ETIMEDOUT`, or our own limit).
    NoAnswer,
    /// The same where a password is configured: a wrong one makes both ends drop each other's packets in silence.
    NoAnswerWithPassword,
    /// The same where `ttlSecurity` is set: packets that come from further away are dropped in silence.
    NoAnswerWithTtlSecurity,
    /// The address that the session shall run from is not one of this node's (`EADDRNOTAVAIL`).
    LocalAddress,
    /// The operating system forbids it (`EPERM`, `EACCES`).
    NotPermitted,
    /// The operating system has another reason.
    System,
    /// The connection was closed or reset before the neighbour said OPEN.
    ClosedBeforeOpen,
    /// The connection was closed or reset after the neighbour's OPEN, before the session.
    ClosedBeforeKeepalive,
    /// The connection of a session was closed or reset without a NOTIFICATION.
    ClosedInSession,
}

impl Cause {
    /// The cause behind a NOTIFICATION that we received.
    pub fn received(n: &Notification) -> Cause {
        let (code, subcode) = inner(n);
        Cause::Received(code, subcode)
    }

    /// The cause behind a NOTIFICATION that we sent.
    pub fn sent(n: &Notification) -> Cause {
        let (code, subcode) = inner(n);
        Cause::Sent(code, subcode)
    }

    /// What to do about it: one sentence, for the operator of our end.
    pub fn hint(self) -> &'static str {
        match self {
            Cause::Sent(code, subcode) => sent_hint(code, subcode),
            Cause::Received(code, subcode) => received_hint(code, subcode),
            Cause::ConnectionRefused => {
                "nothing listens there: is the neighbour's daemon running, on this address and port, and does it have us configured?"
            }
            Cause::HostUnreachable => {
                "the host does not answer on its link or a router on the way reports it gone: check the address, the cable and the host"
            }
            Cause::NotOnLink => {
                "the address is on no link of this node, and an external neighbour is expected one hop away: set `multihop` (or `ttlSecurity`) if it is further, else correct the address"
            }
            Cause::NetworkUnreachable => {
                "this node has no route to the address: add one, or correct the address"
            }
            Cause::NoAnswer => {
                "is the host up, does a firewall drop TCP port 179, is the neighbour further away than the TTL allows (`multihop`), or does it ask for a password (TCP-MD5) that is not configured here?"
            }
            Cause::NoAnswerWithPassword => {
                "with a password the likeliest reason is that the two ends do not have the same one, or the neighbour has none: compare them; else check host and firewall"
            }
            Cause::NoAnswerWithTtlSecurity => {
                "with `ttlSecurity` both ends send a TTL of 255 and drop what comes from more hops away than they allow: set it on the neighbour, too, and count the hops; else check host and firewall"
            }
            Cause::LocalAddress => {
                "no interface of this node has that address: correct `localAddress` (for a node of the mesh: the Node's InternalIP), or give the node the address"
            }
            Cause::NotPermitted => {
                "a local firewall or missing capabilities forbid it: look at output rules for TCP port 179, and for CAP_NET_ADMIN where a password is set"
            }
            Cause::System => {
                "the operating system refused the connection for the reason given; the log of the kernel may say more"
            }
            Cause::ClosedBeforeOpen => {
                "the neighbour takes connections and closes them at once: it refuses for now, as after its own hold expiry (BIRD waits up to `error wait time`, 60 to 300 s), or does not know this address; it ends by itself in the first case"
            }
            Cause::ClosedBeforeKeepalive => {
                "the neighbour went away while the session was being made: a collision with its own connection, a restart, or an OPEN that it does not like; its log says which"
            }
            Cause::ClosedInSession => {
                "the neighbour's daemon ended or was restarted, or something on the way cut the connection; it is tried again at once"
            }
        }
    }
}

fn inner(n: &Notification) -> (u8, u8) {
    let n = n.hard_reset_reason().unwrap_or_else(|| n.clone());
    (n.code, n.subcode)
}

/// We found fault with the neighbour.
fn sent_hint(code: u8, subcode: u8) -> &'static str {
    match (code, subcode) {
        (1, 1) => {
            "what came is no BGP: does another service use that port, or does something change the stream?"
        }
        (1, 2) => {
            "a message has a length that its type cannot have: the neighbour is at fault, or something changes the stream"
        }
        (1, 3) => {
            "a message has a type that BGP does not have: the neighbour is at fault, or something changes the stream"
        }
        (1, _) => {
            "the header of a message is wrong: the neighbour is at fault, or something changes the stream"
        }
        (2, 1) => "the neighbour speaks another version of BGP than 4: upgrade it",
        (2, 2) => {
            "correct `asn` of the BGPPeer (or of BGPConfiguration for the mesh), or the AS that the neighbour is configured with"
        }
        (2, 3) => {
            "two speakers of one AS have the same BGP identifier, or the neighbour's is zero: set another `routerId`"
        }
        (2, 4) => {
            "the neighbour's OPEN has a parameter that is no capability: switch that feature off there"
        }
        (2, 6) => "the neighbour proposes a hold time of 1 or 2 s: set 0 or at least 3 s there",
        (2, 7) => {
            "the two ends have no address family in common: compare `families` with those that are activated there"
        }
        (2, 11) => {
            "both ends claim roles that do not fit each other (RFC 9234): correct one of them"
        }
        (2, _) => {
            "the neighbour's OPEN cannot be read: its software is at fault; a capture of the OPEN shows what it sent"
        }
        (3, 1) => {
            "an UPDATE contradicts itself: the neighbour's software is at fault; the log has the message"
        }
        (3, 2) => {
            "an UPDATE has a well-known attribute that is not defined: the neighbour's software is at fault, or newer than ours"
        }
        (3, 3) => "an UPDATE lacks a mandatory attribute: the neighbour's software is at fault",
        (3, 4) => "the flags of an attribute are wrong: the neighbour's software is at fault",
        (3, 5) => "the length of an attribute is wrong: the neighbour's software is at fault",
        (3, 6) => "ORIGIN has a value that is not defined: the neighbour's software is at fault",
        (3, 8) => {
            "the next hop is no host's address: look at the next hop that the neighbour sets for us"
        }
        (3, 9) => {
            "an optional attribute is wrong inside: the neighbour's software is at fault; the log has the message"
        }
        (3, 10) => {
            "an UPDATE has prefixes that cannot be read: the neighbour's software is at fault"
        }
        (3, 11) => "AS_PATH is wrong inside: the neighbour's software is at fault",
        (3, _) => {
            "an UPDATE cannot be read: the neighbour's software is at fault; the log has the message"
        }
        (4, _) => {
            "the neighbour was silent for the hold time: is its host or the link gone, or is it too busy for its keepalives? a longer `timers.hold` tolerates more"
        }
        (5, 1) => {
            "the neighbour says something else than OPEN first: its software is at fault, or an old connection was mixed up"
        }
        (5, 2) => {
            "the neighbour says something else than KEEPALIVE after OPEN: its software is at fault"
        }
        (5, 3) => "the neighbour says OPEN again in a session: its software is at fault",
        (5, _) => {
            "the neighbour says something that does not belong into the state: its software is at fault"
        }
        (CEASE, 1) => {
            "the neighbour announces more prefixes than `maxPrefix` allows: raise the limit, or filter there; it is tried again after five minutes"
        }
        (CEASE, 2) => "the session was shut down here",
        (CEASE, 3) => "the neighbour is no longer configured here",
        (CEASE, 4) => "the session was reset here; it comes back by itself",
        (CEASE, 5) => "the neighbour's connection was not wanted here",
        (CEASE, 6) => "settings changed that need a new session; it comes back by itself",
        (CEASE, 7) => "both ends connected at the same time, and the other connection stays",
        (CEASE, 8) => "this node is out of memory or descriptors for another session",
        (CEASE, 9) => "this end reset the session and asked that no routes are kept",
        (CEASE, 10) => "BFD found the way to the neighbour dead: look at the link",
        (CEASE, _) => "this end ended the session",
        (7, 1) => "a ROUTE-REFRESH has a wrong length: the neighbour's software is at fault",
        (7, _) => "a ROUTE-REFRESH cannot be read: the neighbour's software is at fault",
        (8, _) => {
            "the neighbour has read nothing for minutes: its daemon hangs, or a middlebox drops large packets (MTU)"
        }
        _ => "this end ended the session for a reason without a name",
    }
}

/// The neighbour found fault with us.
fn received_hint(code: u8, subcode: u8) -> &'static str {
    match (code, subcode) {
        (1, 1) => {
            "the neighbour says that what we send is no BGP: does something on the way change the stream?"
        }
        (1, 2) => {
            "the neighbour does not take the length of a message of ours: does something on the way change the stream? its log says which message"
        }
        (1, 3) => "the neighbour does not know the type of a message of ours; its log says which",
        (1, _) => "the neighbour cannot read the header of a message of ours; its log says why",
        (2, 1) => "the neighbour does not speak version 4 of BGP: upgrade it",
        (2, 2) => {
            "the neighbour expects us in another AS: correct our AS in its configuration, or `asn` of BGPConfiguration (`localAsn` of the BGPPeer for this neighbour alone)"
        }
        (2, 3) => {
            "the neighbour refuses our BGP identifier, which it has itself or knows from another: set another `routerId`"
        }
        (2, 4) => "the neighbour is too old for capabilities; it is tried again without them",
        (2, 6) => {
            "the neighbour refuses the hold time that we propose: set `timers.hold` to what it allows, often at least 10 s or more"
        }
        (2, 7) => {
            "the neighbour misses a capability: most often an address family that it has activated and we do not offer; compare `families`"
        }
        (2, 11) => {
            "the neighbour asks for a role of ours (RFC 9234), which is not offered: switch strict roles off there"
        }
        (2, _) => "the neighbour refuses our OPEN; its log says why",
        (3, 1) => {
            "the neighbour cannot read an UPDATE of ours: please report it with the neighbour's log"
        }
        (3, 2) => {
            "the neighbour does not know an attribute that we sent as well-known; its log says which"
        }
        (3, 3) => {
            "the neighbour misses a mandatory attribute in an UPDATE of ours; its log says which"
        }
        (3, 4) => {
            "the neighbour does not like the flags of an attribute of ours or of one that we pass on; its log says which"
        }
        (3, 5) => {
            "the neighbour does not like the length of an attribute of ours or of one that we pass on; its log says which"
        }
        (3, 6) => {
            "the neighbour does not like an ORIGIN that we pass on; its log says of which route"
        }
        (3, 8) => {
            "the neighbour does not take a next hop of ours: is it on the link that you share? `nextHopSelf` and the Node's InternalIPs decide it"
        }
        (3, 9) => {
            "the neighbour does not like an optional attribute that we pass on; its log says which"
        }
        (3, 10) => "the neighbour cannot read a prefix that we announce; its log says which",
        (3, 11) => {
            "the neighbour does not like an AS_PATH of ours: is our AS in its configuration right, does it enforce the first AS?"
        }
        (3, _) => "the neighbour cannot use an UPDATE of ours; its log says why",
        (4, _) => {
            "the neighbour heard nothing of us for its hold time: was the link cut, or this node too busy? some daemons refuse for a minute after that"
        }
        (5, 1) => {
            "the neighbour expected our OPEN and got something else: an old connection was mixed up; it is tried again"
        }
        (5, 2) => {
            "the neighbour expected our KEEPALIVE after OPEN and got something else; it is tried again"
        }
        (5, 3) => {
            "the neighbour did not expect a message of ours in the session; its log says which"
        }
        (5, _) => "the neighbour did not expect a message of ours; its log says which",
        (CEASE, 1) => {
            "we announce more prefixes than the neighbour allows: announce fewer or aggregates, or raise its limit"
        }
        (CEASE, 2) => "the neighbour's operator has shut the session down: ask them",
        (CEASE, 3) => {
            "the neighbour has taken us out of its configuration: ask its operator, or delete the BGPPeer"
        }
        (CEASE, 4) => "the neighbour's operator has reset the session; it comes back by itself",
        (CEASE, 5) => {
            "the neighbour does not want a connection now: it may be starting, waiting after a fault, or not know our address"
        }
        (CEASE, 6) => "the neighbour's settings were changed; the session comes back by itself",
        (CEASE, 7) => {
            "both ends connected at the same time, and the neighbour kept the other connection"
        }
        (CEASE, 8) => "the neighbour is out of memory or descriptors: look at it",
        (CEASE, 9) => "the neighbour has reset the session and keeps no routes; its log says why",
        (CEASE, 10) => "the neighbour's BFD found the way to us dead: look at the link",
        (CEASE, _) => "the neighbour ended the session; its log says why",
        (7, 1) => {
            "the neighbour does not like the length of a ROUTE-REFRESH of ours; its log has it"
        }
        (7, _) => "the neighbour cannot use a ROUTE-REFRESH of ours; its log says why",
        (8, _) => {
            "the neighbour could send us nothing for minutes: this node hangs, or a middlebox drops large packets (MTU)"
        }
        _ => "the neighbour ended the session for a reason without a name; its log may say more",
    }
}

/// What went wrong, for people and for programs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionError {
    /// Which cause.
    pub cause: Cause,
    /// What happened, with what was said and what was expected.
    pub text: String,
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// All codes and subcodes of the IANA registry "BGP Error (Notification) Codes" and of those below it, and for each
    /// code one subcode that is not in it.
    const CODES: [(u8, &[u8]); 8] = [
        (1, &[1, 2, 3, 0]),
        (2, &[1, 2, 3, 4, 6, 7, 11, 0]),
        (3, &[1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 0]),
        (4, &[0]),
        (5, &[1, 2, 3, 0]),
        (CEASE, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0]),
        (7, &[1, 0]),
        (8, &[0]),
    ];

    #[test]
    fn each_cause_has_a_hint_of_its_own() {
        let others = [
            Cause::ConnectionRefused,
            Cause::HostUnreachable,
            Cause::NotOnLink,
            Cause::NetworkUnreachable,
            Cause::NoAnswer,
            Cause::NoAnswerWithPassword,
            Cause::NoAnswerWithTtlSecurity,
            Cause::LocalAddress,
            Cause::NotPermitted,
            Cause::System,
            Cause::ClosedBeforeOpen,
            Cause::ClosedBeforeKeepalive,
            Cause::ClosedInSession,
            Cause::Sent(99, 0),
            Cause::Received(99, 0),
        ];
        let of_codes = CODES.iter().flat_map(|(code, subcodes)| {
            let both = |s: &u8| [Cause::Sent(*code, *s), Cause::Received(*code, *s)];
            subcodes.iter().flat_map(both)
        });
        let mut hints: BTreeMap<&str, Cause> = BTreeMap::new();
        for cause in others.into_iter().chain(of_codes) {
            let hint = cause.hint();
            assert!(hint.len() > 20, "{cause:?}: {hint}");
            if let Some(other) = hints.insert(hint, cause) {
                panic!("{cause:?} and {other:?} say the same: {hint}");
            }
        }
    }

    #[test]
    fn every_subcode_with_a_name_has_a_hint_that_is_not_the_codes() {
        for code in 0..=u8::MAX {
            for subcode in 0..=u8::MAX {
                let name = Notification::new(code, subcode, &[]).name();
                let plain = Notification::new(code, 255, &[]).name();
                for of in [Cause::Sent, Cause::Received] {
                    let same = of(code, subcode).hint() == of(code, 255).hint();
                    assert_eq!(same, name == plain, "{:?}", of(code, subcode));
                }
            }
        }
    }

    #[test]
    fn a_hard_reset_is_explained_by_what_is_inside() {
        let n = Notification::shutdown("").into_hard_reset();
        assert_eq!(Cause::received(&n), Cause::Received(6, 2));
        assert_eq!(
            Cause::sent(&Notification::new(6, 9, &[])),
            Cause::Sent(6, 9)
        );
    }
}
