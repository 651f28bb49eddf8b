//! Locations of other repositories: which of them are passed to Git, and how they are shown.

use crate::error::DataError;

/// The transports of Git that are allowed. Helpers such as `ext::` run commands that are part of the URL.
pub(super) const PROTOCOLS: &str = "file:git:http:https:ssh";

/// Checks a location before it is passed to Git.
///
/// # Errors
/// [`DataError::Invalid`] if Git would take it as an option or run a command for it.
pub(crate) fn check(url: &str) -> Result<(), DataError> {
    let reason = if url.is_empty() {
        "it is empty"
    } else if url.starts_with('-') {
        "it begins with '-', like an option of Git"
    } else if url.chars().any(char::is_control) {
        "it contains control characters"
    } else if uses_helper(url) {
        "helpers of Git such as 'ext::' run commands"
    } else if host(url).is_some_and(|host| host.starts_with('-')) {
        "its host begins with '-', like an option of SSH"
    } else {
        return Ok(());
    };
    Err(DataError::Invalid(format!("'{}' is not accepted as the location of a repository: {reason}", redact(url))))
}

/// Whether the location has the form `HELPER::ADDRESS`.
fn uses_helper(url: &str) -> bool {
    let is_name =
        |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "+-._".contains(c));
    url.split_once("::").is_some_and(|(name, _)| is_name(name))
}

/// The host of a URL, or of the short form `USER@HOST:PATH`.
fn host(url: &str) -> Option<&str> {
    let authority = match url.split_once("://") {
        Some((_, rest)) => rest.split('/').next()?,
        None => url.split_once(':').filter(|(host, _)| !host.contains('/'))?.0,
    };
    Some(authority.rsplit_once('@').map_or(authority, |(_, host)| host))
}

/// The URL without user name and password, for messages.
pub(crate) fn redact(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
    match authority.rsplit_once('@') {
        Some((user, host)) if user.contains(':') || scheme.starts_with("http") => {
            format!("{scheme}://***@{host}{path}")
        }
        _ => url.to_owned(),
    }
}

/// The URL of a repository without user and password.
pub fn without_credentials(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme @ ("http" | "https"), rest)) => {
            let (host, path) = rest.split_once('/').map_or((rest, None), |(host, path)| (host, Some(path)));
            let host = host.rsplit('@').next().unwrap_or(host);
            path.map_or_else(|| format!("{scheme}://{host}"), |path| format!("{scheme}://{host}/{path}"))
        }
        _ => url.to_owned(),
    }
}

/// The text of another program without the credentials of `url`.
pub(super) fn redact_in(text: &str, url: &str) -> String {
    let clean = redact(url);
    let text = text.replace(url, &clean);
    // Git shows a part of the URL in some messages, so the credentials are removed, too.
    let credentials = url.split_once("://").and_then(|(_, rest)| rest.split('/').next()?.rsplit_once('@'));
    match credentials {
        Some((credentials, _)) if clean != url && !credentials.is_empty() => text.replace(credentials, "***"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_that_run_commands_are_rejected() {
        for url in [
            "",
            "--upload-pack=touch /tmp/x",
            "-u",
            "ext::sh -c 'touch /tmp/x'",
            "fd::17",
            "my+helper::x",
            "ssh://-oProxyCommand=x/y",
            "ssh://u@-oProxyCommand=x/y",
            "-oProxyCommand=x:y",
            "u@-oProxyCommand=x:y",
            "https://host/a\nb",
        ] {
            assert!(check(url).is_err(), "{url}");
        }
        for url in [
            "https://host/repo.git",
            "ssh://git@host:22/repo",
            "git@host:owner/repo",
            "/srv/git/a",
            "../other",
            "file:///srv/a::b",
            "ssh://[::1]/repo",
        ] {
            assert!(check(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn credentials_are_not_shown() {
        let url = "https://me:secret@host/repo";
        assert_eq!(redact(url), "https://***@host/repo");
        assert_eq!(redact("https://token@host/repo"), "https://***@host/repo");
        assert_eq!(redact("ssh://git@host/repo"), "ssh://git@host/repo");
        assert_eq!(redact("../repo@x"), "../repo@x");
        assert_eq!(
            redact_in("fatal: unable to access 'https://me:secret@host/repo/': me:secret refused", url),
            "fatal: unable to access 'https://***@host/repo/': *** refused"
        );
    }

    #[test]
    fn credentials_are_removed() {
        for (url, shown) in [
            ("https://me:secret@host/a/b", "https://host/a/b"),
            ("https://token@host", "https://host"),
            ("https://host/a@b", "https://host/a@b"),
            ("git@host:a/b", "git@host:a/b"),
            ("/srv/a@b", "/srv/a@b"),
        ] {
            assert_eq!(without_credentials(url), shown);
        }
    }
}
