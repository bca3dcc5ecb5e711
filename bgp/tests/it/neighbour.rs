//! A neighbour that does what it is told, octet by octet.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use bytes::BytesMut;
use selvage_bgp::core::{
    ids::{Asn, Family, FamilySet, RouterId},
    prefix::Prefix,
    wire::{
        attr::PathAttributes,
        capability::{Capability, Restart, RestartFamily},
        header::{self, MAX_EXTENDED_MESSAGE, MessageType},
        notification::Notification,
        open::Open,
        update::{self, AttributeCache, Context, EncodeOptions},
    },
};
use socket2::{Domain, Socket, Type};

use crate::space::{ASN, SPEAKER};

/// Nothing takes as long.
pub const LIMIT: Duration = Duration::from_secs(10);

pub struct Neighbour {
    pub stream: TcpStream,
    unread: BytesMut,
}

/// How a connection ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// In order.
    Closed,
    /// By a reset.
    Reset,
    /// Not yet.
    Open,
}

/// The OPEN of a neighbour with this address.
pub fn open(address: Ipv4Addr) -> Open {
    Open {
        my_as: ASN.0 as u16,
        hold_time: 90,
        router_id: RouterId::from(address),
        capabilities: vec![
            Capability::MultiProtocol { afi: 1, safi: 1 },
            Capability::FourOctetAs(Asn(ASN.0)),
            Capability::GracefulRestart(Restart {
                restarting: false,
                notification: true,
                time: 120,
                families: vec![RestartFamily {
                    afi: 1,
                    safi: 1,
                    forwarding: true,
                }],
            }),
        ],
    }
}

impl Neighbour {
    /// Connects from this address; `window`: how many octets the kernel may take in for us.
    pub fn connect(from: Ipv4Addr, window: Option<usize>) -> Neighbour {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if let Some(octets) = window {
            socket.set_recv_buffer_size(octets).unwrap();
        }
        socket.set_tcp_nodelay(true).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket
            .connect(&SocketAddr::from((SPEAKER, 179)).into())
            .unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        Neighbour {
            stream,
            unread: BytesMut::new(),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Announces prefixes of IPv4 by 192.0.2.1, since an address of the loopback network is no next hop.
    pub fn announce(&mut self, prefixes: &[Prefix]) {
        let next_hop = IpAddr::from([192, 0, 2, 1]);
        let attributes = PathAttributes {
            local_pref: Some(100),
            ..PathAttributes::local(next_hop.into())
        };
        let options = EncodeOptions {
            four_octet_as: true,
            add_path: false,
            max_message: header::MAX_MESSAGE,
        };
        let mut bytes = BytesMut::new();
        let mut nlri = prefixes.iter().map(|prefix| (0, *prefix));
        update::write_reach(&mut bytes, Family::Ipv4, &attributes, &options, &mut nlri).unwrap();
        self.write(&bytes);
    }

    /// Reads until `prefix` has been announced.
    pub fn read_until_announced(&mut self, prefix: &Prefix) {
        let context = Context {
            internal: true,
            four_octet_as: true,
            families: FamilySet::ALL,
            add_path: FamilySet::NONE,
            first_as: None,
            local_addr: self.stream.local_addr().unwrap().ip(),
            interface: None,
        };
        loop {
            let body = self.read_until(MessageType::Update);
            let update = update::decode(&body, &context, &mut AttributeCache::default()).unwrap();
            let mut announced = update.reach.iter().flat_map(|(_, block)| block);
            if announced.any(|(_, other)| other == *prefix) {
                return;
            }
        }
    }

    /// Reads until a message of this kind has come; its body.
    pub fn read_until(&mut self, kind: MessageType) -> bytes::Bytes {
        loop {
            while let Some(frame) = self.frame() {
                if frame.0 == kind {
                    return frame.1;
                }
            }
            let end = self.fill();
            assert_eq!(end, None, "no {kind:?} before the end");
        }
    }

    /// Reads to the end; the NOTIFICATION if there was one, and how it ended.
    pub fn read_to_end(&mut self) -> (Option<Notification>, End) {
        let mut told = None;
        loop {
            while let Some((kind, body)) = self.frame() {
                if kind == MessageType::Notification {
                    told = Some(Notification::decode(&body));
                }
            }
            if let Some(end) = self.fill() {
                return (told, end);
            }
        }
    }

    fn frame(&mut self) -> Option<(MessageType, bytes::Bytes)> {
        let frame = header::next_frame(&mut self.unread, MAX_EXTENDED_MESSAGE).unwrap();
        frame.map(|f| (f.kind, f.body))
    }

    fn fill(&mut self) -> Option<End> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Some(End::Closed),
            Ok(n) => {
                self.unread.extend_from_slice(&buffer[..n]);
                None
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => Some(End::Open),
            Err(_) => Some(End::Reset),
        }
    }
}
