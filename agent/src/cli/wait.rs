//! `selvage wait`: until something is true, or the time is up.

use std::time::{Duration, Instant};

use clap::ValueEnum;

use super::screen::Screen;
use super::{Failure, Outcome, OutputArgs, print};
use crate::api::{WaitFor, WaitView};
use crate::control::client::{Client, ClientError};
use crate::control::server::WaitQuestion;
use crate::objects::duration;

/// How long a daemon that is not there yet is given between two looks.
const RETRY: Duration = Duration::from_millis(50);

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    /// What to wait for
    #[arg(long = "for", value_enum, default_value_t = What::Synced)]
    what: What,
    /// How long, as in 30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration::parse)]
    timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Everything that the source holds now is in the kernel
    Synced,
    /// The node can serve pods
    Ready,
    /// Every neighbour is Established and has sent its routes
    Peers,
}

pub(super) async fn run(client: &Client, args: &Args) -> Outcome {
    let end = Instant::now() + args.timeout;
    let what = match args.what {
        What::Synced => WaitFor::Synced,
        What::Ready => WaitFor::Ready,
        What::Peers => WaitFor::Peers,
    };
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        match client
            .post::<WaitView>("/v1/wait", &WaitQuestion { what, timeout })
            .await
        {
            Ok(view) => {
                print(args.output.output, &view, |screen| {
                    render(screen, &view, args.timeout)
                })?;
                return Ok(view.done);
            }
            Err(ClientError::Absent { .. }) if !left.is_zero() => {
                tokio::time::sleep(RETRY.min(left)).await
            }
            Err(error) => return Err(Failure::from(error)),
        }
    }
}

/// Nothing if it came true; else what is missing.
pub fn render(screen: &Screen, view: &WaitView, timeout: Duration) -> String {
    if view.done {
        return String::new();
    }
    let mut text = format!(
        "{} after {}\n",
        screen.bad("not yet"),
        duration::show(timeout)
    );
    for missing in &view.missing {
        text.push_str(&format!("  {missing}\n"));
    }
    text
}
