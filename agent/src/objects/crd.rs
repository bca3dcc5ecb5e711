//! CustomResourceDefinitions of our kinds: specs from the Rust types, the envelope by hand.
//!
//! A derived envelope would bring the whole of ObjectMeta a second time. The schema is structural, as the API server
//! demands: no references, one type per node, nothing that Kubernetes does not know. Its rules in CEL are a subset;
//! lowering is what decides.

use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::bgp_configuration::BgpConfigurationSpec;
use super::bgp_node_status::BgpNodeStatusStatus;
use super::bgp_peer::BgpPeerSpec;

/// A file of `manifests/crds` and what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrdFile {
    /// Its name.
    pub name: &'static str,
    /// Its text.
    pub text: String,
}

/// All of them.
pub fn files() -> Result<Vec<CrdFile>, String> {
    [
        ("bgpconfigurations.yaml", bgp_configuration()),
        ("bgppeers.yaml", bgp_peer()),
        ("bgpnodestatuses.yaml", bgp_node_status()),
    ]
    .into_iter()
    .map(|(name, crd)| {
        let body = serde_saphyr::to_string(&crd).map_err(|error| error.to_string())?;
        Ok(CrdFile {
            name,
            text: format!(
                "# Made by `selvage crds` from the Rust types; not to be edited.\n{body}"
            ),
        })
    })
    .collect()
}

struct Names {
    kind: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static [&'static str],
    description: &'static str,
}

fn bgp_configuration() -> Value {
    let names = Names {
        kind: "BGPConfiguration",
        plural: "bgpconfigurations",
        singular: "bgpconfiguration",
        short: &["bgpconf"],
        description: "What holds for the BGP speaker of every node. Only the object called `default` counts.",
    };
    let columns = json!([
        {"name": "ASN", "type": "integer", "jsonPath": ".spec.asn"},
        {"name": "Mesh", "type": "string", "jsonPath": ".spec.nodeMesh.mode"},
        {"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].status"},
        {"name": "Reason", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].reason", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let rules = json!([{
        "rule": "self.metadata.name == 'default'",
        "message": "the only BGPConfiguration that counts is called `default`",
    }]);
    definition(
        &names,
        spec::<BgpConfigurationSpec>(),
        &columns,
        Some(rules),
    )
}

fn bgp_peer() -> Value {
    let names = Names {
        kind: "BGPPeer",
        plural: "bgppeers",
        singular: "bgppeer",
        short: &["bgpp"],
        description: "A BGP neighbour, or many, of the nodes that it selects.",
    };
    let columns = json!([
        {"name": "Address", "type": "string", "jsonPath": ".spec.address"},
        {"name": "Range", "type": "string", "jsonPath": ".spec.range"},
        {"name": "ASN", "type": "string", "jsonPath": ".spec.asn"},
        {"name": "Accepted", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].status"},
        {"name": "Message", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Accepted')].message", "priority": 1},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let mut spec = spec::<BgpPeerSpec>();
    if let Value::Object(fields) = &mut spec {
        fields.insert("required".into(), json!(["asn"]));
        let one_of = "[has(self.address), has(self.range), has(self.interface), has(self.discover)].filter(given, given).size() == 1";
        let rules = json!([
            {"rule": one_of, "message": "exactly one of address, range, interface and discover"},
            {"rule": "!(has(self.range) && has(self.port))", "message": "neighbours of a range connect to us, so that `port` has no meaning"},
            {"rule": "!(has(self.multihop) && has(self.ttlSecurity))", "message": "multihop and ttlSecurity exclude each other"},
        ]);
        fields.insert("x-kubernetes-validations".into(), rules);
    }
    definition(&names, spec, &columns, None)
}

fn bgp_node_status() -> Value {
    let names = Names {
        kind: "BGPNodeStatus",
        plural: "bgpnodestatuses",
        singular: "bgpnodestatus",
        short: &["bgpns"],
        description: "What one node has to say about itself; written by its agent, on transitions only.",
    };
    let columns = json!([
        {"name": "ASN", "type": "integer", "jsonPath": ".status.asn"},
        {"name": "Router", "type": "string", "jsonPath": ".status.routerID"},
        {"name": "Sessions", "type": "integer", "jsonPath": ".status.sessions.configured"},
        {"name": "Established", "type": "integer", "jsonPath": ".status.sessions.established"},
        {"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Ready')].status"},
        {"name": "Wrong", "type": "string", "jsonPath": ".status.wrong[0]"},
        {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
    ]);
    let mut status = status();
    let own = spec::<BgpNodeStatusStatus>();
    if let (Some(Value::Object(all)), Some(Value::Object(own))) =
        (status.get_mut("properties"), own.get("properties"))
    {
        all.extend(own.clone());
    }
    envelope(&names, json!({"status": status}), &columns, None)
}

fn definition(names: &Names, spec: Value, columns: &Value, rules: Option<Value>) -> Value {
    envelope(
        names,
        json!({"spec": spec, "status": status()}),
        columns,
        rules,
    )
}

/// The definition of a kind whose objects have these fields besides the usual ones.
fn envelope(names: &Names, fields: Value, columns: &Value, rules: Option<Value>) -> Value {
    let mut properties = json!({
        "apiVersion": {"type": "string"},
        "kind": {"type": "string"},
        "metadata": {"type": "object"},
    });
    let required: Vec<&str> = fields.get("spec").map(|_| "spec").into_iter().collect();
    let mut schema = json!({"type": "object", "description": names.description});
    if let Value::Object(schema) = &mut schema {
        if !required.is_empty() {
            schema.insert("required".into(), json!(required));
        }
        if let (Value::Object(all), Value::Object(own)) = (&mut properties, fields) {
            all.extend(own);
        }
        schema.insert("properties".into(), properties);
        if let Some(rules) = rules {
            schema.insert("x-kubernetes-validations".into(), rules);
        }
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.selvage.io", names.plural)},
        "spec": {
            "group": "selvage.io",
            "names": {
                "kind": names.kind,
                "listKind": format!("{}List", names.kind),
                "plural": names.plural,
                "singular": names.singular,
                "shortNames": names.short,
                "categories": ["selvage"],
            },
            "scope": "Cluster",
            "versions": [{
                "name": "v1alpha1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": schema},
                "subresources": {"status": {}},
                "additionalPrinterColumns": columns,
            }],
        },
    })
}

/// The same for every kind: what the agents found.
fn status() -> Value {
    json!({
        "type": "object",
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": {"type": "string"},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "observedGeneration": {"type": "integer", "format": "int64"},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "reason": {"type": "string"},
                        "message": {"type": "string"},
                    },
                },
            },
        },
    })
}

