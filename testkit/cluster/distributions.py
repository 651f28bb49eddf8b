"""Tests of what a site and a distribution need: proxies, registries, labels and taints, and the lives of K3s, RKE2 and kubeadm."""

import json
import re
import subprocess

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


def set_kubernetes(bench, fields):
    """Writes cluster.yaml with these fields of `spec.kubernetes`, and without what only MicroK8s' stand-in has."""
    text = bench.file.read_text()
    start = text.index("  kubernetes:")
    text = text[:start] + f"  kubernetes: {{{fields}}}\n" + text[text.index("\n", start) + 1:]
    bench.file.write_text(text.replace("devicePlugin: nvidia", "devicePlugin: none").replace("[jq]", "[jq, curl]"))


def files(host):
    """The files of a host, without those of its package manager and of the stand-ins."""
    return set(host.ssh("find /etc /usr /opt /var/lib -xdev -not -type d -not -path '/var/lib/dpkg/*' -not -path '/var/lib/apt/*' -not -path '/var/lib/standin/*' "
                        "-not -path '/usr/lib/standins/*' -not -path '/var/lib/systemd/*' -not -path '*/__pycache__/*'").stdout.splitlines())


def end_of_life(bench, before, programs, folders):
    """Stops and starts a cluster, and removes it node by node. Nothing of it is left: neither these programs and folders nor any file that was not there `before`."""
    assert outcomes(bench.run_steps("stop")) == {"changed"}
    bench.run_steps("start")
    bench.run_steps("destroy", "--hosts", "gpu1", "--name", "lab")
    assert "gpu1" not in bench.members()
    bench.run_steps("destroy", "--name", "lab")
    for name in bench.roles:
        host = bench.hosts[name]
        # The packages of the file depend on others, which stay.
        left = {file for file in files(host) - before[name] if not re.search("curl|/usr/(lib|share)/", file)}
        assert not left and not host.ssh(f"command -v {programs}; ls -d {folders}", check=False).stdout, left


def rancher_lifecycle(binary, name, old, new):
    """Installs, joins, upgrades, stops and removes K3s or RKE2."""
    server, agent = {"k3s": ("k3s", "k3s-agent"), "rke2": ("rke2-server", "rke2-agent")}[name]
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        for host in bench.roles:
            bench.hosts[host].offer_releases(name, old, new)
        before = {host: files(bench.hosts[host]) for host in bench.roles}
        set_kubernetes(bench, f"distribution: {name}, version: {old}, source: 'file:///opt/{name}'")
        steps = bench.apply("--no-smoke")
        assert changed(steps) >= {"cp1/base", "cp2/join", "gpu1/join"}, steps
        assert_converged(bench)
        assert outcomes(bench.apply("--no-smoke")) == {"unchanged"}
        config = bench.run("kubeconfig")
        assert f"server: https://{bench.hosts['cp1'].address}:6443" in config, config
        join = bench.hosts["gpu1"].root / f"etc/rancher/{name}/config.yaml.d/50-slipway-join.yaml"
        assert join.stat().st_mode & 0o777 == 0o600 and "::server:" in join.read_text()
        assert bench.hosts["cp2"].ssh(f"systemctl is-active {server}").stdout == "active\n"
        # A stopped service is started again; an apply does not upgrade, and an upgrade does it node by node.
        bench.hosts["gpu1"].ssh(f"systemctl stop {agent}")
        assert changed(bench.apply("--no-smoke")) == {"gpu1/base"}
        bench.file.write_text(bench.file.read_text().replace(old, new))
        assert "which is an upgrade" in bench.apply("--no-smoke", status=1)["cp1/base"]["reason"]
        bench.file.write_text(bench.file.read_text().replace(new, old))
        steps = bench.run_steps("upgrade", "--to", new)
        assert changed(steps) == {"cp1/upgrade", "cp2/upgrade", "gpu1/upgrade"} and new in bench.file.read_text(), steps
        assert bench.hosts["gpu1"].ssh(f"{name} --version").stdout.startswith(f"{name} version {new}")
        assert_converged(bench)
        end_of_life(bench, before, name, "/var/lib/rancher /etc/rancher /usr/local/share/rke2")


