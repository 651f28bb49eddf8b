//! Stable error codes with hints, and their catalogue. Every public error implements [`Explain`], so that a terminal report, a protocol
//! object and a metric label can all be derived from it. Every code in use has an entry in [`CATALOGUE`].

/// Implemented by every public error of slipway.
pub trait Explain: std::error::Error {
    /// A stable code, such as `listen.unauthenticated`. `slipway explain CODE` prints its catalogue entry.
    fn code(&self) -> &'static str;

    /// How to fix the error, as a sentence or a command; `None` if no fix is known.
    fn hint(&self) -> Option<String> {
        find(self.code()).map(|topic| topic.remedy.to_owned())
    }
}

/// An entry of the catalogue behind `slipway explain`.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// The stable code, such as `home.locked`.
    pub code: &'static str,
    /// What the error means.
    pub meaning: &'static str,
    /// How to fix the error.
    pub remedy: &'static str,
}

/// The catalogue entry for `code`, if it exists.
pub fn find(code: &str) -> Option<&'static Topic> {
    CATALOGUE.iter().find(|t| t.code == code)
}

/// All error codes of slipway.
pub const CATALOGUE: &[Topic] = &[
    Topic {
        code: "home.locked",
        meaning: "Another slipway server is using this state folder; two servers would corrupt it.",
        remedy: "Stop it with `slipway down`, or use another state folder with `--home DIR`.",
    },
    Topic {
        code: "home.unusable",
        meaning: "The state folder cannot be created or written.",
        remedy: "Check its owner and the free disk space, or choose another folder with `--home DIR`.",
    },
    Topic {
        code: "output.unwritable",
        meaning: "The command succeeded, but its output could not be written to the file given by `-o FILE`.",
        remedy: "Check the folder's owner and the free disk space, then run the command again; without `-o` the output goes to stdout.",
    },
    Topic {
        code: "listen.unauthenticated",
        meaning: "With --no-auth, every client that can reach the server may do everything, and this address is reachable from other machines.",
        remedy: "Omit --no-auth. Clients then need a token: `slipway token` prints yours, and `--token-file FILE` adds tokens for others.",
    },
    Topic {
        code: "listen.cors_origin",
        meaning: "A value of `cors-origin` is not the origin of a web page: a scheme (http or https), a host and, if it is not the scheme's default, a port.",
        remedy: "Write the page's address without path and trailing slash, such as `--cors-origin https://app.example`. List every origin; `*` is not accepted.",
    },
    Topic {
        code: "listen.in_use",
        meaning: "Another program is listening on this port.",
        remedy: "Choose another port with the option that the message names: `--listen`, `--inference-listen` or `--grpc-listen HOST:PORT` (port 0 picks a free one). Or stop the other program (`ss -ltnp` shows it).",
    },
    Topic {
        code: "listen.invalid",
        meaning: "The listen address is not HOST:PORT.",
        remedy: "Use a form like 127.0.0.1:7070 or [::1]:7070.",
    },
    Topic {
        code: "tls.file",
        meaning: "A certificate file, a key file or a fingerprint cannot be used for TLS.",
        remedy: "Certificates and keys must be PEM files, and the key must belong to the first certificate in the file.",
    },
    Topic {
        code: "tls.certificate",
        meaning: "The server presented a certificate that is not trusted; no request was sent.",
        remedy: "For a private certificate authority, set SLIPWAY_CA_FILE. For a self-signed certificate, compare the fingerprint with the one that `slipway up` printed and pass it with `--tls-fingerprint`, or save it with `slipway login URL --tls-fingerprint FINGERPRINT`.",
    },
    Topic {
        code: "tls.plaintext",
        meaning: "The token would have been sent over plain http, readable by everyone on the network path; it was not sent.",
        remedy: "Start the server with TLS (`slipway up --tls-self-signed`) and use its https:// address; `--insecure` sends the token anyway.",
    },
    Topic {
        code: "auth.credentials",
        meaning: "The file of saved credentials cannot be used: other users can read it, or its format is invalid.",
        remedy: "Run `chmod 600` on it, or remove it and log in again with `slipway login URL`.",
    },
    Topic {
        code: "request.timeout",
        meaning: "The body of the request did not arrive in time, so the server aborted the request.",
        remedy: "Send it again over a better connection. An upload may take long, but it must not stall for a minute.",
    },
    Topic {
        code: "auth.token_file",
        meaning: "The token file cannot be read or holds no token of at least 16 characters.",
        remedy: "Write one token per line, each of at least 16 characters, and make the file readable only by its owner.",
    },
    Topic {
        code: "auth.required",
        meaning: "This server requires a token, and the request had none or an invalid one.",
        remedy: "On this machine, `slipway token` prints the token; MLflow clients send it as MLFLOW_TRACKING_TOKEN. For another server, run `slipway login URL`, or set SLIPWAY_TOKEN together with SLIPWAY_SERVER. In a cluster, a service account's token works if it was issued for slipway: `kubectl create token ACCOUNT --audience slipway`.",
    },
    Topic {
        code: "auth.host",
        meaning: "The request was sent to a host name that this server does not have. This protects against DNS rebinding, where a web page points its own host name to this machine.",
        remedy: "Use localhost or the IP address; if the name is correct, start the server with `--hosts NAME`.",
    },
    Topic {
        code: "auth.no_token",
        meaning: "The state folder contains no token: no server was started on it yet, or the server was started with --no-auth or with a token file.",
        remedy: "`slipway up` writes a token when it starts; for a server with `--token-file`, use a token from that file.",
    },
    Topic {
        code: "auth.foreign",
        meaning: "A web page from another origin made the browser send this request.",
        remedy: "Use the server's own pages; a proxy in front of the server must forward the Host header. To call the inference port from another page, start the server with `--cors-origin ORIGIN`.",
    },
    Topic {
        code: "auth.unguarded",
        meaning: "A handler responded without checking the caller's permission. This is a bug in slipway; the response is withheld.",
        remedy: "Report it with the path of the request, which is in the server's log.",
    },
    Topic {
        code: "config.invalid",
        meaning: "A configuration file or value cannot be read.",
        remedy: "`slipway config show --origin` shows which file sets which value.",
    },
    Topic {
        code: "config.project",
        meaning: "A project's slipway.yaml sets a key that only you may set: a server, a path, a library, an address or a credential. A cloned repository must not decide where your token is sent or which code runs.",
        remedy: "Set it in ~/.config/slipway/config.yaml, as an environment variable or with the flag; a project may set only `log` and `runtime`.",
    },
    Topic {
        code: "explain.unknown",
        meaning: "The code that was passed to `slipway explain` does not exist.",
        remedy: "List all codes with `slipway explain`.",
    },
    Topic {
        code: "server.unreachable",
        meaning: "No server responds at this address.",
        remedy: "Start a server with `slipway up`, or set its address with `--server URL` or SLIPWAY_SERVER.",
    },
    Topic {
        code: "server.answered",
        meaning: "The server rejected the request; its message gives the reason.",
        remedy: "Fix the problem in the message; `slipway doctor` checks the server itself.",
    },
    Topic {
        code: "store.sql",
        meaning: "The metadata database returned an error.",
        remedy: "Check the free disk space and run `slipway doctor`. The failed change was rolled back completely.",
    },
    Topic {
        code: "store.unreachable",
        meaning: "The PostgreSQL database cannot be reached.",
        remedy: "Check SLIPWAY_DATABASE: host, password and TLS settings (`sslrootcert=FILE` or `sslmode=disable`).",
    },
    Topic {
        code: "store.url",
        meaning: "The URL of the database or of the bucket is invalid.",
        remedy: "SLIPWAY_DATABASE has the form postgres://USER:PASSWORD@HOST:PORT/NAME, SLIPWAY_OBJECTS has the form s3://BUCKET/PREFIX (or gs://, az://).",
    },
    Topic {
        code: "store.not_shared",
        meaning: "A separate gateway (--gateway-only) needs the database and the bucket of the control plane to find models and deployments.",
        remedy: "Set SLIPWAY_DATABASE and SLIPWAY_OBJECTS to the control plane's values, or omit --gateway-only.",
    },
    Topic {
        code: "store.closed",
        meaning: "The store is shutting down and accepts no more writes.",
        remedy: "Send the request again when the server is up.",
    },
    Topic {
        code: "store.newer",
        meaning: "The database was written by a newer slipway.",
        remedy: "Use that version or a newer one, or start with a new state folder (`--home DIR`).",
    },
    Topic {
        code: "store.panicked",
        meaning: "A database change or query panicked. This is a bug in slipway; the change was rolled back, and other requests are not affected.",
        remedy: "Report it with the panic's message and location from the server's log.",
    },
    Topic {
        code: "store.busy",
        meaning: "The request waited too long for a free database connection or for the database writer.",
        remedy: "Send the request again. If this happens often, raise `max_readers` in SLIPWAY_DATABASE (postgres://...?max_readers=32) and look for slow queries.",
    },
    Topic {
        code: "store.migration",
        meaning: "The database was created by a different migration script than this program has for the same schema version.",
        remedy: "Use the version of slipway that created it, or start with a new state folder (`--home DIR`). For developers: never edit a released migration; add a new one.",
    },
    Topic {
        code: "store.no_space",
        meaning: "The disk, its quota or the database is full or almost full, so the write was rejected. None of its data was stored.",
        remedy: "Free space on the disk of SLIPWAY_HOME (`df -h`), then send the request again; the server need not be restarted.",
    },
    Topic {
        code: "store.too_large",
        meaning: "An artifact, or a part of a multipart upload, exceeds the server's size limit. None of its data was stored.",
        remedy: "Split it into several artifacts, or raise the server's limit (SLIPWAY_MAX_ARTIFACT_BYTES).",
    },
    Topic {
        code: "store.uploads",
        meaning: "Too many multipart uploads are neither completed nor aborted.",
        remedy: "Complete or abort some uploads. An upload without writes for a day is removed automatically.",
    },
    Topic {
        code: "store.part",
        meaning: "The part number of a multipart upload is invalid.",
        remedy: "Number the parts from 1 to 10000, and list each part once when the upload is completed.",
    },
    Topic {
        code: "store.object",
        meaning: "An artifact cannot be read or written.",
        remedy: "Check the free disk space and the permissions of the `objects` folder below SLIPWAY_HOME; with SLIPWAY_OBJECTS, check the URL and its credentials.",
    },
    Topic {
        code: "auth.forbidden",
        meaning: "You are authenticated, but the cluster's RBAC rules do not allow this.",
        remedy: "Request a role: `slipway-view` and `slipway-edit` are part of the cluster's `view` and `edit` roles. `kubectl auth can-i create runs.slipway.dev -n NAMESPACE` shows what you may do.",
    },
    Topic {
        code: "auth.unreachable",
        meaning: "The control plane cannot reach the cluster's API server, which authenticates users.",
        remedy: "Try again; `kubectl get --raw /readyz` shows whether the API server is healthy.",
    },
    Topic {
        code: "cluster.spec",
        meaning: "The cluster file or the requested operation is invalid; the message names the field or value.",
        remedy: "`slipway cluster schema` prints a JSON schema for editors; `slipway cluster init` writes a first file.",
    },
    Topic {
        code: "cluster.secret",
        meaning: "A secret that the cluster file refers to cannot be read.",
        remedy: "Set the environment variable, or check the file or command in the message.",
    },
    Topic {
        code: "cluster.untrusted",
        meaning: "The cluster file takes a secret from a command that would run on this machine. Commands run only after you have approved them, because someone else may have written the file.",
        remedy: "Read the commands; `slipway cluster trust -f FILE` approves exactly these commands for this file. `slipway cluster resources` never runs commands.",
    },
    Topic {
        code: "cluster.unreachable",
        meaning: "A machine does not respond over SSH.",
        remedy: "Try `slipway cluster ssh NAME`; slipway uses OpenSSH's configuration, agent and keys.",
    },
    Topic {
        code: "cluster.host_key",
        meaning: "A machine's SSH host key is unknown, or it differs from the known one.",
        remedy: "If the machine was reinstalled, remove its old key (`ssh-keygen -R ADDRESS`) and connect once by hand. spec.ssh.acceptNewHostKeys accepts new keys, but never changed ones.",
    },
    Topic {
        code: "cluster.sudo",
        meaning: "The user cannot become root on the machine.",
        remedy: "Allow sudo without a password on the machine, or set the source of the password in spec.ssh.sudoPassword.",
    },
    Topic {
        code: "cluster.host",
        meaning: "A command failed on a machine.",
        remedy: "See `slipway cluster logs NAME`, fix the cause, and run `slipway cluster apply` again; it continues where it stopped.",
    },
    Topic {
        code: "cluster.upgrade",
        meaning: "The cluster file specifies another minor version of Kubernetes than the machine has. A minor upgrade drains the nodes one by one, control planes first; `slipway cluster apply` does not do this.",
        remedy: "Run `slipway cluster upgrade`, one minor version at a time.",
    },
    Topic {
        code: "cluster.provider",
        meaning: "The machine provider rejected a request or did not respond.",
        remedy: "The message is the provider's. Created machines are recorded; fix the cause and run the command again.",
    },
    Topic {
        code: "cluster.provider_auth",
        meaning: "The machine provider rejects the token, or the token lacks permissions.",
        remedy: "Check the token's source in spec.providers; the token needs permission to read and write machines.",
    },
    Topic {
        code: "cluster.foreign",
        meaning: "The provider has a machine with this name that was not created from here. It is neither used nor deleted.",
        remedy: "Adopt it with `slipway cluster adopt NAME ID`, or rename it.",
    },
    Topic {
        code: "cluster.locked",
        meaning: "Another process is changing this cluster or this machine; concurrent changes would conflict.",
        remedy: "Wait until it has finished, and run the command again.",
    },
    Topic {
        code: "cluster.io",
        meaning: "A file of the cluster state cannot be read or written.",
        remedy: "Check the free disk space and the owner of the state folder; `slipway doctor` checks both.",
    },
    Topic {
        code: "cluster.failed",
        meaning: "Some steps failed. Steps that depend on them were skipped; all others were carried out.",
        remedy: "Fix the problem in the message and run `slipway cluster apply` again; it continues where it stopped.",
    },
    Topic {
        code: "exec.manifest",
        meaning: "The run's manifest is invalid; the message names the field.",
        remedy: "See `slipway run submit --help` for an example; fields have the same names as in Kubernetes pods and jobs.",
    },
    Topic {
        code: "exec.too_large",
        meaning: "The run requests more resources than this machine has, so it could never start.",
        remedy: "Request less in spec.resources, or use a cluster: `slipway up --kube`.",
    },
    Topic {
        code: "exec.not_found",
        meaning: "The run does not exist, or it has no attempt with this number.",
        remedy: "`slipway run ls --submitted` lists the submitted runs.",
    },
    Topic {
        code: "exec.exists",
        meaning: "A run with this name already exists.",
        remedy: "Choose another name, generate one with metadata.generateName, or remove the old run: `slipway run rm NAME`.",
    },
    Topic {
        code: "exec.not_now",
        meaning: "The run's current state does not allow this operation.",
        remedy: "`slipway run status NAME` shows the state.",
    },
    Topic {
        code: "exec.failed",
        meaning: "The run did not succeed; the message gives the known reason.",
        remedy: "`slipway run logs NAME` shows its output, `slipway run status NAME` its attempts.",
    },
    Topic {
        code: "exec.forbidden",
        meaning: "You are authenticated, but you may not do this with runs of this namespace.",
        remedy: "`kubectl auth can-i create runs.slipway.dev -n NAMESPACE` shows whether you may; the roles `edit` and `admin` include it.",
    },
    Topic {
        code: "exec.unreachable",
        meaning: "The executor of runs does not respond: no server is running, or the cluster is unreachable.",
        remedy: "Start a server with `slipway up`, or try again when the cluster is reachable.",
    },
    Topic {
        code: "exec.spawn",
        meaning: "The run's process could not be started.",
        remedy: "Check that the program exists and is executable.",
    },
    Topic {
        code: "exec.io",
        meaning: "The working folder or the log file of a run cannot be written.",
        remedy: "Check the free disk space and the permissions of the `work` folder below SLIPWAY_HOME.",
    },
    Topic {
        code: "pipeline.invalid",
        meaning: "A request about pipelines, or a parameter of a run, is not valid.",
        remedy: "The message names the field. `slipway pipeline submit FILE -p NAME=VALUE` reads a VALUE as JSON where the pipeline declares no text.",
    },
    Topic {
        code: "pipeline.specification",
        meaning: "The file is not a compiled pipeline, or the pipeline has faults.",
        remedy: "Compile it again with `kfp dsl compile --py FILE.py --output FILE.yaml`; `slipway pipeline validate FILE.yaml` lists every fault with its line.",
    },
    Topic {
        code: "pipeline.not_found",
        meaning: "The pipeline, version, experiment, run, task or schedule does not exist.",
        remedy: "`slipway pipeline ls` lists the runs, and `slipway pipeline show RUN` the tasks of one.",
    },
    Topic {
        code: "pipeline.exists",
        meaning: "A pipeline, version or experiment with this name already exists.",
        remedy: "Choose another name, or delete the existing one first.",
    },
    Topic {
        code: "pipeline.not_now",
        meaning: "The operation is not possible in the current state, as retrying a run that has not ended.",
        remedy: "`slipway pipeline show RUN` prints the state.",
    },
    Topic {
        code: "pipeline.forbidden",
        meaning: "The caller lacks the permission for this operation.",
        remedy: "Use a token of the owner or an administrator; on Kubernetes, a role with the verb on `runs` in the group `slipway.dev`.",
    },
    Topic {
        code: "pipeline.failed",
        meaning: "The run that the command waited for has failed or was cancelled.",
        remedy: "`slipway pipeline show RUN` prints which task failed and why, `slipway pipeline logs RUN TASK` its output. After a repair, `slipway pipeline retry RUN` keeps what succeeded.",
    },
    Topic {
        code: "pipeline.io",
        meaning: "A file of a pipeline or of its run cannot be read or written.",
        remedy: "Check the path, the owner of the state folder and the free disk space.",
    },
    Topic {
        code: "track.refused",
        meaning: "The tracking or registry API rejected the request with MLflow's error code and message.",
        remedy: "The message names the parameter; MLflow's REST API documentation describes its rules.",
    },
    Topic {
        code: "serve.invalid",
        meaning: "The inference request does not match the model: a tensor's name, type, shape or size, or the body itself, is invalid.",
        remedy: "Compare the request with the model's metadata: `curl $GATEWAY/v2/models/NAME`.",
    },
    Topic {
        code: "serve.not_found",
        meaning: "The deployment, model or version does not exist.",
        remedy: "`slipway deploy ls` and `slipway model ls` list what exists.",
    },
    Topic {
        code: "serve.model_not_found",
        meaning: "The model that the deployment names does not exist: the registry has no such model, version, alias or run, or the server's machine has no such file.",
        remedy: "`slipway model ls` lists the registered models; a path is a path on the server's machine.",
    },
    Topic {
        code: "serve.model_unusable",
        meaning: "The file that the deployment names is no ONNX model, or one that the runtime cannot load.",
        remedy: "Check it with `python -c 'import onnx; onnx.checker.check_model(\"model.onnx\")'`; `slipway doctor` names the runtime.",
    },
    Topic {
        code: "serve.content_encoding",
        meaning: "The request body has a content encoding that the gateway cannot decode.",
        remedy: "Send `Content-Encoding: gzip` or `deflate` (zlib format), or the body without encoding.",
    },
    Topic {
        code: "serve.not_ready",
        meaning: "The model exists but is not loaded, or it failed to load.",
        remedy: "`slipway deploy show NAME` shows why; load it again with `slipway deploy apply`.",
    },
    Topic {
        code: "serve.overloaded",
        meaning: "The model's queue is full, so the request was rejected instead of waiting without a limit.",
        remedy: "Send again after the Retry-After time, or raise `queue` in the deployment.",
    },
    Topic {
        code: "serve.timeout",
        meaning: "The request took longer than the deployment's timeout.",
        remedy: "Raise `timeout_ms` in the deployment or send smaller batches.",
    },
    Topic {
        code: "serve.too_large",
        meaning: "The request body is larger than the gateway's limit.",
        remedy: "Send fewer rows per request, or raise `max_body_mb` in the deployment.",
    },
    Topic {
        code: "serve.body_memory",
        meaning: "The request was rejected because the bodies of the requests in flight use all the memory that the gateway reserves for bodies.",
        remedy: "Send again after the Retry-After time, send smaller bodies, or add replicas.",
    },
    Topic {
        code: "serve.slow_body",
        meaning: "The request body arrived too slowly, so the gateway stopped waiting for the rest of it.",
        remedy: "Send the body immediately after the headers; over a slow connection, send fewer rows per request.",
    },
    Topic {
        code: "serve.local_path",
        meaning: "The deployment refers to a model by a path on the server's machine, which only the owner of that server may do.",
        remedy: "Register the model and deploy `models:/NAME@ALIAS`, or run `slipway deploy apply` on the server's own machine as its owner.",
    },
    Topic {
        code: "serve.model",
        meaning: "The model failed while it computed a response, or the server failed while it loaded the model.",
        remedy: "The message has the runtime's reason and the server's log has more; `slipway doctor` names the runtime.",
    },
    Topic {
        code: "serve.manifest",
        meaning: "The deployment manifest is invalid.",
        remedy: "See `slipway deploy apply --help` for an example; weights are whole numbers that add up to 100.",
    },
    Topic {
        code: "gpu.no_nvml",
        meaning: "NVML, the management library of NVIDIA's driver, cannot be loaded.",
        remedy: "`slipway gpu stack` shows what is missing. To try slipway without a GPU: `slipway gpu ls --fixture h100x8`.",
    },
    Topic {
        code: "gpu.no_amd_smi",
        meaning: "AMD's management library (libamd_smi.so) cannot be loaded.",
        remedy: "Install ROCm's package amd-smi-lib, or simulate GPUs with `--fixture mi300xx8`.",
    },
    Topic {
        code: "gpu.amd_smi",
        meaning: "An AMD SMI call failed; the message names it.",
        remedy: "Load the driver (`modprobe amdgpu`) and add the user to the groups video and render; the kernel log has details: `dmesg | grep -i amdgpu`.",
    },
    Topic {
        code: "gpu.nvml",
        meaning: "An NVML call failed; the message names it.",
        remedy: "`slipway gpu stack` checks the driver and its permissions; the kernel log has details: `dmesg | grep -i nvrm`.",
    },
    Topic {
        code: "gpu.none",
        meaning: "This machine has no NVIDIA GPU, or no driver for it.",
        remedy: "`slipway gpu stack` shows which; `--cpu` measures the CPU instead; `--fixture h100x8` simulates GPUs.",
    },
    Topic {
        code: "gpu.cuda",
        meaning: "A call to CUDA, NVRTC or cuBLAS failed, or one of these libraries is not installed.",
        remedy: "Check with `slipway gpu stack`; the libraries also come from PyPI: `pip install nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12`, then set LD_LIBRARY_PATH.",
    },
    Topic {
        code: "gpu.fabric",
        meaning: "The GPU is not registered with its NVLink fabric. On boards with NVSwitches (HGX, NVL72) CUDA then ends with error 802, cudaErrorSystemNotReady, \"system not yet initialized\".",
        remedy: "Fabric manager must run in exactly the driver's version: `systemctl enable --now nvidia-fabricmanager`, then `slipway gpu stack`. HGX B200 and B300 also need nvlsm; in an NVL72 rack fabric manager runs on the switch trays. `slipway cluster apply --only gpu` installs what a machine needs.",
    },
    Topic {
        code: "gpu.invalid",
        meaning: "A GPU-related value, file or name is invalid; the message says which and why.",
        remedy: "See the example in the command's `--help`.",
    },
    Topic {
        code: "gpu.io",
        meaning: "A file for GPUs or containers cannot be read or written.",
        remedy: "Check its owner; changing a container runtime's configuration needs root.",
    },
    Topic {
        code: "gpu.mig_impossible",
        meaning: "The requested MIG instances or jobs do not fit; the message says why and what would fit.",
        remedy: "`slipway gpu mig profiles` lists the profiles of a card; select more GPUs with `--gpus`.",
    },
    Topic {
        code: "gpu.in_use",
        meaning: "A process is using the GPU or the MIG instance that would be removed; nothing was changed.",
        remedy: "Stop the process or drain the pod, then run the command again.",
    },
    Topic {
        code: "gpu.mig_apply",
        meaning: "A step of the MIG change failed; the message says what was rolled back.",
        remedy: "`slipway gpu mig ls` shows the current instances; changing MIG needs root and an idle GPU.",
    },
    Topic {
        code: "gpu.settings",
        meaning: "A change of a GPU's power limit, clocks, persistence, ECC or compute mode failed; the message says what was undone.",
        remedy: "Changing settings needs root. `slipway gpu settings show` lists what each GPU allows, `slipway gpu settings undo` restores \
                 the earlier values.",
    },
    Topic {
        code: "gpu.reset",
        meaning: "nvidia-smi could not reset the GPUs. Every program that has one of them open prevents it, monitoring included.",
        remedy: "Stop what the message names (`fuser -v /dev/nvidia*` lists the rest, such as dcgm-exporter), then retry; otherwise reboot \
                 the machine.",
    },
    Topic {
        code: "node.config",
        meaning: "A configuration of the node agent (device plugin or GPU settings) is invalid; the last valid one stays in effect.",
        remedy: "Fix the field in the message, or choose another file with the node label nvidia.com/device-plugin.config \
                 or slipway.dev/gpu-settings.",
    },
    Topic {
        code: "node.io",
        meaning: "The node agent cannot access a file, folder or port that it needs.",
        remedy: "The agent needs root for the kubelet's folder, and only one agent may run on a node.",
    },
    Topic {
        code: "node.invalid",
        meaning: "The node agent received a request that this node cannot fulfil.",
        remedy: "The message gives the reason; `slipway gpu ls` shows the node's GPUs.",
    },
    Topic {
        code: "node.kubelet",
        meaning: "The kubelet does not respond on its socket, or rejects the plugin.",
        remedy: "Check that the kubelet is running and that `--kubelet-dir` is its folder (/var/snap/microk8s/common/var/lib/kubelet on MicroK8s).",
    },
    Topic {
        code: "node.no_driver",
        meaning: "The NVIDIA driver is not loaded on the node. The node agent waits for it.",
        remedy: "`slipway gpu stack` shows which layer is missing.",
    },
    Topic {
        code: "kube.no_config",
        meaning: "No cluster configuration was found: neither in-cluster, nor in $KUBECONFIG, nor in ~/.kube/config.",
        remedy: "Set KUBECONFIG, or pass `--kubeconfig FILE`; `slipway lab up` starts a local test cluster.",
    },
    Topic {
        code: "kube.unreachable",
        meaning: "The cluster's API server does not respond.",
        remedy: "Check the address and the network with `kubectl cluster-info`.",
    },
    Topic {
        code: "kube.refused",
        meaning: "The API server rejected the request; the message is from the API server.",
        remedy: "For 401 and 403, check your identity and permissions: `kubectl auth whoami`, `kubectl auth can-i --list`.",
    },
    Topic {
        code: "kube.invalid",
        meaning: "The requested state of the cluster is invalid, or it was not reached in time.",
        remedy: "The message names the value or the object; `kubectl describe` shows the details of an object.",
    },
    Topic {
        code: "lab.failed",
        meaning: "An operation of the lab, a small Kubernetes cluster on this machine, failed.",
        remedy: "The message says why. The lab needs Go 1.26 to be built, and root, runc and nft to run nodes.",
    },
    Topic {
        code: "data.no_project",
        meaning: "This folder and those above have no `.dvc` folder.",
        remedy: "Create a project with `slipway data init` in a Git work tree, or with `--no-scm`.",
    },
    Topic {
        code: "data.init",
        meaning: "The project cannot be created here.",
        remedy: "Run `git init` first, use `--subdir` below the root of a Git work tree, or `--no-scm` without Git; `-f` replaces an existing project.",
    },
    Topic {
        code: "data.file",
        meaning: "A file of the project cannot be read: its syntax or a value is invalid.",
        remedy: "The message names the file and the line; `git diff` shows who changed it.",
    },
    Topic {
        code: "data.config",
        meaning: "The configuration of the project is invalid, or does not have the named section, option or remote.",
        remedy: "`slipway data config --list --show-origin` shows which file sets which option.",
    },
    Topic {
        code: "data.usage",
        meaning: "The command line is invalid.",
        remedy: "`slipway data COMMAND --help` shows the options and an example.",
    },
    Topic {
        code: "data.invalid",
        meaning: "The data cannot be tracked or changed in this way; the message says why.",
        remedy: "Follow the message; `slipway data COMMAND --help` has an example.",
    },
    Topic {
        code: "data.nested_rules",
        meaning: "A tracked folder contains a `.dvcignore` file. Its rules could change what the folder contains, so DVC forbids it.",
        remedy: "Move its rules into a `.dvcignore` above the tracked folder.",
    },
    Topic {
        code: "data.missing",
        meaning: "A file or folder does not exist in the workspace.",
        remedy: "`slipway data checkout` restores tracked data from the cache, `slipway data pull` from the remote.",
    },
    Topic {
        code: "data.not_in_repository",
        meaning: "The other repository has no such file or folder at this revision.",
        remedy: "`slipway data ls URL` lists what it has; `--rev` chooses a branch, tag or commit.",
    },
    Topic {
        code: "data.exists",
        meaning: "There is a file or folder where the data would be written.",
        remedy: "Choose another place with `-o`, or replace it with `--force`.",
    },
    Topic {
        code: "data.target",
        meaning: "The target is not tracked.",
        remedy: "`slipway data add PATH` tracks it; the targets of other commands are tracked paths and .dvc files.",
    },
    Topic {
        code: "data.overlap",
        meaning: "Tracked data cannot contain other tracked data.",
        remedy: "Follow the message: stop tracking the inner path first, or commit the outer one.",
    },
    Topic {
        code: "data.tracked_by_git",
        meaning: "Git tracks the file, so it cannot be kept out of Git.",
        remedy: "Run `git rm -r --cached PATH` and commit, then add it.",
    },
    Topic {
        code: "data.git",
        meaning: "Git failed, or the project is not in a Git work tree.",
        remedy: "Check the revision with `git log`; for a project without Git, set `core.no_scm` to true.",
    },
    Topic {
        code: "data.unsaved",
        meaning: "The command would remove data whose content is not in the cache, so it could not be restored.",
        remedy: "Save it with `slipway data commit`, or remove it with `--force`.",
    },
    Topic {
        code: "data.linked_out",
        meaning: "A symbolic link in the project leads to a folder outside of it, and the command would change files there. A cloned project \
                  could use this to write anywhere.",
        remedy: "Check where the link leads. If it is yours, pass `--force`.",
    },
    Topic {
        code: "data.reserved",
        meaning: "The list of the files of data, or a link in the project, leads into a folder of Git or DVC. What is there can run programs, so a \
                  cloned project or a remote could use this to run anything.",
        remedy: "Do not use the data before you know where it comes from. Its author can track it without `.git`, `.hg` and `.dvc` in its paths.",
    },
    Topic {
        code: "data.changed",
        meaning: "The data differs from what is recorded, and the change was not confirmed.",
        remedy: "Pass `--force` to record it, or restore the recorded data with `slipway data checkout`.",
    },
    Topic {
        code: "data.command",
        meaning: "The command of a stage of a pipeline failed. Its outputs were not recorded.",
        remedy: "Read what the command printed, and run `slipway data repro` again. `slipway data repro --dry` shows the commands.",
    },
    Topic {
        code: "data.reproduction",
        meaning: "Stages of a pipeline could not be run. Stages that were finished before are recorded, and will not run again.",
        remedy: "Correct the cause that the message names, and run `slipway data repro` again; `--keep-going` runs what does not depend on it.",
    },
    Topic {
        code: "data.not_in_cache",
        meaning: "The cache lacks recorded data. Outputs that lack data were not changed.",
        remedy: "`slipway data pull` receives it from the remote.",
    },
    Topic {
        code: "data.corrupt",
        meaning: "An object does not have the content that its name promises. It was not used.",
        remedy: "Remove the object and receive it again with `slipway data fetch`, or push it again from a project that has the data.",
    },
    Topic {
        code: "data.links",
        meaning: "A file cannot be put into the workspace with any of the configured link types.",
        remedy: "`slipway data config cache.type reflink,copy` works on every file system.",
    },
    Topic {
        code: "data.no_remote",
        meaning: "No remote is configured or chosen.",
        remedy: "`slipway data remote add -d NAME URL` adds the default remote; `-r NAME` chooses one.",
    },
    Topic {
        code: "data.transfer",
        meaning: "Some files could not be transferred. The others were; the next attempt transfers the rest only.",
        remedy: "Repair the cause of the first error, and run the command again.",
    },
    Topic {
        code: "data.remote",
        meaning: "The remote returned an error.",
        remedy: "Check the URL, the credentials and the network: `slipway data remote list`.",
    },
    Topic {
        code: "data.hosted_name",
        meaning: "A remote on a slipway server, and its namespace, are named by up to 63 letters, digits, `-`, `_` and `.`, and begin with a letter or digit.",
        remedy: "Change the URL of the remote: http://HOST:7070/api/v1/data/remotes/NAME.",
    },
    Topic {
        code: "data.batch",
        meaning: "Small objects of versioned data are sent to a server in batches: each object follows a line with its path and its number of bytes. The request was not such a batch, or an object in it is larger than 64 KiB, or there are more than 2,000 of them.",
        remedy: "`slipway data push` writes valid batches; another program should send each object by itself, to its own path.",
    },
    Topic {
        code: "data.limit",
        meaning: "The server reads repositories of other people, with limits on time and sizes, and this one exceeds a limit.",
        remedy: "Choose a part of it: another path, a subfolder, or fewer revisions. On a clone, `slipway data` has no such limits.",
    },
    Topic {
        code: "data.busy",
        meaning: "Only a few requests read repositories at the same time, so that the server stays responsive.",
        remedy: "Repeat the request in a moment.",
    },
    Topic {
        code: "data.unknown_repository",
        meaning: "The namespace has no data repository with this name. Repositories are registered by administrators.",
        remedy: "List them with `slipway data repositories list`, or register one with `slipway data repositories add`.",
    },
    Topic {
        code: "data.item_name",
        meaning: "A remote stores objects under the paths that DVC writes: `files/md5/XX/…` with the 32 digits of an MD5, or `runs/XX/…`.",
        remedy: "Use the URL only as the URL of a remote: `slipway data remote add NAME URL`.",
    },
    Topic {
        code: "data.mismatch",
        meaning: "The server computed the digest of what it received, and it differs from the digest in the path. The content was damaged on its way or in the sender's cache.",
        remedy: "Remove the object from the sender's cache, add the data again, and push again.",
    },
    Topic {
        code: "data.repository",
        meaning: "The Git repository of a version of data cannot be reached, or does not have the revision.",
        remedy: "Check the URL and the revision with `git ls-remote URL`; a private repository needs a credential helper or SSH key of the user that runs the server.",
    },
    Topic {
        code: "data.untracked",
        meaning: "The commit tracks no data at this path.",
        remedy: "Name a path that a .dvc file, a pipeline or Git tracks in that commit, from the root of the repository.",
    },
    Topic {
        code: "data.unavailable",
        meaning: "A version of data is recorded, but its bytes are not where they should be: in the project's cache or its remote.",
        remedy: "Push them from a project that has them: `slipway data push`. The remote's address is in .dvc/config of the commit.",
    },
    Topic {
        code: "data.io",
        meaning: "A file cannot be read or written.",
        remedy: "Check its permissions and the free disk space, then run the command again.",
    },
    Topic {
        code: "objects.not_found",
        meaning: "The Kubernetes API of this server has no object, or no namespace, with this name.",
        remedy: "List the objects with `kubectl get KIND --all-namespaces`. A namespace must be created before the objects in it: `kubectl create namespace NAME`.",
    },
    Topic {
        code: "objects.exists",
        meaning: "The namespace already has an object of this kind with this name.",
        remedy: "Change the existing object with `kubectl apply`, or choose another name.",
    },
    Topic {
        code: "objects.conflict",
        meaning: "The object was changed after it was read, or it is not the object that the request names by its unique id.",
        remedy: "Read the object again, and repeat the change; `kubectl apply` and `kubectl patch` do so by themselves.",
    },
    Topic {
        code: "objects.invalid",
        meaning: "The request or the object is not valid. The message names each field with its path.",
        remedy: "`kubectl explain KIND` describes the fields; `kubectl apply --dry-run=server` checks a manifest.",
    },
    Topic {
        code: "objects.forbidden",
        meaning: "The caller lacks the permission for this object, or the object or its namespace does not allow the change now. A server with a shared database has no key to encrypt secrets, and refuses them.",
        remedy: "`kubectl auth can-i VERB KIND` shows the permission. `slipway config kubeconfig` writes a kubeconfig with the token of this machine.",
    },
    Topic {
        code: "objects.expired",
        meaning: "The list or watch continues at a version whose changes are no longer retained.",
        remedy: "Begin with a new list; Kubernetes clients do so by themselves.",
    },
    Topic {
        code: "objects.too_large",
        meaning: "An object has at most 1.5 MiB, and a request 3 MiB.",
        remedy: "Divide the object, or store large data as an artifact or with `slipway data`.",
    },
    Topic {
        code: "objects.sealed",
        meaning: "A secret was encrypted with another key than that in `kubernetes-objects.key` of the state folder, or its row was changed.",
        remedy: "Restore `kubernetes-objects.key` together with the database from a backup, or delete the secret and create it again.",
    },
    Topic {
        code: "demo.failed",
        meaning: "A step of the demo failed its verification.",
        remedy: "The message names the step and its log file; `slipway doctor` checks the machine.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_have_texts() {
        for (i, topic) in CATALOGUE.iter().enumerate() {
            assert!(!topic.meaning.is_empty() && !topic.remedy.is_empty(), "{} has an empty text", topic.code);
            assert!(CATALOGUE[i + 1..].iter().all(|t| t.code != topic.code), "{} is listed twice", topic.code);
        }
    }
}
