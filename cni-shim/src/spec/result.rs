//! The result of ADD: one model, written in the form of the version asked for, and read back from `prevResult`.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::cidr::Cidr;
use super::error::CniError;
use super::field::Field;
use super::version::Version;

/// What ADD made, on top of what plugins before it had made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniResult {
    /// Interfaces, on both sides.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes in the container.
    pub routes: Vec<Route>,
    /// The resolver's configuration.
    pub dns: Dns,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its hardware address, if it has one.
    pub mac: Option<String>,
    /// Its MTU; from 1.1.0 on.
    pub mtu: Option<u32>,
    /// The namespace it is in; none for the host's.
    pub sandbox: Option<String>,
}

/// An address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    /// The address with its prefix length.
    pub address: Cidr,
    /// The gateway of its subnet.
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    pub interface: Option<u32>,
}

/// A route in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub dst: Cidr,
    /// The next hop.
    pub gw: Option<IpAddr>,
    /// MTU along the route; this and the following from 1.1.0 on.
    pub mtu: Option<u32>,
    /// Maximum segment size to advertise.
    pub advmss: Option<u32>,
    /// The kernel's metric.
    pub priority: Option<u32>,
    /// The kernel's table.
    pub table: Option<u32>,
    /// The kernel's scope.
    pub scope: Option<u32>,
}

impl Route {
    /// A route without attributes.
    pub fn new(dst: Cidr, gw: Option<IpAddr>) -> Self {
        Self {
            dst,
            gw,
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }

    /// From `{dst, gw, …}`.
    pub fn read(field: &Field<'_>) -> Result<Self, CniError> {
        let dst = field
            .get("dst")?
            .ok_or_else(|| field.invalid("a route needs dst"))?
            .cidr()?;
        let number = |key: &str| field.get(key)?.map(|f| f.u32()).transpose();
        Ok(Self {
            dst,
            gw: field
                .get("gw")?
                .filter(|f| f.value() != "")
                .map(|f| f.addr())
                .transpose()?,
            mtu: number("mtu")?,
            advmss: number("advmss")?,
            priority: number("priority")?,
            table: number("table")?,
            scope: number("scope")?,
        })
    }
}

/// The resolver's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dns {
    /// Servers, in order.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: Option<String>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Options.
    pub options: Vec<String>,
}

impl Dns {
    /// From `{nameservers, domain, search, options}`.
    pub fn read(field: &Field<'_>) -> Result<Self, CniError> {
        let strings = |key: &str| {
            Ok::<_, CniError>(
                field
                    .get(key)?
                    .map(|f| f.strings())
                    .transpose()?
                    .unwrap_or_default(),
            )
        };
        Ok(Self {
            nameservers: strings("nameservers")?,
            domain: field
                .get("domain")?
                .map(|f| f.str().map(str::to_owned))
                .transpose()?,
            search: strings("search")?,
            options: strings("options")?,
        })
    }

    /// From the text of a `resolv.conf`.
    pub fn of_resolv_conf(text: &str) -> Self {
        let mut dns = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let key = words.next().unwrap_or_default();
            let rest = words.map(str::to_owned);
            match key {
                "nameserver" => dns.nameservers.extend(rest.take(1)),
                "domain" => dns.domain = rest.take(1).next(),
                "search" => dns.search = rest.collect(),
                "options" => dns.options.extend(rest),
                _ => {}
            }
        }
        dns
    }

    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn to_json(&self) -> Value {
        let mut object = Map::new();
        let mut list = |key: &str, list: &[String]| {
            if !list.is_empty() {
                object.insert(key.to_owned(), list.into());
            }
        };
        list("nameservers", &self.nameservers);
        list("search", &self.search);
        list("options", &self.options);
        if let Some(domain) = &self.domain {
            object.insert("domain".to_owned(), domain.clone().into());
        }
        Value::Object(object)
    }
}

