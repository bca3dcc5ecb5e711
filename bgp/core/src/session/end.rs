//! How connections end: what the other side is told, what becomes of the routes, and when to be there again.

use std::{io, sync::Arc, time::Duration};

use super::{
    Cause, ConnId, Output, Peer, SessionError, SocketError, State, Stop,
    negotiate::local_asn,
    peer::Idle,
    restart::{self, Stale},
    state::{Connection, Established, Phase},
};
use crate::{
    clock::Now,
    config::{MaxPrefixAction, PeerAsn},
    event::{DownReason, Negotiated, PeerEvent},
    ids::FamilySet,
    wire::{
        header::MessageType,
        notification::{CEASE, Cease, Notification},
    },
};

/// How often the idle hold time doubles at most: to about a minute.
const IDLE_HOLD_DOUBLINGS: u32 = 6;

/// How a connection ends.
#[derive(Debug)]
pub(super) enum End {
    /// The other side or the network has closed it.
    Closed(Option<SocketError>),
    /// The other side has said why.
    Received(Notification),
    /// The other side has made a fault, or is silent; and what was wrong, for people.
    Fault(Notification, String),
    /// There is a better one.
    Collision,
    /// The peer has restarted and speaks on another one (RFC 4724 section 5).
    Replaced,
    /// An attempt took too long.
    TimedOut,
    /// Nobody is there to answer an attempt, says the network.
    Unreachable(SocketError),
    /// Settings changed.
    Reconfigured,
    /// Too many prefixes.
    TooManyPrefixes,
    /// The operator, or we, stop.
    Stopped(Stop),
}

impl Peer {
    /// The one place where a connection ends, whatever the reason.
    pub(super) fn end(&mut self, id: ConnId, end: End, now: Now, out: &mut Vec<Output>) {
        let Some(at) = self.conns.iter().position(|c| c.id == id) else {
            return;
        };
        let conn = self.conns.remove(at);
        let notification = end
            .notification()
            .filter(|n| !is_kept_quiet(&conn, n))
            .map(|n| end.hardened(n, conn.negotiated()));
        if let Some(n) = &notification
            && !matches!(conn.phase, Phase::Connecting { .. })
        {
            self.send(id, MessageType::Notification, n.encode(), out);
        }
        if !matches!(end, End::Closed(_) | End::Unreachable(_)) {
            out.push(Output::Close(id));
        }
        if let Some(error) = self.describe(&end, &conn, notification.as_ref()) {
            self.stats.last_error = Some((now, error));
        }
        let attempt = matches!(conn.phase, Phase::Connecting { .. });
        let was_session = matches!(conn.phase, Phase::Established(_));
        if let Phase::Established(session) = conn.phase {
            self.down(*session, end.reason(notification), now, out);
        }
        let unanswered =
            matches!(end, End::Unreachable(_)) || attempt && matches!(end, End::TimedOut);
        if unanswered && self.stale.is_some_and(|stale| stale.silent) {
            self.drop_stale(out);
        }
        if unanswered && self.is_before_first_session() && self.is_node() {
            out.push(Output::Event(self.epoch, PeerEvent::Unanswered));
        }
        self.after(end, attempt, was_session, now);
    }

    /// Whether the peer is one of our AS that we connect to: a host that does not answer forwards nothing (ADR 7).
    fn is_node(&self) -> bool {
        let internal = match self.config.asn {
            PeerAsn::Internal => true,
            PeerAsn::External => false,
            PeerAsn::Exactly(asn) => asn == local_asn(&self.speaker, &self.config),
        };
        internal && !self.config.passive
    }

    /// A session is over: its routes go, or stay as stale.
    fn down(&mut self, session: Established, reason: DownReason, now: Now, out: &mut Vec<Output>) {
        if now.since(session.since) >= self.speaker.limits.steady {
            self.forget_faults();
        }
        let keep_stale = restart::kept(&session.negotiated, &reason);
        // What is stale already must not survive a second restart (RFC 4724 section 4.2). Between speakers of one AS it
        // does, in the families that are kept anyway: a node that is killed twice forwards all the time (ADR 5).
        let survives = match session.negotiated.internal {
            true => keep_stale,
            false => FamilySet::NONE,
        };
        self.drop_stale_but(survives, out);
        if !keep_stale.is_empty() && reason != DownReason::LocalRestart {
            self.stale = Some(Stale::begin(&session.negotiated, &reason, keep_stale, now));
        }
        self.stats.last_down = Some((now, reason.clone()));
        out.push(Output::Event(
            session.epoch,
            PeerEvent::Down { reason, keep_stale },
        ));
        // What has no restart time is a last resort at once.
        self.age_stale(now, out);
    }

    /// Stale routes go now, if there are any.
    pub(super) fn drop_stale(&mut self, out: &mut Vec<Output>) {
        self.drop_stale_but(FamilySet::NONE, out);
    }

