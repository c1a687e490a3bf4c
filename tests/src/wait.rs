//! Waiting for conditions.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything may take: a start, an election, catching up, on a machine that does other things too.
pub const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// Asks `probe` again and again until it gives something.
///
/// # Errors
/// With what `probe` last said, if it gives nothing within [`PATIENCE`].
pub async fn until<T>(what: &str, probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    until_within(PATIENCE, what, probe).await
}

/// [`until`], with a limit of its own.
///
/// # Errors
/// With what `probe` last said, if it gives nothing within `limit`.
pub async fn until_within<T>(limit: Duration, what: &str, mut probe: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        match probe().await {
            Ok(reached) => return Ok(reached),
            Err(error) if began.elapsed() > limit => {
                bail!("not within {:.1} s: {what}; at last: {error:#}", limit.as_secs_f64())
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
