//! Queueing disciplines: a token bucket filter, and the redirection of what comes in to another interface.
//!
//! An interface shapes what it sends. To shape what it receives, that is redirected, before anything else sees it, to
//! an `ifb` interface, whose queue it passes on its way back (`linux/pkt_sched.h`, `linux/pkt_cls.h`).

use crate::attr::{Attr, Attrs, Body, get_u32};
use crate::batch::{Batch, CREATE, EXCL};
use crate::error::Result;
use crate::socket::{Message, Socket};

const RTM_NEWQDISC: u16 = 36;
const RTM_DELQDISC: u16 = 37;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// Size of `struct tcmsg`.
const TCMSG: usize = 20;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TBF_PARMS: u16 = 1;
const TBF_RATE64: u16 = 4;
const TBF_BURST: u16 = 6;
const U32_SEL: u16 = 5;
const U32_ACT: u16 = 7;
const ACT_KIND: u16 = 1;
const ACT_OPTIONS: u16 = 2;
const MIRRED_PARMS: u16 = 2;

/// The parent of an interface's root discipline (`TC_H_ROOT`).
pub const ROOT: u32 = 0xffff_ffff;
/// The parent of what is done with what comes in (`TC_H_INGRESS`).
pub const INGRESS: u32 = 0xffff_fff1;
/// The handle of the discipline for what comes in.
const INGRESS_HANDLE: u32 = 0xffff_0000;
/// The handle of a root discipline of ours, `1:`.
const HANDLE: u32 = 1 << 16;

/// Ethernet: the kernel computes times itself and wants no table of them.
const LINKLAYER_ETHERNET: u8 = 1;
/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;
/// A filter whose match ends the search (`TC_U32_TERMINAL`).
const TERMINAL: u8 = 1;
/// `TC_ACT_STOLEN`, and `TCA_EGRESS_REDIR`.
const STOLEN: u32 = 4;
const EGRESS_REDIRECT: u32 = 1;

/// A token bucket filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Tbf {
    /// Bytes a second.
    pub rate: u64,
    /// Bytes that may be sent at once. Longer packets are dropped. Not listed by the kernel, 0 there.
    pub burst: u32,
    /// Bytes that may wait.
    pub limit: u32,
}

/// A discipline as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qdisc {
    /// The interface.
    pub index: u32,
    /// `tbf`, `ingress`, `noqueue`, …
    pub kind: String,
    /// [`ROOT`], [`INGRESS`] or the handle of another.
    pub parent: u32,
    /// What it does, for a token bucket filter.
    pub tbf: Option<Tbf>,
}

/// Adds a token bucket filter as the root of an interface; `EEXIST` if there is one that somebody has made.
pub fn add_tbf(batch: &mut Batch, index: u32, tbf: &Tbf) {
    batch.push(RTM_NEWQDISC, CREATE | EXCL, |body| {
        header(body, index, HANDLE, ROOT, 0);
        body.text(TCA_KIND, "tbf");
        body.nest(TCA_OPTIONS, |body| {
            // struct tc_tbf_qopt: two of struct tc_ratespec, limit, buffer, mtu.
            let mut parms = [0; 36];
            let rate = u32::try_from(tbf.rate).unwrap_or(u32::MAX);
            put(&mut parms, 1, &[LINKLAYER_ETHERNET]);
            put(&mut parms, 8, &rate.to_ne_bytes());
            put(&mut parms, 24, &tbf.limit.to_ne_bytes());
            body.bytes(TBF_PARMS, &parms);
            body.u32(TBF_BURST, tbf.burst);
            if rate == u32::MAX {
                body.bytes(TBF_RATE64, &tbf.rate.to_ne_bytes());
            }
        });
    });
}

/// Lets filters see what comes in over an interface.
pub fn add_ingress(batch: &mut Batch, index: u32) {
    batch.push(RTM_NEWQDISC, CREATE | EXCL, |body| {
        header(body, index, INGRESS_HANDLE, INGRESS, 0);
        body.text(TCA_KIND, "ingress");
        body.nest(TCA_OPTIONS, |_| {});
    });
}