    /// Stale routes go now, but for those of some families.
    fn drop_stale_but(&mut self, survive: FamilySet, out: &mut Vec<Output>) {
        let Some(stale) = self.stale.take() else {
            return;
        };
        let gone: FamilySet = stale
            .families()
            .iter()
            .filter(|f| !survive.contains(*f))
            .collect();
        if !gone.is_empty() {
            out.push(Output::Event(self.epoch, PeerEvent::DropStale(gone)));
        }
    }

    /// When to be there again.
    fn after(&mut self, end: End, attempt: bool, was_session: bool, now: Now) {
        let again = self.config.timers.connect_retry;
        match end {
            End::Stopped(_) => {}
            End::Fault(..) => self.hold_idle(now),
            End::TooManyPrefixes => {
                self.idle = Some(match self.config.max_prefix.map(|m| m.action) {
                    Some(MaxPrefixAction::Reset { after: Some(d) }) => Idle::Until(now + d),
                    _ => Idle::Forever,
                });
            }
            End::Received(n) if (n.code, n.subcode) == (2, 4) && !self.plain => {
                // It knows no capabilities: once more without (RFC 5492 section 3).
                self.plain = true;
                self.retry_in(now, again, 75, 125);
            }
            End::Received(n)
                if n.code == CEASE
                    && (was_session || n.subcode == Cease::ConnectionCollision as u8) =>
            {
                self.retry_in(now, again, 75, 125);
            }
            // It does not want us now, which is no fault: less often, and it may come itself.
            End::Received(n) if n.code == CEASE => self.retry_in(now, again * 4, 75, 125),
            End::Received(_) => self.hold_idle(now),
            // The first attempt after a session comes soon, but not from both sides at the same time.
            End::Closed(_) | End::Reconfigured if was_session => {
                self.retry_in(now, again, 2, 25);
            }
            End::Reconfigured => self.retry_in(now, again, 2, 25),
            End::TimedOut if attempt => self.retry_in(now, again, 10, 50),
            End::Closed(_)
            | End::Unreachable(_)
            | End::Collision
            | End::Replaced
            | End::TimedOut => {
                self.retry_in(now, again, 75, 125);
            }
        }
    }

    /// For people; `None` for what is no fault.
    fn describe(
        &self,
        end: &End,
        conn: &Connection,
        sent: Option<&Notification>,
    ) -> Option<SessionError> {
        let error = |cause, text| Some(SessionError { cause, text });
        match end {
            End::Unreachable(reason) => self.not_reached(reason),
            End::Closed(Some(reason)) if conn.state() == State::Connect => self.not_reached(reason),
            End::Closed(reason) => {
                let how = match reason {
                    Some(reason) => reason.text.clone(),
                    None => "closed by the neighbour".into(),
                };
                match conn.state() {
                    State::Established => error(
                        Cause::ClosedInSession,
                        format!("connection of the session: {how}"),
                    ),
                    State::OpenConfirm => error(
                        Cause::ClosedBeforeKeepalive,
                        format!("connection after OPEN, before the session: {how}"),
                    ),
                    _ => error(
                        Cause::ClosedBeforeOpen,
                        format!(
                            "the neighbour refuses for now: it closes our connections before its OPEN ({how})"
                        ),
                    ),
                }
            }
            End::Received(n) => {
                let mut text = format!("received notification: {n}");
                if let Some(ours) = self.said_by_us(n) {
                    text += &format!(": {ours}");
                }
                error(Cause::received(n), text)
            }
            End::TimedOut => error(
                self.no_answer(),
                "no answer to the attempt to connect".into(),
            ),
            End::Fault(n, _) if sent.is_none() => {
                let text = DownReason::HoldTimeExpired.to_string();
                error(Cause::sent(n), text)
            }
            End::Fault(n, what) => {
                let sent = sent.unwrap_or(n);
                let colon = if what.is_empty() { "" } else { ": " };
                error(
                    Cause::sent(sent),
                    format!("sent notification: {sent}{colon}{what}"),
                )
            }
            End::TooManyPrefixes => {
                let n = sent?;
                error(Cause::sent(n), format!("sent notification: {n}"))
            }
            End::Collision | End::Replaced | End::Reconfigured | End::Stopped(_) => None,
        }
    }

    /// An attempt to connect has failed.
    fn not_reached(&self, reason: &SocketError) -> Option<SessionError> {
        use io::ErrorKind::{
            AddrNotAvailable, ConnectionRefused, HostUnreachable, NetworkUnreachable,
            PermissionDenied, TimedOut,
        };
        let cause = match reason.kind {
            ConnectionRefused => Cause::ConnectionRefused,
            HostUnreachable if self.is_expected_on_link() && !self.is_on_link() => Cause::NotOnLink,
            HostUnreachable => Cause::HostUnreachable,
            NetworkUnreachable => Cause::NetworkUnreachable,
            TimedOut => self.no_answer(),
            AddrNotAvailable => Cause::LocalAddress,
            PermissionDenied => Cause::NotPermitted,
            _ => Cause::System,
        };
        let text = match (cause, self.config.local_address) {
            (Cause::LocalAddress, Some(from)) => {
                format!("cannot connect from {from} (localAddress): {}", reason.text)
            }
            _ => reason.text.clone(),
        };
        Some(SessionError { cause, text })
    }

