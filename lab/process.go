package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a daemon of the lab. It outlives the command that starts it; a file under process/ in the lab's folder has the data
// to find it, stop it and start it again.
type process struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Node is the node whose network and mounts the process uses; empty for the machine itself.
	Node string `json:"node,omitempty"`
	// Isolated processes get a new network and mount namespace; only the holder of a node is isolated.
	Isolated bool `json:"isolated,omitempty"`
	// Pid and StartTicks identify the process, because the kernel reuses process ids.
	Pid        int    `json:"pid"`
	StartTicks uint64 `json:"born"`
}

func (l *lab) processFile(name string) string {
	return filepath.Join(l.folder, "process", name+".json")
}

func (l *lab) logFile(name string) string { return filepath.Join(l.folder, "log", name+".log") }

func (l *lab) process(name string) (*process, error) {
	content, err := os.ReadFile(l.processFile(name))
	if err != nil {
		return nil, fmt.Errorf("the lab has no process %q (see: lab status)", name)
	}
	var found process
	return &found, json.Unmarshal(content, &found)
}

func (l *lab) processes() []*process {
	files, _ := filepath.Glob(l.processFile("*"))
	var found []*process
	for _, file := range files {
		if p, err := l.process(strings.TrimSuffix(filepath.Base(file), ".json")); err == nil {
			found = append(found, p)
		}
	}
	return found
}

// start starts a process and saves it in its file. Its output is appended to log/NAME.log.
func (l *lab) start(p *process) error {
	if p.alive() {
		return nil
	}
	arguments := p.Args
	if p.Node != "" {
		prefix, err := l.nsenter(p.Node)
		if err != nil {
			return err
		}
		arguments = append(prefix, arguments...)
	}
	log, err := os.OpenFile(l.logFile(p.Name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(arguments[0], arguments[1:]...)
	command.Stdout, command.Stderr = log, log
	command.Env = append(append(os.Environ(), p.Env...), "PATH="+l.bin+":"+os.Getenv("PATH"))
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if p.Isolated {
		command.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS | syscall.CLONE_NEWNET
	}
	if err := command.Start(); err != nil {
		return fmt.Errorf("%s: %w", p.Name, err)
	}
	go command.Wait()
	p.Pid = command.Process.Pid
	p.StartTicks, _ = startTicks(p.Pid)
	content, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(l.processFile(p.Name), content, 0o600)
}

func (p *process) alive() bool {
	if p.Pid == 0 {
		return false
	}
	ticks, zombie := startTicks(p.Pid)
	return ticks == p.StartTicks && ticks != 0 && !zombie
}

// stop sends the signal to a process, and kills it if it is still alive after `wait`.
func (p *process) stop(signal syscall.Signal, wait time.Duration) {
	if !p.alive() {
		return
	}
	_ = syscall.Kill(p.Pid, signal)
	for deadline := time.Now().Add(wait); p.alive(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			_ = syscall.Kill(p.Pid, syscall.SIGKILL)
			deadline = time.Now().Add(10 * time.Second)
		}
	}
}

// startTicks is the start time of a process, in ticks since boot (proc(5), /proc/pid/stat field 22), and whether it is a zombie.
func startTicks(pid int) (ticks uint64, zombie bool) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is a name in parentheses that may contain any characters.
	rest := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	ticks, _ = strconv.ParseUint(rest[19], 10, 64)
	return ticks, rest[0] == "Z"
}

// lock acquires an exclusive file lock and returns a function that releases it.
func lock(path string) (func(), error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX); err != nil {
		return nil, err
	}
	return func() { file.Close() }, nil
}

// wait polls until the error is nil. It fails with the last error after the timeout, or when a required process has exited.
func (l *lab) wait(condition string, timeout time.Duration, required []string, poll func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := poll()
		if err == nil {
			return nil
		}
		for _, name := range required {
			if p, missing := l.process(name); missing != nil || !p.alive() {
				return fmt.Errorf("%s: %s has exited; the end of its log:\n%s", condition, name, tail(l.logFile(name)))
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: timed out after %v: %w", condition, timeout, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func tail(path string) string {
	content, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(content)), "\n")
	return strings.Join(lines[max(0, len(lines)-12):], "\n")
}

// command runs a program; the error has its output.
func command(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	var missing *exec.Error
	switch {
	case errors.As(err, &missing):
		return fmt.Errorf("%s is required and not installed", name)
	case err != nil:
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, bytes.TrimSpace(output))
	}
	return nil
}
