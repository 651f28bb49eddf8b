"""Tests of machines that cloud providers create. The APIs of DigitalOcean and Paperspace are simulated; the machines are test hosts."""

import contextlib
import json
import pathlib
import random
import subprocess
import sys

from bench import Bench, outcomes, test
from providers import TOKEN, Clouds, Machine
from suite import eventually

SPEC = """  providers:
    ocean: {digitalocean: {token: {env: OCEAN_TOKEN}, region: nyc2, sshKeys: ["512189", "3b:16:bf:e4:8b:00:8b:b8:59:8c:a9:d3:f0:19:45:fa"], endpoint: %(url)s}}
    space: {paperspace: {token: {env: SPACE_TOKEN}, region: East Coast (NY2), endpoint: %(url)s}}
  groups:
    # the control plane
    - {name: cp, provider: ocean, size: s-2vcpu-4gb, image: ubuntu-24-04-x64, count: 1, roles: [control-plane]}
    - {name: gpu, provider: space, size: A4000, image: t0nspur5, count: 1, roles: [worker, gpu]}
"""
CONFORMANCE = str(pathlib.Path(__file__).resolve().parents[2] / "conformance")
TOKENS = {"OCEAN_TOKEN": TOKEN, "SPACE_TOKEN": TOKEN}


@contextlib.contextmanager
def cloud(binary):
    with Bench(binary, {}) as bench, Clouds(bench.hosts) as clouds:
        bench.spec = SPEC % {"url": clouds.url}
        bench.write()
        yield bench, clouds


def add_foreign_droplet(clouds, name):
    """Adds a droplet to the account that slipway did not create."""
    clouds.next += 1
    machine = clouds.droplets[str(clouds.next)] = Machine(clouds, str(clouds.next), name, "s-4vcpu-8gb", {"region": "nyc2"})
    machine.state = "on"
    return machine


def names(machines):
    return sorted(m.name for m in machines.values())


@test(limit=900)
def machines_of_two_providers_are_created_scaled_and_destroyed(binary):
    with cloud(binary) as (bench, clouds):
        add_foreign_droplet(clouds, "foreign")
        plan = bench.run("plan", status=3, **TOKENS)
        assert "machine s-2vcpu-4gb of ocean, 0.036 $/h" in plan and "machine A4000 of space, price unknown" in plan, plan
        assert not [r for r in clouds.requests if not r.startswith("GET")], "a plan orders nothing"
        # Rate limits, server errors, small pages, lagging lists, and a lost response to an order, which is resolved in the same apply.
        clouds.faults.update(limited=2, broken=2, page=1, lag=1.5, lost=1)
        bench.apply(**TOKENS)
        assert clouds.faults["lost"] == 0, clouds.requests
        assert names(clouds.droplets) == ["foreign", "lab-cp-1"] and names(clouds.machines) == ["lab-gpu-1"], "every machine was ordered once"
        assert bench.members() == {"cp-1": "control-plane", "gpu-1": "worker"}
        body = next(m.body for m in clouds.droplets.values() if m.name == "lab-cp-1")
        assert body["ssh_keys"][0] == 512189 and "slipway:lab" in body["tags"]
        bench.run("plan", **TOKENS)

        # Power off and on: Paperspace's machine gets another address, which is updated on all other machines.
        steps = bench.run_steps("stop", **TOKENS)
        assert steps["gpu-1/power-off"]["outcome"] == "changed" and {m.state for m in clouds.machines.values()} == {"off"}, steps
        old = json.loads(bench.run("inventory", "--host", "gpu-1"))["ansible_host"]
        steps = bench.run_steps("start", **TOKENS)
        new = json.loads(bench.run("inventory", "--host", "gpu-1"))["ansible_host"]
        assert old != new and steps["cp-1/base"]["outcome"] == "changed", steps
        assert f"{new} gpu-1" in bench.hosts["lab-cp-1"].read("/etc/hosts")
        bench.apply(**TOKENS)

        # Scale up and down: the file keeps its comments.
        assert bench.run_steps("scale", "gpu=2", **TOKENS)["gpu-2/join"]["outcome"] == "changed"
        assert bench.members() == {"cp-1": "control-plane", "gpu-1": "worker", "gpu-2": "worker"} and "# the control plane" in bench.file.read_text()
        cost = json.loads(bench.run("cost", "-o", "json", **TOKENS))
        assert abs(cost["hourly"] - (0.03571 + 2 * 0.76)) < 1e-9 and cost["machines"][0]["machine"] == "cp-1", cost
        bench.run("scale", "gpu=1", "--yes", **TOKENS)
        assert bench.members() == {"cp-1": "control-plane", "gpu-1": "worker"} and names(clouds.machines) == ["lab-gpu-1"]

        steps = bench.run_steps("destroy", "--name", "lab", **TOKENS)
        assert outcomes(steps) == {"changed"}, steps
        assert names(clouds.droplets) == ["foreign"] and not clouds.machines
        files_with_token = subprocess.run(["grep", "-rlF", TOKEN, bench.folder], capture_output=True, text=True).stdout
        assert not files_with_token, files_with_token