    fn no_answer(&self) -> Cause {
        match (&self.config.password, self.config.ttl_security) {
            (Some(_), _) => Cause::NoAnswerWithPassword,
            (None, Some(_)) => Cause::NoAnswerWithTtlSecurity,
            (None, None) => Cause::NoAnswer,
        }
    }

    /// Whether packets to the neighbour are given a TTL of 1.
    fn is_expected_on_link(&self) -> bool {
        self.speaker.is_external(&self.config)
            && self.config.multihop.is_none()
            && self.config.ttl_security.is_none()
    }

    fn is_on_link(&self) -> bool {
        let addr = self.config.key.addr;
        self.config.key.scope.is_some() || self.speaker.connected.iter().any(|p| p.contains(addr))
    }

    /// What we said that the neighbour found wrong.
    fn said_by_us(&self, n: &Notification) -> Option<String> {
        match (n.code, n.subcode) {
            (2, 2) => Some(format!(
                "our OPEN says AS {}",
                local_asn(&self.speaker, &self.config)
            )),
            (2, 3) => Some(format!("our OPEN says {}", self.speaker.router_id)),
            (2, 6) => Some(format!(
                "our OPEN says {} s",
                self.config.timers.hold.as_secs()
            )),
            _ => None,
        }
    }

    fn retry_in(&mut self, now: Now, d: Duration, from: u64, to: u64) {
        self.retry = Some(now + self.jitter.percent(d, from, to));
    }

    /// Waits after a fault, longer with each in a row (RFC 4271 section 8.1.1, DampPeerOscillations).
    fn hold_idle(&mut self, now: Now) {
        let hold = self.speaker.limits.idle_hold * 2u32.pow(self.faults_in_a_row);
        self.faults_in_a_row = (self.faults_in_a_row + 1).min(IDLE_HOLD_DOUBLINGS);
        let until = now + self.jitter.percent(hold, 75, 100);
        self.idle = Some(Idle::Until(until));
        self.faults_until = Some(until + self.speaker.limits.steady);
    }

    /// The next fault is the first one.
    pub(super) fn forget_faults(&mut self) {
        self.faults_in_a_row = 0;
        self.faults_until = None;
    }
}

/// Whether the other side is not told: a session whose hold time is over, see [`restart::ends_in_silence`].
fn is_kept_quiet(conn: &Connection, n: &Notification) -> bool {
    *n == Notification::hold_timer_expired()
        && matches!(&conn.phase, Phase::Established(e) if restart::ends_in_silence(&e.negotiated))
}

impl End {
    /// What the other side is told.
    fn notification(&self) -> Option<Notification> {
        match self {
            End::Fault(n, _) => Some(n.clone()),
            End::Collision => Some(Notification::cease(Cease::ConnectionCollision)),
            End::Reconfigured => Some(Notification::cease(Cease::OtherConfigurationChange)),
            End::TooManyPrefixes => Some(Notification::cease(Cease::MaximumPrefixes)),
            End::Stopped(Stop::Shutdown(text)) => Some(Notification::shutdown(text)),
            End::Stopped(Stop::Removed) => Some(Notification::cease(Cease::PeerDeconfigured)),
            End::Closed(_)
            | End::Unreachable(_)
            | End::Received(_)
            | End::Replaced
            | End::TimedOut
            | End::Stopped(Stop::Restart) => None,
        }
    }

    /// Where NOTIFICATIONs keep routes, those that shall not need a hard reset (RFC 8538 section 3.1).
    fn hardened(&self, n: Notification, negotiated: Option<&Arc<Negotiated>>) -> Notification {
        let keeps = negotiated
            .and_then(|n| n.graceful_restart)
            .is_some_and(|r| r.notification);
        match self {
            End::TooManyPrefixes | End::Stopped(_) if keeps => n.into_hard_reset(),
            _ => n,
        }
    }

    /// Why the session on it has ended.
    fn reason(self: &End, sent: Option<Notification>) -> DownReason {
        match (self, sent) {
            (End::Stopped(Stop::Removed), _) => DownReason::Removed,
            (End::Stopped(Stop::Restart), _) => DownReason::LocalRestart,
            (End::Received(n), _) => DownReason::Received(n.clone()),
            (End::Fault(..), None) => DownReason::HoldTimeExpired,
            (_, Some(n)) => DownReason::Sent(n),
            (_, None) => DownReason::ConnectionLost,
        }
    }
}
