package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// The programs to build, from the two modules in this folder. Their go.sum pins all sources.
var (
	kubernetesPrograms = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubelet", "kubectl"}
	nodePrograms       = []string{
		"github.com/containerd/containerd/v2/cmd/containerd",
		"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"github.com/containerd/containerd/v2/cmd/ctr",
		"github.com/containernetworking/plugins/plugins/ipam/host-local",
		"github.com/containernetworking/plugins/plugins/main/bridge",
		"github.com/containernetworking/plugins/plugins/main/loopback",
		"github.com/containernetworking/plugins/plugins/meta/portmap",
	}
)

// cacheRoot is the folder of the binaries: outside of any clone, so that they are built once per machine.
func cacheRoot() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "slipway", "lab"), err
}

// key identifies a build: a hash of its sources, pinned modules and the compiler's version.
func key(source string) (string, error) {
	sum := sha256.New()
	files := []string{"build.go", "pause/main.go"}
	for _, module := range []string{"kubernetes", "containerd"} {
		files = append(files, module+"/go.mod", module+"/go.sum")
	}
	files = append(files, "kubernetes/main.go")
	for _, file := range files {
		content, err := os.ReadFile(filepath.Join(source, file))
		if err != nil {
			return "", err
		}
		sum.Write(content)
	}
	sum.Write([]byte(runtime.Version() + runtime.GOARCH))
	return hex.EncodeToString(sum.Sum(nil))[:16], nil
}

// kubernetesVersion is the version that the module pins, such as v1.36.0.
func kubernetesVersion(source string) (string, error) {
	content, err := os.ReadFile(filepath.Join(source, "kubernetes", "go.mod"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(content)) {
		if version, found := strings.CutPrefix(strings.TrimSpace(line), "k8s.io/kubernetes "); found {
			return strings.Fields(version)[0], nil
		}
	}
	return "", fmt.Errorf("kubernetes/go.mod does not require k8s.io/kubernetes")
}

// build builds missing programs and returns the folder of the binaries.
func build(source string) (string, error) {
	root, err := cacheRoot()
	if err != nil {
		return "", err
	}
	id, err := key(source)
	if err != nil {
		return "", err
	}
	folder := filepath.Join(root, id)
	if _, err := os.Stat(filepath.Join(folder, ".ready")); err == nil {
		return folder, nil
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return "", err
	}
	// Concurrent builds would write the same files.
	unlock, err := lock(filepath.Join(root, "build.lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(folder, ".ready")); err == nil {
		return folder, nil
	}
	version, err := kubernetesVersion(source)
	if err != nil {
		return "", err
	}
	logf("building Kubernetes %s, etcd, containerd and CNI plugins into %s; about 10 minutes the first time", version, folder)
	numbers := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	stamp := "-X k8s.io/component-base/version."
	flags := fmt.Sprintf("-s -w %sgitVersion=%s %sgitMajor=%s %sgitMinor=%s", stamp, version, stamp, numbers[0], stamp, numbers[1])
	if err := compile(filepath.Join(source, "kubernetes"), flags, filepath.Join(folder, "kubernetes"), "."); err != nil {
		return "", err
	}
	for _, name := range kubernetesPrograms {
		link := filepath.Join(folder, name)
		_ = os.Remove(link)
		if err := os.Symlink("kubernetes", link); err != nil {
			return "", err
		}
	}
	for _, program := range nodePrograms {
		if err := compile(filepath.Join(source, "containerd"), "-s -w", filepath.Join(folder, filepath.Base(program)), program); err != nil {
			return "", err
		}
	}
	if err := compile(source, "-s -w", filepath.Join(folder, "pause"), "./pause"); err != nil {
		return "", err
	}
	return folder, os.WriteFile(filepath.Join(folder, ".ready"), []byte(version+"\n"), 0o644)
}

func compile(module, flags, output, target string) error {
	command := exec.Command("go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", output, target)
	command.Dir = module
	command.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	command.Stdout, command.Stderr = os.Stderr, os.Stderr
	if err := command.Run(); err != nil {
		return fmt.Errorf("go build %s in %s: %w", target, module, err)
	}
	return nil
}
