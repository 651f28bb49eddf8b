"""Stand-ins for kubeadm, the kubelet and containerd, whose images are not available on the test hosts. Their nodes are in the state of the
stand-in of MicroK8s, which also responds for `kubectl`. Each program of a package calls the function of its name, with the package's version.

Source: kubernetes.io, "kubeadm init", "kubeadm join", "kubeadm token", "kubeadm upgrade", "kubeadm reset", "Implementation details" (files), and
the messages of kubeadm's preflight checks (kubernetes/kubernetes, `cmd/kubeadm/app/preflight`).
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

from rancher import change, write

ETC, MANIFESTS, LOG = "/etc/kubernetes", "/etc/kubernetes/manifests", "/var/lib/standin/log"
KUBELET_CONFIG = "/var/lib/kubelet/config.yaml"
ME = os.uname().nodename
COMPONENTS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")


def log(program):
    os.makedirs(os.path.dirname(LOG), exist_ok=True)
    with open(LOG, "a") as file:
        file.write(f"{program} {' '.join(sys.argv[1:])}\n")


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def documents(path):
    """The documents of a configuration by kind. Slipway writes JSON, which is YAML."""
    with open(path) as file:
        return {d["kind"]: d for d in map(json.loads, file.read().split("---\n"))}


def systemctl(*words):
    subprocess.run(["systemctl", *words], check=True)


def write_manifests(version, cluster):
    network = cluster["networking"]
    flags = {"kube-apiserver": [f"--service-cluster-ip-range={network['serviceSubnet']}"],
             "kube-controller-manager": [f"--cluster-cidr={network['podSubnet']}", f"--service-cluster-ip-range={network['serviceSubnet']}"], "kube-scheduler": []}
    for name in COMPONENTS:
        lines = "".join(f"    - {flag}\n" for flag in flags[name])
        write(f"{MANIFESTS}/{name}.yaml", f"spec:\n  containers:\n  - command:\n    - {name}\n{lines}    image: registry.k8s.io/{name}:{version}\n", 0o600)
    write(f"{MANIFESTS}/etcd.yaml", "spec:\n", 0o600)


def write_certificate(names):
    """A certificate of the API server with these names, and its key."""
    kinds = ",".join(f"{'IP' if name.replace('.', '').isdigit() or ':' in name else 'DNS'}:{name}" for name in dict.fromkeys(names))
    os.makedirs(f"{ETC}/pki", exist_ok=True)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "365", "-subj", "/CN=kube-apiserver", "-addext", f"subjectAltName={kinds}",
                    "-keyout", f"{ETC}/pki/apiserver.key", "-out", f"{ETC}/pki/apiserver.crt"], check=True, capture_output=True)


def start_node(version, labels):
    write(f"{ETC}/kubelet.conf", "kind: Config\n", 0o600)
    write(KUBELET_CONFIG, "cgroupDriver: systemd\n")
    write("/var/lib/kubelet/kubeadm-flags.env", 'KUBELET_KUBEADM_ARGS=""\n')
    systemctl("restart", "kubelet")


def preflight(joins):
    errors = [f"\t[ERROR FileAvailable--etc-kubernetes-{name}]: {ETC}/{name} already exists" for name in ("kubelet.conf", "pki/ca.crt")[: 1 + joins] if os.path.exists(f"{ETC}/{name}")]
    errors += [f"\t[ERROR FileAvailable--etc-kubernetes-manifests-{name}.yaml]: {MANIFESTS}/{name}.yaml already exists" for name in COMPONENTS if os.path.exists(f"{MANIFESTS}/{name}.yaml")]
    if open("/proc/sys/net/ipv4/ip_forward").read().strip() != "1":
        errors.append("\t[ERROR FileContent--proc-sys-net-ipv4-ip_forward]: /proc/sys/net/ipv4/ip_forward contents are not set to 1")
    if subprocess.run(["systemctl", "is-active", "--quiet", "containerd"]).returncode:
        errors.append("\t[ERROR CRI]: could not connect to the container runtime: dial unix /run/containerd/containerd.sock: connect: no such file or directory")
    if errors:
        sys.exit("error execution phase preflight: [preflight] Some fatal errors occurred:\n" + "\n".join(errors) +
                 "\n[preflight] If you know what you are doing, you can make a check non-fatal with `--ignore-preflight-errors=...`")


def register(name, endpoint, worker):
    def action(state):
        new = {"addons": [], "tokens": {}, "pods": {}, "claims": {}, "files": {}, "objects": {}, "releases": {}}
        cluster = state["clusters"].setdefault(name, new)
        if endpoint:
            cluster["endpoint"] = endpoint
        member = state["members"].setdefault(ME, {"cordoned": False, "annotations": {}, "labels": {}, "taints": {}})
        member.update(cluster=name, worker=worker, since=time.time(), running=True)
        return cluster

    return change(action)


def init(version):
    configuration = documents(option("--config"))
    cluster = configuration["ClusterConfiguration"]
    preflight(False)
    if cluster["kubernetesVersion"] != version:
        sys.exit(f"this version of kubeadm only supports deploying clusters with the control plane version {version}")
    assert configuration["KubeletConfiguration"]["cgroupDriver"] == "systemd" and configuration["InitConfiguration"]["bootstrapTokens"] == [{"ttl": "1m0s"}]
    print(f"[init] Using Kubernetes version: {version}\n[preflight] Running pre-flight checks")
    write(f"{ETC}/pki/ca.crt", "CA\n")
    write_certificate([ME, *cluster["apiServer"]["certSANs"]])
    write_manifests(version, cluster)
    time.sleep(0.5)  # A real init takes minutes, and tests kill slipway during it.
    register(ME, cluster["controlPlaneEndpoint"], False)
    change(lambda state: state["clusters"][ME].update(configuration=cluster))
    write_admin(cluster["controlPlaneEndpoint"])
    start_node(version, {})
    print("Your Kubernetes control-plane has initialized successfully!")


def write_admin(endpoint):
    write(f"{ETC}/admin.conf", f"""apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://{endpoint}
  name: kubernetes
