"""Stand-in for K3s and RKE2, whose images are not available on the test hosts. Its nodes are in the state of the stand-in of MicroK8s, which
also responds for their `kubectl`. `main` gets the name and the version, because each release is a program of its own.

Source: docs.k3s.io, "Configuration Options", "K3s Server", "Cluster Access"; docs.rke2.io, "Server Configuration Reference", "Cluster
Access"; sd_notify(3).
"""

import fcntl
import glob
import json
import os
import signal
import socket
import sys
import time

STATE, LOG = "/standin/cluster.json", "/var/lib/standin/log"
PORTS = {"k3s": 6443, "rke2": 9345}
KUBECONFIG = """apiVersion: v1
clusters: [{cluster: {certificate-authority-data: Q0E=, server: "https://127.0.0.1:6443"}, name: default}]
contexts: [{context: {cluster: default, user: default}, name: default}]
current-context: default
kind: Config
users: [{name: default, user: {client-certificate-data: Q0VSVA==, client-key-data: S0VZ}}]
"""
# `kubectl --kubeconfig FILE ...`
KUBECTL = """#!/bin/sh
[ -r "$2" ] || { echo "error: stat $2: no such file or directory" >&2; exit 1; }
shift 2
exec /usr/lib/standins/microk8s kubectl "$@"
"""


def change(action):
    """Calls `action` with the state of all clusters, and stores what it has changed."""
    with open(STATE, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        state = json.loads(file.read() or '{"members": {}, "clusters": {}}')
        result = action(state)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(state))
        return result


def write(path, text, mode=0o644):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)
    os.chmod(path, mode)


def serve(name, version, worker):
    """Registers the node as `k3s server` or `k3s agent` does, and runs until it is stopped."""
    folder, settings = f"/var/lib/rancher/{name}", {}
    for path in [f"/etc/rancher/{name}/config.yaml", *sorted(glob.glob(f"/etc/rancher/{name}/config.yaml.d/*.yaml"))]:
        with open(path) as file:
            settings.update(json.load(file))
    me, version = settings["node-name"], version.split("+")[0]
    write("/var/lib/standin/node-version", version)
    # Both have a checkpoint of the node in files that only they can remove.
    write(f"{folder}/agent/client-kubelet.crt", "CERT")
    write("/etc/rancher/node/password", os.urandom(8).hex())
    if name == "rke2":
        # RKE2 unpacks its programs from an image.
        write(f"{folder}/bin/kubectl", KUBECTL, 0o755)

    def register(state):
        token = settings.get("token")
        joined = [other for other, cluster in state["clusters"].items() if token and cluster.get("rancher_token") == token]
        if token and not joined:
            sys.exit("fatal: the token is not valid")
        if token and not settings["server"].endswith(f":{PORTS[name]}"):
            sys.exit(f"fatal: failed to validate connection to cluster at {settings['server']}: connect: connection refused")
        found = joined[0] if joined else me
        new = {"addons": ["metrics-server"], "tokens": {}, "pods": {}, "claims": {}, "files": {}, "objects": {}, "releases": {}}
        cluster = state["clusters"].setdefault(found, new)
        member = state["members"].setdefault(me, {"cordoned": False, "annotations": {}, "labels": {}, "taints": {}})
        member.update(cluster=found, worker=worker, since=time.time(), running=True, version=version)
        return cluster.setdefault("rancher_token", f"K10{os.urandom(16).hex()}::server:{os.urandom(8).hex()}")

    token = change(register)
    if not worker:
        write(f"{folder}/server/token", token, 0o600)
        write(f"/etc/rancher/{name}/{name}.yaml", KUBECONFIG, 0o600)

    def stop(*_):
        change(lambda state: state["members"].get(me, {}).update(running=False))
        sys.exit(0)

    signal.signal(signal.SIGTERM, stop)
    if "NOTIFY_SOCKET" in os.environ:
        address = os.environ["NOTIFY_SOCKET"]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
            notify.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)
    while True:
        signal.pause()


def main(name, version):
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "--version":
        print(f"{name} version {version} (0123abcd)\ngo version go1.25")
    elif verb == "kubectl" and name == "k3s":
        os.execv("/usr/lib/standins/microk8s", ["microk8s", *sys.argv[1:]])
    elif verb in ("server", "agent"):
        os.makedirs(os.path.dirname(LOG), exist_ok=True)
        with open(LOG, "a") as log:
            log.write(f"{name} {verb} {version}\n")
        serve(name, version, verb == "agent")
    else:
        sys.exit(f"No help topic for '{verb}'")
