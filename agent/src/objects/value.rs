//! A JSON value as serde reads it, with what is wrong as data: which field is not known and which are, what was found and
//! what was expected. The texts of other libraries' errors are nobody's interface, and change when those are updated.

use std::fmt::{self, Display};

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{self, DeserializeOwned, Expected, IntoDeserializer, Unexpected, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::Value;

/// Why a value is not of a type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// A mapping has a field that the type does not.
    UnknownField {
        /// Its name.
        field: String,
        /// The fields of the type.
        known: &'static [&'static str],
    },
    /// Anything else, for somebody who writes YAML.
    Other(String),
}

/// The value as that type.
///
/// # Errors
/// The first thing that is wrong, with the path to it below the value: `.` is the value itself.
pub(super) fn decode<T: DeserializeOwned>(value: &Value) -> Result<T, (String, Mismatch)> {
    serde_path_to_error::deserialize(Read(value)).map_err(|error| {
        let path = error.path().to_string();
        (path, error.into_inner())
    })
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Mismatch::UnknownField { field, .. } => write!(f, "unknown field `{field}`"),
            Mismatch::Other(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for Mismatch {}

impl de::Error for Mismatch {
    fn custom<T: Display>(text: T) -> Self {
        Mismatch::Other(text.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Mismatch::Other(format!(
            "expected {}, found {}",
            wanted(expected),
            seen(found)
        ))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Mismatch::Other(format!(
            "invalid value: {}, expected {}",
            seen(found),
            wanted(expected)
        ))
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Mismatch::Other(format!("`{variant}` is not {}", one_of(expected)))
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Mismatch::UnknownField {
            field: field.to_owned(),
            known,
        }
    }

    fn missing_field(field: &'static str) -> Self {
        Mismatch::Other(format!("missing field `{field}`"))
    }
}

/// What was found, in the words of YAML.
fn seen(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("boolean `{value}`"),
        Unexpected::Unsigned(value) => format!("integer `{value}`"),
        Unexpected::Signed(value) => format!("integer `{value}`"),
        Unexpected::Float(value) => format!("floating point `{value:?}`"),
        Unexpected::Str(text) => format!("the text {text:?}"),
        Unexpected::Unit | Unexpected::Option => "null".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a mapping".to_owned(),
        other => other.to_string(),
    }
}

/// What a type expects: its own word for it, but for those that mean nothing in YAML.
fn wanted(expected: &dyn Expected) -> String {
    let text = expected.to_string();
    match text.as_str() {
        "a map" => "a mapping".to_owned(),
        "a sequence" => "a list".to_owned(),
        _ if text.starts_with("struct ") => "a mapping".to_owned(),
        _ => text,
    }
}

fn one_of(names: &[&str]) -> String {
    match names {
        [] => "known here".to_owned(),
        [only] => format!("`{only}`"),
        [rest @ .., last] => format!("`{}` or `{last}`", rest.join("`, `")),
    }
}

/// A value to be read.
#[derive(Clone, Copy)]
struct Read<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, Mismatch> for Read<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for Read<'de> {
    type Error = Mismatch;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
                (Some(value), _, _) => visitor.visit_u64(value),
                (_, Some(value), _) => visitor.visit_i64(value),
                (_, _, Some(value)) => visitor.visit_f64(value),
                _ => Err(de::Error::invalid_type(
                    Unexpected::Other("a number"),
                    &visitor,
                )),
            },
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Read));
                let value = visitor.visit_seq(&mut items)?;
                items.end()?;
                Ok(value)
            }
            Value::Object(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| (name.as_str(), Read(value)));
                let mut fields = MapDeserializer::new(fields);
                let value = visitor.visit_map(&mut fields)?;
                fields.end()?;
                Ok(value)
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mismatch> {
        match self.0 {
            Value::String(variant) => visitor.visit_enum(variant.as_str().into_deserializer()),
            Value::Object(fields) => {
                let fields = fields
                    .iter()
                    .map(|(name, value)| (name.as_str(), Read(value)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(fields)))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    #[allow(dead_code, reason = "read for its errors")]
    struct Outer {
        #[serde(default)]
        name: String,
        port: Option<u16>,
        #[serde(default)]
        list: Vec<Inner>,
        mode: Option<Mode>,
    }

    #[derive(Deserialize, Debug)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read for its errors")]
    struct Inner {
        key: String,
    }

    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "camelCase")]
    enum Mode {
        Auto,
        Off,
    }

    /// Each thing that may be wrong, where, and what is said: all of it is ours.
    #[test]
    fn every_mismatch_has_its_place_and_its_words() {
        for (value, path, said) in [
            (
                json!({"name": 1}),
                "name",
                "expected a string, found integer `1`",
            ),
            (
                json!({"name": -1}),
                "name",
                "expected a string, found integer `-1`",
            ),
            (
                json!({"name": 1.5}),
                "name",
                "expected a string, found floating point `1.5`",
            ),
            (
                json!({"name": true}),
                "name",
                "expected a string, found boolean `true`",
            ),
            (
                json!({"name": null}),
                "name",
                "expected a string, found null",
            ),
            (
                json!({"name": []}),
                "name",
                "expected a string, found a list",
            ),
            (
                json!({"name": {}}),
                "name",
                "expected a string, found a mapping",
            ),
            (
                json!({"port": "80"}),
                "port",
                "expected u16, found the text \"80\"",
            ),
            (
                json!({"port": 65536}),
                "port",
                "invalid value: integer `65536`, expected u16",
            ),
            (
                json!({"list": {}}),
                "list",
                "expected a list, found a mapping",
            ),
            (
                json!({"list": [1]}),
                "list[0]",
                "expected a mapping, found integer `1`",
            ),
            (json!({"list": [{}]}), "list[0]", "missing field `key`"),
            (json!({"mode": "on"}), "mode", "`on` is not `auto` or `off`"),
            (json!({"mode": 1}), "mode", "expected"),
            (
                json!("text"),
                ".",
                "expected a mapping, found the text \"text\"",
            ),
            (
                json!({"list": [{"key": "k"}, {"kee": "k"}]}),
                "list[1].kee",
                "unknown field `kee`",
            ),
        ] {
            let (at, mismatch) = decode::<Outer>(&value).unwrap_err();
            assert_eq!(at, path, "{value}");
            assert!(
                mismatch.to_string().starts_with(said),
                "{value}: {mismatch}"
            );
        }
        let good = json!({"name": "n", "port": null, "list": [{"key": "k"}], "mode": "off"});
        let outer: Outer = decode(&good).unwrap();
        assert!(outer.port.is_none() && matches!(outer.mode, Some(Mode::Off)));
    }

    #[test]
    fn an_unknown_field_comes_with_those_that_are_known() {
        let (_, mismatch) = decode::<Outer>(&json!({"prot": 1})).unwrap_err();
        let known: &[&str] = &["name", "port", "list", "mode"];
        let field = "prot".to_owned();
        assert_eq!(mismatch, Mismatch::UnknownField { field, known });
    }
}
