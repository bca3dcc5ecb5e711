//! `selvage objects`: the conditions of the objects, which Kubernetes would show as their status.

use super::screen::Screen;
use super::{Outcome, OutputArgs, print};
use crate::api::ConditionView;
use crate::control::client::Client;

#[derive(clap::Args, Debug)]
pub(super) struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(client: &Client, args: &Args) -> Outcome {
    let conditions: Vec<ConditionView> = client.get("/v1/objects").await?;
    print(args.output.output, &conditions, |screen| {
        render(screen, &conditions)
    })?;
    Ok(true)
}

fn render(screen: &Screen, conditions: &[ConditionView]) -> String {
    if conditions.is_empty() {
        return "Nothing is to be said about any object.\n".into();
    }
    let rows: Vec<[String; 5]> = conditions
        .iter()
        .map(|condition| {
            let good = condition.status == (condition.name == "Accepted");
            let name = if good {
                screen.good(&condition.name)
            } else {
                screen.bad(&condition.name)
            };
            let status = if condition.status { "yes" } else { "no" };
            [
                condition.kind.clone(),
                condition.object.clone(),
                name,
                status.into(),
                condition.message.clone(),
            ]
        })
        .collect();
    screen.table(["KIND", "OBJECT", "CONDITION", "STATUS", "MESSAGE"], &rows)
}
