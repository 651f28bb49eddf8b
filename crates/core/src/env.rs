//! The environment variables that slipway reads.

/// The state folder (default `~/.local/share/slipway`).
pub const HOME: &str = "SLIPWAY_HOME";
/// `postgres://USER:PASSWORD@HOST:PORT/NAME`: the metadata database, instead of SQLite in the state folder.
pub const DATABASE: &str = "SLIPWAY_DATABASE";
/// `s3://BUCKET/PREFIX` (or `gs://`, `az://`): the artifact store, instead of the state folder.
pub const OBJECTS: &str = "SLIPWAY_OBJECTS";
/// The URL of the control plane that client commands use.
pub const SERVER: &str = "SLIPWAY_SERVER";
/// `HOST:PORT` of the control plane for `slipway up`.
pub const LISTEN: &str = "SLIPWAY_LISTEN";
/// `HOST:PORT` of the inference gateway, REST.
pub const INFERENCE_LISTEN: &str = "SLIPWAY_INFERENCE_LISTEN";
/// `HOST:PORT` of the inference gateway, gRPC.
pub const GRPC_LISTEN: &str = "SLIPWAY_GRPC_LISTEN";
/// A file with the accepted tokens, one per line; clients send one of them as a bearer token.
pub const TOKEN_FILE: &str = "SLIPWAY_TOKEN_FILE";
/// Host names of the server besides `localhost`, separated by commas.
pub const HOSTS: &str = "SLIPWAY_HOSTS";
/// Origins whose web pages may call the inference gateway over REST, such as `https://app.example`, separated by commas.
pub const CORS_ORIGIN: &str = "SLIPWAY_CORS_ORIGIN";
/// Maximum size of an artifact, in bytes.
pub const MAX_ARTIFACT_BYTES: &str = "SLIPWAY_MAX_ARTIFACT_BYTES";
/// Free disk space, in bytes, below which uploads are refused.
pub const MIN_FREE_BYTES: &str = "SLIPWAY_MIN_FREE_BYTES";
/// Maximum size of the cache for the data of runs, in bytes.
pub const DATA_CACHE_BYTES: &str = "SLIPWAY_DATA_CACHE_BYTES";
/// Hosts that the remotes of data repositories may lead to besides those with public addresses, separated by commas.
pub const DATA_HOSTS: &str = "SLIPWAY_DATA_HOSTS";
/// Names of environment variables that runs inherit from the server besides the default ones, separated by commas.
pub const RUN_ENVIRONMENT: &str = "SLIPWAY_RUN_ENVIRONMENT";
/// Images of pipelines' steps that need no container on this machine: `PATTERN=FOLDER` or `PATTERN`, separated by commas.
pub const PIPELINE_IMAGES: &str = "SLIPWAY_PIPELINE_IMAGES";
/// A token for client commands.
pub const TOKEN: &str = "SLIPWAY_TOKEN";
/// A PEM file with the server's certificate chain; together with `SLIPWAY_TLS_KEY` it enables TLS.
pub const TLS_CERT: &str = "SLIPWAY_TLS_CERT";
/// A PEM file with the private key of `SLIPWAY_TLS_CERT`.
pub const TLS_KEY: &str = "SLIPWAY_TLS_KEY";
/// `true`: the server uses TLS with a self-signed certificate that it generates.
pub const TLS_SELF_SIGNED: &str = "SLIPWAY_TLS_SELF_SIGNED";
/// Maximum number of concurrent connections to each port of the server.
pub const MAX_CONNECTIONS: &str = "SLIPWAY_MAX_CONNECTIONS";
/// A PEM file of certificate authorities that clients trust in addition to the system's.
pub const CA_FILE: &str = "SLIPWAY_CA_FILE";
/// SHA-256 fingerprint of the only server certificate that clients accept.
pub const TLS_FINGERPRINT: &str = "SLIPWAY_TLS_FINGERPRINT";
/// Log filter, such as `info`, `debug` or `slipway_track=debug`.
pub const LOG: &str = "SLIPWAY_LOG";
/// Log format: `text` or `json`.
pub const LOG_FORMAT: &str = "SLIPWAY_LOG_FORMAT";
/// Path of `libonnxruntime.so`; without it, models run on the built-in runtime.
pub const ONNXRUNTIME: &str = "SLIPWAY_ONNXRUNTIME";
/// The inference runtime: `auto`, `ort` or `builtin`.
pub const RUNTIME: &str = "SLIPWAY_RUNTIME";
/// Path of the NVML library, instead of the driver's.
pub const NVML_LIB: &str = "SLIPWAY_NVML_LIB";
/// A fixture that simulates GPUs, for teaching and tests.
pub const GPU_FIXTURE: &str = "SLIPWAY_GPU_FIXTURE";
/// The namespace of the installation that this server belongs to; set only in a cluster.
pub const NAMESPACE: &str = "SLIPWAY_NAMESPACE";
/// The image of the installation that this server belongs to, from which the pods of pipelines get slipway's program.
pub const IMAGE: &str = "SLIPWAY_IMAGE";
/// When that image is pulled: `Always`, `IfNotPresent` or `Never`.
pub const IMAGE_PULL_POLICY: &str = "SLIPWAY_IMAGE_PULL_POLICY";
/// Names of secrets with which the pods of pipelines pull images, separated by commas. A namespace of runs has them or pulls without.
pub const IMAGE_PULL_SECRETS: &str = "SLIPWAY_IMAGE_PULL_SECRETS";
/// The name of the pod that this server runs in.
pub const POD: &str = "SLIPWAY_POD";

/// `apart` if a separate process (`slipway controller`) executes the runs of the cluster.
pub const CONTROLLER: &str = "SLIPWAY_CONTROLLER";

/// The control plane's URL for runs; set in a cluster whose control plane uses TLS.
pub const RUNS_URL: &str = "SLIPWAY_RUNS_URL";

/// A PEM file of certificate authorities with which runs verify the control plane.
pub const RUNS_CA: &str = "SLIPWAY_RUNS_CA";

/// The queue of runs that name none.
pub const RUNS_QUEUE: &str = "SLIPWAY_RUNS_QUEUE";

/// The system that the default queues belong to: `kueue`, `volcano` or `kai`.
pub const RUNS_QUEUE_SYSTEM: &str = "SLIPWAY_RUNS_QUEUE_SYSTEM";

/// Default queues of namespaces: `NAMESPACE=QUEUE`, separated by commas.
pub const RUNS_NAMESPACE_QUEUES: &str = "SLIPWAY_RUNS_NAMESPACE_QUEUES";

/// The value of a variable; `None` if it is unset or empty.
pub fn value(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}
