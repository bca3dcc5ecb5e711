//! The UID of an object, in little room.

use std::fmt;
use std::sync::Arc;

/// `metadata.uid`: any text. One in the form that API servers give (a UUID in lower case) takes no memory of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Uid(Form);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Form {
    /// The text is the canonical form of this number; no text is kept in both forms.
    Uuid([u8; 16]),
    Text(Arc<str>),
}

/// Where the dashes of a UUID are.
const DASHES: [usize; 4] = [8, 13, 18, 23];
/// The length of a UUID as text.
const LENGTH: usize = 36;

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        Uid(uuid(text).map_or_else(|| Form::Text(text.into()), Form::Uuid))
    }
}

impl From<String> for Uid {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

/// `None` for a text that would be written another way.
fn uuid(text: &str) -> Option<[u8; 16]> {
    if text.len() != LENGTH {
        return None;
    }
    let mut number = 0_u128;
    for (at, byte) in text.bytes().enumerate() {
        let digit = match byte {
            b'-' if DASHES.contains(&at) => continue,
            _ if DASHES.contains(&at) => return None,
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        number = number << 4 | u128::from(digit);
    }
    Some(number.to_be_bytes())
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = match &self.0 {
            Form::Uuid(bytes) => bytes,
            Form::Text(text) => return f.write_str(text),
        };
        for (at, byte) in bytes.iter().enumerate() {
            // Dashes stand after 4, 6, 8 and 10 bytes.
            let dash = if [4, 6, 8, 10].contains(&at) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two texts are one UID exactly when they are equal, and the text comes back as it was.
    #[test]
    fn a_uid_is_its_text() {
        let texts = [
            "",
            "uid-1",
            "3f0c7a4e-1111-4222-8333-000000000001",
            "3f0c7a4e-1111-4222-8333-000000000002",
            "3F0c7a4e-1111-4222-8333-000000000001",
            "3f0c7a4e-1111-4222-8333-00000000000g",
            "3f0c7a4e01111-4222-8333-000000000001",
            "3f0c7a4-e1111-4222-8333-000000000001",
            "3f0c7a4e-1111-4222-8333-0000000000-1",
            "3f0c7a4e1111422283330000000000010000",
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ];
        for (at, text) in texts.into_iter().enumerate() {
            let uid = Uid::from(text);
            assert_eq!(uid.to_string(), text);
            let same = texts.iter().filter(|other| Uid::from(**other) == uid);
            assert_eq!(same.collect::<Vec<_>>(), [&texts[at]]);
        }
    }
}
