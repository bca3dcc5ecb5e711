//! UPDATE (RFC 4271 sections 4.3 and 6.3, RFC 4760, RFC 7606).
//!
//! [`decode`] says what an UPDATE means: routes announced, routes withdrawn, the end of a family's initial routes, and
//! faults that the session survives. A fault that it must not survive is the error.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use bytes::Bytes;
use nom::{
    IResult, Parser,
    multi::length_data,
    number::complete::{be_u8, be_u16},
};
use smallvec::SmallVec;

use super::{
    attr::{AsPath, NextHop, PathAttributes, UnknownAttribute},
    attribute::{self, Draft},
    error::{
        Action::{AttributeDiscard, SessionReset, TreatAsWithdraw},
        Fault, UpdateError,
    },
    nlri::NlriBlock,
    special_purpose::is_host,
};
pub use super::{
    cache::AttributeCache,
    pack::{EncodeOptions, Unencodable, write_end_of_rib, write_reach, write_unreach},
};
use crate::{
    event::Negotiated,
    ids::{Asn, Family, FamilySet, IfIndex},
};

/// What of a session matters to the meaning of an UPDATE.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Context {
    /// The sender is in our AS.
    pub internal: bool,
    /// AS numbers have four octets (RFC 6793).
    pub four_octet_as: bool,
    /// The families negotiated; others are ignored.
    pub families: FamilySet,
    /// The families in which path identifiers precede the prefixes (RFC 7911).
    pub add_path: FamilySet,
    /// What an AS_PATH must begin with (RFC 4271 section 6.3): the AS of an external sender.
    pub first_as: Option<Asn>,
    /// Our address: no next hop towards ourselves (RFC 4271 section 6.3).
    pub local_addr: IpAddr,
    /// The interface of the session, which link-local next hops are on.
    pub interface: Option<IfIndex>,
}

impl Context {
    /// The number of octets of an AS number in AS_PATH.
    pub(crate) fn asn_octets(&self) -> usize {
        if self.four_octet_as { 4 } else { 2 }
    }
}

impl From<&Negotiated> for Context {
    fn from(n: &Negotiated) -> Context {
        Context {
            internal: n.internal,
            four_octet_as: n.four_octet_as,
            families: n.families,
            add_path: n.add_path_receive,
            first_as: (!n.internal).then_some(n.peer_asn),
            local_addr: n.local_addr,
            interface: n.interface,
        }
    }
}

/// What an UPDATE means. Withdrawals take effect before announcements.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Update {
    /// Withdrawn routes, and those treated as withdrawn.
    pub withdrawn: SmallVec<[NlriBlock; 2]>,
    /// Those of `withdrawn` that were announced, and are treated as withdrawn for a fault.
    pub treated_as_withdrawn: SmallVec<[NlriBlock; 1]>,
    /// Announced routes.
    pub reach: SmallVec<[(Arc<PathAttributes>, NlriBlock); 1]>,
    /// It is an End-of-RIB marker (RFC 4724 section 2).
    pub end_of_rib: Option<Family>,
    /// What was wrong and has been dealt with, in the order found.
    pub faults: Vec<Fault>,
}

impl Update {
    fn treat_as_withdrawn(&mut self, block: NlriBlock) {
        self.treated_as_withdrawn.push(block.clone());
        self.withdrawn.push(block);
    }
}

/// The three fields of an UPDATE.
struct Fields {
    withdrawn: Bytes,
    attributes: Bytes,
    nlri: Bytes,
}

/// MP_REACH_NLRI.
struct MpReach {
    next_hop: Result<NextHop, Unusable>,
    nlri: NlriBlock,
    /// How many octets of the attribute's value precede the prefixes.
    head: usize,
}

/// Why routes cannot be used by a next hop (RFC 4271 section 6.3).
type Unusable = &'static str;

