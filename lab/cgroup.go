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

// hierarchies are the roots below which a node has a cgroup: one with version 2, one for each controller with version 1.
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

func makeCgroup(node string) error {
	for _, root := range hierarchies() {
		own := filepath.Join(root, cgroupName(node))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		// A cpuset of version 1 is born empty, and an empty one lets nothing in.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if content, err := os.ReadFile(filepath.Join(root, file)); err == nil && strings.HasSuffix(root, "cpuset") {
				if err := os.WriteFile(filepath.Join(own, file), content, 0o644); err != nil {
					return err
				}
			}
		}
	}
	// With version 2 controllers are handed down explicitly.
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

// killCgroup ends all processes of a node's pods; some may be born while it counts, so it counts until there are none.
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
		left := false
		visitCgroup(node, func(folder string) {
			if err := syscall.Rmdir(folder); err != nil {
				left = true
			}
		})
		if !left {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}
