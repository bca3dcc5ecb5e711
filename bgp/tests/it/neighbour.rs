//! A neighbour that does what it is told, octet by octet.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use bytes::BytesMut;
use selvage_bgp::core::{
    ids::{Asn, RouterId},
    wire::{
        capability::{Capability, Restart, RestartFamily},
        header::{self, MAX_EXTENDED_MESSAGE, MessageType},
        notification::Notification,
        open::Open,
    },
};
use socket2::{Domain, Socket, Type};

use crate::space::{ASN, SPEAKER};

/// Nothing takes as long.
const LIMIT: Duration = Duration::from_secs(10);

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

    /// Reads until a message of this kind has come.
    pub fn read_until(&mut self, kind: MessageType) {
        loop {
            while let Some(frame) = self.frame() {
                if frame.0 == kind {
                    return;
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
