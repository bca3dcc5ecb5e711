//! `cni.sock`: the plugin's requests, one per connection, in its own framing.

use std::io;
use std::time::Duration;

use selvage_cni::link::{self, LinkError, MAX_FRAME, Reply, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;

use super::{Ask, LinkQuery};

/// How long a connected plugin may take to send its request.
const REQUEST_TIME: Duration = Duration::from_secs(10);

/// Serves until the runtime ends.
pub async fn serve(listener: UnixListener, ask: Ask<LinkQuery>) -> io::Result<()> {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let ask = Ask::clone(&ask);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, ask).await {
                        tracing::debug!(%error, "a plugin hung up");
                    }
                });
            }
            // Out of descriptors: those that wait for their policy give some back.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a plugin");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(mut stream: UnixStream, ask: Ask<LinkQuery>) -> Result<(), LinkError> {
    let request = match tokio::time::timeout(REQUEST_TIME, read(&mut stream)).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            let message = error.to_string();
            write(&mut stream, &Reply::Error { message }).await?;
            return Err(error);
        }
        Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    };
    let (reply, answer) = oneshot::channel();
    ask(match request {
        Request::Attach { attachment } => LinkQuery::Attach(attachment, reply),
        Request::Detach { id, ifname } => LinkQuery::Detach { id, ifname, reply },
    });
    let mut nothing = [0];
    let answer = tokio::select! {
        answer = answer => answer,
        // The plugin says nothing more: readable means that it is gone, and nobody waits for the answer.
        _ = stream.read(&mut nothing) => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
    };
    match answer {
        Ok(answer) => write(&mut stream, &answer).await,
        // The agent is stopping. A plugin that is hung up on asks whoever comes next.
        Err(_) => Ok(()),
    }
}

async fn read(stream: &mut UnixStream) -> Result<Request, LinkError> {
    let length = stream.read_u32().await? as usize;
    if length > MAX_FRAME {
        return Err(LinkError::TooLong(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    link::decode(&body)
}

async fn write(stream: &mut UnixStream, reply: &Reply) -> Result<(), LinkError> {
    let mut frame = Vec::new();
    link::write_frame(&mut frame, &link::encode(reply)?)?;
    stream.write_all(&frame).await?;
    Ok(())
}
