//! Expressions on the wire: one arm per expression in each direction, the attributes numbered as
//! in `linux/netfilter/nf_tables.h`.

use super::expr::{CmpOp, CtKey, Expr, FibResult, Meta, NatKind, PayloadBase, Reg};
use super::{DATA_VERDICT, Verdict, get_value, put_value};
use crate::attr::{Attr, Attrs, Body};

const LIST_ELEM: u16 = 1;
const EXPR_NAME: u16 = 1;
const EXPR_DATA: u16 = 2;
/// Flags of a translation that the kernel adds itself: there is an address, there is a port.
const NAT_DERIVED: u32 = 3;

impl Expr {
    /// The kernel's name of the expression.
    pub fn name(&self) -> &str {
        match self {
            Self::Payload { .. } => "payload",
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Counter { .. } => "counter",
            Self::Log { .. } => "log",
            Self::Limit { .. } => "limit",
            Self::Fib { .. } => "fib",
            Self::Masquerade { .. } => "masq",
            Self::Nat { .. } => "nat",
            Self::NoTrack => "notrack",
            Self::Other { name, .. } => name,
        }
    }

    pub(crate) fn encode(&self, body: &mut Body<'_>) {
        body.nest(LIST_ELEM, |body| {
            body.text(EXPR_NAME, self.name());
            body.nest(EXPR_DATA, |body| self.encode_data(body));
        });
    }

    fn encode_data(&self, body: &mut Body<'_>) {
        match self {
            Self::Payload {
                dreg,
                base,
                offset,
                len,
            } => {
                put(
                    body,
                    &[(1, dreg.0), (2, *base as u32), (3, *offset), (4, *len)],
                );
            }
            Self::Meta { dreg, key } => put(body, &[(2, key.0), (1, dreg.0)]),
            Self::MetaSet { sreg, key } => put(body, &[(2, key.0), (3, sreg.0)]),
            Self::Cmp { sreg, op, value } => {
                put(body, &[(1, sreg.0), (2, *op as u32)]);
                put_value(body, 3, value);
            }
            Self::Range {
                sreg,
                outside,
                from,
                to,
            } => {
                put(body, &[(1, sreg.0), (2, u32::from(*outside))]);
                put_value(body, 3, from);
                put_value(body, 4, to);
            }
            Self::Bitwise {
                sreg,
                dreg,
                mask,
                xor,
            } => {
                put(body, &[(1, sreg.0), (2, dreg.0), (3, mask.len() as u32)]);
                put_value(body, 4, mask);
                put_value(body, 5, xor);
            }
            Self::Immediate { dreg, value } => {
                put(body, &[(1, dreg.0)]);
                put_value(body, 2, value);
            }
            Self::Verdict(verdict) => {
                put(body, &[(1, Reg::VERDICT.0)]);
                body.nest(2, |body| verdict.encode(body));
            }
            Self::Lookup {
                set,
                sreg,
                dreg,
                inverted,
            } => {
                body.text(1, set);
                put(body, &[(2, sreg.0)]);
                put_some(body, 3, dreg.map(|dreg| dreg.0));
                put(body, &[(5, u32::from(*inverted))]);
            }
            Self::Ct {
                dreg,
                key,
                direction,
            } => {
                put(body, &[(2, key.0), (1, dreg.0)]);
                if let Some(direction) = direction {
                    body.u8(3, *direction);
                }
            }
            Self::CtSet { sreg, key } => put(body, &[(2, key.0), (4, sreg.0)]),
            Self::Counter { packets, bytes } => {
                body.be64(1, *bytes);
                body.be64(2, *packets);
            }
            Self::Log {
                group,
                prefix,
                snaplen,
            } => {
                if let Some(group) = group {
                    body.be16(1, *group);
                    put_some(body, 3, Some(*snaplen).filter(|&bytes| bytes != 0));
                }
                if !prefix.is_empty() {
                    body.text(2, prefix);
                }
            }
            Self::Limit {
                rate,
                unit,
                burst,
                bytes,
                over,
            } => {
                body.be64(1, *rate);
                body.be64(2, *unit);
                put(
                    body,
                    &[(3, *burst), (4, u32::from(*bytes)), (5, u32::from(*over))],
                );
            }
            Self::Fib {
                dreg,
                result,
                flags,
            } => {
                put(body, &[(1, dreg.0), (2, *result as u32), (3, *flags)]);
            }
            Self::Masquerade { flags } => {
                put_some(body, 1, Some(*flags).filter(|&flags| flags != 0));
            }
            Self::Nat {
                kind,
                v6,
                addr,
                port,
                flags,
            } => {
                put(body, &[(1, *kind as u32), (2, if *v6 { 10 } else { 2 })]);
                put_some(body, 3, addr.map(|reg| reg.0));
                put_some(body, 5, port.map(|reg| reg.0));
                put_some(body, 7, Some(*flags).filter(|&flags| flags != 0));
            }
            Self::NoTrack => {}
            Self::Other { data, .. } => body.raw(data),
        }
    }