const NO_HOST: Unusable = "the next hop is no host's address";
const OWN_ADDRESS: Unusable = "the next hop is our own address";
const NO_INTERFACE: Unusable =
    "the next hop is link-local, and the session is not on a link-local address";

/// Reads the body of an UPDATE. `cache` belongs to the session.
///
/// # Errors
/// The fault that resets the session.
pub fn decode(body: &Bytes, ctx: &Context, cache: &mut AttributeCache) -> Result<Update, Fault> {
    let fields = fields(body)?;
    let (has_withdrawn, has_nlri) = (!fields.withdrawn.is_empty(), !fields.nlri.is_empty());
    let withdrawn = classic(fields.withdrawn, ctx)?;
    let nlri = classic(fields.nlri, ctx)?;
    if fields.attributes.is_empty() && !has_nlri {
        return Ok(Update {
            end_of_rib: (!has_withdrawn).then_some(Family::Ipv4),
            withdrawn: withdrawn.into_iter().collect(),
            ..Update::default()
        });
    }
    Reader {
        ctx,
        whole: &fields.attributes,
        draft: Draft::default(),
        seen: [0; 4],
        faults: Vec::new(),
    }
    .read(withdrawn, nlri, has_nlri, cache)
}

/// Splits the body (RFC 4271 section 6.3: lengths that contradict each other).
fn fields(body: &Bytes) -> Result<Fields, Fault> {
    let field = |i| -> IResult<&[u8], &[u8]> { length_data(be_u16).parse(i) };
    let (nlri, (withdrawn, attributes)) = (field, field).parse(body).map_err(|_| {
        Fault::message(
            SessionReset,
            UpdateError::MalformedAttributeList,
            "the lengths of the fields exceed the message",
        )
    })?;
    Ok(Fields {
        withdrawn: body.slice_ref(withdrawn),
        attributes: body.slice_ref(attributes),
        nlri: body.slice_ref(nlri),
    })
}

/// IPv4 prefixes in the classic fields; `None` if there are none, or the family was not negotiated.
fn classic(bytes: Bytes, ctx: &Context) -> Result<Option<NlriBlock>, Fault> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let add_path = ctx.add_path.contains(Family::Ipv4);
    let block = NlriBlock::new(Family::Ipv4, add_path, bytes).map_err(|_| {
        Fault::message(
            SessionReset,
            UpdateError::InvalidNetwork,
            "NLRI or withdrawn routes are no prefixes",
        )
    })?;
    Ok(ctx.families.contains(Family::Ipv4).then_some(block))
}

/// One attribute on the wire.
#[derive(Clone, Copy)]
struct Raw<'a> {
    flags: u8,
    code: u8,
    value: &'a [u8],
    /// All of it, header included.
    whole: &'a [u8],
}

/// Flags, code and length.
fn attribute_header(i: &[u8]) -> IResult<&[u8], (u8, u8, usize)> {
    let (i, (flags, code)) = (be_u8, be_u8).parse(i)?;
    let (i, len) = match flags & attribute::EXTENDED {
        0 => be_u8.map(usize::from).parse(i)?,
        _ => be_u16.map(usize::from).parse(i)?,
    };
    Ok((i, (flags, code, len)))
}

/// Reads the attributes of one UPDATE.
struct Reader<'a> {
    ctx: &'a Context,
    whole: &'a Bytes,
    draft: Draft<'a>,
    seen: [u64; 4],
    faults: Vec<Fault>,
}

