//! Reading JSON with the path at hand, so that every complaint says which member is meant.

use std::net::IpAddr;

use serde_json::Value;

use super::cidr::Cidr;
use super::error::{CniError, Code};

/// A value and where it stands. `null` counts as absent, as it does for the reference implementation.
#[derive(Clone, Debug)]
pub struct Field<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> Field<'a> {
    /// The whole document.
    pub fn root(value: &'a Value) -> Self {
        Self {
            path: String::new(),
            value,
        }
    }

    /// The path from the root, `ipam.ranges[0][1].subnet`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The value itself.
    pub fn value(&self) -> &'a Value {
        self.value
    }

    /// A member of an object, if it is there; an error if this is not an object.
    pub fn get(&self, key: &str) -> Result<Option<Self>, CniError> {
        let object = self
            .value
            .as_object()
            .ok_or_else(|| self.wrong("an object"))?;
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Ok(object
            .get(key)
            .filter(|v| !v.is_null())
            .map(|value| Self { path, value }))
    }

    /// A member that runtimes write in their language's manner: `hostPort` is `HostPort` from containerd (go-cni), and who is
    /// written in Go takes either. The exact one goes first.
    pub fn get_of_runtime(&self, key: &str) -> Result<Option<Self>, CniError> {
        if let Some(found) = self.get(key)? {
            return Ok(Some(found));
        }
        let alike = self.value.as_object().into_iter().flatten();
        let alike = alike
            .map(|(other, _)| other)
            .find(|other| other.eq_ignore_ascii_case(key) && other.as_str() != key);
        alike.map_or(Ok(None), |other| self.get(other))
    }

    /// The elements of a list.
    pub fn list(&self) -> Result<Vec<Self>, CniError> {
        let list = self.value.as_array().ok_or_else(|| self.wrong("a list"))?;
        Ok(list
            .iter()
            .enumerate()
            .map(|(i, value)| Self {
                path: format!("{}[{i}]", self.path),
                value,
            })
            .collect())
    }

    /// A string.
    pub fn str(&self) -> Result<&'a str, CniError> {
        self.value.as_str().ok_or_else(|| self.wrong("a string"))
    }

    /// `true` or `false`.
    pub fn bool(&self) -> Result<bool, CniError> {
        self.value
            .as_bool()
            .ok_or_else(|| self.wrong("true or false"))
    }

    /// A number from 0 to 2^32-1.
    pub fn u32(&self) -> Result<u32, CniError> {
        let number = self.value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| self.wrong("a number from 0 to 4294967295"))
    }

    /// A number from 0 to 2^64-1.
    pub fn u64(&self) -> Result<u64, CniError> {
        self.value
            .as_u64()
            .ok_or_else(|| self.wrong("a number from 0 to 18446744073709551615"))
    }

    /// An address.
    pub fn addr(&self) -> Result<IpAddr, CniError> {
        self.str()?.parse().map_err(|_| self.wrong("an IP address"))
    }

    /// An address with a prefix length.
    pub fn cidr(&self) -> Result<Cidr, CniError> {
        Cidr::parse(self.str()?).ok_or_else(|| self.wrong("an address with a prefix length"))
    }

    /// Strings.
    pub fn strings(&self) -> Result<Vec<String>, CniError> {
        self.list()?
            .iter()
            .map(|f| f.str().map(str::to_owned))
            .collect()
    }

    /// The member's value makes no sense: code 7.
    pub fn invalid(&self, why: &str) -> CniError {
        CniError::new(Code::InvalidConfig, format!("{}: {why}", self.name()))
    }

    /// The member is understood but not supported: code 2.
    pub fn unsupported(&self, why: &str) -> CniError {
        CniError::new(
            Code::UnsupportedField,
            format!("{} = {}: {why}", self.name(), short(self.value)),
        )
    }

    fn wrong(&self, expected: &str) -> CniError {
        self.invalid(&format!("expected {expected}, found {}", short(self.value)))
    }

    fn name(&self) -> &str {
        if self.path.is_empty() {
            "configuration"
        } else {
            &self.path
        }
    }
}

/// A value's text, cut where it gets long.
fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}
