//! Remotes in buckets: `s3://`, `gs://` and `azure://`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload, PutResult, WriteMultipart};
use slipway_store::bucket::HttpFactory;
use tokio::io::AsyncReadExt;

use super::backend::{Backend, Chunks, Entry, Failure, Reply};
use super::google::ServiceAccount;
use super::http::tls_of;
use super::options::Settings;
use crate::error::DataError;
use crate::ini::Ini;

/// Bytes of a part of a large upload.
const PART_BYTES: usize = 8 << 20;
/// Number of parts of one file that are sent at the same time.
const CONCURRENT_PARTS: usize = 4;

/// The file that `gcloud auth application-default login` writes, from the home folder.
const USER_CREDENTIALS: &str = ".config/gcloud/application_default_credentials.json";

/// The result of opening a bucket.
type Opened = Result<Arc<dyn ObjectStore>, DataError>;

/// Opens the bucket of a URL, and returns it with the path in it.
///
/// # Errors
/// [`DataError::Config`] for an option that is invalid or not supported.
pub(crate) fn open(settings: &Settings) -> Result<(Arc<dyn ObjectStore>, &str), DataError> {
    let (bucket, path) = location(settings);
    let store = match crate::schema::scheme(&settings.url).as_str() {
        "gs" => gs(settings, bucket),
        "azure" => azure(settings, bucket),
        _ => s3(settings, bucket),
    }?;
    Ok((store, path))
}

fn opened<T: ObjectStore>(settings: &Settings, store: object_store::Result<T>) -> Opened {
    let store = store.map_err(|error| DataError::Config(format!("remote '{}': {error}", settings.name)))?;
    Ok(Arc::new(store))
}