impl CniResult {
    /// In the form of `version`. What that version has no word for is left out.
    pub fn to_json(&self, version: Version) -> Value {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), version.as_str().into());
        let interfaces: Vec<Value> = self
            .interfaces
            .iter()
            .map(|i| interface_json(i, version))
            .collect();
        let ips: Vec<Value> = self.ips.iter().map(|ip| ip_json(ip, version)).collect();
        let routes: Vec<Value> = self.routes.iter().map(|r| route_json(r, version)).collect();
        for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
            if !list.is_empty() {
                object.insert(key.to_owned(), list.into());
            }
        }
        object.insert("dns".to_owned(), self.dns.to_json());
        Value::Object(object)
    }

    /// From a result in any of the forms since 0.3.0.
    pub fn read(field: &Field<'_>) -> Result<Self, CniError> {
        let list = |key: &str| {
            Ok::<_, CniError>(
                field
                    .get(key)?
                    .map(|f| f.list())
                    .transpose()?
                    .unwrap_or_default(),
            )
        };
        let interfaces: Vec<_> = list("interfaces")?
            .iter()
            .map(read_interface)
            .collect::<Result<_, _>>()?;
        let ips: Vec<_> = list("ips")?
            .iter()
            .map(|f| read_ip(f, interfaces.len()))
            .collect::<Result<_, _>>()?;
        let routes = list("routes")?
            .iter()
            .map(Route::read)
            .collect::<Result<_, _>>()?;
        let dns = field
            .get("dns")?
            .map(|f| Dns::read(&f))
            .transpose()?
            .unwrap_or_default();
        Ok(Self {
            interfaces,
            ips,
            routes,
            dns,
        })
    }

    /// Appends what this plugin made; its interface indices are moved behind those that are there.
    pub fn append(&mut self, ours: Self) {
        let offset = self.interfaces.len() as u32;
        self.interfaces.extend(ours.interfaces);
        self.ips.extend(ours.ips.into_iter().map(|ip| Ip {
            interface: ip.interface.map(|i| i + offset),
            ..ip
        }));
        self.routes.extend(ours.routes);
        if !ours.dns.is_empty() {
            self.dns = ours.dns;
        }
    }
}

fn interface_json(interface: &Interface, version: Version) -> Value {
    let mut object = Map::new();
    object.insert("name".to_owned(), interface.name.clone().into());
    if let Some(mac) = &interface.mac {
        object.insert("mac".to_owned(), mac.clone().into());
    }
    if let Some(mtu) = interface.mtu.filter(|_| version.has_link_details()) {
        object.insert("mtu".to_owned(), mtu.into());
    }
    if let Some(sandbox) = &interface.sandbox {
        object.insert("sandbox".to_owned(), sandbox.clone().into());
    }
    Value::Object(object)
}

fn ip_json(ip: &Ip, version: Version) -> Value {
    let mut object = json!({"address": ip.address.to_string()});
    if version.tags_family() {
        object["version"] = if ip.address.is_v6() { "6" } else { "4" }.into();
    }
    if let Some(gateway) = ip.gateway {
        object["gateway"] = gateway.to_string().into();
    }
    if let Some(interface) = ip.interface {
        object["interface"] = interface.into();
    }
    object
}

fn route_json(route: &Route, version: Version) -> Value {
    let mut object = json!({"dst": route.dst.to_string()});
    if let Some(gw) = route.gw {
        object["gw"] = gw.to_string().into();
    }
    if !version.has_link_details() {
        return object;
    }
    let numbers = [
        ("mtu", route.mtu),
        ("advmss", route.advmss),
        ("priority", route.priority),
        ("table", route.table),
        ("scope", route.scope),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            object[key] = number.into();
        }
    }
    object
}

fn read_interface(field: &Field<'_>) -> Result<Interface, CniError> {
    let text = |key: &str| {
        Ok::<_, CniError>(
            field
                .get(key)?
                .map(|f| f.str())
                .transpose()?
                .filter(|t| !t.is_empty())
                .map(str::to_owned),
        )
    };
    Ok(Interface {
        name: text("name")?.ok_or_else(|| field.invalid("an interface needs a name"))?,
        mac: text("mac")?,
        mtu: field
            .get("mtu")?
            .map(|f| f.u32())
            .transpose()?
            .filter(|&mtu| mtu != 0),
        sandbox: text("sandbox")?,
    })
}

