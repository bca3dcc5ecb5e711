//! `v1 Secret`: passwords of peers. Does not print.

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use super::Meta;
use super::decode::Context;

/// Named secret values.
#[derive(Clone, PartialEq)]
pub struct Secret {
    /// Metadata.
    pub meta: Meta,
    data: BTreeMap<String, Vec<u8>>,
}

impl Secret {
    /// The value called `key`.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.data.get(key).map(Vec::as_slice)
    }

    pub(super) fn lower(
        meta: Meta,
        data: &Value,
        text: &Value,
        context: &mut Context,
    ) -> Option<Secret> {
        let encoded: BTreeMap<String, String> = context.decode("data", data)?;
        let plain: BTreeMap<String, String> = context.decode("stringData", text)?;
        let mut data = BTreeMap::new();
        for (key, value) in encoded {
            match base64(&value) {
                Some(bytes) => {
                    data.insert(key, bytes);
                }
                None => context.faults.hinted(
                    format!("data.{key}"),
                    "not base64",
                    "put plain text under `stringData` instead",
                ),
            }
        }
        data.extend(
            plain
                .into_iter()
                .map(|(key, value)| (key, value.into_bytes())),
        );
        Some(Secret { meta, data })
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret")
            .field("key", &self.meta.key)
            .finish_non_exhaustive()
    }
}

/// Standard base64 with padding (RFC 4648 section 4); line breaks are skipped.
fn base64(text: &str) -> Option<Vec<u8>> {
    let symbols: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let mut out = Vec::with_capacity(symbols.len() / 4 * 3);
    if !symbols.len().is_multiple_of(4) {
        return None;
    }
    let groups = symbols.len() / 4;
    for (i, group) in symbols.chunks(4).enumerate() {
        let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 || (padding > 0 && i + 1 != groups) {
            return None;
        }
        let mut bits: u32 = 0;
        for (position, byte) in group.iter().enumerate() {
            let value = if position >= 4 - padding {
                0
            } else {
                sextet(*byte)?
            };
            bits = bits << 6 | u32::from(value);
        }
        let [_, bytes @ ..] = bits.to_be_bytes();
        out.extend(bytes.iter().take(3 - padding));
    }
    Some(out)
}

fn sextet(byte: u8) -> Option<u8> {
    match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_of_rfc_4648() {
        for (plain, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(
                base64(encoded).as_deref(),
                Some(plain.as_bytes()),
                "{encoded}"
            );
        }
        for bad in ["Z", "Zg=", "Zg==Zg==", "====", "Zm9v!", "Z===", "Zm-_"] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        let secret = Secret {
            meta: Meta::default(),
            data: [("password".into(), b"hunter2".to_vec())].into(),
        };
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