fn s3(settings: &Settings, bucket: &str) -> Opened {
    settings.refuse(&[
        ("acl", "set a policy on the bucket"),
        ("grant_read", "set a policy on the bucket"),
        ("grant_read_acp", "set a policy on the bucket"),
        ("grant_write_acp", "set a policy on the bucket"),
        ("grant_full_control", "set a policy on the bucket"),
    ])?;
    let endpoint = settings.text("endpointurl").map(str::to_owned).or_else(|| variable("AWS_ENDPOINT_URL"));
    if endpoint.is_none() && settings.text("use_ssl").is_some_and(|value| value.eq_ignore_ascii_case("false")) {
        return Err(settings.unsupported("use_ssl = false", "set 'endpointurl' to a URL with http://"));
    }
    let allow_http = endpoint.is_some_and(|url| url.starts_with("http://"));
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_allow_http(allow_http);
    let credentials = Credentials::read(settings)?;
    let anonymous = settings.is_true("allow_anonymous_login");
    for (key, value) in [
        (AmazonS3ConfigKey::Endpoint, settings.text("endpointurl").map(str::to_owned)),
        (AmazonS3ConfigKey::Region, credentials.region),
        (AmazonS3ConfigKey::AccessKeyId, credentials.id),
        (AmazonS3ConfigKey::SecretAccessKey, credentials.secret),
        (AmazonS3ConfigKey::Token, credentials.token),
    ] {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    builder = encrypted(settings, builder)?;
    let timeouts = (settings.seconds("connect_timeout")?, settings.seconds("read_timeout")?);
    let http = HttpFactory::with_tls(tls_of(settings)?, allow_http).with_timeouts(timeouts.0, timeouts.1);
    opened(settings, builder.with_skip_signature(anonymous).with_http_connector(http).build())
}

/// Sets the encryption of new objects.
fn encrypted(settings: &Settings, builder: AmazonS3Builder) -> Result<AmazonS3Builder, DataError> {
    if settings.text("sse_customer_algorithm").is_some_and(|name| name != "AES256") {
        return Err(settings.invalid("sse_customer_algorithm", "the only algorithm is AES256"));
    }
    let key = settings.text("sse_kms_key_id");
    match (settings.text("sse"), key, settings.text("sse_customer_key")) {
        (_, Some(_), Some(_)) => {
            Err(settings.invalid("sse_customer_key", "it and 'sse_kms_key_id' exclude each other"))
        }
        (_, None, Some(customer_key)) => Ok(builder.with_ssec_encryption(customer_key)),
        (Some("AES256"), ..) => Ok(builder.with_config(encryption_key("aws_server_side_encryption")?, "AES256")),
        (Some("aws:kms") | None, Some(key), None) => Ok(builder.with_sse_kms_encryption(key)),
        (Some("aws:kms:dsse"), Some(key), None) => Ok(builder.with_dsse_kms_encryption(key)),
        (Some("aws:kms" | "aws:kms:dsse"), None, None) => {
            Err(settings.invalid("sse", "a key of KMS needs 'sse_kms_key_id'"))
        }
        (Some(_), ..) => Err(settings.invalid("sse", "it is none of AES256, aws:kms, aws:kms:dsse")),
        (None, None, None) => Ok(builder),
    }
}

fn encryption_key(name: &str) -> Result<AmazonS3ConfigKey, DataError> {
    name.parse().map_err(|error: object_store::Error| DataError::Config(error.to_string()))
}

/// The credentials of S3, from the options or from Amazon's files.
#[derive(Debug, Default)]
struct Credentials {
    id: Option<String>,
    secret: Option<String>,
    token: Option<String>,
    region: Option<String>,
}

impl Credentials {
    /// `profile` names a section of the files `credentialpath` and `configpath`; without it, environment variables come first.
    fn read(settings: &Settings) -> Result<Self, DataError> {
        let text = |option: &str| settings.text(option).map(str::to_owned);
        let mut found = Self {
            id: text("access_key_id"),
            secret: text("secret_access_key"),
            token: text("session_token"),
            region: text("region"),
        };
        let profile = text("profile").or_else(|| variable("AWS_PROFILE"));
        let file = |option: &str, name: &str, default: &str| {
            let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".aws").join(default));
            text(option).or_else(|| variable(name)).map(PathBuf::from).or(home)
        };
        let name = profile.clone().unwrap_or_else(|| "default".into()).to_lowercase();
        let is_anonymous = settings.is_true("allow_anonymous_login");
        let from_environment = variable("AWS_ACCESS_KEY_ID").is_some() && profile.is_none();
        let credentials = file("credentialpath", "AWS_SHARED_CREDENTIALS_FILE", "credentials");
        let config = file("configpath", "AWS_CONFIG_FILE", "config");
        let credentials = credentials.map(|file| section(&file, &[&name])).transpose()?.flatten();
        let config = config.map(|file| section(&file, &[&name, &format!("profile {name}")])).transpose()?.flatten();
        if profile.is_some() && found.id.is_none() && credentials.is_none() && config.is_none() {
            return Err(settings.invalid("profile", "no credentials file has this profile"));
        }
        let get = |key: &str| [&credentials, &config].into_iter().flatten().find_map(|section| section.get(key));
        if found.id.is_none() && !is_anonymous && !from_environment {
            found.id = get("aws_access_key_id");
            found.secret = get("aws_secret_access_key");
            found.token = get("aws_session_token");
        }
        if found.region.is_none() && variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION")).is_none() {
            found.region = get("region");
        }
        Ok(found)
    }
}