@test(limit=900)
def k3s_is_installed_joined_upgraded_and_removed(binary):
    rancher_lifecycle(binary, "k3s", "v1.35.1+k3s1", "v1.36.2+k3s1")


@test(limit=900)
def rke2_is_installed_joined_upgraded_and_removed(binary):
    rancher_lifecycle(binary, "rke2", "v1.35.1+rke2r1", "v1.36.2+rke2r1")


@test(limit=900)
def kubeadm_is_installed_joined_upgraded_and_removed(binary):
    with Bench(binary, {"cp1": "control-plane", "cp2": "control-plane", "gpu1": "worker, gpu"}) as bench:
        old, new = "v1.35.1", "v1.36.2"
        for host in bench.roles:
            bench.hosts[host].offer_kubernetes(old, new)
        before = {host: files(bench.hosts[host]) for host in bench.roles}
        set_kubernetes(bench, f"distribution: kubeadm, version: {old}, source: 'file:///opt/kubernetes', extraSans: [lab.example.org], kubeletArgs: {{max-pods: '200'}}")
        repository = f"repositories: [{{name: site, uri: 'file:///opt/site', suites: ['./'], key: {{file: {bench.hosts['cp1'].root}/opt/key.asc}}}}], "
        bench.file.write_text(bench.file.read_text().replace("system: {", "system: {" + repository))
        host = bench.hosts["gpu1"]
        # An interrupted attempt to join is repeated from the start.
        host.ssh("mkdir -p /var/lib/slipway /etc/kubernetes/pki && echo started >/var/lib/slipway/kubeadm && echo CA >/etc/kubernetes/pki/ca.crt")
        steps = bench.apply("--no-smoke")
        assert changed(steps) >= {"cp1/base", "cp2/join", "gpu1/join"}, steps
        assert_converged(bench)
        assert outcomes(bench.apply("--no-smoke")) == {"unchanged"}
        assert bench.cluster()["releases"].keys() == {"flannel"} and not bench.cluster()["tokens"], bench.cluster()
        config = bench.run("kubeconfig")
        assert f"server: https://{bench.hosts['cp1'].address}:6443" in config, config
        assert f"--node-ip={host.address} --max-pods=200" in host.read("/var/lib/standin/kubelet-arguments")
        assert host.ssh("apt-mark showhold").stdout.split() == ["kubeadm", "kubectl", "kubelet"] and host.ssh("ls /run/slipway-join* 2>/dev/null", check=False).stdout == ""
        key = bench.cluster()["certificate_key"]
        assert not subprocess.run(["grep", "-rlE", f"{key}|[a-f0-9]{{6}}\\.[a-f0-9]{{16}}", bench.folder / "home"], capture_output=True, text=True).stdout
        # A new name is added to the certificates of the control planes, one with the kubelet stopped is started, and networks cannot be changed.
        host.ssh("systemctl stop kubelet")
        text = bench.file.read_text()
        bench.file.write_text(text.replace("lab.example.org", "api.example.org"))
        assert changed(bench.apply("--no-smoke")) == {"cp1/base", "cp2/base", "gpu1/base"}
        assert "DNS:api.example.org" in bench.hosts["cp2"].ssh("openssl x509 -noout -ext subjectAltName -in /etc/kubernetes/pki/apiserver.crt").stdout
        bench.file.write_text(bench.file.read_text().replace("spec:\n", "spec:\n  network: {pods: [10.3.0.0/16]}\n", 1))
        assert "cannot be changed" in bench.apply("--no-smoke", status=1)["cp1/base"]["reason"]
        bench.file.write_text(text)
        bench.apply("--no-smoke")
        # An apply does not upgrade, and an upgrade does it node by node.
        bench.file.write_text(text.replace(old, new))
        assert "which is an upgrade" in bench.apply("--no-smoke", status=1)["cp1/base"]["reason"]
        bench.file.write_text(text)
        steps = bench.run_steps("upgrade", "--to", new)
        assert changed(steps) == {"cp1/upgrade", "cp2/upgrade", "gpu1/upgrade"} and new in bench.file.read_text(), steps
        assert [c.split(": ")[1] for c in bench.commands() if "kubeadm upgrade" in c] == [f"kubeadm upgrade apply -y {new}", "kubeadm upgrade node", "kubeadm upgrade node"]
        assert_converged(bench)
        end_of_life(bench, before, "kubeadm kubelet containerd", "/etc/kubernetes /var/lib/kubelet")


