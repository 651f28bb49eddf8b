//! One error, three faces: a line on the terminal, an object in a protocol, a label on a metric.

/// What every public error of slipway can say about itself.
pub trait Explain: std::error::Error {
    /// A stable code, such as `listen.unauthenticated`; `slipway explain CODE` tells more.
    fn code(&self) -> &'static str;

    /// What to do about it, one sentence or a command, if anything is known to help.
    fn hint(&self) -> Option<String> {
        find(self.code()).map(|topic| topic.remedy.to_owned())
    }
}

/// An entry of the catalogue behind `slipway explain`.
#[derive(Debug, Clone, Copy)]
pub struct Topic {
    /// The stable code.
    pub code: &'static str,
    /// What happened.
    pub meaning: &'static str,
    /// What helps.
    pub remedy: &'static str,
}

/// The entry for `code`, if there is one.
pub fn find(code: &str) -> Option<&'static Topic> {
    CATALOGUE.iter().find(|t| t.code == code)
}

/// Every code slipway can print.
pub const CATALOGUE: &[Topic] = &[
    Topic {
        code: "home.locked",
        meaning: "Another slipway server is using this state folder; two writers would corrupt each other's work.",
        remedy: "Stop it with `slipway down`, or give this one a folder of its own with `--home DIR`.",
    },
    Topic {
        code: "home.unusable",
        meaning: "The state folder cannot be created or written.",
        remedy: "Check its owner and free space, or choose another with `--home DIR`.",
    },
    Topic {
        code: "output.unwritable",
        meaning: "The command did its work, and what it printed could not be written into the file that `-o FILE` names.",
        remedy: "Check the folder's owner and free space, then ask again, or leave `-o` away and read it from stdout.",
    },
    Topic {
        code: "listen.unauthenticated",
        meaning: "With --no-auth anybody who reaches the server may do everything, and this address is reachable from other machines.",
        remedy: "Leave --no-auth away: callers then need a token, which `slipway token` prints; tokens for others go into `--token-file FILE`.",
    },
    Topic {
        code: "listen.in_use",
        meaning: "Another program listens on this port.",
        remedy: "Choose another with `--listen HOST:PORT` (0 picks a free one), or stop the program: `ss -ltnp`.",
    },
    Topic {
        code: "listen.invalid",
        meaning: "The listen address is not HOST:PORT.",
        remedy: "Write it like 127.0.0.1:7070 or [::1]:7070.",
    },
    Topic {
        code: "tls.file",
        meaning: "A file of certificates or of a key, or a fingerprint, cannot be used for TLS.",
        remedy: "Certificates and keys are PEM files; the key has to be that of the first certificate in the file.",
    },
    Topic {
        code: "tls.certificate",
        meaning: "The server presented a certificate that is not trusted; nothing was sent to it.",
        remedy: "For an authority of your own set SLIPWAY_CA_FILE. For a self-signed certificate compare the fingerprint with the one that `slipway up` printed and name it: `--tls-fingerprint`, or once with `slipway login URL --tls-fingerprint FINGERPRINT`.",
    },
    Topic {
        code: "tls.plaintext",
        meaning: "A token would have crossed the network over plain http, readable for everybody on the way; it was not sent.",
        remedy: "Start the server with TLS (`slipway up --tls-self-signed`) and use its https:// address; `--insecure` sends the token all the same.",
    },
    Topic {
        code: "auth.credentials",
        meaning: "The file of saved credentials cannot be used; others can read it, or it is not as `slipway login` wrote it.",
        remedy: "`chmod 600` it, or remove it and log in again with `slipway login URL`.",
    },
    Topic {
        code: "request.timeout",
        meaning: "The body of the request did not arrive in time, so the server gave it up.",
        remedy: "Send it again over a better connection; an upload may take long, but not stand still for a minute.",
    },
    Topic {
        code: "auth.token_file",
        meaning: "The token file cannot be read or holds no token of at least 16 characters.",
        remedy: "Put one token a line in it, 16 characters or more, readable by this user only.",
    },
    Topic {
        code: "auth.required",
        meaning: "This server asks for a token, and the request had none or a wrong one.",
        remedy: "On this machine `slipway token` prints the token; MLflow clients send it as MLFLOW_TRACKING_TOKEN. For another server run `slipway login URL`, or set SLIPWAY_TOKEN beside SLIPWAY_SERVER. In a cluster a service account's token works if it was made for slipway: `kubectl create token ACCOUNT --audience slipway`.",
    },
    Topic {
        code: "auth.host",
        meaning: "The request was sent to a host name that is not one of this server's, as a page does that points a name of its own to this machine (DNS rebinding).",
        remedy: "Use localhost or the address; if the name is right, start the server with `--hosts NAME`.",
    },
    Topic {
        code: "auth.no_token",
        meaning: "The state folder holds no token: no server was started on it yet, or it was started to ask for none or for those of a token file.",
        remedy: "`slipway up` writes one when it starts; where a server has `--token-file`, use a line of that file.",
    },
    Topic {
        code: "auth.foreign",
        meaning: "A web page of another origin made the browser send this request.",
        remedy: "Use the server's own pages; behind a proxy, let it pass the Host header on.",
    },
    Topic {
        code: "auth.unguarded",
        meaning: "A handler answered without deciding whether its caller may ask. This is a defect of slipway; the answer is withheld.",
        remedy: "Report it with the path of the request; the server's log has it.",
    },
    Topic {
        code: "config.invalid",
        meaning: "A configuration file or value cannot be read.",
        remedy: "See which file and value with `slipway config show --origin`.",
    },
    Topic {
        code: "config.project",
        meaning: "A slipway.yaml of a project sets something that only you may set: a server, a path, a library, an address or a credential. A cloned repository must not decide where your token goes or which code runs.",
        remedy: "Set it in ~/.config/slipway/config.yaml, in the environment or with the flag; a project may set `log` and `runtime`.",
    },
    Topic {
        code: "explain.unknown",
        meaning: "`slipway explain` was asked about a code that slipway does not know.",
        remedy: "List all codes with `slipway explain`.",
    },
    Topic {
        code: "server.unreachable",
        meaning: "No server answers at this address.",
        remedy: "Start one with `slipway up`, or name it with `--server URL` or SLIPWAY_SERVER.",
    },
    Topic {
        code: "server.answered",
        meaning: "The server refused the request; its message says why.",
        remedy: "Correct what the message names; `slipway doctor` checks the server itself.",
    },
    Topic {
        code: "store.sql",
        meaning: "The metadata database answered with an error.",
        remedy: "Check free space and `slipway doctor`; the failed change was rolled back whole.",
    },
    Topic {
        code: "store.unreachable",
        meaning: "The PostgreSQL database cannot be reached.",
        remedy: "Check SLIPWAY_DATABASE: host, password, and for TLS `sslrootcert=FILE` or `sslmode=disable`.",
    },
    Topic {
        code: "store.url",
        meaning: "The URL of the database or of the bucket is not of a form that is understood.",
        remedy: "SLIPWAY_DATABASE is postgres://USER:PASSWORD@HOST:PORT/NAME, SLIPWAY_OBJECTS is s3://BUCKET/PREFIX (or gs://, az://).",
    },
    Topic {
        code: "store.not_shared",
        meaning: "A gateway of its own finds models and deployments in a database and a bucket that it shares.",
        remedy: "Set SLIPWAY_DATABASE and SLIPWAY_OBJECTS to what the control plane has, or leave --gateway-only out.",
    },
    Topic {
        code: "store.closed",
        meaning: "The store is shutting down and takes no more writes.",
        remedy: "Send the request again once the server is up.",
    },
    Topic {
        code: "store.newer",
        meaning: "The database was written by a newer slipway.",
        remedy: "Use that version or newer, or start with a fresh `--home`.",
    },
    Topic {
        code: "store.panicked",
        meaning: "The code of a change or of a query panicked: a defect of slipway. What it did was rolled back, everything else goes on.",
        remedy: "Report it with the panic's message and place from the server's log.",
    },
    Topic {
        code: "store.busy",
        meaning: "All connections to the database, or its writer, were in use for as long as a request may wait.",
        remedy: "Send the request again; if it happens often, raise `max_readers` in SLIPWAY_DATABASE (postgres://...?max_readers=32) and look for slow queries.",
    },
    Topic {
        code: "store.migration",
        meaning: "The database was made by another script than the one that this program has under the same schema version.",
        remedy: "Use the version of slipway that made it, or start with a fresh `--home`. A released schema change is never edited; a new one is added.",
    },
    Topic {
        code: "store.no_space",
        meaning: "The disk, its quota or the database is full, or so nearly full that the write was refused. Nothing of it was kept.",
        remedy: "Free space on the disk of SLIPWAY_HOME (`df -h`), then send the request again; the server goes on by itself.",
    },
    Topic {
        code: "store.too_large",
        meaning: "An artifact, or a part of an upload in parts, is larger than the server takes. Nothing of it was kept.",
        remedy: "Split it into several artifacts, or raise the server's limit.",
    },
    Topic {
        code: "store.uploads",
        meaning: "Too many uploads in parts are neither completed nor aborted.",
        remedy: "Complete or abort some; what nobody wrote to for a day is removed by itself.",
    },
    Topic {
        code: "store.part",
        meaning: "The number of a part of an upload cannot be used.",
        remedy: "Number the parts from 1 to 10000 and name each once when the upload is completed.",
    },
    Topic {
        code: "store.object",
        meaning: "An artifact cannot be read or written.",
        remedy: "Check free space and permissions of the `objects` folder under SLIPWAY_HOME; with SLIPWAY_OBJECTS, the URL and its credentials.",
    },
    Topic {
        code: "auth.forbidden",
        meaning: "Who you are is known, and the cluster's rules do not allow this.",
        remedy: "Ask for a role: `slipway-view` and `slipway-edit` are part of the cluster's own `view` and `edit`; `kubectl auth can-i create runs.slipway.dev -n NAMESPACE` tells.",
    },
    Topic {
        code: "auth.unreachable",
        meaning: "The cluster, which knows who you are, does not answer the control plane.",
        remedy: "Try again; `kubectl get --raw /readyz` tells whether the API server is well.",
    },
    Topic {
        code: "cluster.spec",
        meaning: "The cluster's file, or what was asked of it, cannot be used; the message names the place.",
        remedy: "`slipway cluster schema` is the schema for editors, `slipway cluster init` writes a first file.",
    },
    Topic {
        code: "cluster.secret",
        meaning: "A secret that the cluster's file refers to cannot be read.",
        remedy: "Set the variable, or look at the file or the command that the message names.",
    },
    Topic {
        code: "cluster.untrusted",
        meaning: "The cluster's file takes a secret from a command, which would run on this machine. A file that somebody else wrote runs nothing before you agreed to its commands.",
        remedy: "Read the commands; `slipway cluster trust -f FILE` lets exactly these run from this file. `slipway cluster resources` runs none at all.",
    },
    Topic {
        code: "cluster.unreachable",
        meaning: "A machine does not answer over SSH.",
        remedy: "Try `slipway cluster ssh NAME`; OpenSSH's configuration, agent and keys are used as they are.",
    },
    Topic {
        code: "cluster.host_key",
        meaning: "A machine's SSH key is not the one that is known, or none is known.",
        remedy: "If the machine was made anew, remove its old key (`ssh-keygen -R ADDRESS`) and connect once by hand; spec.ssh.acceptNewHostKeys takes keys that are new, never ones that changed.",
    },
    Topic {
        code: "cluster.sudo",
        meaning: "The user cannot become root on the machine.",
        remedy: "Allow sudo without a password there, or name where the password comes from in spec.ssh.sudoPassword.",
    },
    Topic {
        code: "cluster.host",
        meaning: "A command failed on a machine.",
        remedy: "See `slipway cluster logs NAME`; then `slipway cluster apply` goes on where it was.",
    },
    Topic {
        code: "cluster.upgrade",
        meaning: "The file names another minor version of Kubernetes than the machine has. Nodes change it one by one, drained, control planes first, which an apply does not do.",
        remedy: "Run `slipway cluster upgrade`, one minor version at a time.",
    },
    Topic {
        code: "cluster.provider",
        meaning: "The provider of machines refused, or did not answer.",
        remedy: "The message is the provider's own. What was made is written down; run the command again once it is mended.",
    },
    Topic {
        code: "cluster.provider_auth",
        meaning: "The provider of machines does not accept the token, or the token may not do this.",
        remedy: "Look at where spec.providers takes the token from; it needs to read and write machines.",
    },
    Topic {
        code: "cluster.foreign",
        meaning: "The provider has a machine of the right name that was not made from here. It is neither used nor deleted.",
        remedy: "Take it as it is with `slipway cluster adopt NAME ID`, or rename it.",
    },
    Topic {
        code: "cluster.locked",
        meaning: "Somebody else is changing this cluster or this machine; two at once would spoil each other's work.",
        remedy: "Wait for it to end, and run the command again.",
    },
    Topic {
        code: "cluster.io",
        meaning: "A file of the cluster's state cannot be read or written.",
        remedy: "Check free space and the owner of the state folder, `slipway doctor`.",
    },
    Topic {
        code: "cluster.failed",
        meaning: "Some steps of an apply failed; those that need them were skipped, all others were done.",
        remedy: "Mend what the message names and run `slipway cluster apply` again: it goes on where it was.",
    },
    Topic {
        code: "exec.manifest",
        meaning: "The file of a run cannot be used; the message names the place.",
        remedy: "See `slipway run submit --help` for an example; fields are named as in a pod and a job.",
    },
    Topic {
        code: "exec.too_large",
        meaning: "The run asks for more than this machine has, so it would wait for ever.",
        remedy: "Ask for less in spec.resources, or use a cluster: `slipway up --kube`.",
    },
    Topic {
        code: "exec.not_found",
        meaning: "There is no such run, or no such try of it.",
        remedy: "`slipway run queue` lists what was submitted.",
    },
    Topic {
        code: "exec.exists",
        meaning: "There is a run of that name already.",
        remedy: "Choose another name, or let metadata.generateName make one up, or remove the old one: `slipway run rm NAME`.",
    },
    Topic {
        code: "exec.not_now",
        meaning: "The run is not in a state in which this can be done.",
        remedy: "`slipway run status NAME` tells where it is.",
    },
    Topic {
        code: "exec.failed",
        meaning: "The run ended, and not with success; the message is what is known of why.",
        remedy: "`slipway run logs NAME` shows what it printed, `slipway run status NAME` its tries.",
    },
    Topic {
        code: "exec.forbidden",
        meaning: "Who you are is known, and may not do this with runs of that namespace.",
        remedy: "`kubectl auth can-i create runs.slipway.dev -n NAMESPACE` tells; the roles `edit` and `admin` include it.",
    },
    Topic {
        code: "exec.unreachable",
        meaning: "What carries runs out does not answer: no server runs, or the cluster is away.",
        remedy: "Start a server with `slipway up`, or try again when the cluster answers.",
    },
    Topic {
        code: "exec.spawn",
        meaning: "The process could not be started.",
        remedy: "Check that the program exists and is executable.",
    },
    Topic {
        code: "exec.io",
        meaning: "The working folder or the log file of a process cannot be written.",
        remedy: "Check free space and permissions of the `work` folder under SLIPWAY_HOME.",
    },
    Topic {
        code: "track.refused",
        meaning: "The tracking or registry API refused the request with MLflow's own error code and message.",
        remedy: "The message names the parameter; MLflow's REST documentation has its rules.",
    },
    Topic {
        code: "serve.invalid",
        meaning: "The inference request does not fit the model: a tensor's name, type, shape or size, or the body itself.",
        remedy: "Compare with the model's metadata: `curl $GATEWAY/v2/models/NAME`.",
    },
    Topic {
        code: "serve.not_found",
        meaning: "No such deployment, model or version.",
        remedy: "See what is there with `slipway deploy ls` and `slipway model ls`.",
    },
    Topic {
        code: "serve.not_ready",
        meaning: "The model is known but not loaded, or it failed to load.",
        remedy: "`slipway deploy show NAME` tells why; load it again with `slipway deploy apply`.",
    },
    Topic {
        code: "serve.overloaded",
        meaning: "The model's queue is full; the request was turned away instead of waiting without bound.",
        remedy: "Send again after the Retry-After time, or raise `queue` in the deployment.",
    },
    Topic {
        code: "serve.timeout",
        meaning: "The request took longer than the deployment's time limit.",
        remedy: "Raise `timeout_ms` in the deployment or send smaller batches.",
    },
    Topic {
        code: "serve.too_large",
        meaning: "The request body is larger than the gateway's limit.",
        remedy: "Send fewer rows a request, or raise `max_body_mb` in the deployment.",
    },
    Topic {
        code: "serve.body_memory",
        meaning: "The requests that are being answered take all the memory that the gateway allows their bodies, so one more was turned away.",
        remedy: "Send again after the Retry-After time, send smaller bodies, or add replicas.",
    },
    Topic {
        code: "serve.slow_body",
        meaning: "The request body arrived too slowly, so the gateway stopped waiting for the rest of it.",
        remedy: "Send the body at once after the headers; over a slow connection send fewer rows a request.",
    },
    Topic {
        code: "serve.local_path",
        meaning: "The deployment names a model by a path of the server's machine, which only that machine's owner may do.",
        remedy: "Register the model and deploy `models:/NAME@ALIAS`, or run `slipway deploy apply` on the server's own machine as its owner.",
    },
    Topic {
        code: "serve.model",
        meaning: "The model file cannot be loaded or run.",
        remedy: "Check it with `python -c 'import onnx; onnx.checker.check_model(\"model.onnx\")'`; `slipway doctor` names the runtime.",
    },
    Topic {
        code: "serve.manifest",
        meaning: "The deployment file cannot be used.",
        remedy: "See `slipway deploy apply --help` for an example; weights are whole numbers that add up to 100.",
    },
    Topic {
        code: "gpu.no_nvml",
        meaning: "NVML, the management library that comes with NVIDIA's driver, cannot be loaded.",
        remedy: "`slipway gpu stack` shows what is missing; to learn without a GPU: `slipway gpu ls --fixture h100x8`.",
    },
    Topic {
        code: "gpu.nvml",
        meaning: "NVML refused a call; the message names it.",
        remedy: "`slipway gpu stack` checks driver and permissions; the kernel's log tells more: `dmesg | grep -i nvrm`.",
    },
    Topic {
        code: "gpu.none",
        meaning: "There is no NVIDIA GPU in this machine, or no driver for it.",
        remedy: "`slipway gpu stack` tells which; `--cpu` measures the processor; `--fixture h100x8` simulates GPUs.",
    },
    Topic {
        code: "gpu.cuda",
        meaning: "A call of CUDA, NVRTC or cuBLAS failed, or one of them is not installed.",
        remedy: "Check with `slipway gpu stack`; the libraries also come from PyPI: `pip install nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12`, then set LD_LIBRARY_PATH.",
    },
    Topic {
        code: "gpu.invalid",
        meaning: "A value, file or name about GPUs cannot be used; the message says which and why.",
        remedy: "See the example in the command's `--help`.",
    },
    Topic {
        code: "gpu.io",
        meaning: "A file about GPUs or containers cannot be read or written.",
        remedy: "Check its owner; changing a runtime's configuration needs root.",
    },
    Topic {
        code: "gpu.mig_impossible",
        meaning: "The instances or jobs that are wanted do not fit; the message says why and what would.",
        remedy: "`slipway gpu mig profiles` lists what a card offers; name more GPUs with `--gpus`.",
    },
    Topic {
        code: "gpu.in_use",
        meaning: "A process is using the GPU or the instance that would have to go; nothing was touched.",
        remedy: "End the process or drain the pod, then run the command again.",
    },
    Topic {
        code: "gpu.mig_apply",
        meaning: "A step of the change failed; the message says what was brought back.",
        remedy: "See what is there with `slipway gpu mig ls`; changing MIG needs root and an idle GPU.",
    },
    Topic {
        code: "node.config",
        meaning: "The device plugin configuration cannot be read as it stands; the last good one stays in force.",
        remedy: "Mend the place that the message names, or choose another file with the node label nvidia.com/device-plugin.config.",
    },
    Topic {
        code: "node.io",
        meaning: "The node agent cannot use a file, folder or port that it needs.",
        remedy: "It needs root for the kubelet's folder; see that no other agent runs on the node.",
    },
    Topic {
        code: "node.invalid",
        meaning: "The node agent was asked for something that this node cannot do.",
        remedy: "The message says what; `slipway gpu ls` shows the node's GPUs.",
    },
    Topic {
        code: "node.kubelet",
        meaning: "The kubelet does not answer on its socket, or refuses the plugin.",
        remedy: "See that the kubelet runs and where its folder is (`--kubelet-dir`; /var/snap/microk8s/common/var/lib/kubelet on MicroK8s).",
    },
    Topic {
        code: "node.no_driver",
        meaning: "The NVIDIA driver is not loaded on the node. The agent waits for it.",
        remedy: "`slipway gpu stack` says which layer is missing.",
    },
    Topic {
        code: "kube.no_config",
        meaning: "There is no configuration of a cluster: neither a pod's own, nor $KUBECONFIG, nor ~/.kube/config.",
        remedy: "Set KUBECONFIG, or give `--kubeconfig FILE`; `slipway lab up` starts a cluster to try things on.",
    },
    Topic {
        code: "kube.unreachable",
        meaning: "The cluster's API server does not answer.",
        remedy: "Check the address and the network: `kubectl cluster-info`.",
    },
    Topic {
        code: "kube.refused",
        meaning: "The API server refused the request; the message is its own.",
        remedy: "For 401 and 403 check who you are and may: `kubectl auth whoami`, `kubectl auth can-i --list`.",
    },
    Topic {
        code: "kube.invalid",
        meaning: "What the cluster was asked for is not valid, or did not come about in time.",
        remedy: "The message names the value or the object; `kubectl describe` tells more of an object.",
    },
    Topic {
        code: "lab.failed",
        meaning: "The lab, a small Kubernetes on this machine, could not do what it was asked to.",
        remedy: "Its message says why; it needs Go 1.26 to be built, and root, runc and nft for nodes.",
    },
    Topic {
        code: "demo.failed",
        meaning: "A step of the demo could not be verified.",
        remedy: "The message names the step and its log; `slipway doctor` checks the machine.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_explained() {
        for (i, topic) in CATALOGUE.iter().enumerate() {
            assert!(!topic.meaning.is_empty() && !topic.remedy.is_empty(), "{} lacks a text", topic.code);
            assert!(CATALOGUE[i + 1..].iter().all(|t| t.code != topic.code), "{} stands twice", topic.code);
        }
    }
}
