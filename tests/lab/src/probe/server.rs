//! An echo server for TCP and UDP, both families on one port, in one thread inside a namespace.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

use anyhow::Result;
use rustix::event::{PollFd, PollFlags, poll};

use crate::netns::Netns;

/// A running echo server; it ends when dropped.
#[derive(Debug)]
pub struct EchoServer {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl EchoServer {
    /// Listens on `port` of every address of the namespace, now and later ones; returns when it does.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(netns: &Netns, port: u16) -> Result<EchoServer> {
        // An unspecified IPv6 address takes IPv4 as well (net.ipv6.bindv6only is 0 in a new namespace).
        let (tcp, udp) = netns.run(|| {
            let tcp = super::bind(port, || TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)))?;
            let udp = super::bind(port, || UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)))?;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            Ok((tcp, udp))
        })?;
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::spawn(move || serve(&tcp, &udp, &stopped));
        Ok(EchoServer {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Echoes until the other end of `stopped` is closed. The sockets belong to their namespace, the thread to none.
fn serve(tcp: &TcpListener, udp: &UdpSocket, stopped: &UnixStream) -> Result<()> {
    let mut connections: Vec<TcpStream> = Vec::new();
    loop {
        let mut fds = vec![
            PollFd::new(stopped, PollFlags::IN),
            PollFd::new(tcp, PollFlags::IN),
            PollFd::new(udp, PollFlags::IN),
        ];
        fds.extend(
            connections
                .iter()
                .map(|stream| PollFd::new(stream, PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return Ok(());
        }
        let mut index = 3;
        connections.retain(|stream| {
            index += 1;
            !ready[index - 1] || echo(stream)
        });
        if ready[1] {
            while let Ok((stream, _)) = tcp.accept() {
                stream.set_nonblocking(true)?;
                connections.push(stream);
            }
        }
        if ready[2] {
            echo_datagrams(udp);
        }
    }
}

/// Returns what can be read; false when the connection is over.
fn echo(mut stream: &TcpStream) -> bool {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) => false,
        Ok(length) => stream.write_all(&buffer[..length]).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

fn echo_datagrams(udp: &UdpSocket) {
    let mut buffer = [0; 2048];
    while let Ok((length, from)) = udp.recv_from(&mut buffer) {
        let _ = udp.send_to(&buffer[..length], from);
    }
}
