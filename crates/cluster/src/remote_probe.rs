//! Probes one machine over SSH.
//!
//! A plan, an apply and the doctor use it on the controller; the engine on the machine probes itself ([`crate::converge`]). Probing
//! changes nothing.

use std::time::Duration;

use crate::ClusterError;
use crate::probe::{self, Facts};
use crate::resource::DesiredState;
use crate::transport::Host;

/// Long enough for check commands that wait until a starting service is ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(180);

/// Reads the state of these resources on a machine, and the `extra` parts: [`probe::ABOUT`], [`probe::NODES`], [`probe::DOCTOR`].
///
/// # Errors
/// As [`Host::script`], or [`ClusterError::Host`] when the output cannot be parsed.
pub(crate) async fn probe_host(host: &Host, desired: &DesiredState, extra: u8) -> Result<Facts, ClusterError> {
    let text = host.script(&probe::script(&desired.resources, extra), PROBE_TIMEOUT).await?;
    Facts::parse(&text).map_err(|reason| ClusterError::Host { host: host.name.clone(), reason })
}
