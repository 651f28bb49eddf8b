//! Every environment variable that slipway reads, in one place.

/// Where state lives (default `~/.local/share/slipway`).
pub const HOME: &str = "SLIPWAY_HOME";
/// `postgres://USER:PASSWORD@HOST:PORT/NAME`: the metadata database, in place of SQLite in the state folder.
pub const DATABASE: &str = "SLIPWAY_DATABASE";
/// `s3://BUCKET/PREFIX` (or `gs://`, `az://`): where artifacts are, in place of the state folder.
pub const OBJECTS: &str = "SLIPWAY_OBJECTS";
/// The control plane's URL for every client command.
pub const SERVER: &str = "SLIPWAY_SERVER";
/// `HOST:PORT` of the control plane for `slipway up`.
pub const LISTEN: &str = "SLIPWAY_LISTEN";
/// `HOST:PORT` of the inference gateway, REST.
pub const INFERENCE_LISTEN: &str = "SLIPWAY_INFERENCE_LISTEN";
/// `HOST:PORT` of the inference gateway, gRPC.
pub const GRPC_LISTEN: &str = "SLIPWAY_GRPC_LISTEN";
/// A file with one token a line; needed to listen beyond loopback, sent by clients as a bearer token.
pub const TOKEN_FILE: &str = "SLIPWAY_TOKEN_FILE";
/// Names of the server besides `localhost`, separated by commas.
pub const HOSTS: &str = "SLIPWAY_HOSTS";
/// Bytes of the largest artifact.
pub const MAX_ARTIFACT_BYTES: &str = "SLIPWAY_MAX_ARTIFACT_BYTES";
/// Bytes of the disk that uploads leave free.
pub const MIN_FREE_BYTES: &str = "SLIPWAY_MIN_FREE_BYTES";
/// Names of variables that runs inherit from the server besides the usual ones, separated by commas.
pub const RUN_ENVIRONMENT: &str = "SLIPWAY_RUN_ENVIRONMENT";
/// A token for client commands.
pub const TOKEN: &str = "SLIPWAY_TOKEN";
/// A PEM file of certificates that the server presents; with `SLIPWAY_TLS_KEY` it speaks TLS.
pub const TLS_CERT: &str = "SLIPWAY_TLS_CERT";
/// A PEM file with the private key of `SLIPWAY_TLS_CERT`.
pub const TLS_KEY: &str = "SLIPWAY_TLS_KEY";
/// `true`: the server speaks TLS with a certificate that it makes itself.
pub const TLS_SELF_SIGNED: &str = "SLIPWAY_TLS_SELF_SIGNED";
/// Connections that each port of the server may have at once.
pub const MAX_CONNECTIONS: &str = "SLIPWAY_MAX_CONNECTIONS";
/// A PEM file of authorities that clients trust besides the system's.
pub const CA_FILE: &str = "SLIPWAY_CA_FILE";
/// SHA-256 fingerprint of the only certificate that clients accept from the server.
pub const TLS_FINGERPRINT: &str = "SLIPWAY_TLS_FINGERPRINT";
/// `info`, `debug`, `slipway_track=debug`: what is logged.
pub const LOG: &str = "SLIPWAY_LOG";
/// `text` or `json`: how it is logged.
pub const LOG_FORMAT: &str = "SLIPWAY_LOG_FORMAT";
/// Path of `libonnxruntime.so`; without one tract runs the models.
pub const ONNXRUNTIME: &str = "SLIPWAY_ONNXRUNTIME";
/// `auto`, `ort` or `tract`.
pub const RUNTIME: &str = "SLIPWAY_RUNTIME";
/// Path of NVML's library, in place of the driver's.
pub const NVML_LIB: &str = "SLIPWAY_NVML_LIB";
/// A fixture that answers in place of a GPU, for teaching and tests.
pub const GPU_FIXTURE: &str = "SLIPWAY_GPU_FIXTURE";
/// The namespace of the installation that a server belongs to; set in a cluster.
pub const NAMESPACE: &str = "SLIPWAY_NAMESPACE";
/// The name of the pod that a server runs in.
pub const POD: &str = "SLIPWAY_POD";

/// `apart` where a process of its own (`slipway controller`) carries out the runs of a cluster.
pub const CONTROLLER: &str = "SLIPWAY_CONTROLLER";

/// The URL at which runs reach the control plane; set in a cluster whose control plane has a certificate.
pub const RUNS_URL: &str = "SLIPWAY_RUNS_URL";

/// A file of certificates (PEM) by which runs know the control plane.
pub const RUNS_CA: &str = "SLIPWAY_RUNS_CA";

/// The value of a variable, if it is set to something.
pub fn value(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}
