"""Stand-in for the `snap` command, which needs the snap store. It stores the state of snaps and prints the original's messages.

Source: snapcraft.io/docs, "Getting started", "Channels", "Managing updates" (hold).
"""

import fcntl
import json
import os
import sys
import time

STATE, LOG = "/var/lib/standin/snaps.json", "/var/lib/standin/log"
CHANNELS = {"microk8s": [f"1.{minor}/stable" for minor in range(31, 38)]}
ARGS = "/var/snap/microk8s/current/args"
TEMPLATE = """# Use config version 2 to enable new configuration fields.
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"""


def fail(text, status=1):
    print(f"error: {text}", file=sys.stderr)
    sys.exit(status)


def main():
    os.makedirs("/var/lib/standin", exist_ok=True)
    words = [w for w in sys.argv[1:] if not w.startswith("--")]
    options = dict(w[2:].partition("=")[::2] for w in sys.argv[1:] if w.startswith("--"))
    with open(STATE, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        snaps = json.loads(file.read() or "{}")
        if words[:1] == ["list"]:
            if not any(snaps):
                print("No snaps are installed yet. Try 'snap install hello-world'.", file=sys.stderr)
                return
            print("Name      Version  Rev   Tracking       Publisher   Notes")
            for name, snap in snaps.items():
                if not name:
                    continue
                notes = ",".join(["classic"] * snap["classic"] + ["held"] * snap["held"]) or "-"
                print(f"{name}  v{snap['channel'].split('/')[0]}.1  7665  {snap['channel']}  canonical**  {notes}")
            return
        import shutil  # Imported late, because these modules make the start a third slower and `list` does not need them.
        import subprocess

        if os.geteuid():
            fail("access denied (try with sudo)")
        if words[1:2] == ["system"]:
            # `snap get system KEY`, `snap set system KEY=VALUE ...` and `snap unset system KEY ...`.
            system = snaps.setdefault("", {})
            if words[0] == "get":
                if words[2] not in system:
                    fail(f'snap "core" has no "{words[2]}" configuration option')
                print(system[words[2]])
                return
            for word in words[2:]:
                key, _, value = word.partition("=")
                system.pop(key, None)
                system.update({key: value} if words[0] == "set" else {})
            file.seek(0)
            file.truncate()
            file.write(json.dumps(snaps))
            return
        if len(words) < 2:
            fail("the required argument was not provided")
        verb, name = words[0], words[1]
        with open(LOG, "a") as log:
            log.write("snap " + " ".join(sys.argv[1:]) + "\n")
        if verb == "restart":
            if name.split(".")[0] not in snaps:
                fail(f'snap "{name.split(".")[0]}" is not installed')
            print("Restarted.")
            return
        if verb == "install" and name in snaps:
            print(f'snap "{name}" is already installed, see \'snap help refresh\'', file=sys.stderr)
            return
        if verb in ("refresh", "remove") and name not in snaps:
            if verb == "refresh":
                fail(f'snap "{name}" is not installed')
            print(f'snap "{name}" is not installed', file=sys.stderr)
            return
        channel = options.get("channel")
        if channel and channel not in CHANNELS.get(name, []):
            fail(f'snap "{name}" is not available on {channel} but is available to install on the following channels:\n'
                 + "\n".join(CHANNELS.get(name, [])))
        if verb == "install":
            time.sleep(0.5)  # A real installation takes some time too, and tests kill slipway during it.
            snaps[name] = {"channel": channel or "latest/stable", "classic": "classic" in options, "held": False}
            if name == "microk8s":
                os.makedirs(ARGS, exist_ok=True)
                os.makedirs("/snap/bin", exist_ok=True)
                with open(f"{ARGS}/containerd-template.toml", "w") as template:
                    template.write(TEMPLATE)
                shutil.copy("/usr/lib/standins/microk8s", "/snap/bin/microk8s")
            print(f"{name} ({snaps[name]['channel']}) v1 from Canonical** installed")
        elif verb == "remove":
            del snaps[name]
            if os.path.exists("/snap/bin/microk8s"):
                subprocess.run(["/snap/bin/microk8s", "standin-removed"])
                os.unlink("/snap/bin/microk8s")
            shutil.rmtree("/var/snap/microk8s", ignore_errors=True)
            print(f"{name} removed")
        elif verb == "refresh":
            if "hold" in options:
                snaps[name]["held"] = True
            elif "unhold" in options:
                snaps[name]["held"] = False
            elif channel:
                snaps[name]["channel"] = channel
            if name == "microk8s" and channel:
                file.seek(0)
                file.truncate()
                file.write(json.dumps(snaps))
                file.flush()
                subprocess.run(["/snap/bin/microk8s", "status"], stdout=subprocess.DEVNULL)
            print(f"{name} refreshed")
        else:
            fail(f'unknown command "{verb}", see \'snap help\'.')
        file.seek(0)
        file.truncate()
        file.write(json.dumps(snaps))


main()
