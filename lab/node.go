package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	bridge  = "slipway-lab0"
	gateway = "172.30.0.1"
)

func nodeName(i int) string    { return fmt.Sprintf("n%d", i) }
func nodeAddress(i int) string { return fmt.Sprintf("172.30.0.%d", 10+i) }
func podSubnet(i int) string   { return fmt.Sprintf("10.244.%d.0/24", i) }
func link(node string) string  { return "slipway-" + node }

// holder is the name of the process that keeps a node's namespaces.
func holder(node string) string {
	return "node-" + node
}

// nsenter returns the first words of a command line that runs on a node.
func (l *lab) nsenter(node string) ([]string, error) {
	p, err := l.process(holder(node))
	if err != nil {
		return nil, err
	}
	if !p.alive() {
		return nil, fmt.Errorf("node %s is down", node)
	}
	return []string{"nsenter", "-t", strconv.Itoa(p.Pid), "-m", "-n", "--"}, nil
}

// nodeMounts are folders of which every node has its own, by name in the node's folder, with their mount points. The kubelet's
// folder for device plugins is not configurable, so nodes need separate mounts.
var nodeMounts = map[string]string{
	"kubelet": "/var/lib/kubelet", "cdi": "/etc/cdi", "run-cdi": "/run/cdi",
	// The driver's folder of NVIDIA's GPU operator, and the state folder of slipway's agent.
	"nvidia": "/run/nvidia", "state": "/var/lib/slipway",
}

func (l *lab) nodeFolder(node string) string { return filepath.Join(l.folder, node) }

// startBridge creates the network that connects the nodes with the machine.
func (l *lab) startBridge() error {
	steps := [][]string{{"link", "add", bridge, "type", "bridge"}, {"addr", "add", gateway + "/24", "dev", bridge}, {"link", "set", bridge, "up"}}
	for _, step := range steps {
		if err := command("ip", step...); err != nil {
			return err
		}
	}
	return nil
}