impl<'a> Reader<'a> {
    fn read(
        mut self,
        withdrawn: Option<NlriBlock>,
        nlri: Option<NlriBlock>,
        has_nlri: bool,
        cache: &mut AttributeCache,
    ) -> Result<Update, Fault> {
        let mut rest: &'a [u8] = self.whole;
        // Senders put MP_REACH_NLRI first (RFC 7606 section 5.1): all after it may be as it was in the last message.
        if rest.get(1) == Some(&14) {
            rest = self.attribute(rest)?;
        }
        let mp_reach = self.mp_reach()?;
        let mp_head = match (&mp_reach, self.draft.mp_reach) {
            (Some(mp), Some(value)) => value.get(..mp.head).unwrap_or_default(),
            _ => &[],
        };
        let one_family = self.draft.mp_reach.is_some() != has_nlri && self.faults.is_empty();
        if one_family
            && let Some(attrs) = cache.get(mp_head, rest)
            && let Some(block) = nlri.as_ref().or(mp_reach.as_ref().map(|mp| &mp.nlri))
            && !block.is_empty()
        {
            return Ok(Update {
                withdrawn: withdrawn.into_iter().collect(),
                reach: [(attrs.clone(), block.clone())].into_iter().collect(),
                ..Update::default()
            });
        }
        let tail = rest;
        while !rest.is_empty() {
            rest = self.attribute(rest)?;
        }
        let mp_reach = match mp_reach {
            None => self.mp_reach()?,
            first => first,
        };
        let cacheable = one_family && self.draft.mp_unreach.is_none();
        let update = self.conclude(withdrawn, nlri, mp_reach, has_nlri)?;
        if let ([(attrs, _)], true) = (&update.reach[..], cacheable && update.faults.is_empty()) {
            cache.insert(mp_head, tail, attrs);
        }
        Ok(update)
    }