    /// All expressions of a rule, from what is inside of `NFTA_RULE_EXPRESSIONS`.
    pub(crate) fn decode_list(attr: &Attr<'_>) -> Vec<Self> {
        attr.nested()
            .filter(|attr| attr.kind == LIST_ELEM)
            .filter_map(|a| Self::decode(&a))
            .collect()
    }

    fn decode(attr: &Attr<'_>) -> Option<Self> {
        let (mut name, mut data): (_, &[u8]) = (None, &[]);
        for attr in attr.nested() {
            match attr.kind {
                EXPR_NAME => name = Some(attr.text()),
                EXPR_DATA => data = attr.value,
                _ => {}
            }
        }
        let name = name?;
        let known = Self::decode_data(&name, &Fields(data));
        Some(known.unwrap_or_else(|| Self::Other {
            name,
            data: data.to_vec(),
        }))
    }

    fn decode_data(name: &str, fields: &Fields<'_>) -> Option<Self> {
        Some(match name {
            "payload" => Self::Payload {
                dreg: fields.reg(1)?,
                base: match fields.be32(2)? {
                    0 => PayloadBase::Link,
                    1 => PayloadBase::Network,
                    2 => PayloadBase::Transport,
                    _ => return None,
                },
                offset: fields.be32(3)?,
                len: fields.be32(4)?,
            },
            "meta" => match (fields.reg(1), fields.reg(3)) {
                (Some(dreg), _) => Self::Meta {
                    dreg,
                    key: Meta(fields.be32(2)?),
                },
                (None, sreg) => Self::MetaSet {
                    sreg: sreg?,
                    key: Meta(fields.be32(2)?),
                },
            },
            "cmp" => Self::Cmp {
                sreg: fields.reg(1)?,
                op: cmp_op(fields.be32(2)?)?,
                value: fields.value(3)?,
            },
            "range" => Self::Range {
                sreg: fields.reg(1)?,
                outside: fields.be32(2)? == 1,
                from: fields.value(3)?,
                to: fields.value(4)?,
            },
            // Shifts and what came later have another operation.
            "bitwise" if fields.be32(6).unwrap_or_default() == 0 => Self::Bitwise {
                sreg: fields.reg(1)?,
                dreg: fields.reg(2)?,
                mask: fields.value(4)?,
                xor: fields.value(5)?,
            },
            "immediate" => match fields.verdict(2) {
                Some(verdict) => Self::Verdict(verdict),
                None => Self::Immediate {
                    dreg: fields.reg(1)?,
                    value: fields.value(2)?,
                },
            },
            "lookup" => Self::Lookup {
                set: fields.get(1)?.text(),
                sreg: fields.reg(2)?,
                dreg: fields.reg(3),
                inverted: fields.be32(5).unwrap_or_default() & 1 != 0,
            },
            "ct" => match (fields.reg(1), fields.reg(4)) {
                (Some(dreg), _) => Self::Ct {
                    dreg,
                    key: CtKey(fields.be32(2)?),
                    direction: fields.get(3).and_then(|attr| attr.u8()),
                },
                (None, sreg) => Self::CtSet {
                    sreg: sreg?,
                    key: CtKey(fields.be32(2)?),
                },
            },
            "counter" => Self::Counter {
                packets: fields.get(2)?.be64()?,
                bytes: fields.get(1)?.be64()?,
            },
            "log" => Self::Log {
                group: fields.get(1).and_then(|attr| attr.be16()),
                prefix: fields.get(2).map(|attr| attr.text()).unwrap_or_default(),
                snaplen: fields.be32(3).unwrap_or_default(),
            },
            "limit" => Self::Limit {
                rate: fields.get(1)?.be64()?,
                unit: fields.get(2)?.be64()?,
                burst: fields.be32(3).unwrap_or_default(),
                bytes: fields.be32(4).unwrap_or_default() == 1,
                over: fields.be32(5).unwrap_or_default() & 1 != 0,
            },
            "fib" => Self::Fib {
                dreg: fields.reg(1)?,
                result: match fields.be32(2)? {
                    1 => FibResult::Oif,
                    2 => FibResult::OifName,
                    3 => FibResult::AddressType,
                    _ => return None,
                },
                flags: fields.be32(3)?,
            },
            "masq" if fields.get(2).is_none() => Self::Masquerade {
                flags: fields.be32(1).unwrap_or_default(),
            },
            "nat" => fields.nat()?,
            "notrack" => Self::NoTrack,
            _ => return None,
        })
    }
}

