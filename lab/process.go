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

// process is a daemon of the lab. It outlives the command that starts it; what is needed to find it, stop it and start it
// again lies under process/ in the lab's folder.
type process struct {
	Name string   `json:"name"`
	Args []string `json:"args"`
	Env  []string `json:"env,omitempty"`
	// Node is the node whose network and mounts it sees; empty for the machine's own.
	Node string `json:"node,omitempty"`
	// Isolated processes get a network and mounts of their own: the holder of a node.
	Isolated bool `json:"isolated,omitempty"`
	// Pid and Born tell the process from a later one that was given its number.
	Pid  int    `json:"pid"`
	Born uint64 `json:"born"`
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

// start runs a process and remembers it. Its output is appended to log/NAME.log.
func (l *lab) start(p *process) error {
	if p.alive() {
		return nil
	}
	arguments := p.Args
	if p.Node != "" {
		inside, err := l.inside(p.Node)
		if err != nil {
			return err
		}
		arguments = append(inside, arguments...)
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
	p.Born, _ = born(p.Pid)
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
	now, zombie := born(p.Pid)
	return now == p.Born && now != 0 && !zombie
}

// end asks a process to go, and makes it when it does not within the time.
func (p *process) end(signal syscall.Signal, wait time.Duration) {
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

// born is the time a process was started, in ticks since boot (proc(5), /proc/pid/stat field 22), and whether it is a zombie.
func born(pid int) (ticks uint64, zombie bool) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The second field is a name in brackets that may hold anything.
	rest := strings.Fields(string(content[bytes.LastIndexByte(content, ')')+1:]))
	ticks, _ = strconv.ParseUint(rest[19], 10, 64)
	return ticks, rest[0] == "Z"
}

// lock takes a file's lock; the answer gives it back.
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

// wait asks until the answer is nil, and fails with the last answer after the time is over or when a process has died.
func (l *lab) wait(what string, limit time.Duration, needs []string, ask func() error) error {
	deadline := time.Now().Add(limit)
	for {
		err := ask()
		if err == nil {
			return nil
		}
		for _, name := range needs {
			if p, missing := l.process(name); missing != nil || !p.alive() {
				return fmt.Errorf("%s: %s has ended; the end of its log:\n%s", what, name, tail(l.logFile(name)))
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: not within %v: %w", what, limit, err)
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

// command runs a program and gives what it said when it fails.
func command(name string, arguments ...string) error {
	output, err := exec.Command(name, arguments...).CombinedOutput()
	var missing *exec.Error
	switch {
	case errors.As(err, &missing):
		return fmt.Errorf("%s is needed and not installed", name)
	case err != nil:
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(arguments, " "), err, bytes.TrimSpace(output))
	}
	return nil
}
