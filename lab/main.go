// A real Kubernetes for tests and for learning: upstream's own programs, built from their Go modules, on one Linux machine.
//
//	lab up --nodes 2     starts a control plane and two nodes; --nodes 0 starts only a control plane and needs no root
//	lab down             stops the lab and removes everything
//	lab status           lists the processes
//	lab build            only builds the programs, into ~/.cache/slipway/lab
//	lab stop|start NAME  stops or starts one process, to test failures
//	lab exec NODE CMD    runs a command on a node
//	lab image OUT NAME:TAG ENTRYPOINT FILE=PLACE...   creates an image without Docker
//	lab import FILE      imports an image into all nodes
//	lab simulate SLIPWAY FIXTURE...   adds simulated GPUs to each node, from a fixture
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// lab is a running lab; its exported fields are saved in lab.json.
type lab struct {
	folder, bin string
	Nodes       int               `json:"nodes"`
	Address     string            `json:"address"`
	Version     string            `json:"version"`
	Bin         string            `json:"bin"`
	Sysctls     map[string]string `json:"sysctls"`
	// CreatedFolders are folders of the machine that did not exist before; down removes them.
	CreatedFolders []string `json:"made"`
}

func (l *lab) pki() string        { return filepath.Join(l.folder, "pki") }
func (l *lab) kubeconfig() string { return filepath.Join(l.pki(), "admin.kubeconfig") }

func logf(format string, arguments ...any) { fmt.Fprintf(os.Stderr, format+"\n", arguments...) }

func defaultFolder() string {
	if run := os.Getenv("XDG_RUNTIME_DIR"); os.Geteuid() != 0 && run != "" {
		return filepath.Join(run, "slipway-lab")
	}
	if os.Geteuid() != 0 {
		return filepath.Join(os.TempDir(), fmt.Sprintf("slipway-lab-%d", os.Geteuid()))
	}
	return "/run/slipway-lab"
}

func main() {
	folder := flag.String("dir", defaultFolder(), "folder of the running lab")
	source := flag.String("source", ".", "folder of the lab's Go modules")
	nodes := flag.Int("nodes", 2, "nodes besides the control plane, 0 to 50")
	flag.Usage = func() {
		logf("usage: lab [--dir DIR] [--source DIR] [--nodes N] up|down|status|build|stop NAME|start NAME|exec NODE CMD...|image OUT NAME:TAG ENTRYPOINT FILE=PLACE...|import FILE")
		flag.PrintDefaults()
	}
	flag.Parse()
	words := flag.Args()
	if len(words) == 0 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(*folder, *source, *nodes, words[0], words[1:]); err != nil {
		logf("lab: %v", err)
		os.Exit(1)
	}
}

func requireArguments(rest []string, min int, usage string) error {
	if len(rest) < min {
		return errors.New("usage: lab " + usage)
	}
	return nil
}

