//! Every environment variable that slipway reads, in one place; `slipway config show` prints them.

/// A variable, what it sets, and an example.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// The name, as exported.
    pub name: &'static str,
    /// What it sets, one line.
    pub about: &'static str,
}

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
/// A token for client commands.
pub const TOKEN: &str = "SLIPWAY_TOKEN";
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

/// All of them.
pub const ALL: &[Variable] = &[
    Variable { name: HOME, about: "where state lives (default ~/.local/share/slipway)" },
    Variable { name: SERVER, about: "URL of the control plane for client commands" },
    Variable { name: LISTEN, about: "HOST:PORT of the control plane and UI" },
    Variable { name: INFERENCE_LISTEN, about: "HOST:PORT of the inference gateway, REST" },
    Variable { name: GRPC_LISTEN, about: "HOST:PORT of the inference gateway, gRPC" },
    Variable { name: TOKEN_FILE, about: "file with one accepted token a line" },
    Variable { name: TOKEN, about: "token that client commands send" },
    Variable { name: LOG, about: "log filter, such as info or slipway_track=debug" },
    Variable { name: LOG_FORMAT, about: "text or json" },
    Variable { name: ONNXRUNTIME, about: "path of libonnxruntime.so (else tract runs the models)" },
    Variable { name: NVML_LIB, about: "path of libnvidia-ml.so.1, in place of the driver's" },
    Variable { name: GPU_FIXTURE, about: "fixture that answers in place of a GPU, such as h100x8" },
    Variable { name: NAMESPACE, about: "namespace of the installation that a server in a cluster belongs to" },
    Variable { name: POD, about: "name of the pod that a server in a cluster runs in" },
    Variable { name: CONTROLLER, about: "`apart` where another process carries out the runs of a cluster" },
    Variable { name: RUNS_URL, about: "URL at which runs in a cluster reach the control plane" },
    Variable { name: RUNS_CA, about: "file of certificates by which runs in a cluster know the control plane" },
    Variable { name: RUNTIME, about: "auto, ort or tract" },
];
