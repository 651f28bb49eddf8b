//! Downloads packages from URLs that clients name. A client must not reach through the server what it cannot reach itself, so only
//! servers with public addresses are asked, by HTTPS.

use std::time::Duration;

use reqwest::{Client, Url, redirect};
use slipway_core::tls::{self, Trust};
use slipway_store::reach::Reach;

use super::package::MAX_PACKAGE;
use crate::Error;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Total time of a download.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
const MAX_REDIRECTS: usize = 5;

/// What may be downloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DownloadRules {
    /// HTTPS from public addresses.
    PublicHttps,
    /// Everything, for tests and installations whose users may reach all that the server reaches.
    Any,
}

impl DownloadRules {
    /// Fails for a URL that may not be downloaded. Host names are checked again when they are resolved.
    fn check(self, url: &Url) -> Result<(), String> {
        if self == Self::Any {
            return Ok(());
        }
        if url.scheme() != "https" {
            return Err(format!("URL scheme {:?} not allowed, use https", url.scheme()));
        }
        if url.port().is_some() {
            return Err("HTTPS requires port 443".into());
        }
        Reach::public().check(url)
    }

    fn client(self) -> Result<Client, String> {
        let policy = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error("too many redirects");
            }
            match self.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(reason) => attempt.error(reason),
            }
        });
        let mut client = Client::builder()
            .tls_backend_preconfigured(tls::client(Trust::System).map_err(|error| error.to_string())?)
            .connect_timeout(CONNECT_TIMEOUT)
            .timeout(REQUEST_TIMEOUT)
            .redirect(policy)
            .no_proxy();
        if self == Self::PublicHttps {
            client = Reach::public().limit(client.https_only(true));
        }
        client.build().map_err(|error| error.to_string())
    }

    /// Downloads a file, and returns it with its name.
    pub(super) async fn fetch(self, text: &str) -> Result<(String, Vec<u8>), Error> {
        let url = Url::parse(text).map_err(|_| Error::Invalid(format!("invalid pipeline spec URL: {text}")))?;
        self.check(&url).map_err(|reason| Error::Invalid(format!("Pipeline URL validation failed: {reason}")))?;
        let name = url.path().rsplit('/').next().unwrap_or_default().to_owned();
        let failed =
            |error: String| Error::Invalid(format!("error downloading the pipeline spec from {text}: {error}"));
        let client = self.client().map_err(failed)?;
        let mut response = client.get(url).send().await.map_err(|error| failed(reason(&error)))?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(Error::Invalid(format!(
                "error fetching pipeline spec from {text} - request returned {}",
                response.status()
            )));
        }
        let mut content = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| failed(reason(&error)))? {
            if content.len() + piece.len() > MAX_PACKAGE {
                return Err(failed(format!("it has more than {MAX_PACKAGE} bytes")));
            }
            content.extend_from_slice(&piece);
        }
        Ok((name, content))
    }
}

/// The innermost reason of an error, which says more than "error sending request".
fn reason(error: &reqwest::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn urls_that_are_not_allowed_are_refused() {
        for url in [
            "http://example.com/p.yaml",
            "https://example.com:8443/p.yaml",
            "https://127.0.0.1/p.yaml",
            "https://[::1]/p.yaml",
            "https://2130706433/p.yaml",
            "file:///etc/passwd",
            "p.yaml",
            "https://localhost/p.yaml",
        ] {
            let error = DownloadRules::PublicHttps.fetch(url).await.unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{url}: {error}");
        }
    }
}
