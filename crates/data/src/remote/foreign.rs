//! What the remotes of a repository may name where a server reads it for others: only servers with public addresses and hosts that an administrator
//! listed, so that the authors of the repository dispose neither of the server's network nor of its credentials.

use reqwest::Url;
use slipway_store::reach::Reach;

use super::options::Settings;
use crate::error::DataError;
use crate::schema::scheme;

/// Fails for a remote that leads where its repository may not reach. Names of web servers are checked when they are resolved.
///
/// # Errors
/// [`DataError::Config`]
pub(super) fn check(settings: &Settings) -> Result<(), DataError> {
    if matches!(settings.reach, Reach::Any) {
        return Ok(());
    }
    settings.refuse(&[("ask_password", "set 'password'")])?;
    match scheme(&settings.url).as_str() {
        kind @ ("http" | "https" | "webdav" | "webdavs") => web(settings, matches!(kind, "https" | "webdavs")),
        "ssh" => endpoint(settings, "url", &settings.url),
        "s3" | "gs" | "azure" => bucket(settings),
        _ => Ok(()),
    }
}

fn web(settings: &Settings, is_secure: bool) -> Result<(), DataError> {
    let invalid = |reason: &str| settings.invalid("url", reason);
    if settings.url.contains(['?', '#']) {
        return Err(invalid("what follows '?' or '#' would take the place of the path of an object"));
    }
    // The rules for addresses, such as `0x7f.1`, apply to these schemes only.
    let rest = settings.url.split_once("://").map_or("", |(_, rest)| rest);
    let url = Url::parse(&format!("{}://{rest}", if is_secure { "https" } else { "http" }));
    settings.reach.check(&url.map_err(|error| invalid(&error.to_string()))?).map_err(|reason| {
        invalid(&format!("{reason}; an administrator can list the host in the server's setting 'data-hosts'"))
    })
}

/// The server's own credentials are for the service's own endpoint, so another one must be listed.
fn bucket(settings: &Settings) -> Result<(), DataError> {
    if let Some(url) = settings.text("endpointurl") {
        endpoint(settings, "endpointurl", url)?;
    }
    for pair in settings.text("connection_string").unwrap_or_default().split(';') {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("BlobEndpoint", url) => endpoint(settings, "connection_string", url)?,
            ("AccountName", name) => part_of_host(settings, "connection_string", name, "")?,
            ("UseDevelopmentStorage", _) => endpoint(settings, "connection_string", "http://127.0.0.1")?,
            _ => {}
        }
    }
    let bucket = settings.url.split_once("://").map_or("", |(_, rest)| rest).split('/').next().unwrap_or_default();
    part_of_host(settings, "url", bucket, "-_.$")?;
    part_of_host(settings, "region", settings.text("region").unwrap_or_default(), "-")?;
    part_of_host(settings, "account_name", settings.text("account_name").unwrap_or_default(), "")
}

fn endpoint(settings: &Settings, option: &str, url: &str) -> Result<(), DataError> {
    let url = Url::parse(url).map_err(|error| settings.invalid(option, &error.to_string()))?;
    let host = url.host_str().unwrap_or_default();
    match settings.reach.has(host) {
        true => Ok(()),
        false => {
            Err(settings.invalid(option, &format!("the host '{host}' is not in the server's setting 'data-hosts'")))
        }
    }
}

/// Fails for a value that would make another host of the one that contains it.
fn part_of_host(settings: &Settings, option: &str, value: &str, others: &str) -> Result<(), DataError> {
    match value.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c)) {
        true => Ok(()),
        false => Err(settings.invalid(option, "it has characters that a name cannot have")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Options;

    fn checked(options: &[(&str, &str)], hosts: &[&str]) -> Result<(), DataError> {
        let options: Options = options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        check(&Settings::new("r", options).within(&Reach::Public(hosts.into())))
    }

    #[test]
    fn remotes_lead_to_public_servers_or_listed_hosts() {
        for url in ["https://example.com/data", "webdavs://example.com/dav", "https://8.8.8.8:8443/x", "s3://team/data"]
        {
            checked(&[("url", url)], &[]).unwrap();
        }
        for url in [
            "http://127.0.0.1:27999/latest",
            "http://0x7f.1/x",
            "webdav://169.254.169.254/latest",
            "webdav://0x7f.1/x",
            "http://[::1]/x",
            "https://example.com/role?x=",
            "https://example.com/role#",
            "http://",
            "ssh://internal/data",
            "s3://team@host/data",
            "s3://team?x/data",
        ] {
            assert!(checked(&[("url", url)], &[]).is_err(), "{url}");
        }
        for url in ["http://127.0.0.1:27999/latest", "webdav://127.0.0.1/x", "ssh://127.0.0.1/data"] {
            checked(&[("url", url)], &["127.0.0.1"]).unwrap();
        }
        assert!(checked(&[("url", "http://127.0.0.1/x?y=")], &["127.0.0.1"]).is_err());
        assert!(checked(&[("url", "https://example.com/x"), ("ask_password", "true")], &[]).is_err());
    }

    #[test]
    fn credentials_of_the_server_are_sent_to_listed_endpoints_only() {
        let stays =
            |url: &str, option: &str, value: &str| checked(&[("url", url), (option, value)], &["minio.internal"]);
        for (url, option, value) in [
            ("s3://b", "endpointurl", "http://minio.internal:9000"),
            ("s3://b", "region", "eu-central-1"),
            ("azure://b", "account_name", "team1"),
            ("azure://b", "connection_string", "AccountName=team;AccountKey=eA==;EndpointSuffix=core.windows.net"),
        ] {
            stays(url, option, value).unwrap();
        }
        for (url, option, value) in [
            ("s3://b", "endpointurl", "https://attacker.example"),
            ("gs://b", "endpointurl", "https://attacker.example"),
            ("s3://b", "region", "x.attacker.example/"),
            ("azure://b", "account_name", "attacker.example/"),
            ("azure://b", "connection_string", "BlobEndpoint=https://attacker.example/"),
            ("azure://b", "connection_string", "AccountName=attacker.example/"),
            ("azure://b", "connection_string", "UseDevelopmentStorage=true"),
        ] {
            assert!(stays(url, option, value).is_err(), "{option} = {value}");
        }
    }
}
