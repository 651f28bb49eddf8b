"""Stand-in for K3s, whose images are not available on the test hosts. Its nodes are in the state of the stand-in of MicroK8s, which also
responds for `k3s kubectl`. `main` gets the version, because each release is a program of its own.

Source: docs.k3s.io, "Configuration Options", "K3s Server", "Cluster Access"; sd_notify(3).
"""

import fcntl
import glob
import json
import os
import signal
import socket
import sys
import time

STATE, FOLDER, LOG = "/standin/cluster.json", "/var/lib/rancher/k3s/server", "/var/lib/standin/log"
KUBECONFIG = """apiVersion: v1
clusters: [{cluster: {certificate-authority-data: Q0E=, server: "https://127.0.0.1:6443"}, name: default}]
contexts: [{context: {cluster: default, user: default}, name: default}]
current-context: default
kind: Config
users: [{name: default, user: {client-certificate-data: Q0VSVA==, client-key-data: S0VZ}}]
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


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def serve(version, worker):
    """Registers the node as `k3s server` or `k3s agent` does, and runs until it is stopped."""
    settings = {}
    for path in ["/etc/rancher/k3s/config.yaml", *sorted(glob.glob("/etc/rancher/k3s/config.yaml.d/*.yaml"))]:
        with open(path) as file:
            settings.update(json.load(file))
    me, version = settings["node-name"], version.split("+")[0]
    write("/var/lib/standin/k3s-version", version)

    def register(state):
        token = settings.get("token")
        joined = [name for name, cluster in state["clusters"].items() if token and cluster.get("k3s_token") == token]
        if token and not joined:
            sys.exit("fatal: the token is not valid")
        name = joined[0] if joined else me
        new = {"addons": ["metrics-server"], "tokens": {}, "pods": {}, "claims": {}, "files": {}, "objects": {}, "releases": {}}
        cluster = state["clusters"].setdefault(name, new)
        member = state["members"].setdefault(me, {"cordoned": False, "annotations": {}, "labels": {}, "taints": {}})
        member.update(cluster=name, worker=worker, since=time.time(), running=True, version=version)
        return cluster.setdefault("k3s_token", f"K10{os.urandom(16).hex()}::server:{os.urandom(8).hex()}")

    token = change(register)
    if not worker:
        write(f"{FOLDER}/token", token)
        write("/etc/rancher/k3s/k3s.yaml", KUBECONFIG)

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


def main(version):
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb == "--version":
        print(f"k3s version {version} (0123abcd)\ngo version go1.25")
    elif verb == "kubectl":
        os.execv("/usr/lib/standins/microk8s", ["microk8s", *sys.argv[1:]])
    elif verb in ("server", "agent"):
        os.makedirs(os.path.dirname(LOG), exist_ok=True)
        with open(LOG, "a") as log:
            log.write(f"k3s {verb} {version}\n")
        serve(version, verb == "agent")
    else:
        sys.exit(f"No help topic for '{verb}'")
