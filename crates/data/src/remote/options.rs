//! The options of one remote, read by the kinds of remotes.

use std::time::Duration;

use slipway_store::reach::Reach;

use crate::error::DataError;
use crate::schema::Options;

/// Whether certificates are verified (`ssl_verify`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verification {
    /// With the system's authorities.
    System,
    /// With the authorities in a file.
    File(String),
    /// Not at all.
    Off,
}

/// The options of a remote, whose values have the form of the schema.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The name of the remote.
    pub(crate) name: String,
    /// Its URL or path.
    pub(crate) url: String,
    /// Which servers it may lead to.
    pub(crate) reach: Reach,
    options: Options,
}

impl Settings {
    /// The options of a remote, with its URL among them.
    pub(crate) fn new(name: &str, mut options: Options) -> Self {
        let url = options.remove("url").unwrap_or_default();
        Self { name: name.to_owned(), url, reach: Reach::Any, options }
    }

    /// The same options of a remote that leads to these servers only.
    pub(crate) fn within(self, reach: &Reach) -> Self {
        Self { reach: reach.clone(), ..self }
    }

    /// The value of an option.
    pub(crate) fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }

    /// Whether an option is set to true.
    pub(crate) fn is_true(&self, option: &str) -> bool {
        self.text(option).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A whole number.
    pub(crate) fn number<T: std::str::FromStr>(&self, option: &str) -> Result<Option<T>, DataError> {
        let parse = |value: &str| value.trim().parse().map_err(|_| self.invalid(option, "it is out of range"));
        self.text(option).map(parse).transpose()
    }

    /// A duration in seconds. Zero means none, as for Python's clients.
    pub(crate) fn seconds(&self, option: &str) -> Result<Option<Duration>, DataError> {
        let Some(value) = self.text(option) else { return Ok(None) };
        let seconds: f64 = value.trim().parse().map_err(|_| self.invalid(option, "it is not a number"))?;
        let duration = Duration::try_from_secs_f64(seconds).map_err(|_| self.invalid(option, "it is out of range"))?;
        Ok((!duration.is_zero()).then_some(duration))
    }

    /// How certificates are verified.
    pub(crate) fn verification(&self) -> Verification {
        match self.text("ssl_verify") {
            None => Verification::System,
            Some(value) if value.eq_ignore_ascii_case("true") => Verification::System,
            Some(value) if value.eq_ignore_ascii_case("false") => Verification::Off,
            Some(path) => Verification::File(path.to_owned()),
        }
    }

    /// Fails for options that this kind of remote cannot honour, with a hint for each.
    pub(crate) fn refuse(&self, options: &[(&str, &str)]) -> Result<(), DataError> {
        for (option, hint) in options {
            // A switch that is off changes nothing.
            if self.text(option).is_some_and(|value| !value.eq_ignore_ascii_case("false")) {
                return Err(self.unsupported(option, hint));
            }
        }
        Ok(())
    }

    /// The error for an option that slipway does not support.
    pub(crate) fn unsupported(&self, option: &str, hint: &str) -> DataError {
        DataError::Config(format!("remote '{}': slipway does not support the option '{option}'; {hint}", self.name))
    }

    /// The error for an invalid value.
    pub(crate) fn invalid(&self, option: &str, reason: &str) -> DataError {
        DataError::Config(format!("remote '{}': the option '{option}' is invalid: {reason}", self.name))
    }
}