func run(folder, source string, nodes int, verb string, rest []string) error {
	switch verb {
	case "hold":
		return hold(rest[0])
	case "build":
		bin, err := build(source)
		if err == nil {
			fmt.Println(bin)
		}
		return err
	case "image":
		if err := requireArguments(rest, 4, "image OUT NAME:TAG ENTRYPOINT FILE=PLACE..."); err != nil {
			return err
		}
		return writeImage(rest[0], rest[1], strings.Fields(rest[2]), rest[3:])
	case "up":
		return up(folder, source, nodes)
	}
	l, err := load(folder)
	if err != nil {
		if verb == "down" && errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return fmt.Errorf("no lab is running in %s (lab up starts one): %w", folder, err)
	}
	switch verb {
	case "down":
		return l.down()
	case "status":
		return l.status()
	case "stop", "start":
		if err := requireArguments(rest, 1, verb+" NAME"); err != nil {
			return err
		}
		p, err := l.process(rest[0])
		if err != nil {
			return err
		}
		if verb == "start" {
			return l.start(p)
		}
		if p.Isolated {
			return fmt.Errorf("%s holds a node's namespaces and can only be stopped with the lab", p.Name)
		}
		p.stop(syscall.SIGTERM, 5*time.Second)
		return nil
	case "kill":
		if err := requireArguments(rest, 1, "kill NAME"); err != nil {
			return err
		}
		p, err := l.process(rest[0])
		if err == nil {
			p.stop(syscall.SIGKILL, 0)
		}
		return err
	case "exec":
		if err := requireArguments(rest, 2, "exec NODE CMD..."); err != nil {
			return err
		}
		prefix, err := l.nsenter(rest[0])
		if err != nil {
			return err
		}
		return syscall.Exec("/usr/bin/nsenter", append(prefix, rest[1:]...), os.Environ())
	case "simulate":
		if err := requireArguments(rest, 2, "simulate SLIPWAY FIXTURE..."); err != nil {
			return err
		}
		return l.simulate(rest[0], rest[1:])
	case "import":
		if err := requireArguments(rest, 1, "import FILE"); err != nil {
			return err
		}
		for i := 1; i <= l.Nodes; i++ {
			if err := l.importImage(nodeName(i), rest[0]); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown command %q; lab --help lists them", verb)
}

func load(folder string) (*lab, error) {
	content, err := os.ReadFile(filepath.Join(folder, "lab.json"))
	if err != nil {
		return nil, err
	}
	l := &lab{}
	if err := json.Unmarshal(content, l); err != nil {
		return nil, err
	}
	l.folder, l.bin = folder, l.Bin
	return l, nil
}

// complete reports whether all processes of the lab are running.
func (l *lab) complete() bool {
	all := l.processes()
	for _, p := range all {
		if !p.alive() {
			return false
		}
	}
	return len(all) == 4+4*l.Nodes
}

func (l *lab) save() error {
	content, err := json.MarshalIndent(l, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(l.folder, "lab.json"), content, 0o600)
}

// The kubelet sets these for the whole machine; down restores them.
var sysctls = []string{"kernel/panic", "kernel/panic_on_oops", "vm/overcommit_memory", "vm/panic_on_oom", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"}

func up(folder, source string, nodes int) error {
	if nodes < 0 || nodes > 50 {
		return fmt.Errorf("--nodes is 0 to 50, not %d", nodes)
	}
	if running, err := load(folder); err == nil {
		if running.complete() {
			if running.Nodes != nodes {
				return fmt.Errorf("a lab with %d nodes is already running; stop it with: lab down", running.Nodes)
			}
			logf("the lab is running")
			fmt.Println(running.kubeconfig())
			return nil
		}
		// Remove what is left after a reboot, a kill or a failed start.
		if err := running.down(); err != nil {
			return err
		}
	}
	if nodes > 0 && os.Geteuid() != 0 {
		return errors.New("nodes need root (namespaces, cgroups, mounts); without root, use: lab --nodes 0 up")
	}
	bin, err := build(source)
	if err != nil {
		return err
	}
	version, err := kubernetesVersion(source)
	if err != nil {
		return err
	}
	started := time.Now()
	l := &lab{folder: folder, bin: bin, Bin: bin, Nodes: nodes, Address: "127.0.0.1", Version: version, Sysctls: map[string]string{}}
	for _, name := range []string{"process", "log", "images", "etcd"} {
		if err := os.MkdirAll(filepath.Join(folder, name), 0o700); err != nil {
			return err
		}
	}
	if nodes > 0 {
		l.Address = gateway
		for _, name := range sysctls {
			if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
				l.Sysctls[name] = strings.TrimSpace(string(value))
			}
		}
		for _, place := range nodeMounts {
			if _, err := os.Stat(place); errors.Is(err, os.ErrNotExist) {
				l.CreatedFolders = append(l.CreatedFolders, place)
				if err := os.MkdirAll(place, 0o755); err != nil {
					return err
				}
			}
		}
	}
	if err := l.save(); err != nil {
		return err
	}
	if err := l.startAll(started); err != nil {
		logf("the lab did not start; %s has the logs, lab down removes it", filepath.Join(folder, "log"))
		return err
	}
	fmt.Println(l.kubeconfig())
	return nil
}

func (l *lab) startAll(started time.Time) error {
	progress := func(step string) { logf("%6.1f s  %s", time.Since(started).Seconds(), step) }
	if l.Nodes > 0 {
		if err := l.startBridge(); err != nil {
			return err
		}
	}
	if err := l.startControlPlane(); err != nil {
		return err
	}
	progress("control plane: Kubernetes " + l.Version + " at " + l.server())
	if l.Nodes == 0 {
		return nil
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := writeImage(filepath.Join(l.folder, "images", "pause.tar"), "lab.local/pause:1", []string{"/pause"}, []string{filepath.Join(l.bin, "pause") + "=/pause"}); err != nil {
		return err
	}
	for i := 1; i <= l.Nodes; i++ {
		if err := l.startNode(i, self); err != nil {
			return err
		}
	}
	for i := 1; i <= l.Nodes; i++ {
		node := nodeName(i)
		err := l.wait("node "+node, 2*time.Minute, []string{"kubelet-" + node}, func() error {
			body, err := l.get("/api/v1/nodes/" + node)
			if err == nil && !nodeReady(body) {
				err = errors.New("not ready")
			}
			return err
		})
		if err != nil {
			return err
		}
		progress("node " + node + " is ready")
	}
	return nil
}

func nodeReady(body string) bool {
	var node struct {
		Status struct {
			Conditions []struct{ Type, Status string }
		}
	}
	if json.Unmarshal([]byte(body), &node) != nil {
		return false
	}
	for _, c := range node.Status.Conditions {
		if c.Type == "Ready" {
			return c.Status == "True"
		}
	}
	return false
}

// down stops all processes, and removes mounts, cgroups, network links and folders; sysctls are restored.
func (l *lab) down() error {
	for i := 1; i <= l.Nodes; i++ {
		l.stopNode(nodeName(i))
	}
	all := l.processes()
	// Stop etcd last, so that the other processes do not fill their logs with connection errors.
	slices.SortFunc(all, func(a, b *process) int { return strings.Compare(b.Name, a.Name) })
	for _, p := range all {
		if p.Name != "etcd" {
			p.stop(syscall.SIGKILL, 0)
		}
	}
	for _, p := range all {
		p.stop(syscall.SIGKILL, 0)
	}
	if l.Nodes > 0 {
		_ = command("ip", "link", "del", bridge)
		for name, value := range l.Sysctls {
			_ = os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0o644)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(mounts), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		if words := strings.Fields(line); len(words) > 1 && strings.HasPrefix(words[1], l.folder+"/") {
			_ = syscall.Unmount(words[1], syscall.MNT_DETACH)
		}
	}
	if err := os.RemoveAll(l.folder); err != nil {
		return err
	}
	for _, place := range l.CreatedFolders {
		_ = os.Remove(place)
	}
	return nil
}

func (l *lab) status() error {
	table := tabwriter.NewWriter(os.Stdout, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "PROCESS\tPID\tSTATE\tMEMORY")
	for _, p := range l.processes() {
		state, memory := "down", ""
		if p.alive() {
			state, memory = "up", resident(p.Pid)
		}
		fmt.Fprintf(table, "%s\t%d\t%s\t%s\n", p.Name, p.Pid, state, memory)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Printf("\nKubernetes %s, export KUBECONFIG=%s, PATH=%s:$PATH\n", l.Version, l.kubeconfig(), l.bin)
	return nil
}

func resident(pid int) string {
	content, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(content)) {
		if kib, found := strings.CutPrefix(line, "VmRSS:"); found {
			return strings.TrimSpace(kib)
		}
	}
	return ""
}