// startNode starts node i: a network namespace on the bridge, separate mounts, containerd, kubelet, kube-proxy.
func (l *lab) startNode(i int, self string) error {
	node := nodeName(i)
	folder := l.nodeFolder(node)
	for name := range nodeMounts {
		if err := os.MkdirAll(filepath.Join(folder, name), 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"cni", "pod-logs"} {
		if err := os.MkdirAll(filepath.Join(folder, name), 0o755); err != nil {
			return err
		}
	}
	holding := &process{Name: holder(node), Args: []string{self, "hold", folder}, Isolated: true}
	if err := l.start(holding); err != nil {
		return err
	}
	if err := l.wait("mounts of "+node, 10*time.Second, []string{holding.Name}, func() error {
		_, err := os.Stat(filepath.Join(folder, "held"))
		return err
	}); err != nil {
		return err
	}
	pid := strconv.Itoa(holding.Pid)
	in := func(arguments ...string) []string {
		return append([]string{"nsenter", "-t", pid, "-n", "--", "ip"}, arguments...)
	}
	steps := [][]string{
		{"ip", "link", "add", link(node), "type", "veth", "peer", "name", "eth0", "netns", pid},
		{"ip", "link", "set", link(node), "master", bridge, "up"},
		in("link", "set", "lo", "up"),
		in("addr", "add", nodeAddress(i)+"/24", "dev", "eth0"),
		in("link", "set", "eth0", "up"),
		in("route", "add", "default", "via", gateway),
		{"ip", "route", "replace", podSubnet(i), "via", nodeAddress(i)},
		{"nsenter", "-t", pid, "-n", "--", "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"},
	}
	for j := 1; j <= l.Nodes; j++ {
		if j != i {
			steps = append(steps, in("route", "add", podSubnet(j), "via", nodeAddress(j)))
		}
	}
	for _, step := range steps {
		if err := command(step[0], step[1:]...); err != nil {
			return err
		}
	}
	if err := createCgroup(node); err != nil {
		return err
	}
	files := map[string]string{
		"cni/10-bridge.conflist": networkConfig(i, folder), "containerd.toml": l.containerdConfig(folder),
		"kubelet.yaml": l.kubeletConfig(i, folder), "kube-proxy.yaml": l.proxyConfig(i),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	containerd := &process{Name: "containerd-" + node, Node: node,
		Args: []string{filepath.Join(l.bin, "containerd"), "-c", filepath.Join(folder, "containerd.toml")}}
	if err := l.start(containerd); err != nil {
		return err
	}
	if err := l.wait("containerd of "+node, 30*time.Second, []string{containerd.Name}, func() error {
		return command(filepath.Join(l.bin, "ctr"), "-a", filepath.Join(folder, "containerd.sock"), "version")
	}); err != nil {
		return err
	}
	images, _ := filepath.Glob(filepath.Join(l.folder, "images", "*.tar"))
	for _, image := range images {
		if err := l.importImage(node, image); err != nil {
			return err
		}
	}
	kubelet := &process{Name: "kubelet-" + node, Node: node, Args: []string{filepath.Join(l.bin, "kubelet"),
		"--config=" + filepath.Join(folder, "kubelet.yaml"), "--kubeconfig=" + filepath.Join(l.pki(), node+".kubeconfig"),
		"--hostname-override=" + node, "--node-ip=" + nodeAddress(i), "--root-dir=/var/lib/kubelet"}}
	if err := l.start(kubelet); err != nil {
		return err
	}
	return l.start(&process{Name: "kube-proxy-" + node, Node: node,
		Args: []string{filepath.Join(l.bin, "kube-proxy"), "--config=" + filepath.Join(folder, "kube-proxy.yaml")}})
}

// hold runs as the first process of a node: it creates the node's mounts, and then keeps its namespaces alive.
func hold(folder string) error {
	// Mounts of the machine propagate to the node, but not the other way round.
	if err := syscall.Mount("", "/", "", syscall.MS_SLAVE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("mounts of the node: %w", err)
	}
	for name, place := range nodeMounts {
		if err := syscall.Mount(filepath.Join(folder, name), place, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("%s: %w", place, err)
		}
		// As on a machine with systemd: mounts below the folder propagate to containers that mount it.
		if err := syscall.Mount("", place, "", syscall.MS_SHARED|syscall.MS_REC, ""); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(folder, "held"), nil, 0o600); err != nil {
		return err
	}
	for { // until the process is killed
		_ = syscall.Pause()
	}
}

func (l *lab) importImage(node, file string) error {
	prefix, err := l.nsenter(node)
	if err != nil {
		return err
	}
	arguments := append(prefix, filepath.Join(l.bin, "ctr"), "-a", filepath.Join(l.nodeFolder(node), "containerd.sock"), "-n", "k8s.io", "images", "import", file)
	return command(arguments[0], arguments[1:]...)
}

func networkConfig(i int, folder string) string {
	return fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "lab", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": %q}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`, filepath.Join(folder, "ipam"), podSubnet(i))
}

func (l *lab) containerdConfig(folder string) string {
	runc, err := exec.LookPath("runc")
	if err != nil {
		runc = "/usr/sbin/runc"
	}
	// Without restrict_oom_score_adj every sandbox fails where the score may not be lowered. Without
	// netns_mounts_under_state_dir network namespaces of deleted pods leak.
	return fmt.Sprintf(`version = 3
root = "%[1]s/containerd"
state = "%[1]s/containerd-state"
[grpc]
  address = "%[1]s/containerd.sock"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "lab.local/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
  enable_cdi = true
  cdi_spec_dirs = ["/etc/cdi", "/run/cdi"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  [plugins.'io.containerd.cri.v1.runtime'.cni]
    bin_dirs = ["%[2]s"]
    conf_dir = "%[1]s/cni"
  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
      SystemdCgroup = false
      BinaryName = "%[3]s"
`, folder, l.bin, runc)
}

// No threshold of evictions is set: nodes share the memory and the disk of this machine with programs that are not theirs, and the kubelet counts
// page cache in use as memory that is not available, so a busy machine would taint nodes and evict their pods.
func (l *lab) kubeletConfig(i int, folder string) string {
	node := nodeName(i)
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
containerRuntimeEndpoint: unix://%[2]s/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /%[3]s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: [pods]
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[4]s/ca.crt}}
authorization: {mode: Webhook}
tlsCertFile: %[4]s/%[5]s.crt
tlsPrivateKeyFile: %[4]s/%[5]s.key
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, imagefs.available: 0%%, nodefs.inodesFree: 0%%}
imageGCHighThresholdPercent: 100
nodeStatusUpdateFrequency: 5s
podLogsDir: %[2]s/pod-logs
resolvConf: ""
shutdownGracePeriod: 0s
`, nodeAddress(i), folder, cgroupName(node), l.pki(), node)
}

func (l *lab) proxyConfig(i int) string {
	// The conntrack limits are sysctls of the whole machine, so nodes of the lab must not change them.
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: %s
hostnameOverride: %s
bindAddress: %s
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, podRange, nodeName(i), nodeAddress(i), filepath.Join(l.pki(), "kube-proxy.kubeconfig"))
}

// stopNode stops all processes of a node, including containers, and removes its network link and cgroup.
func (l *lab) stopNode(node string) {
	for _, name := range []string{"kube-proxy-" + node, "kubelet-" + node} {
		if p, err := l.process(name); err == nil {
			p.stop(syscall.SIGKILL, 0)
		}
	}
	killCgroup(node)
	if p, err := l.process("containerd-" + node); err == nil {
		p.stop(syscall.SIGKILL, 0)
	}
	killShims(l.nodeFolder(node))
	if p, err := l.process(holder(node)); err == nil {
		p.stop(syscall.SIGKILL, 0)
	}
	_ = command("ip", "link", "del", link(node))
	removeCgroup(node)
}

// killShims kills containerd's shims, which outlive containerd by design.
func killShims(folder string) {
	entries, _ := os.ReadDir("/proc")
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		line, _ := os.ReadFile(filepath.Join("/proc", entry.Name(), "cmdline"))
		words := strings.ReplaceAll(string(line), "\x00", " ")
		if strings.Contains(words, "containerd-shim") && strings.Contains(words, "-address "+folder+"/") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