/// A section of one of Amazon's files, under the first of these names that exists.
fn section(file: &Path, names: &[&str]) -> Result<Option<crate::ini::Section>, DataError> {
    let Ok(text) = std::fs::read_to_string(file) else { return Ok(None) };
    let ini = Ini::parse(&text).map_err(|(line, reason)| DataError::file(file, line, reason))?;
    Ok(names.iter().find_map(|name| ini.section(name)).cloned())
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Opens a bucket of Google Cloud Storage. The option `projectname` only matters when buckets are created.
fn gs(settings: &Settings, bucket: &str) -> Opened {
    let mut builder = GoogleCloudStorageBuilder::from_env().with_bucket_name(bucket);
    if let Some(path) = settings.text("credentialpath") {
        builder = builder.with_application_credentials(path);
    }
    let endpoint = settings.text("endpointurl");
    if let Some(endpoint) = endpoint {
        builder = builder.with_config(GoogleConfigKey::BaseUrl, endpoint);
    }
    let http = HttpFactory::with_tls(tls_of(settings)?, endpoint.is_some_and(|url| url.starts_with("http://")));
    if settings.is_true("allow_anonymous_login") {
        // Uploads use the credentials also without signatures, and would search for some.
        builder = builder.with_skip_signature(true).with_bearer_token("");
    } else if !has_credentials(&builder) {
        let account = ServiceAccount::new(tls_of(settings)?, variable("GCE_METADATA_HOST"));
        let invalid = |error| DataError::Config(format!("remote '{}': {error}", settings.name));
        builder = builder.with_credentials(Arc::new(account.map_err(invalid)?));
    }
    opened(settings, builder.with_http_connector(http).build())
}

/// Whether options, variables or the files of Google's command line name credentials.
fn has_credentials(builder: &GoogleCloudStorageBuilder) -> bool {
    let keys = [
        GoogleConfigKey::ServiceAccount,
        GoogleConfigKey::ServiceAccountKey,
        GoogleConfigKey::ApplicationCredentials,
        GoogleConfigKey::BearerToken,
    ];
    let of_user = std::env::var_os("HOME").map(|home| Path::new(&home).join(USER_CREDENTIALS));
    keys.iter().any(|key| builder.get_config_value(key).is_some()) || of_user.is_some_and(|file| file.exists())
}

/// Opens a container of Azure.
fn azure(settings: &Settings, container: &str) -> Opened {
    // The credentials of Visual Studio Code and of the shared token cache are never used.
    settings.refuse(&[("exclude_managed_identity_credential", "set 'account_key', 'sas_token' or 'client_secret'")])?;
    let mut builder = match settings.is_true("exclude_environment_credential") {
        true => MicrosoftAzureBuilder::new(),
        false => MicrosoftAzureBuilder::from_env(),
    };
    builder = builder.with_container_name(container);
    let text = |option| settings.text(option).map(str::to_owned);
    let mut values = vec![
        (AzureConfigKey::AccountName, text("account_name")),
        (AzureConfigKey::AccessKey, text("account_key")),
        (AzureConfigKey::SasKey, text("sas_token")),
        (AzureConfigKey::AuthorityId, text("tenant_id")),
        (AzureConfigKey::ClientId, text("client_id")),
        (AzureConfigKey::ClientSecret, text("client_secret")),
    ];
    let connection = text("connection_string").or_else(|| variable("AZURE_STORAGE_CONNECTION_STRING"));
    let mut allow_http = false;
    for pair in connection.iter().flat_map(|connection| connection.split(';')).filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = match name {
            "AccountName" => AzureConfigKey::AccountName,
            "AccountKey" => AzureConfigKey::AccessKey,
            "SharedAccessSignature" => AzureConfigKey::SasKey,
            "BlobEndpoint" => AzureConfigKey::Endpoint,
            "UseDevelopmentStorage" => AzureConfigKey::UseEmulator,
            // The endpoints of other services, and the parts of the default endpoint.
            "DefaultEndpointsProtocol" | "EndpointSuffix" | "QueueEndpoint" | "TableEndpoint" | "FileEndpoint" => {
                continue;
            }
            other => return Err(settings.invalid("connection_string", &format!("'{other}' is unknown"))),
        };
        allow_http |= value.starts_with("http://") || key == AzureConfigKey::UseEmulator;
        if key == AzureConfigKey::Endpoint {
            // A connection string with a shared access signature does not name the account otherwise. All other values have precedence.
            values.insert(0, (AzureConfigKey::AccountName, account_of(value)));
        }
        values.push((key, Some(value.to_owned())));
    }
    for (key, value) in values {
        if let Some(value) = value {
            builder = builder.with_config(key, value);
        }
    }
    let connect = settings.seconds("connection_timeout")?;
    let read = settings.seconds("read_timeout")?.or(settings.seconds("timeout")?);
    let http = HttpFactory::with_tls(tls_of(settings)?, allow_http).with_timeouts(connect, read);
    let anonymous = settings.is_true("allow_anonymous_login");
    let builder = builder.with_allow_http(allow_http).with_skip_signature(anonymous).with_http_connector(http);
    opened(settings, builder.build())
}