@test
def kubeadm_never_resets_a_cluster_of_somebody_else(binary):
    with Bench(binary, {"cp1": "control-plane"}) as bench:
        host = bench.hosts["cp1"]
        host.offer_kubernetes("v1.36.2")
        set_kubernetes(bench, "distribution: kubeadm, version: v1.36.2, source: 'file:///opt/kubernetes'")
        bench.file.write_text(bench.file.read_text().replace("system: {", f"system: {{repositories: [{{name: site, uri: 'file:///opt/site', suites: ['./'], key: {{file: {host.root}/opt/key.asc}}}}], "))
        host.ssh("mkdir -p /etc/kubernetes/pki && echo theirs >/etc/kubernetes/pki/ca.crt")
        steps = bench.apply("--no-smoke", status=1)
        assert "slipway did not create" in steps["cp1/base"]["reason"], steps
        assert host.read("/etc/kubernetes/pki/ca.crt") == "theirs\n" and "kubeadm reset" not in str(bench.commands())


@test
def k3s_is_installed_on_rocky_linux_with_dnf_selinux_and_firewalld(binary):
    with Bench(binary, {"cp1": "control-plane", "gpu1": "worker, gpu"}) as bench:
        host = bench.hosts["gpu1"]
        for name in bench.roles:
            bench.hosts[name].become_rocky()
            bench.hosts[name].offer_releases("k3s", "v1.36.2+k3s1")
        # MicroK8s needs snapd, which the machine does not have.
        host.ssh("rm /usr/bin/snap; touch /root/mark")
        bench.file.write_text(bench.file.read_text().replace("[jq]", "[jq=1.6-14.el9]").replace("spec:\n", "spec:\n  network: {proxy: {https: 'http://proxy.example:3128'}}\n", 1))
        reason = bench.apply("--no-smoke", "--hosts", "gpu1", status=1)["gpu1/base"]["reason"]
        assert "Rocky Linux has no snapd" in reason and "k3s, rke2 or kubeadm" in reason, reason
        before = {name: files(bench.hosts[name]) for name in bench.roles}
        set_kubernetes(bench, "distribution: k3s, version: v1.36.2+k3s1, source: 'file:///opt/k3s'")
        bench.apply("--no-smoke")
        assert_converged(bench)
        assert outcomes(bench.apply("--no-smoke")) == {"unchanged"}
        assert json.loads(host.read("/var/lib/standin/rpms.json")) == {"jq": "1.6-14.el9", "k3s-selinux": "1.6-1.el9", "container-selinux": "2.235.0-1.el9"}
        assert host.read("/etc/dnf/plugins/versionlock.list") == "jq-0:1.6-14.el9.*\n" and "proxy=http://proxy.example:3128" in host.read("/etc/dnf/dnf.conf")
        assert '{"selinux": true}' in host.read("/etc/rancher/k3s/config.yaml.d/40-slipway-selinux.yaml")
        zone = host.read("/etc/firewalld/zones/slipway.xml")
        assert f'<source address="{bench.hosts["cp1"].address}"/>' in zone and '<source address="10.42.0.0/16"/>' in zone and "6443/tcp" in host.read("/var/lib/standin/ports").split()
        assert not host.ssh("ls -A /etc/apt/apt.conf.d | grep slipway; ls -d /etc/apt/keyrings/slipway* 2>/dev/null", check=False).stdout
        bench.run_steps("destroy", "--name", "lab")
        for name in bench.roles:
            left = files(bench.hosts[name]) - before[name] - {"/etc/dnf/plugins/versionlock.list"}
            assert not left and json.loads(bench.hosts[name].read("/var/lib/standin/rpms.json")) in ({}, {"container-selinux": "2.235.0-1.el9"}), left
