//! The options of remotes by the scheme of their URL, and the form of their values. The names are DVC's.

use std::collections::BTreeMap;

use crate::error::DataError;

/// The options of a remote.
pub type Options = BTreeMap<String, String>;

/// The form of a value.
#[derive(Debug, Clone, Copy)]
enum Form {
    Text,
    /// `true` or `false`, in any case.
    Bool,
    /// A whole number from this one on.
    Integer(i64),
    /// Seconds, from 0 on.
    Seconds,
    /// One of these words, in any case.
    Word(&'static [&'static str]),
}

use Form::{Bool, Integer, Seconds, Text, Word};

type Schema = &'static [(&'static str, Form)];

const COMMON: Schema = &[
    ("url", Text),
    ("checksum_jobs", Integer(1)),
    ("jobs", Integer(1)),
    ("worktree", Bool),
    ("no_traverse", Bool),
    ("version_aware", Bool),
    ("verify", Bool),
];
const LOCAL: Schema = &[("type", Text), ("protected", Bool), ("shared", Word(&["group"])), ("slow_link_warning", Bool)];
const HTTP: Schema = &[
    ("auth", Word(&["basic", "digest", "custom"])),
    ("custom_auth_header", Text),
    ("user", Text),
    ("password", Text),
    ("ask_password", Bool),
    ("ssl_verify", Text),
    ("method", Text),
    ("connect_timeout", Seconds),
    ("read_timeout", Seconds),
];
const WEBDAV: Schema = &[
    ("user", Text),
    ("password", Text),
    ("ask_password", Bool),
    ("token", Text),
    ("bearer_token_command", Text),
    ("custom_auth_header", Text),
    ("cert_path", Text),
    ("key_path", Text),
    ("timeout", Integer(i64::MIN)),
    ("ssl_verify", Text),
];
const S3: Schema = &[
    ("region", Text),
    ("profile", Text),
    ("credentialpath", Text),
    ("configpath", Text),
    ("endpointurl", Text),
    ("access_key_id", Text),
    ("secret_access_key", Text),
    ("session_token", Text),
    ("listobjects", Bool),
    ("use_ssl", Bool),
    ("allow_anonymous_login", Bool),
    ("ssl_verify", Text),
    ("sse", Text),
    ("sse_kms_key_id", Text),
    ("sse_customer_algorithm", Text),
    ("sse_customer_key", Text),
    ("acl", Text),
    ("grant_read", Text),
    ("grant_read_acp", Text),
    ("grant_write_acp", Text),
    ("grant_full_control", Text),
    ("cache_regions", Bool),
    ("read_timeout", Integer(i64::MIN)),
    ("connect_timeout", Integer(i64::MIN)),
];
const GS: Schema =
    &[("projectname", Text), ("credentialpath", Text), ("endpointurl", Text), ("allow_anonymous_login", Bool)];
const SSH: Schema = &[
    ("type", Text),
    ("port", Integer(i64::MIN)),
    ("user", Text),
    ("password", Text),
    ("ask_password", Bool),
    ("passphrase", Text),
    ("ask_passphrase", Bool),
    ("keyfile", Text),
    ("timeout", Integer(i64::MIN)),
    ("gss_auth", Bool),
    ("allow_agent", Bool),
    ("max_sessions", Integer(i64::MIN)),
];
const AZURE: Schema = &[
    ("connection_string", Text),
    ("sas_token", Text),
    ("account_name", Text),
    ("account_key", Text),
    ("tenant_id", Text),
    ("client_id", Text),
    ("client_secret", Text),
    ("allow_anonymous_login", Bool),
    ("exclude_environment_credential", Bool),
    ("exclude_visual_studio_code_credential", Bool),
    ("exclude_shared_token_cache_credential", Bool),
    ("exclude_managed_identity_credential", Bool),
    ("timeout", Integer(i64::MIN)),
    ("read_timeout", Integer(i64::MIN)),
    ("connection_timeout", Integer(i64::MIN)),
];
const HDFS: Schema = &[("user", Text), ("kerb_ticket", Text), ("replication", Integer(i64::MIN))];
const WEBHDFS: Schema = &[
    ("kerberos", Bool),
    ("kerberos_principal", Text),
    ("proxy_to", Text),
    ("ssl_verify", Text),
    ("token", Text),
    ("use_https", Bool),
    ("user", Text),
    ("password", Text),
    ("data_proxy_target", Text),
];
const OSS: Schema = &[("oss_key_id", Text), ("oss_key_secret", Text), ("oss_endpoint", Text)];
const GDRIVE: Schema = &[
    ("profile", Text),
    ("gdrive_use_service_account", Bool),
    ("gdrive_client_id", Text),
    ("gdrive_client_secret", Text),
    ("gdrive_user_credentials_file", Text),
    ("gdrive_service_account_user_email", Text),
    ("gdrive_service_account_json_file_path", Text),
    ("gdrive_trash_only", Bool),
    ("gdrive_acknowledge_abuse", Bool),
];