/// The account of an endpoint: the first part of the host, as in `https://ACCOUNT.blob.core.windows.net`, or else of the path after an IP address.
fn account_of(endpoint: &str) -> Option<String> {
    let (_, rest) = endpoint.split_once("://")?;
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let name = host.split_once('.').map_or(host, |(name, _)| name);
    let is_address = host.split(':').next().is_some_and(|host| host.parse::<std::net::Ipv4Addr>().is_ok());
    let account = if is_address || host.starts_with('[') { path.split('/').next()? } else { name };
    (!account.is_empty()).then(|| account.to_owned())
}

/// The bucket and the folder in it that the URL names.
fn location(settings: &Settings) -> (&str, &str) {
    let rest = settings.url.split_once("://").map_or("", |(_, rest)| rest);
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    (bucket, prefix.trim_matches('/'))
}

/// A remote in a bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

impl Bucket {
    /// Opens the remote.
    pub(crate) fn open(settings: &Settings) -> Result<Self, DataError> {
        let (store, prefix) = open(settings)?;
        Ok(Self { store, prefix: prefix.to_owned() })
    }

    /// The store and the key of a file whose name is the user's.
    pub(super) fn object(&self, path: &str) -> Result<(&dyn ObjectStore, Key), Failure> {
        let key = Key::parse(format!("{}/{path}", self.prefix));
        Ok((self.store.as_ref(), key.map_err(|error| Failure::Permanent(error.to_string()))?))
    }

    /// All files below the URL.
    pub(super) async fn all(&self) -> Result<Vec<(String, object_store::ObjectMeta)>, Failure> {
        let prefix = Key::from(self.prefix.as_str());
        let metas: Vec<_> = self.store.list(Some(&prefix)).try_collect().await.map_err(failed)?;
        let below = |key: &Key| {
            let parts = key.prefix_match(&prefix)?;
            Some(parts.map(|part| part.as_ref().to_owned()).collect::<Vec<_>>().join("/"))
        };
        Ok(metas.into_iter().filter_map(|meta| Some((below(&meta.location)?, meta))).collect())
    }

    /// Sends a file, which is in one piece or in parts.
    pub(super) async fn put(&self, key: &Key, source: &Path) -> Result<PutResult, Failure> {
        let unreadable = |error: std::io::Error| Failure::Permanent(format!("{}: {error}", source.display()));
        let mut file = tokio::fs::File::open(source).await.map_err(unreadable)?;
        let mut first = Vec::with_capacity(1 << 16);
        let read = (&mut file).take(PART_BYTES as u64).read_to_end(&mut first).await.map_err(unreadable)?;
        if read < PART_BYTES {
            return self.store.put(key, PutPayload::from(first)).await.map_err(failed);
        }
        self.write_parts(key, file, first).await
    }

    /// The content of a version of a file, or of its last one, from a byte on.
    pub(super) async fn get(&self, key: &Key, version: Option<String>, from: u64) -> Result<Chunks, Failure> {
        let range = (from > 0).then_some(GetRange::Offset(from));
        let options = GetOptions { range, version: version.clone(), ..GetOptions::default() };
        let found = match self.store.get_opts(key, options).await {
            Ok(found) => found,
            Err(error) => {
                // All of it may have been received.
                let head = GetOptions { head: true, version, ..GetOptions::default() };
                let size = self.store.get_opts(key, head).await.map_err(failed)?.meta.size;
                return if size == from { Ok(futures_util::stream::empty().boxed()) } else { Err(failed(error)) };
            }
        };
        let broken = |error: object_store::Error| Failure::Temporary(error.to_string());
        Ok(found.into_stream().map_err(broken).boxed())
    }

