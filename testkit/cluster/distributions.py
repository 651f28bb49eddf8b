"""Tests of what a site and a distribution need: proxies, registries, labels and taints, and K3s."""

import json

from bench import Bench, assert_converged, outcomes, test

SITE = """  network: {proxy: {http: 'http://proxy.example:3128', https: 'http://proxy.example:3128', noProxy: [mirror.example]}}
  registries: [{host: docker.io, endpoints: ['https://mirror.example'], username: ada, password: {env: REGISTRY_PASSWORD}}]
"""
ARGS = "/var/snap/microk8s/current/args"


def changed(steps):
    return {name for name, step in steps.items() if step["outcome"] == "changed"}


@test
def proxy_registries_labels_and_arguments_are_applied_and_removed(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        bench.apply()
        host, before = bench.hosts["gpu1"], bench.file.read_text()
        environment = host.read("/etc/environment") if (host.root / "etc/environment").exists() else ""
        text = before.replace("spec:\n", "spec:\n" + SITE, 1).replace("{name: gpu1,", "{name: gpu1, labels: {zone: a}, taints: ['nvidia.com/gpu:NoSchedule'],")
        bench.file.write_text(text.replace("channel:", "kubeletArgs: {max-pods: '200'}, channel:"))
        secret = {"REGISTRY_PASSWORD": "hunter2"}
        plan = {c["resource"] for c in bench.plan(status=3, **secret)["cp1"]["changes"]}
        assert plan == {"system/proxy-environment", "system/proxy-apt", "kubernetes/proxy-snapd", "kubernetes/proxy-containerd", "kubernetes/registry-docker.io",
                        "kubernetes/kubelet-args", "nodes/gpu1"}, plan
        bench.apply(**secret)
        assert outcomes(bench.apply(**secret)) == {"unchanged"}
        assert f"no_proxy=localhost,127.0.0.0/8,::1,.svc,.cluster.local,10.1.0.0/16,10.152.183.0/24,cp1,{bench.hosts['cp1'].address}," in host.read("/etc/environment")
        assert "Acquire::http::Proxy \"http://proxy.example:3128\";" in host.read("/etc/apt/apt.conf.d/95slipway-proxy")
        assert "HTTPS_PROXY=http://proxy.example:3128" in host.read(f"{ARGS}/containerd-env") and "--max-pods=200" in host.read(f"{ARGS}/kubelet")
        assert host.ssh("snap get system proxy.https").stdout == "http://proxy.example:3128\n"
        hosts = host.root / f"{ARGS}/certs.d/docker.io/hosts.toml".lstrip("/")
        assert "Authorization = \"Basic " in hosts.read_text() and hosts.stat().st_mode & 0o777 == 0o600
        node = lambda: json.loads((bench.hosts.shared / "cluster.json").read_text())["members"]["gpu1"]
        assert node()["labels"] == {"zone": "a"} and list(node()["taints"]) == ["nvidia.com/gpu:NoSchedule"], node()
        # Without them in the file, everything is as before.
        bench.file.write_text(before)
        bench.apply()
        assert_converged(bench)
        assert not node()["labels"] and not node()["taints"] and not node()["annotations"], node()
        assert not hosts.exists() and host.read("/etc/environment") == environment and host.ssh("snap get system proxy.http", check=False).returncode


@test(limit=900)
def k3s_is_installed_joined_upgraded_and_removed(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        for host in bench.roles:
            bench.hosts[host].offer_k3s("v1.35.1+k3s1", "v1.36.2+k3s1")
        text = bench.file.read_text()
        start = text.index("  kubernetes:")
        text = text[:start] + "  kubernetes: {distribution: k3s, version: v1.35.1+k3s1, source: 'file:///opt/k3s'}\n" + text[text.index("\n", start) + 1:]
        bench.file.write_text(text.replace("devicePlugin: nvidia", "devicePlugin: none").replace("[jq]", "[jq, curl]"))
        steps = bench.apply("--no-smoke")
        assert changed(steps) >= {"cp1/base", "cp2/join", "gpu1/join"}, steps
        assert_converged(bench)
        assert outcomes(bench.apply("--no-smoke")) == {"unchanged"}
        config = bench.run("kubeconfig")
        assert f"server: https://{bench.hosts['cp1'].address}:6443" in config, config
        join = bench.hosts["gpu1"].root / "etc/rancher/k3s/config.yaml.d/50-slipway-join.yaml"
        assert join.stat().st_mode & 0o777 == 0o600 and "::server:" in join.read_text()
        # A stopped service is started again; an apply does not upgrade, and an upgrade does it node by node.
        bench.hosts["gpu1"].ssh("systemctl stop k3s-agent")
        assert changed(bench.apply("--no-smoke")) == {"gpu1/base"}
        bench.file.write_text(bench.file.read_text().replace("v1.35.1", "v1.36.2"))
        assert "which is an upgrade" in bench.apply("--no-smoke", status=1)["cp1/base"]["reason"]
        bench.file.write_text(bench.file.read_text().replace("v1.36.2", "v1.35.1"))
        steps = bench.run_steps("upgrade", "--to", "v1.36.2+k3s1")
        assert changed(steps) == {"cp1/upgrade", "cp2/upgrade", "gpu1/upgrade"} and "v1.36.2+k3s1" in bench.file.read_text(), steps
        assert bench.hosts["gpu1"].ssh("k3s --version").stdout.startswith("k3s version v1.36.2+k3s1")
        assert_converged(bench)
        assert outcomes(bench.run_steps("stop")) == {"changed"}
        bench.run_steps("start")
        bench.run_steps("destroy", "--hosts", "gpu1", "--name", "lab")
        assert "gpu1" not in bench.members() and not bench.hosts["gpu1"].ssh("command -v k3s; ls /etc/rancher/k3s/config.yaml /var/lib/rancher/k3s", check=False).stdout
        bench.run_steps("destroy", "--name", "lab")
        for host in bench.roles:
            assert not bench.hosts[host].ssh("command -v k3s; ls -d /var/lib/rancher/k3s /etc/systemd/system/k3s*.service", check=False).stdout
