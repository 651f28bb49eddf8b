"""Stand-in for MicroK8s, which needs the snap store. It stores the members and objects of a cluster and prints the original's messages.

All test hosts share the folder /standin, with the state of the clusters and the failures that a test sets (`faults.json`).
Source: microk8s.io/docs, "Command reference", "Create a multi-node cluster", "MicroK8s Add-ons"; kubectl's and Helm's own help.
"""

import fcntl
import json
import os
import re
import sys
import time

STATE, FAULTS, LOG = "/standin/cluster.json", "/standin/faults.json", "/var/lib/standin/log"
ADDONS = ["dns", "rbac", "hostpath-storage", "metrics-server", "registry", "metallb", "observability", "ha-cluster", "helm3"]
ME = os.uname().nodename


def faults():
    try:
        with open(FAULTS) as file:
            return json.load(file)
    except (OSError, ValueError):
        return {}


def option(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


def address():
    import subprocess  # Imported late, because it makes the start a third slower and most commands do not need it.

    shown = subprocess.run(["ip", "-4", "-o", "addr", "show", "eth0"], capture_output=True, text=True).stdout
    return re.search(r"inet ([0-9.]+)", shown)[1]


def version():
    try:
        with open("/var/lib/standin/node-version") as file:
            return file.read()
    except OSError:
        pass
    try:
        with open("/var/lib/standin/snaps.json") as file:
            return "v" + json.load(file)["microk8s"]["channel"].split("/")[0] + ".1"
    except (OSError, ValueError, KeyError):
        return "v0.0.0"


def log():
    with open(LOG, "a") as file:
        file.write("microk8s " + " ".join(sys.argv[1:]) + "\n")


def new_member():
    """The state of a fresh installation, which is a one-node cluster."""
    return {"cluster": ME, "worker": False, "since": time.time(), "running": True, "cordoned": False, "annotations": {}, "labels": {}, "taints": {}}


def main(state):
    """Executes the command. Returns its output and its exit status."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "help"
    mine = state["members"].setdefault(ME, new_member())
    mine["version"] = version()
    cluster = state["clusters"].setdefault(mine["cluster"], {"addons": ["ha-cluster", "helm3"], "tokens": {}, "pods": {}, "claims": {}, "files": {}, "objects": {}, "releases": {}})
    if verb == "standin-removed":
        del state["members"][ME]
        state["clusters"].pop(ME, None)
        return "", 0
    if verb in ("start", "stop"):
        log()
        mine.update(running=verb == "start", since=time.time())
        return f"{'Started' if verb == 'start' else 'Stopped'}.", 0
    if not mine["running"]:
        return "microk8s is not running. Use microk8s inspect for a deeper inspection.", 1
    if verb == "status":
        if "-a" in sys.argv:
            return ("enabled" if option("-a") in cluster["addons"] else "disabled"), 0
        return "microk8s is running\nhigh-availability: no\n", 0
    if verb == "join":
        log()
        token = sys.argv[2].split("/")[1]
        found = next((c for c, v in state["clusters"].items() if token in v["tokens"]), None)
        expire = faults().get("expire", 0)
        if expire:
            with open(FAULTS, "w") as file:
                json.dump({**faults(), "expire": expire - 1}, file)
        if found is None or expire or state["clusters"][found]["tokens"][token] < time.time():
            return f"Contacting cluster at {sys.argv[2].split(':')[0]}\nConnection failed. Invalid token (500).", 1
        mine.update(cluster=found, worker="--worker" in sys.argv, since=time.time())
        return f"Contacting cluster at {sys.argv[2].split(':')[0]}\nWaiting for this node to finish joining the cluster. .. .. ..", 0
    if verb == "leave":
        log()
        state["members"][ME] = new_member()
        return "Generating new cluster certificates.\nWaiting for node to start.", 0
    if mine["worker"]:
        return "This MicroK8s deployment is acting as a node in a cluster. Please use the control plane.", 1
    if verb in ("enable", "disable"):
        log()
        name = sys.argv[2].split(":")[0]
        if name not in ADDONS:
            return f"Addon {name} was not found in any repository", 1
        if verb == "enable":
            cluster["addons"].append(name)
            return f"Infer repository core for addon {name}\nEnabling {name}\n{name} is enabled", 0
        cluster["addons"] = [a for a in cluster["addons"] if a != name]
        return f"Infer repository core for addon {name}\nDisabling {name}\n{name} is disabled", 0
    if verb == "add-node":
        log()
        token = os.urandom(16).hex()
        cluster["tokens"][token] = time.time() + int(option("--token-ttl", "-1"))
        return json.dumps({"token": token, "urls": [f"{address()}:25000/{token}/{os.urandom(6).hex()}"]}), 0
    if verb == "remove-node":
        log()
        state["members"][sys.argv[2]] = {**new_member(), "cluster": sys.argv[2]}
        return "", 0
    if verb == "config":
        return CONFIG % address(), 0
    if verb == "kubectl":
        return kubectl(state, mine, cluster, sys.argv[2:])
    if verb == "helm3":
        return helm(cluster, sys.argv[2:])
    return f"'{verb}' is not a valid MicroK8s subcommand.", 1


CONFIG = """apiVersion: v1
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://%s:16443
  name: microk8s-cluster
contexts:
- context:
    cluster: microk8s-cluster
    user: admin
  name: microk8s
current-context: microk8s
kind: Config
preferences: {}
users:
- name: admin
  user:
    client-certificate-data: Q0VSVA==
    client-key-data: S0VZ
"""


def node(name, member):
    ready = member["running"] and time.time() - member["since"] > faults().get("ready_after", 1)
    return {"metadata": {"name": name, "annotations": member["annotations"], "labels": {"kubernetes.io/hostname": name, **member["labels"]}},
            "spec": {"unschedulable": True} if member["cordoned"] else {},
            "status": {"conditions": [{"type": "Ready", "status": str(ready) if member["running"] else "Unknown"}], "nodeInfo": {"kubeletVersion": member["version"]}}}


def jsonpath(template, name, member):
    """Evaluates the JSONPath templates that slipway uses for a node."""
    values = {"metadata.name": name}
    values.update({f"metadata.{field}.{key}": value for field in ("annotations", "labels") for key, value in member[field].items()})
    taints = "".join(f"{t}," for t in member["taints"].values())
    template = re.sub(r"\{range \.spec\.taints.*?\{end\}", lambda _: taints, template)
    return re.sub(r"\{\.([^}]*)\}", lambda m: values.get(m[1].replace("\\", ""), ""), template)


def kubectl(state, mine, cluster, words):
    nodes = {n: m for n, m in state["members"].items() if m["cluster"] == mine["cluster"]}
    verb, rest = words[0], [w for w in words[1:] if not w.startswith("-")]
    if verb == "get" and rest[:1] == ["nodes"]:
        if "-l" in words:
            wanted = dict(pair.split("=", 1) for pair in option("-l").split(","))
            nodes = {n: m for n, m in nodes.items() if wanted.items() <= m["labels"].items()}
        output = option("-o", "")
        if output.startswith("jsonpath="):
            template = re.search(r"\{range \.items\[\*\]\}(.*)\{\"\\n\"\}\{end\}", output)[1]
            return "\n".join(jsonpath(template, n, m) for n, m in nodes.items()), 0
        if output == "name":
            return "\n".join(f"node/{n}" for n in nodes), 0
        return json.dumps({"kind": "List", "items": [node(n, m) for n, m in nodes.items()]}), 0
    if verb == "get" and rest[:1] == ["node"]:
        if rest[1] not in nodes:
            return f'Error from server (NotFound): nodes "{rest[1]}" not found', 1
        return jsonpath(option("-o").partition("=")[2], rest[1], nodes[rest[1]]), 0
    if verb == "get" and "--raw" in words:
        if words[-1] == "/readyz":
            return "ok", 0
        if "metrics-server" not in cluster["addons"]:
            return "Error from server (NotFound): the server could not find the requested resource", 1
        return json.dumps({"items": [{"metadata": {"name": n}} for n in nodes]}), 0
    if verb == "taint":
        log()
        for change in rest[2:]:
            if change.endswith("-"):
                nodes[rest[1]]["taints"].pop(change[:-1], None)
            else:
                pair, _, effect = change.rpartition(":")
                key, _, value = pair.partition("=")
                nodes[rest[1]]["taints"][f"{key}:{effect}"] = f"{key}={value}:{effect}"
        return f"node/{rest[1]} tainted", 0
    if verb == "delete" and rest[:1] == ["node"]:
        log()
        state["members"].pop(rest[1], None)
        return f'node "{rest[1]}" deleted', 0
    if verb in ("annotate", "label"):
        log()
        field, (kind, name) = verb + "s" if verb == "label" else "annotations", rest[:2]
        if kind == "node" and name not in nodes:
            return f'Error from server (NotFound): nodes "{name}" not found', 1
        target = nodes[name][field] if kind == "node" else cluster["objects"].setdefault(f"{kind}/{name}", {})
        for change in rest[2:]:
            if "=" in change:
                target[change.split("=")[0]] = change.split("=", 1)[1]
            else:
                target.pop(change[:-1], None)
        return f"{kind}/{name} {verb}d", 0
    if verb in ("drain", "uncordon"):
        log()
        if verb == "drain" and faults().get("budget") == rest[0]:
            nodes[rest[0]]["cordoned"] = True
            return "error when evicting pods/\"web-0\": Cannot evict pod as it would violate the pod's disruption budget.", 1
        nodes[rest[0]]["cordoned"] = verb == "drain"
        return f"node/{rest[0]} {verb}ed", 0
    if verb == "create":
        manifest = json.load(sys.stdin)
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        if kind == "Pod":
            cluster["pods"][name] = {"pod": manifest, "since": time.time(), "log": ""}
        else:
            cluster["claims"][name] = manifest
        return f"{kind.lower()}/{name} created", 0
    if verb == "get" and rest[0] == "pod":
        return pod(cluster, nodes, rest[1])
    if verb == "get" and rest[0] == "pods":
        return json.dumps({"items": faults().get("pods", [])}), 0
    if verb == "logs":
        return cluster["pods"][rest[0]]["log"], 0
    if verb == "delete" and "-f" not in words:
        if "-l" in words:
            keep = option("-l").split("!=")[1]
            for objects in (cluster["pods"], cluster["claims"]):
                for name in list(objects):
                    if objects[name].get("pod", objects[name])["metadata"]["labels"]["slipway.dev/smoke"] != keep:
                        del objects[name]
            return "", 0
        cluster["pods" if rest[0] == "pod" else "claims"].pop(rest[1], None)
        return f"{rest[0]} \"{rest[1]}\" deleted", 0
    if verb in ("diff", "apply", "delete"):
        try:
            with open(option("-f")) as file:
                desired = {f"{o['kind']}/{o['metadata']['name']}": o for o in json.load(file)["items"]}
        except OSError as error:
            return f"error: {error}", 1
        if verb == "diff":
            return "", int(any(cluster["objects"].get(k) != o for k, o in desired.items()))
        log()
        if verb == "apply":
            cluster["objects"].update(desired)
        else:
            for key in desired:
                cluster["objects"].pop(key, None)
        return "\n".join(f"{k} configured" for k in desired), 0
    return f'error: unknown command "{verb}" for "kubectl"', 1


def pod(cluster, nodes, name):
    """Simulates a pod: its node, its phase and its log."""
    entry = cluster["pods"].get(name)
    if entry is None:
        return f'Error from server (NotFound): pods "{name}" not found', 1
    manifest, spec = entry["pod"], entry["pod"]["spec"]
    container = spec["containers"][0]
    terms = spec.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", [])
    node_name = terms[0]["matchFields"][0]["values"][0] if terms else next(iter(nodes))
    gpus = int(container["resources"].get("limits", {}).get("nvidia.com/gpu", 0))
    # A node advertises GPUs if it has some and the device plugin is installed. In the tests, only workers have GPUs.
    advertised = "nvidia-device-plugin" in cluster["releases"] and nodes.get(node_name, {}).get("worker")
    if node_name not in nodes or (gpus and not advertised):
        manifest["status"] = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": f"0/{len(nodes)} nodes are available: Insufficient nvidia.com/gpu."}]}
        return json.dumps(manifest), 0
    if time.time() - entry["since"] < 0.5:
        manifest["status"] = {"phase": "Running"}
        return json.dumps(manifest), 0
    command = " ".join(container.get("command", []))
    phase = "Succeeded"
    if "/data/" in command:
        path = re.search(r"/data/(\S+)", command)[1]
        if "echo" in command:
            cluster["files"][path] = re.search(r"echo (\S+)", command)[1]
        else:
            entry["log"] = cluster["files"].pop(path, "") if faults().get("storage") != "apart" else "cat: can't open"
    elif "nslookup" in command:
        entry["log"] = "Server:\t10.152.183.10\nName:\tkubernetes.default.svc.cluster.local\nAddress: 10.152.183.1"
    elif gpus:
        entry["log"] = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-7bf15b3b)\nTest PASSED"
        if faults().get("cuda") == node_name:
            entry["log"], phase = "Failed to allocate device vector A (error code CUDA driver version is insufficient for CUDA runtime version)!", "Failed"
    manifest["status"] = {"phase": phase}
    return json.dumps(manifest), 0


def helm(cluster, words):
    verb, name = words[0], next((w for w in words[1:] if not w.startswith("-")), "")
    if verb == "status":
        if name not in cluster["releases"]:
            return "Error: release: not found", 1
        return json.dumps({"name": name, "info": {"description": cluster["releases"][name], "status": "deployed"}}), 0
    log()
    if verb == "upgrade":
        if faults().get("chart") == name:
            return f'Error: INSTALLATION FAILED: chart "{name}" version "{option("--version")}" not found in repository', 1
        cluster["releases"][name] = option("--description")
        return f'Release "{name}" has been upgraded. Happy Helming!', 0
    if verb == "uninstall":
        cluster["releases"].pop(name, None)
        return f'release "{name}" uninstalled', 0
    return f'Error: unknown command "{verb}" for "helm"', 1


if "--wait-ready" not in sys.argv and os.geteuid():
    print("Insufficient permissions to access MicroK8s.\nYou can either try again with sudo or add the user to the 'microk8s' group.")
    sys.exit(1)
if sys.argv[1:2] == ["join"]:
    time.sleep(1)  # A real join takes some time too, and tests kill slipway during it.
with open(STATE, "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    state = json.loads(file.read() or '{"members": {}, "clusters": {}}')
    text, status = main(state)
    file.seek(0)
    file.truncate()
    file.write(json.dumps(state))
print(text, file=sys.stderr if status and sys.argv[1:2] in (["kubectl"], ["helm3"]) else sys.stdout)
sys.exit(status)