    fn key(&self, path: &str) -> Key {
        Key::from(format!("{}/{path}", self.prefix))
    }

    async fn write_parts(&self, key: &Key, mut file: tokio::fs::File, first: Vec<u8>) -> Result<PutResult, Failure> {
        let mut buffer = first;
        let created = self.store.put_multipart(key).await.map_err(failed)?;
        let mut upload = WriteMultipart::new_with_chunk_size(created, PART_BYTES);
        loop {
            upload.wait_for_capacity(CONCURRENT_PARTS).await.map_err(failed)?;
            upload.put(std::mem::take(&mut buffer).into());
            match (&mut file).take(PART_BYTES as u64).read_to_end(&mut buffer).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    let _ = upload.abort().await; // The error of the file is the one to report.
                    return Err(Failure::Permanent(error.to_string()));
                }
            }
        }
        upload.finish().await.map_err(failed)
    }
}

/// The failure of a request. The client of the bucket has repeated it already.
pub(super) fn failed(error: object_store::Error) -> Failure {
    match error {
        object_store::Error::NotFound { .. } => Failure::NotFound,
        object_store::Error::Unauthenticated { source, .. } => Failure::Permanent(source.to_string()),
        other => Failure::Permanent(other.to_string()),
    }
}

impl Backend for Bucket {
    fn exists<'a>(&'a self, path: &'a str) -> Reply<'a, bool> {
        Box::pin(async move {
            match self.store.head(&self.key(path)).await.map_err(failed) {
                Ok(_) => Ok(true),
                Err(Failure::NotFound) => Ok(false),
                Err(failure) => Err(failure),
            }
        })
    }

    fn entries<'a>(&'a self, folder: &'a str) -> Reply<'a, Vec<Entry>> {
        Box::pin(async move {
            let listed = self.store.list_with_delimiter(Some(&self.key(folder))).await.map_err(failed)?;
            let name = |key: &Key| key.filename().unwrap_or_default().to_owned();
            let folders =
                listed.common_prefixes.iter().map(|key| Entry { name: name(key), is_folder: true, ..Entry::default() });
            let files = listed.objects.iter().map(|meta| Entry { name: name(&meta.location), ..Entry::default() });
            Ok(folders.chain(files).collect())
        })
    }

    fn read<'a>(&'a self, path: &'a str, from: u64) -> Reply<'a, Chunks> {
        Box::pin(async move { self.get(&self.key(path), None, from).await })
    }

    fn write<'a>(&'a self, path: &'a str, source: &'a Path) -> Reply<'a, ()> {
        Box::pin(async move { self.put(&self.key(path), source).await.map(drop) })
    }

    fn remove<'a>(&'a self, path: &'a str) -> Reply<'a, ()> {
        Box::pin(async move {
            match self.store.delete(&self.key(path)).await.map_err(failed) {
                Ok(()) | Err(Failure::NotFound) => Ok(()),
                Err(failure) => Err(failure),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::account_of;

    #[test]
    fn the_account_of_an_endpoint_is_in_its_host_or_path() {
        for (endpoint, account) in [
            ("https://team.blob.core.windows.net/", Some("team")),
            ("http://127.0.0.1:10000/devstoreaccount1", Some("devstoreaccount1")),
            ("http://[::1]:10000/team/", Some("team")),
            ("http://127.0.0.1:10000", None),
            ("team", None),
        ] {
            assert_eq!(account_of(endpoint).as_deref(), account, "{endpoint}");
        }
    }
}
