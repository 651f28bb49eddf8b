//! One question to one machine over SSH.

use std::time::Duration;

use crate::ClusterError;
use crate::probe::{self, Facts};
use crate::resource::Wanted;
use crate::transport::Host;

/// A probe may wait for a service that starts.
const PROBE: Duration = Duration::from_secs(180);

/// Asks one machine.
///
/// # Errors
/// Those of [`Host::script`].
pub(crate) async fn ask(host: &Host, wanted: &Wanted, more: u8) -> Result<Facts, ClusterError> {
    let text = host.script(&probe::script(&wanted.resources, more), PROBE).await?;
    Facts::parse(&text).map_err(|reason| ClusterError::Host { host: host.name.clone(), reason })
}