    /// Takes one attribute off `rest`; all of it if the lengths contradict each other (RFC 7606 section 4).
    fn attribute(&mut self, rest: &'a [u8]) -> Result<&'a [u8], Fault> {
        let Ok((tail, (flags, code, len))) = attribute_header(rest) else {
            self.faults.push(Fault::message(
                TreatAsWithdraw,
                UpdateError::MalformedAttributeList,
                "the attributes end inside the header of one",
            ));
            return Ok(&[]);
        };
        let Some((value, tail)) = tail.split_at_checked(len) else {
            // An MP attribute that is cut leaves routes unknown: nothing to withdraw (RFC 7606 section 3 j).
            let mp = matches!(code, 14 | 15);
            let action = if mp { SessionReset } else { TreatAsWithdraw };
            let error = UpdateError::AttributeLength;
            self.fault(
                action,
                error,
                code,
                rest,
                "an attribute is longer than the field",
            )?;
            return Ok(&[]);
        };
        let whole = rest.get(..rest.len() - tail.len()).unwrap_or(rest);
        self.one(Raw {
            flags,
            code,
            value,
            whole,
        })?;
        Ok(tail)
    }

    fn one(&mut self, raw: Raw<'a>) -> Result<(), Fault> {
        let known = attribute::find(raw.code);
        if !self.first(raw.code) {
            // RFC 7606 section 3 g.
            let mp = matches!(raw.code, 14 | 15);
            let action = if mp { SessionReset } else { AttributeDiscard };
            let mut fault = self.new_fault(
                action,
                UpdateError::MalformedAttributeList,
                raw.code,
                raw.whole,
                "an attribute appears twice",
            );
            fault.data = Bytes::new();
            return self.note(fault);
        }
        let Some(known) = known else {
            return self.unknown(raw);
        };
        if !known.from.accepts(self.ctx) {
            return Ok(());
        }
        let category = attribute::OPTIONAL | attribute::TRANSITIVE;
        if raw.flags & category != known.flags {
            // RFC 7606 section 3 c. Which routes an MP attribute names is still to be read.
            let error = UpdateError::AttributeFlags;
            let what = "the flags are not those of the attribute";
            self.fault(TreatAsWithdraw, error, raw.code, raw.whole, what)?;
            if !matches!(raw.code, 14 | 15) {
                return Ok(());
            }
        }
        match (known.decode)(&mut self.draft, raw.value, self.ctx) {
            Ok(()) => {
                if raw.flags & attribute::PARTIAL != 0 {
                    self.draft.partial.insert(raw.code);
                }
                Ok(())
            }
            Err((error, what)) => self.fault(known.action, error, raw.code, raw.whole, what),
        }
    }

    /// What we do not know is passed on if it may, marked as such (RFC 4271 sections 5 and 9).
    fn unknown(&mut self, raw: Raw<'a>) -> Result<(), Fault> {
        if raw.flags & attribute::OPTIONAL == 0 {
            let error = UpdateError::UnrecognizedWellKnown;
            let what = "a well-known attribute is unknown";
            return self.fault(SessionReset, error, raw.code, raw.whole, what);
        }
        if raw.flags & attribute::TRANSITIVE != 0 {
            let category = attribute::OPTIONAL | attribute::TRANSITIVE;
            self.draft.unknown.push(UnknownAttribute {
                flags: category | attribute::PARTIAL,
                code: raw.code,
                value: raw.value.into(),
            });
        }
        Ok(())
    }

    /// Whether this attribute is the first of its code.
    fn first(&mut self, code: u8) -> bool {
        let bit = 1u64 << (code % 64);
        let Some(word) = self.seen.get_mut(usize::from(code / 64)) else {
            return false;
        };
        let first = *word & bit == 0;
        *word |= bit;
        first
    }

    fn new_fault(
        &self,
        action: super::error::Action,
        error: UpdateError,
        code: u8,
        attribute: &'a [u8],
        what: &'static str,
    ) -> Fault {
        Fault {
            action,
            error,
            data: self.whole.slice_ref(attribute),
            attribute: Some(code),
            what,
        }
    }

    fn fault(
        &mut self,
        action: super::error::Action,
        error: UpdateError,
        code: u8,
        attribute: &'a [u8],
        what: &'static str,
    ) -> Result<(), Fault> {
        let fault = self.new_fault(action, error, code, attribute, what);
        self.note(fault)
    }

    /// The session reset is the strongest action (RFC 7606 section 3 h): nothing after it matters.
    fn note(&mut self, fault: Fault) -> Result<(), Fault> {
        if fault.action == SessionReset {
            return Err(fault);
        }
        self.faults.push(fault);
        Ok(())
    }

    fn mp_fault(&self, code: u8, what: &'static str) -> Fault {
        Fault {
            action: SessionReset,
            error: UpdateError::OptionalAttribute,
            data: self.find_raw(code),
            attribute: Some(code),
            what,
        }
    }

    /// The attribute of this code as it is on the wire.
    fn find_raw(&self, code: u8) -> Bytes {
        let mut rest: &[u8] = self.whole;
        while let Ok((tail, (_, c, len))) = attribute_header(rest) {
            let Some(tail) = tail.get(len..) else { break };
            if c == code {
                return self.whole.slice_ref(&rest[..rest.len() - tail.len()]);
            }
            rest = tail;
        }
        Bytes::new()
    }

    /// The content of MP_REACH_NLRI (RFC 4760 section 3, RFC 7606 sections 5.3 and 7.11); `None`: there is none, or it is
    /// of a family that was not negotiated.
    fn mp_reach(&self) -> Result<Option<MpReach>, Fault> {
        let Some(value) = self.draft.mp_reach else {
            return Ok(None);
        };
        let Ok((rest, (afi, safi, next_hop, _))) = mp_reach_head(value) else {
            return Err(self.mp_fault(14, "MP_REACH_NLRI ends before its prefixes"));
        };
        let negotiated = |f: &Family| self.ctx.families.contains(*f);
        let Some(family) = Family::from_afi_safi(afi, safi).filter(negotiated) else {
            return Ok(None);
        };
        let next_hop = match family {
            Family::Ipv4 => next_hop_v4(next_hop, self.ctx),
            Family::Ipv6 => next_hop_v6(next_hop, self.ctx),
        }
        .ok_or_else(|| self.mp_fault(14, "the next hop has a wrong length"))?;
        Ok(Some(MpReach {
            next_hop,
            nlri: self.mp_nlri(14, family, rest)?,
            head: value.len() - rest.len(),
        }))
    }

    /// The content of MP_UNREACH_NLRI.
    fn mp_unreach(&self) -> Result<Option<NlriBlock>, Fault> {
        let Some(value) = self.draft.mp_unreach else {
            return Ok(None);
        };
        let head: IResult<&[u8], (u16, u8)> = (be_u16, be_u8).parse(value);
        let Ok((rest, (afi, safi))) = head else {
            return Err(self.mp_fault(15, "MP_UNREACH_NLRI ends before its prefixes"));
        };
        match Family::from_afi_safi(afi, safi) {
            Some(family) if self.ctx.families.contains(family) => {
                self.mp_nlri(15, family, rest).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn mp_nlri(&self, code: u8, family: Family, bytes: &'a [u8]) -> Result<NlriBlock, Fault> {
        let add_path = self.ctx.add_path.contains(family);
        NlriBlock::new(family, add_path, self.whole.slice_ref(bytes))
            .map_err(|_| self.mp_fault(code, "the attribute's NLRI are no prefixes"))
    }

    /// Puts together what the UPDATE means.
    fn conclude(
        mut self,
        withdrawn: Option<NlriBlock>,
        nlri: Option<NlriBlock>,
        mp_reach: Option<MpReach>,
        has_nlri: bool,
    ) -> Result<Update, Fault> {
        let mp_unreach = self.mp_unreach()?;
        let announces = has_nlri || self.draft.mp_reach.is_some();
        if !announces {
            self.nothing_to_withdraw()?;
        }
        let end_of_rib = match (&mp_unreach, announces) {
            (Some(block), false) if self.is_end_of_rib(block, &withdrawn) => Some(block.family()),
            _ => None,
        };
        let mut update = Update {
            withdrawn: withdrawn.into_iter().collect(),
            end_of_rib,
            ..Update::default()
        };
        update
            .withdrawn
            .extend(mp_unreach.into_iter().filter(|b| !b.is_empty()));
        let mut path = announces.then(|| self.check_routes(has_nlri)).flatten();
        let mp_reach = mp_reach.filter(|mp| !mp.nlri.is_empty());
        if let Some(block) = nlri {
            let next_hop = self.classic_next_hop();
            let path = match mp_reach {
                Some(_) => path.clone(),
                None => path.take(),
            };
            self.announce(&mut update, path, next_hop, 3, block);
        }
        if let Some(mp) = mp_reach {
            self.announce(&mut update, path, mp.next_hop, 14, mp.nlri);
        }
        update.faults = self.faults;
        Ok(update)
    }

    /// Without announced routes nothing shows that the message was read rightly: what would withdraw them resets the
    /// session (RFC 7606 section 5.2).
    fn nothing_to_withdraw(&mut self) -> Result<(), Fault> {
        match self.faults.iter().find(|f| f.action > AttributeDiscard) {
            Some(fault) => Err(Fault {
                action: SessionReset,
                ..fault.clone()
            }),
            None => Ok(()),
        }
    }

    /// An UPDATE with an empty MP_UNREACH_NLRI and nothing else (RFC 4724 section 2).
    fn is_end_of_rib(&self, block: &NlriBlock, withdrawn: &Option<NlriBlock>) -> bool {
        let only = [1 << 15, 0, 0, 0] == self.seen;
        only && block.is_empty() && withdrawn.is_none()
    }

    /// The path, if all that announced routes must have is there and right.
    fn check_routes(&mut self, classic: bool) -> Option<AsPath> {
        if self.faults.iter().any(|f| f.action > AttributeDiscard) {
            return None;
        }
        if let Some(code) = self.draft.missing(classic) {
            self.faults.push(Fault {
                action: TreatAsWithdraw,
                error: UpdateError::MissingWellKnown,
                data: Bytes::copy_from_slice(&[code]),
                attribute: Some(code),
                what: "a mandatory attribute is missing",
            });
            return None;
        }
        let path = self.draft.path(self.ctx);
        if let Some(first) = self.ctx.first_as
            && path.neighbor_as() != Some(first)
        {
            self.withdraw_for(
                2,
                UpdateError::MalformedAsPath,
                "the path does not begin with the sender's AS",
            );
            return None;
        }
        Some(path)
    }

    fn withdraw_for(&mut self, code: u8, error: UpdateError, what: &'static str) {
        self.faults.push(Fault {
            action: TreatAsWithdraw,
            error,
            data: self.find_raw(code),
            attribute: Some(code),
            what,
        });
    }

    fn classic_next_hop(&self) -> Result<NextHop, Unusable> {
        usable(self.draft.next_hop.ok_or(NO_HOST)?.into(), self.ctx).map(NextHop::from)
    }

    /// Adds routes, as announced if path and next hop are right, else as withdrawn.
    fn announce(
        &mut self,
        update: &mut Update,
        path: Option<AsPath>,
        next_hop: Result<NextHop, Unusable>,
        code: u8,
        block: NlriBlock,
    ) {
        let Some(path) = path else {
            update.treat_as_withdrawn(block);
            return;
        };
        let next_hop = match next_hop {
            Ok(next_hop) => next_hop,
            Err(why) => {
                self.withdraw_for(code, UpdateError::InvalidNextHop, why);
                update.treat_as_withdrawn(block);
                return;
            }
        };
        self.draft.unknown.sort_by_key(|u| u.code);
        let attrs = self.draft.attributes(path, next_hop, self.ctx);
        update.reach.push((Arc::new(attrs), block));
    }
}

/// AFI, SAFI, next hop, and the reserved octet, which counted SNPAs once and is ignored.
fn mp_reach_head(i: &[u8]) -> IResult<&[u8], (u16, u8, &[u8], u8)> {
    (be_u16, be_u8, length_data(be_u8), be_u8).parse(i)
}

/// An address that packets can be sent to, from here.
fn usable(addr: IpAddr, ctx: &Context) -> Result<IpAddr, Unusable> {
    if addr == ctx.local_addr {
        return Err(OWN_ADDRESS);
    }
    if is_host(addr, ctx.local_addr) {
        Ok(addr)
    } else {
        Err(NO_HOST)
    }
}

/// The next hop of an IPv4 route in MP_REACH_NLRI. `None`: the length is wrong.
fn next_hop_v4(bytes: &[u8], ctx: &Context) -> Option<Result<NextHop, Unusable>> {
    let a = Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?);
    Some(usable(a.into(), ctx).map(NextHop::from))
}

/// The next hop of an IPv6 route: one address, or a global one and a link-local one (RFC 2545 section 3); some senders
/// have a link-local one only, in either place. `None`: the length is wrong.
fn next_hop_v6(bytes: &[u8], ctx: &Context) -> Option<Result<NextHop, Unusable>> {
    let (first, rest) = bytes.split_first_chunk::<16>()?;
    let second = match rest {
        [] => None,
        rest => Some(Ipv6Addr::from(<[u8; 16]>::try_from(rest).ok()?)),
    };
    let first = Ipv6Addr::from(*first);
    let link_local = [second, Some(first)]
        .into_iter()
        .flatten()
        .find(|a| a.is_unicast_link_local());
    let global = match link_local {
        Some(local) if !is_host(first.into(), ctx.local_addr) => local,
        _ => first,
    };
    let link_local = link_local.zip(ctx.interface);
    let next_hop = usable(global.into(), ctx).and_then(|addr| match link_local {
        None if global.is_unicast_link_local() => Err(NO_INTERFACE),
        link_local => Ok(NextHop {
            global: addr,
            link_local,
        }),
    });
    Some(next_hop)
}