/// Sends all that comes in over `index` by way of the queue of `to`; after [`add_ingress`].
pub fn add_redirect(batch: &mut Batch, index: u32, to: u32) {
    let priority = 1 << 16 | u32::from(ALL_PROTOCOLS.to_be());
    batch.push(RTM_NEWTFILTER, CREATE | EXCL, |body| {
        header(body, index, 0, INGRESS_HANDLE, priority);
        body.text(TCA_KIND, "u32");
        body.nest(TCA_OPTIONS, |body| {
            // struct tc_u32_sel with one key, whose mask is empty: everything matches.
            let mut selector = [0; 32];
            put(&mut selector, 0, &[TERMINAL, 0, 1]);
            body.bytes(U32_SEL, &selector);
            body.nest(U32_ACT, |body| {
                body.nest(1, |body| {
                    body.text(ACT_KIND, "mirred");
                    body.nest(ACT_OPTIONS, |body| {
                        // struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex.
                        let mut parms = [0; 28];
                        put(&mut parms, 8, &STOLEN.to_ne_bytes());
                        put(&mut parms, 20, &EGRESS_REDIRECT.to_ne_bytes());
                        put(&mut parms, 24, &to.to_ne_bytes());
                        body.bytes(MIRRED_PARMS, &parms);
                    });
                });
            });
        });
    });
}

/// Deletes what stands at [`ROOT`] or [`INGRESS`], with its filters.
pub fn delete(batch: &mut Batch, index: u32, parent: u32) {
    batch.push(RTM_DELQDISC, 0, |body| header(body, index, 0, parent, 0));
}

/// The disciplines of all interfaces.
pub fn list(socket: &mut Socket) -> Result<Vec<Qdisc>> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETQDISC, 0, |body| header(body, 0, 0, 0, 0));
    };
    socket.list(build, |message| decode(&message))
}

/// To which interfaces that comes in over `index` is sent.
pub fn redirects(socket: &mut Socket, index: u32) -> Result<Vec<u32>> {
    let build = |batch: &mut Batch| {
        batch.push(RTM_GETTFILTER, 0, |body| {
            header(body, index, 0, INGRESS_HANDLE, 0);
        });
    };
    socket.list(build, |message| decode_redirect(&message))
}

/// The discipline in an `RTM_NEWQDISC`; `None` for anything else.
pub fn decode(message: &Message<'_>) -> Option<Qdisc> {
    if message.kind != RTM_NEWQDISC {
        return None;
    }
    let mut qdisc = Qdisc {
        index: get_u32(message.body, 4)?,
        parent: get_u32(message.body, 12)?,
        ..Qdisc::default()
    };
    let mut options = None;
    for attr in Attrs::after(message.body, TCMSG) {
        match attr.kind {
            TCA_KIND => qdisc.kind = attr.text(),
            TCA_OPTIONS => options = Some(attr),
            _ => {}
        }
    }
    if qdisc.kind == "tbf" {
        qdisc.tbf = decode_tbf(&options?);
    }
    Some(qdisc)
}

fn decode_tbf(options: &Attr<'_>) -> Option<Tbf> {
    let (mut tbf, mut rate64) = (None, None);
    for attr in options.nested() {
        match attr.kind {
            TBF_PARMS => {
                tbf = Some(Tbf {
                    rate: get_u32(attr.value, 8)?.into(),
                    burst: 0,
                    limit: get_u32(attr.value, 24)?,
                });
            }
            TBF_RATE64 => {
                rate64 = Some(u64::from_ne_bytes(attr.value.try_into().ok()?));
            }
            _ => {}
        }
    }
    let tbf: Tbf = tbf?;
    Some(Tbf {
        rate: rate64.unwrap_or(tbf.rate),
        ..tbf
    })
}

/// Whether a message is one of a listing.
pub(crate) fn decode_any(message: &Message<'_>) -> bool {
    decode(message).is_some() || decode_redirect(message).is_some()
}

/// Where a filter sends everything, if that is what it does.
fn decode_redirect(message: &Message<'_>) -> Option<u32> {
    if message.kind != RTM_NEWTFILTER {
        return None;
    }
    let options = find(Attrs::after(message.body, TCMSG), TCA_OPTIONS)?;
    let actions = find(options.nested(), U32_ACT)?;
    actions.nested().find_map(|action| {
        let options = find(action.nested(), ACT_OPTIONS)?;
        let parms = find(options.nested(), MIRRED_PARMS)?;
        let redirects = get_u32(parms.value, 20)? == EGRESS_REDIRECT;
        get_u32(parms.value, 24).filter(|_| redirects)
    })
}

fn find<'a>(mut attrs: Attrs<'a>, kind: u16) -> Option<Attr<'a>> {
    attrs.find(|attr| attr.kind == kind)
}

/// `struct tcmsg`.
fn header(body: &mut Body<'_>, index: u32, handle: u32, parent: u32, info: u32) {
    let mut bytes = [0; TCMSG];
    for (field, value) in bytes
        .chunks_exact_mut(4)
        .zip([0, index, handle, parent, info])
    {
        field.copy_from_slice(&value.to_ne_bytes());
    }
    body.raw(&bytes);
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(field) = bytes.get_mut(at..at + value.len()) {
        field.copy_from_slice(value);
    }
}