fn spec<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let root = settings.into_generator().into_root_schema_for::<T>();
    let mut schema = structural(root.to_value());
    if let Value::Object(fields) = &mut schema {
        // Written for readers of the Rust type.
        fields.remove("description");
    }
    schema
}

/// What JSON Schema says, in the words that Kubernetes knows.
fn structural(schema: Value) -> Value {
    let Value::Object(mut fields) = schema else {
        return Value::Object(Map::new());
    };
    for unknown in ["$schema", "title", "additionalProperties"] {
        if unknown != "additionalProperties" || fields.get(unknown) == Some(&Value::Bool(false)) {
            fields.remove(unknown);
        }
    }
    unwrap_option(&mut fields);
    enumerate(&mut fields);
    if fields
        .get("format")
        .and_then(Value::as_str)
        .is_some_and(|format| format.starts_with("uint"))
    {
        fields.remove("format");
    }
    for (name, value) in &mut fields {
        match (name.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                for property in properties.values_mut() {
                    *property = structural(property.take());
                }
            }
            ("items" | "additionalProperties", value) => *value = structural(value.take()),
            _ => {}
        }
    }
    Value::Object(fields)
}

/// `T or null`, in any of its spellings, becomes `T` and `nullable`.
fn unwrap_option(fields: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = fields.get("type")
        && let Some(named) = types.iter().find(|name| *name != "null").cloned()
    {
        let nullable = types.len() > 1;
        fields.insert("type".into(), named);
        if nullable {
            fields.insert("nullable".into(), true.into());
        }
    }
    if let Some(Value::Array(options)) = fields.remove("anyOf") {
        let named = options
            .into_iter()
            .find(|option| option.get("type") != Some(&"null".into()));
        if let Some(Value::Object(inner)) = named {
            for (name, value) in inner {
                fields.entry(name).or_insert(value);
            }
            fields.insert("nullable".into(), true.into());
        }
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

/// An enum whose values have descriptions becomes a plain one.
fn enumerate(fields: &mut Map<String, Value>) {
    let Some(Value::Array(options)) = fields.remove("oneOf") else {
        return;
    };
    let mut values = Vec::new();
    for option in &options {
        values.extend(option.get("const").cloned());
        values.extend(
            option
                .get("enum")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .cloned(),
        );
    }
    fields.insert("type".into(), "string".into());
    fields.insert("enum".into(), Value::Array(values));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Map<String, Value>)) {
        let Value::Object(fields) = schema else {
            panic!("{path}: not a schema: {schema}")
        };
        visit(path, fields);
        if let Some(Value::Object(properties)) = fields.get("properties") {
            for (name, property) in properties {
                each(property, &format!("{path}.{name}"), visit);
            }
        }
        if let Some(items) = fields.get("items") {
            each(items, &format!("{path}[]"), visit);
        }
    }

    #[test]
    fn schemas_are_structural() {
        for crd in [bgp_configuration(), bgp_peer(), bgp_node_status()] {
            let schema = crd
                .pointer("/spec/versions/0/schema/openAPIV3Schema")
                .unwrap();
            let mut fields = 0;
            each(schema, "", &mut |path, schema| {
                fields += 1;
                let int_or_string = schema.get("x-kubernetes-int-or-string").is_some();
                assert!(
                    int_or_string || schema.get("type").is_some_and(Value::is_string),
                    "{path}: {schema:?}"
                );
                for forbidden in [
                    "$ref",
                    "anyOf",
                    "oneOf",
                    "allOf",
                    "definitions",
                    "const",
                    "title",
                ] {
                    assert!(!schema.contains_key(forbidden), "{path}: {forbidden}");
                }
            });
            assert!(fields > 20, "{fields}");
        }
    }
}