fn read_ip(field: &Field<'_>, interfaces: usize) -> Result<Ip, CniError> {
    let interface = match field.get("interface")? {
        // Some plugins write -1 for "none".
        Some(f) if f.value().as_i64().is_some_and(|i| i < 0) => None,
        Some(f) if f.u32()? as usize >= interfaces => {
            return Err(f.invalid("there is no such interface"));
        }
        Some(f) => Some(f.u32()?),
        None => None,
    };
    Ok(Ip {
        address: field
            .get("address")?
            .ok_or_else(|| field.invalid("an address is missing"))?
            .cidr()?,
        gateway: field
            .get("gateway")?
            .filter(|f| f.value() != "")
            .map(|f| f.addr())
            .transpose()?,
        interface,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        let interface = |name: &str, sandbox: Option<&str>| Interface {
            name: name.into(),
            mac: Some("02:00:00:00:00:01".into()),
            mtu: Some(1450),
            sandbox: sandbox.map(str::to_owned),
        };
        CniResult {
            interfaces: vec![
                interface("sv0", None),
                interface("eth0", Some("/run/netns/a")),
            ],
            ips: vec![
                Ip {
                    address: Cidr::parse("10.1.0.2/32").unwrap(),
                    gateway: Some("169.254.1.1".parse().unwrap()),
                    interface: Some(1),
                },
                Ip {
                    address: Cidr::parse("fd00::2/128").unwrap(),
                    gateway: None,
                    interface: Some(1),
                },
            ],
            routes: vec![Route {
                priority: Some(7),
                ..Route::new(Cidr::all(false), Some("169.254.1.1".parse().unwrap()))
            }],
            dns: Dns {
                nameservers: vec!["10.96.0.10".into()],
                ..Dns::default()
            },
        }
    }

    #[test]
    fn forms_by_version() {
        for version in Version::ALL {
            let json = sample().to_json(version);
            let old = version < Version::V100;
            assert_eq!(json["cniVersion"], version.as_str());
            assert_eq!(json["ips"][0].get("version").is_some(), old, "{version:?}");
            assert_eq!(json["ips"][1]["interface"], 1);
            assert_eq!(
                json["interfaces"][1].get("mtu").is_some(),
                version == Version::V110
            );
            assert_eq!(
                json["routes"][0].get("priority").is_some(),
                version == Version::V110
            );
            assert_eq!(json["interfaces"][1]["sandbox"], "/run/netns/a");
            assert!(json["interfaces"][0].get("sandbox").is_none());
            assert_eq!(json["dns"]["nameservers"][0], "10.96.0.10");
        }
        let json = sample().to_json(Version::V031);
        assert_eq!(
            (&json["ips"][0]["version"], &json["ips"][1]["version"]),
            (&"4".into(), &"6".into())
        );
        assert_eq!(
            CniResult::default().to_json(Version::V110),
            json!({"cniVersion": "1.1.0", "dns": {}})
        );
    }

    #[test]
    fn the_newest_form_is_read_back_whole() {
        let json = sample().to_json(Version::V110);
        assert_eq!(CniResult::read(&Field::root(&json)).unwrap(), sample());
        let older = sample().to_json(Version::V040);
        let read = CniResult::read(&Field::root(&older)).unwrap();
        assert_eq!(read.ips, sample().ips);
        assert_eq!(read.interfaces[0].mtu, None);
    }

    #[test]
    fn appending_moves_indices() {
        let mut all = sample();
        all.append(sample());
        assert_eq!(
            all.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(),
            [Some(1), Some(1), Some(3), Some(3)]
        );
    }

    #[test]
    fn bad_results_name_the_member() {
        for (json, path) in [
            (json!({"ips": [{"address": "10.0.0.1"}]}), "ips[0].address"),
            (
                json!({"ips": [{"address": "10.0.0.1/8", "interface": 0}]}),
                "ips[0].interface",
            ),
            (json!({"interfaces": [{"mac": "x"}]}), "interfaces[0]"),
            (json!({"routes": [{"gw": "10.0.0.1"}]}), "routes[0]"),
            (json!({"dns": {"search": [1]}}), "dns.search[0]"),
        ] {
            let error = CniResult::read(&Field::root(&json)).unwrap_err();
            assert!(
                error.code == 7 && error.message.starts_with(path),
                "{error}"
            );
        }
    }

    #[test]
    fn resolv_conf() {
        let dns = Dns::of_resolv_conf(
            "# c\nnameserver 10.0.0.1\nnameserver fd00::1\nsearch a b\noptions ndots:5\nodd\n",
        );
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!(
            (dns.search, dns.options, dns.domain),
            (vec!["a".into(), "b".into()], vec!["ndots:5".into()], None)
        );
    }
}