fn put(body: &mut Body<'_>, fields: &[(u16, u32)]) {
    fields
        .iter()
        .for_each(|&(kind, value)| body.be32(kind, value));
}

fn put_some(body: &mut Body<'_>, kind: u16, value: Option<u32>) {
    if let Some(value) = value {
        body.be32(kind, value);
    }
}

fn cmp_op(number: u32) -> Option<CmpOp> {
    use CmpOp::{Eq, Ge, Gt, Le, Lt, Ne};
    [Eq, Ne, Lt, Le, Gt, Ge]
        .into_iter()
        .find(|&op| op as u32 == number)
}

/// The attributes of one expression, found by type.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn get(&self, kind: u16) -> Option<Attr<'a>> {
        Attrs::new(self.0).find(|attr| attr.kind == kind)
    }

    fn be32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.be32()
    }

    fn reg(&self, kind: u16) -> Option<Reg> {
        self.be32(kind).map(Reg::from_number)
    }

    fn value(&self, kind: u16) -> Option<Vec<u8>> {
        get_value(&self.get(kind)?)
    }

    fn verdict(&self, kind: u16) -> Option<Verdict> {
        let data = self.get(kind)?;
        let verdict = data.nested().find(|attr| attr.kind == DATA_VERDICT)?;
        Verdict::decode(&verdict)
    }

    /// A range of addresses or ports is not ours.
    fn nat(&self) -> Option<Expr> {
        let (addr, port) = (self.reg(3), self.reg(5));
        if self.reg(4).is_some_and(|max| Some(max) != addr)
            || self.reg(6).is_some_and(|max| Some(max) != port)
        {
            return None;
        }
        let kind = match self.be32(1)? {
            0 => NatKind::Source,
            1 => NatKind::Destination,
            _ => return None,
        };
        let v6 = match self.be32(2)? {
            2 => false,
            10 => true,
            _ => return None,
        };
        Some(Expr::Nat {
            kind,
            v6,
            addr,
            port,
            flags: self.be32(7).unwrap_or_default() & !NAT_DERIVED,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::batch::Batch;
    use crate::socket::messages;

    fn regs() -> impl Strategy<Value = Reg> {
        (0u8..16).prop_map(Reg::slot)
    }

    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(any::<u8>(), 1..17)
    }

    fn expressions() -> impl Strategy<Value = Expr> {
        let base = prop_oneof![
            Just(PayloadBase::Link),
            Just(PayloadBase::Network),
            Just(PayloadBase::Transport),
        ];
        let verdict = prop_oneof![
            Just(Verdict::Accept),
            Just(Verdict::Drop),
            Just(Verdict::Return),
            "[a-z_]{1,32}".prop_map(Verdict::Jump),
            "[a-z_]{1,32}".prop_map(Verdict::Goto),
        ];
        let ops = proptest::sample::select(vec![
            CmpOp::Eq,
            CmpOp::Ne,
            CmpOp::Lt,
            CmpOp::Le,
            CmpOp::Gt,
            CmpOp::Ge,
        ]);
        let nat = prop_oneof![Just(NatKind::Source), Just(NatKind::Destination)];
        prop_oneof![
            (regs(), base, any::<u32>(), any::<u32>()).prop_map(|(dreg, base, offset, len)| {
                Expr::Payload {
                    dreg,
                    base,
                    offset,
                    len,
                }
            }),
            (regs(), any::<u32>()).prop_map(|(dreg, key)| Expr::Meta {
                dreg,
                key: Meta(key)
            }),
            (regs(), any::<u32>()).prop_map(|(sreg, key)| Expr::MetaSet {
                sreg,
                key: Meta(key)
            }),
            (regs(), ops, bytes()).prop_map(|(sreg, op, value)| Expr::Cmp { sreg, op, value }),
            (regs(), any::<bool>(), bytes(), bytes()).prop_map(|(sreg, outside, from, to)| {
                Expr::Range {
                    sreg,
                    outside,
                    from,
                    to,
                }
            }),
            (regs(), regs(), bytes(), bytes()).prop_map(|(sreg, dreg, mask, xor)| Expr::Bitwise {
                sreg,
                dreg,
                mask,
                xor
            }),
            (regs(), bytes()).prop_map(|(dreg, value)| Expr::Immediate { dreg, value }),
            verdict.prop_map(Expr::Verdict),
            (
                "[a-z_]{1,32}",
                regs(),
                proptest::option::of(regs()),
                any::<bool>()
            )
                .prop_map(|(set, sreg, dreg, inverted)| Expr::Lookup {
                    set,
                    sreg,
                    dreg,
                    inverted
                }),
            (regs(), any::<u32>(), any::<Option<u8>>()).prop_map(|(dreg, key, direction)| {
                Expr::Ct {
                    dreg,
                    key: CtKey(key),
                    direction,
                }
            }),
            (regs(), any::<u32>()).prop_map(|(sreg, key)| Expr::CtSet {
                sreg,
                key: CtKey(key)
            }),
            any::<(u64, u64)>().prop_map(|(packets, bytes)| Expr::Counter { packets, bytes }),
            (any::<u16>(), "[ -~]{0,127}", any::<u32>()).prop_map(|(group, prefix, snaplen)| {
                Expr::Log {
                    group: Some(group),
                    prefix,
                    snaplen,
                }
            }),
            any::<(u64, u64, u32, bool, bool)>().prop_map(|(rate, unit, burst, bytes, over)| {
                Expr::Limit {
                    rate,
                    unit,
                    burst,
                    bytes,
                    over,
                }
            }),
            any::<u32>().prop_map(|flags| Expr::Masquerade { flags }),
            (
                nat,
                any::<bool>(),
                proptest::option::of(regs()),
                proptest::option::of(regs())
            )
                .prop_map(|(kind, v6, addr, port)| Expr::Nat {
                    kind,
                    v6,
                    addr,
                    port,
                    flags: 4
                }),
            Just(Expr::NoTrack),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(rule in proptest::collection::vec(expressions(), 0..9)) {
            let mut batch = Batch::new();
            batch.push(0, 0, |body| {
                body.nest(4, |body| rule.iter().for_each(|expression| expression.encode(body)));
            });
            let message = messages(batch.as_bytes()).next().unwrap();
            let list = Attrs::new(message.body).next().unwrap();
            prop_assert_eq!(Expr::decode_list(&list), rule);
        }
    }

    #[test]
    fn what_is_not_known_is_kept_as_it_is() {
        let other = Expr::Other {
            name: "quota".to_owned(),
            data: vec![8, 0, 1, 0, 1, 2, 3, 4],
        };
        // A translation into a range of addresses has no word here.
        let range = [(1, 0), (2, 2), (3, 1), (4, 2)];
        let mut batch = Batch::new();
        batch.push(0, 0, |body| put(body, &range));
        let data = messages(batch.as_bytes()).next().unwrap().body.to_vec();
        let nat = Expr::Other {
            name: "nat".to_owned(),
            data,
        };
        batch.clear();
        batch.push(0, 0, |body| {
            body.nest(4, |body| [&other, &nat].iter().for_each(|e| e.encode(body)));
        });
        let message = messages(batch.as_bytes()).next().unwrap();
        let list = Attrs::new(message.body).next().unwrap();
        assert_eq!(Expr::decode_list(&list), [other, nat]);
    }
}
