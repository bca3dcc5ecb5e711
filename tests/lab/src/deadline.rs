//! Waiting for a condition with a deadline: the only way in which tests wait.

use std::env;
use std::fmt::Debug;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long to pause between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Names a whole number that every deadline is multiplied by: for machines that are emulated, or very busy.
pub const FACTOR: &str = "SELVAGE_DEADLINE_FACTOR";

/// A deadline as this machine needs it: `limit` times [`patience`].
#[must_use]
pub fn scaled(limit: Duration) -> Duration {
    limit * patience()
}

/// How many times slower than an ordinary one this machine is taken to be: the number in `SELVAGE_DEADLINE_FACTOR` (1 to
/// 100; 1 without, and for anything else, which is said once).
#[must_use]
pub fn patience() -> u32 {
    static NUMBER: OnceLock<u32> = OnceLock::new();
    *NUMBER.get_or_init(|| match env::var(FACTOR) {
        Ok(text) => factor(&text).unwrap_or_else(|| {
            eprintln!(
                "{FACTOR}={text} is no whole number from 1 to 100: deadlines are not changed"
            );
            1
        }),
        Err(_) => 1,
    })
}

fn factor(text: &str) -> Option<u32> {
    text.parse()
        .ok()
        .filter(|number| (1..=100).contains(number))
}

/// Waits until `condition` holds and returns how long that took.
///
/// # Errors
/// When it does not hold within `limit`, [`scaled`]; the message repeats `what`.
pub fn eventually(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> bool,
) -> Result<Duration> {
    let limit = scaled(limit);
    let start = Instant::now();
    while !condition() {
        if start.elapsed() >= limit {
            bail!("not within {limit:?}: {what}");
        }
        thread::sleep(PAUSE);
    }
    Ok(start.elapsed())
}

/// Waits until `attempt` succeeds and returns its value.
///
/// # Errors
/// The last error of `attempt` when it never succeeds within `limit`, [`scaled`].
pub fn eventually_ok<T>(
    limit: Duration,
    what: &str,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<T> {
    let limit = scaled(limit);
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() >= limit => {
                return Err(error).with_context(|| format!("not within {limit:?}: {what}"));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Waits until `look` returns `wanted`; the error shows what was there last.
///
/// # Errors
/// When another value is still there after `limit`.
pub fn eventually_eq<T: PartialEq + Debug>(
    limit: Duration,
    what: &str,
    wanted: &T,
    mut look: impl FnMut() -> Result<T>,
) -> Result<()> {
    eventually_ok(limit, what, || {
        let found = look()?;
        if found != *wanted {
            bail!("found {found:?}, wanted {wanted:?}");
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_is_met_and_one_that_never_does_is_named() {
        let mut looks = 0;
        eventually(Duration::from_secs(5), "third look", || {
            looks += 1;
            looks == 3
        })
        .expect("met");
        assert_eq!(looks, 3);
        let error = eventually(Duration::ZERO, "the impossible", || false).expect_err("never");
        assert!(error.to_string().contains("the impossible"));
    }

    #[test]
    fn the_factor_is_a_whole_number_from_1_to_100() {
        assert_eq!(factor("1"), Some(1));
        assert_eq!(factor("100"), Some(100));
        for bad in ["0", "101", "-1", "1.5", "", "five"] {
            assert_eq!(factor(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_last_value_is_part_of_the_error() {
        let error = eventually_eq(Duration::ZERO, "two", &2, || Ok(1)).expect_err("one is not two");
        assert!(format!("{error:#}").contains("found 1, wanted 2"));
    }
}