@test
def foreign_machines_are_neither_used_nor_deleted(binary):
    with cloud(binary) as (bench, clouds):
        foreign = add_foreign_droplet(clouds, "lab-cp-1")
        plan = bench.run("plan", status=3, **TOKENS)
        assert "that slipway did not create" in plan, plan
        steps = bench.apply(status=None, **TOKENS)
        assert "that slipway did not create" in steps["cp-1/machine"]["reason"] and "cluster adopt cp-1" in bench.stderr, (steps, bench.stderr)
        foreign.boot()
        bench.run("adopt", "cp-1", "999", status=1, **TOKENS)
        assert "has no machine 999" in bench.stderr
        bench.run("adopt", "cp-1", foreign.id, **TOKENS)
        bench.apply(**TOKENS)
        assert bench.members() == {"cp-1": "control-plane", "gpu-1": "worker"}
        # A machine that was deleted outside of slipway is ordered again.
        machine = next(iter(clouds.machines.values()))
        del clouds.machines[machine.id]
        machine.host.remove()
        bench.apply(**TOKENS)
        assert names(clouds.machines) == ["lab-gpu-1"] and clouds.machines != {machine.id: machine}
        bench.run("destroy", "--name", "lab", **TOKENS)
        assert names(clouds.droplets) == ["lab-cp-1"] and not clouds.machines
        assert not foreign.host.ssh("command -v microk8s", check=False).stdout, "the changes of the adopted machine were rolled back"

        # An invalid token, a missing token, and a size that is sold out.
        bench.run("plan", status=1, OCEAN_TOKEN="x", SPACE_TOKEN="x")
        assert "Unable to authenticate you" in bench.stderr and "cluster.provider_auth" in bench.stderr
        bench.run("plan", status=1)
        assert "cluster.secret" in bench.stderr and "OCEAN_TOKEN" in bench.stderr
        bench.spec = bench.spec.replace("size: s-2vcpu-4gb", "size: gpu-gone").replace("name: cp", "name: big")
        bench.write()
        steps = bench.apply(status=None, **TOKENS)
        assert "Size is not available in this region. [unprocessable_entity] (status 422)" in steps["big-1/machine"]["reason"], steps


@test(limit=900)
def apply_killed_while_creating_machines_orders_none_twice(binary):
    with cloud(binary) as (bench, clouds):
        bench.spec = bench.spec.replace("count: 1, roles: [worker", "count: 2, roles: [worker")
        bench.write()
        clouds.faults.update(lag=0.7, slow=1)
        for n in range(8):
            command, environment = bench.command("apply", "--yes", "-o", "json", **TOKENS)
            process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=random.uniform(0.02, 0.3) if n < 5 else random.uniform(1, 4))
            process.kill()
            process.communicate()
        bench.apply(**TOKENS)
        assert names(clouds.droplets) == ["lab-cp-1"] and names(clouds.machines) == ["lab-gpu-1", "lab-gpu-2"]
        bench.run("destroy", "--name", "lab", **TOKENS)
        assert not clouds.droplets and not clouds.machines
        # An apply is killed right after an order, and the cluster is destroyed: ordered machines are deleted, although they were never reachable.
        clouds.faults.update(lag=0.7, slow=1)
        command, environment = bench.command("apply", "--yes", "-o", "json", **TOKENS)
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        eventually(lambda: clouds.droplets or process.poll() is not None, interval=0.01, message="the first machine is ordered")
        process.kill()
        process.communicate()
        ordered = set(clouds.droplets) | set(clouds.machines)
        bench.run("destroy", "--name", "lab", **TOKENS)
        assert ordered and not clouds.droplets and not clouds.machines


@test
def simulated_api_works_with_the_official_client(binary):
    """DigitalOcean's official client, pydo, understands the responses of the simulated API."""
    with cloud(binary) as (bench, clouds):
        script = f"""
import sys
sys.path.append({CONFORMANCE!r})
import pydo
from suite import eventually
client, plain = pydo.Client(token={TOKEN!r}, endpoint={clouds.url!r}), {{"enforce_https": False}}
created = client.droplets.create(body={{"name": "a", "region": "nyc2", "size": "s-2vcpu-4gb", "image": "ubuntu-24-04-x64"}}, **plain)["droplet"]
print(created["status"], client.droplets.get(created["id"], **plain)["droplet"]["size_slug"], client.droplets.list(**plain)["meta"]["total"], len(client.sizes.list(**plain)["sizes"]))
eventually(lambda: client.droplets.get(created["id"], **plain)["droplet"]["status"] == "active", message="active")
print(client.droplet_actions.post(created["id"], body={{"type": "shutdown"}}, **plain)["action"]["status"])
eventually(lambda: client.droplets.get(created["id"], **plain)["droplet"]["status"] == "off", message="off")
client.droplets.destroy(created["id"], **plain)
print(client.droplets.list(**plain)["meta"]["total"])
"""
        environment = bench.folder / "pydo"
        subprocess.run([sys.executable, "-m", "venv", environment], check=True)
        subprocess.run([environment / "bin/pip", "install", "-q", "--disable-pip-version-check", "pydo"], check=True)
        clouds.faults["slow"] = 0.1
        done = subprocess.run([environment / "bin/python", "-c", script], capture_output=True, text=True)
        assert done.stdout.split() == ["new", "s-2vcpu-4gb", "1", "4", "in-progress", "0"], done.stderr
