//go:build linux

package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// cpus are the processors that a run uses. The load and the target share one, so that two are enough.
type cpus struct {
	contender, load int
}

func (c cpus) pinned() bool { return c.contender != c.load }

// pinnedEnv tells the program that its second life runs pinned, and where contenders go.
const pinnedEnv = "E2E_CPUS"

// pinSelf pins the whole program to the second processor that it may use. Threads that run already would stay where
// they are, so it pins one thread and executes the program again from there. With a single processor nothing is pinned.
func pinSelf() (cpus, error) {
	var c cpus
	if v := os.Getenv(pinnedEnv); v != "" {
		if _, err := fmt.Sscanf(v, "%d,%d", &c.contender, &c.load); err != nil {
			return c, fmt.Errorf("%s=%q: %w", pinnedEnv, v, err)
		}
		os.Unsetenv(pinnedEnv)
		runtime.GOMAXPROCS(1)
		debug.SetGCPercent(400)
		return c, nil
	}
	var mine unix.CPUSet
	if err := unix.SchedGetaffinity(0, &mine); err != nil {
		return c, err
	}
	var found []int
	for i := range 1024 {
		if mine.IsSet(i) {
			found = append(found, i)
		}
	}
	if len(found) < 2 {
		fmt.Fprintln(os.Stderr, "e2e: ONE PROCESSOR ONLY: load, target and contender share it, and nothing tells other load apart")
		c = cpus{found[0], found[0]}
	} else {
		c = cpus{found[0], found[1]}
	}
	self, err := os.Executable()
	if err != nil {
		return c, err
	}
	runtime.LockOSThread()
	if err := pinThread(c.load); err != nil {
		return c, err
	}
	env := append(os.Environ(), fmt.Sprintf("%s=%d,%d", pinnedEnv, c.contender, c.load))
	return c, fmt.Errorf("exec %s: %w", self, syscall.Exec(self, os.Args, env))
}

func pinThread(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to processor %d: %w", cpu, err)
	}
	return nil
}
