package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const cgroups = "/sys/fs/cgroup"

func cgroupName(node string) string { return "slipway-lab-" + node }

// hierarchies are the roots below which a node has a cgroup: one for version 2, one per controller for version 1.
func hierarchies() []string {
	if _, err := os.Stat(filepath.Join(cgroups, "cgroup.controllers")); err == nil {
		return []string{cgroups}
	}
	var found []string
	entries, _ := os.ReadDir(cgroups)
	for _, entry := range entries {
		if entry.IsDir() {
			found = append(found, filepath.Join(cgroups, entry.Name()))
		}
	}
	return found
}

func createCgroup(node string) error {
	for _, root := range hierarchies() {
		own := filepath.Join(root, cgroupName(node))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		// A new cpuset of version 1 is empty and accepts no processes until it has CPUs and memory nodes.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if content, err := os.ReadFile(filepath.Join(root, file)); err == nil && strings.HasSuffix(root, "cpuset") {
				if err := os.WriteFile(filepath.Join(own, file), content, 0o644); err != nil {
					return err
				}
			}
		}
	}
	// In version 2 controllers must be enabled for child cgroups explicitly.
	if content, err := os.ReadFile(filepath.Join(cgroups, "cgroup.controllers")); err == nil {
		for _, folder := range []string{cgroups, filepath.Join(cgroups, cgroupName(node))} {
			for _, controller := range strings.Fields(string(content)) {
				_ = os.WriteFile(filepath.Join(folder, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			}
		}
	}
	return nil
}

func visitCgroup(node string, visit func(folder string)) {
	for _, root := range hierarchies() {
		var folders []string
		_ = filepath.WalkDir(filepath.Join(root, cgroupName(node)), func(path string, entry os.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				folders = append(folders, path)
			}
			return nil
		})
		for i := len(folders) - 1; i >= 0; i-- {
			visit(folders[i])
		}
	}
}

// killCgroup kills all processes of a node's pods. New ones may start meanwhile, so it repeats until none remain.
func killCgroup(node string) {
	for range 50 {
		found := false
		visitCgroup(node, func(folder string) {
			content, _ := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
			for word := range strings.FieldsSeq(string(content)) {
				if pid, err := strconv.Atoi(word); err == nil && pid > 0 {
					found = true
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		})
		if !found {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func removeCgroup(node string) {
	for range 20 {
		remaining := false
		visitCgroup(node, func(folder string) {
			if err := syscall.Rmdir(folder); err != nil {
				remaining = true
			}
		})
		if !remaining {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