/// The scheme of a URL in lower case; empty for a path.
pub fn scheme(url: &str) -> String {
    url.split_once("://").map_or_else(String::new, |(scheme, _)| scheme.to_lowercase())
}

/// Checks the options of a remote, whose URL is among them.
///
/// # Errors
/// [`DataError::Config`] for an unknown scheme, an option that remotes of this scheme do not have, or an invalid value.
pub fn check(name: &str, options: &Options) -> Result<(), DataError> {
    let scheme = scheme(options.get("url").map_or("", String::as_str));
    let own = match scheme.as_str() {
        "" | "local" | "file" => LOCAL,
        "s3" => S3,
        "gs" => GS,
        "ssh" => SSH,
        "hdfs" => HDFS,
        "webhdfs" => WEBHDFS,
        "azure" => AZURE,
        "oss" => OSS,
        "gdrive" => GDRIVE,
        "http" | "https" => HTTP,
        "webdav" | "webdavs" => WEBDAV,
        // The options of the other remote decide.
        "remote" => return Ok(()),
        other => {
            let place = format!("data['remote']['{name}']");
            return Err(DataError::Config(format!("Unsupported URL type {other}:// for dictionary value @ {place}")));
        }
    };
    for (option, value) in options {
        let place = format!("data['remote']['{name}']['{option}']");
        let Some((_, form)) = own.iter().chain(COMMON).find(|(known, _)| known == option) else {
            return Err(DataError::Config(format!("extra keys not allowed @ {place}")));
        };
        let lower = value.to_lowercase();
        let expected = match form {
            Text => continue,
            Bool if lower == "true" || lower == "false" => continue,
            Bool => "true or false".to_owned(),
            Integer(least) if value.trim().parse::<i64>().is_ok_and(|number| number >= *least) => continue,
            Integer(1) => "a whole number from 1 on".to_owned(),
            Integer(_) => "a whole number".to_owned(),
            Seconds if value.trim().parse::<f64>().is_ok_and(|number| number >= 0.0) => continue,
            Seconds => "a number of seconds".to_owned(),
            Word(words) if words.contains(&lower.as_str()) => continue,
            Word(words) => words.join(", "),
        };
        return Err(DataError::Config(format!("expected {expected} for dictionary value @ {place}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_those_of_the_scheme() {
        let options = |pairs: &[(&str, &str)]| -> Options {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        for valid in [
            &[("url", "/data")][..],
            &[("url", "S3://b/p"), ("jobs", "8"), ("sse", "AES256"), ("allow_anonymous_login", "True")],
            &[("url", "http://h"), ("auth", "CUSTOM"), ("read_timeout", "0.5")],
            &[("url", "ssh://h/p"), ("port", "2222"), ("keyfile", "/k")],
            &[("url", "remote://other/p"), ("anything", "x")],
        ] {
            check("r", &options(valid)).unwrap();
        }
        for invalid in [
            &[("url", "s3://b"), ("jobs", "0")][..],
            &[("url", "s3://b"), ("keyfile", "/k")],
            &[("url", "http://h"), ("auth", "kerberos")],
            &[("url", "http://h"), ("read_timeout", "-1")],
            &[("url", "ssh://h"), ("ask_password", "maybe")],
            &[("url", "ftp://h/p")],
        ] {
            assert!(matches!(check("r", &options(invalid)), Err(DataError::Config(_))), "{invalid:?}");
        }
    }
}
