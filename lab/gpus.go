package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Simulated GPUs: the files of a driver on every node, and an image with slipway, which simulates GPUs itself, so that only
// the hardware is simulated. The file NODE/nvidia/driver/control controls the state of a node's GPUs (testkit/fake-nvml).

const driverVersion = "580.95.05"

// The programs in the tool image, all of them links to busybox.
var tools = []string{"sh", "sleep", "env", "ls", "cat", "echo", "true", "wget", "sort", "grep", "id"}

// dataPrograms are the files of the programs that the data driver runs, as the chart's image has them. Git is optional on this machine; without
// it the driver reports that it is missing.
func dataPrograms() []string {
	var files []string
	for _, name := range []string{"mount", "umount", "git"} {
		if program, err := exec.LookPath(name); err == nil {
			files = append(files, program+"=/usr/bin/"+name)
		}
	}
	folder, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		return files
	}
	helper := filepath.Join(strings.TrimSpace(string(folder)), "git-remote-http")
	return append(files, helper+"="+helper, "@git-remote-http="+helper+"s")
}

func (l *lab) simulate(slipway string, fixtures []string) error {
	if len(fixtures) != l.Nodes {
		return fmt.Errorf("%d fixtures for %d nodes", len(fixtures), l.Nodes)
	}
	busybox := "/bin/busybox"
	if _, err := os.Stat(busybox); err != nil {
		return errors.New("busybox is required for containers and not installed: apt-get install busybox-static")
	}
	for i, fixture := range fixtures {
		if err := l.installDriver(nodeName(i+1), fixture); err != nil {
			return err
		}
	}
	links := func(names ...string) []string {
		files := []string{busybox + "=/bin/busybox"}
		for _, name := range names {
			files = append(files, "@busybox=/bin/"+name)
		}
		return files
	}
	images := []struct {
		name, entrypoint string
		files            []string
	}{
		{"slipway", "/usr/bin/slipway", slices.Concat(links("sh", "sleep", "cat", "mktemp"), []string{slipway + "=/usr/bin/slipway"}, dataPrograms())},
		{"tool", "/bin/sh", links(tools...)},
	}
	for _, image := range images {
		file := filepath.Join(l.folder, "images", image.name+".tar")
		if err := writeImage(file, "lab.local/"+image.name+":1", []string{image.entrypoint}, image.files); err != nil {
			return err
		}
		for i := 1; i <= l.Nodes; i++ {
			if err := l.importImage(nodeName(i), file); err != nil {
				return err
			}
		}
	}
	values := filepath.Join(l.folder, "values.yaml")
	if err := os.WriteFile(values, []byte(simulatedValues), 0o644); err != nil {
		return err
	}
	fmt.Println(values)
	return nil
}

// Values for `slipway up --kube`: the lab's image, and simulated GPUs. Nothing here needs a privileged container.
const simulatedValues = `image: {repository: lab.local/slipway, tag: "1", pullPolicy: Never}
server:
  storage: {ephemeral: true}
node:
  privileged: false
  driverRoot: /run/nvidia/driver
  cdiDir: /run/cdi
  recoverAfter: 3
  env:
    SLIPWAY_GPU_FIXTURE: /host/driver/fixture.yaml
    SLIPWAY_FAKE_NVML_CONTROL: /host/driver/control
    SLIPWAY_FAKE_NVML_STATE: /var/lib/slipway/fake-nvml.json
`

// A stand-in for nvidia-cuda-mps-control: with -f it runs in the foreground, otherwise it reads commands from standard input.
const mpsControl = `#!/bin/sh
echo "$0 $* devices=$CUDA_VISIBLE_DEVICES" >> "$CUDA_MPS_LOG_DIRECTORY/calls"
if [ "$1" = -f ]; then exec sleep 100000; fi
cat >> "$CUDA_MPS_LOG_DIRECTORY/orders"
`

// installDriver creates the files of an installed driver: libraries, programs, MIG's list of capabilities, device nodes. All
// device nodes are copies of /dev/null, because only names and numbers matter.
func (l *lab) installDriver(node, fixture string) error {
	root := filepath.Join(l.nodeFolder(node), "nvidia", "driver")
	fixtureContent, err := os.ReadFile(fixture)
	if err != nil {
		return err
	}
	names := []string{"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools"}
	var minors strings.Builder
	for gpu, number := 0, 1; gpu < 8; gpu++ {
		names = append(names, fmt.Sprintf("nvidia%d", gpu))
		for instance := range 15 {
			for _, access := range []string{"", "/ci0"} {
				fmt.Fprintf(&minors, "gpu%d/gi%d%s/access %d\n", gpu, instance, access, number)
				names = append(names, fmt.Sprintf("nvidia-caps/nvidia-cap%d", number))
				number++
			}
		}
	}
	libraries := "usr/lib/x86_64-linux-gnu/"
	files := map[string]string{
		"fixture.yaml": string(fixtureContent), "control": "", "proc/driver/nvidia-caps/mig-minors": minors.String(),
		"usr/bin/nvidia-smi": "", "usr/bin/nvidia-cuda-mps-control": mpsControl,
		libraries + "libcuda.so." + driverVersion: "", libraries + "libnvidia-ml.so." + driverVersion: "",
	}
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			return err
		}
	}
	const null = 1<<8 | 3
	for _, name := range names {
		path := filepath.Join(root, "dev", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := syscall.Mknod(path, syscall.S_IFCHR|0o666, null); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}
