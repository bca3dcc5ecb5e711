//! The day in fast motion as a trial: a minute and a half that goes past every time limit.

use std::env;

use anyhow::{Context, Result};
use selvage_lab::Lab;
use selvage_lab::daemon::Kind;
use selvage_tests::fleet;
use selvage_tests::soak::{self, Plan};

use crate::harness::{Case, Need};

/// Chooses other steps than the trial's own.
const SEED: &str = "SELVAGE_SOAK_SEED";

pub fn cases() -> Vec<Case> {
    const ALL: &[Need] = &[
        Need::Own("selvage"),
        Need::Own("selvage-cni"),
        Need::Daemon(Kind::Bird),
    ];
    vec![Case::alone("soak::a_day_in_fast_motion", ALL, day)]
}

fn day(lab: &Lab) -> Result<()> {
    fleet::raise_open_files();
    let seed = match env::var(SEED) {
        Ok(text) => text
            .parse()
            .with_context(|| format!("{SEED}={text} is not a number"))?,
        Err(_) => 10,
    };
    for report in soak::run(lab, &Plan::short(seed))? {
        print!("{report}");
    }
    Ok(())
}