contexts: [{{context: {{cluster: kubernetes, user: kubernetes-admin}}, name: kubernetes-admin@kubernetes}}]
current-context: kubernetes-admin@kubernetes
kind: Config
users: [{{name: kubernetes-admin, user: {{client-certificate-data: Q0VSVA==, client-key-data: S0VZ}}}}]
""", 0o600)


def mine(state):
    return state["clusters"][state["members"][ME]["cluster"]]


def join(version):
    configuration = documents(option("--config"))["JoinConfiguration"]
    bootstrap, plane = configuration["discovery"]["bootstrapToken"], configuration.get("controlPlane")
    preflight(True)
    print("[preflight] Running pre-flight checks")

    def find(state):
        for name, cluster in state["clusters"].items():
            if cluster.get("endpoint") == bootstrap["apiServerEndpoint"]:
                if cluster["tokens"].get(bootstrap["token"], 0) < time.time():
                    sys.exit(f"error execution phase preflight: couldn't validate the identity of the API Server: could not find a JWS signature in the cluster-info ConfigMap for token ID \"{bootstrap['token'].split('.')[0]}\"")
                if plane and plane["certificateKey"] != cluster.get("certificate_key"):
                    sys.exit("error execution phase control-plane-prepare/download-certs: error downloading certs: error decoding secret data with provided key: cipher: message authentication failed")
                return name, cluster["configuration"]
        sys.exit(f"error execution phase preflight: couldn't validate the identity of the API Server: failed to request the cluster-info ConfigMap: Get \"https://{bootstrap['apiServerEndpoint']}\": dial tcp: connect: connection refused")

    name, cluster = change(find)
    assert bootstrap["caCertHashes"] == ["sha256:" + "ab" * 32], bootstrap["caCertHashes"]
    write(f"{ETC}/pki/ca.crt", "CA\n")
    if plane:
        write_certificate([ME, *cluster["apiServer"]["certSANs"]])
        write_manifests(version, cluster)
        write_admin(cluster["controlPlaneEndpoint"])
    register(name, None, not plane)
    start_node(version, {})
    print("This node has joined the cluster")


def token(version):
    if sys.argv[2] == "delete":
        change(lambda state: [mine(state)["tokens"].pop(t) for t in list(mine(state)["tokens"]) if t.startswith(sys.argv[3] + ".")])
        print(f'bootstrap token "{sys.argv[3]}" deleted')
        return
    new = f"{os.urandom(3).hex()}.{os.urandom(8).hex()}"
    seconds = int(option("--ttl").removesuffix("s"))

    def add(state):
        mine(state)["tokens"][new] = time.time() + seconds
        return mine(state)["endpoint"]

    endpoint = change(add)
    print(f"kubeadm join {endpoint} --token {new} --discovery-token-ca-cert-hash sha256:{'ab' * 32} ")


def phase(version):
    if sys.argv[3] == "upload-certs":
        key = os.urandom(32).hex()
        change(lambda state: mine(state).update(certificate_key=key))
        print(f"[upload-certs] Storing the certificates in Secret \"kubeadm-certs\" in the \"kube-system\" Namespace\n[upload-certs] Using certificate key:\n{key}")
    elif sys.argv[3:5] == ["certs", "apiserver"]:
        if os.path.exists(f"{ETC}/pki/apiserver.crt"):
            return print("[certs] Using existing apiserver certificate and key on disk")
        write_certificate([ME, *documents(option("--config"))["ClusterConfiguration"]["apiServer"]["certSANs"]])
    elif sys.argv[3:5] == ["upload-config", "kubeadm"]:
        change(lambda state: mine(state).update(configuration=documents(option("--config"))["ClusterConfiguration"]))


def upgrade(version):
    applied = change(lambda state: mine(state)["configuration"]["kubernetesVersion"])
    if sys.argv[2] == "apply":
        if sys.argv[-1] != version:
            sys.exit(f"[upgrade/version] FATAL: the --version argument is invalid due to these errors: Specified version to upgrade to {sys.argv[-1]} is higher than the kubeadm version {version}")
        change(lambda state: mine(state)["configuration"].update(kubernetesVersion=version))
        applied = version
    if os.path.exists(f"{MANIFESTS}/kube-apiserver.yaml"):
        write_manifests(applied, change(lambda state: mine(state)["configuration"]))
    print("[upgrade] The control plane node was upgraded" if sys.argv[2] == "apply" else "[upgrade] The configuration for this node was successfully updated!")


def reset(version):
    print("[reset] Stopping the kubelet service")
    systemctl("stop", "kubelet")

    def remove(state):
        member = state["members"].pop(ME, None)
        if member and member["cluster"] == ME:
            state["clusters"].pop(ME, None)

    if "--skip-phases=remove-etcd-member" in sys.argv:
        change(remove)
    for path in (MANIFESTS, f"{ETC}/pki"):
        shutil.rmtree(path, ignore_errors=True)
    os.makedirs(MANIFESTS)
    for name in ("admin.conf", "kubelet.conf", "bootstrap-kubelet.conf", "controller-manager.conf", "scheduler.conf", "super-admin.conf"):
        if os.path.exists(f"{ETC}/{name}"):
            os.unlink(f"{ETC}/{name}")
    for path in (KUBELET_CONFIG, "/var/lib/kubelet/kubeadm-flags.env"):
        if os.path.exists(path):
            os.unlink(path)
    print("The reset process does not clean CNI configuration. To do so, you must remove /etc/cni/net.d")


def kubeadm(version):
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "version":
        return print(version)
    log("kubeadm")
    actions = {"init": phase if sys.argv[2:3] == ["phase"] else init, "join": join, "token": token, "upgrade": upgrade, "reset": reset}
    if verb not in actions:
        sys.exit(f'unknown command "{verb}" for "kubeadm"')
    actions[verb](version)


def kubelet(version):
    if sys.argv[1:] == ["--version"]:
        return print(f"Kubernetes {version}")
    if not os.path.exists(KUBELET_CONFIG):
        sys.exit(f'err="failed to load kubelet config file, path: {KUBELET_CONFIG}, error: open {KUBELET_CONFIG}: no such file or directory"')
    write("/var/lib/standin/node-version", version)
    write("/var/lib/standin/kubelet-arguments", " ".join(sys.argv[1:]))

    def running(value):
        change(lambda state: state["members"].get(ME, {}).update(running=value, version=version))

    def stop(*_):
        running(False)
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    running(True)
    while True:
        signal.pause()
