//! An API server that has pods and nothing else.

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::pod::pod;

/// Between two changes.
const PAUSE: Duration = Duration::from_millis(10);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
const BOOKMARK: &str = r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1000000000","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;

/// Says where it listens, and serves until it is killed.
pub fn serve(pods: u32) -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    println!("{}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        // Whoever hangs up is done.
        thread::spawn(move || watch(&stream, pods).is_ok());
    }
    Ok(())
}

fn watch(mut stream: &TcpStream, pods: u32) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let (mut path, mut line) = (String::new(), String::new());
    reader.read_line(&mut path)?;
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    stream.write_all(HEAD)?;
    let of_pods = path.contains("/pods?");
    let texts: Vec<String> = (0..50).map(|number| pod(number).to_string()).collect();
    let one = |number: u32| {
        let text = texts
            .get(number as usize % texts.len())
            .map_or("", String::as_str);
        let address = format!("10.{}.{}.{}", number >> 16, number >> 8 & 255, number & 255);
        let text = text.replace("web-7c9f8b6d54-x0", &format!("web-7c9f8b6d54-x{number}"));
        text.replace("10.244.0.7", &address)
    };
    if path.contains("sendInitialEvents") {
        let mut some = String::new();
        for number in 0..if of_pods { pods } else { 0 } {
            some += &format!("{{\"type\":\"ADDED\",\"object\":{}}}\n", one(number));
            if some.len() > 64 << 10 {
                chunk(stream, &some)?;
                some.clear();
            }
        }
        some += BOOKMARK;
        some.push('\n');
        chunk(stream, &some)?;
    }
    for number in 0.. {
        thread::sleep(PAUSE);
        if of_pods {
            let version = format!(
                "\"resourceVersion\":\"{}\"",
                1_000_000_001u64 + u64::from(number)
            );
            let text =
                one(number % pods.max(1)).replace("\"resourceVersion\":\"123456789\"", &version);
            let text = text.replace("\"team\":\"shop\"", &format!("\"team\":\"shop{number}\""));
            chunk(
                stream,
                &format!("{{\"type\":\"MODIFIED\",\"object\":{text}}}\n"),
            )?;
        }
    }
    Ok(())
}

fn chunk(mut stream: &TcpStream, text: &str) -> std::io::Result<()> {
    stream.write_all(format!("{:x}\r\n{text}\r\n", text.len()).as_bytes())
}
