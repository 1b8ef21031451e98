//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A launcher starts processes from one thread that lives as long as the program: they inherit the processor that the
// thread is pinned to, and the kernel kills them when the thread ends, so that none outlives the program.
type launcher struct{ work chan func() }

func newLauncher() *launcher {
	l := &launcher{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		for f := range l.work {
			f()
		}
	}()
	return l
}

func (l *launcher) close() { close(l.work) }

// A process is a contender or the target.
type process struct {
	cmd    *exec.Cmd
	output *tail
	ended  chan struct{} // closed when it was reaped
	pids   []int         // itself and its descendants, when follow last looked
}

// start starts a command on a processor, in a process group of its own.
func (l *launcher) start(cpu int, argv, env []string) (*process, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	p := &process{cmd: cmd, output: new(tail), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.output, p.output
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	failed := make(chan error)
	l.work <- func() {
		err := pinThread(cpu)
		if err == nil {
			err = cmd.Start()
		}
		failed <- err
	}
	if err := <-failed; err != nil {
		return nil, err
	}
	p.pids = []int{cmd.Process.Pid}
	go func() {
		cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// end ends the process and what it started in its group, and waits for it.
func (p *process) end() {
	pid := p.cmd.Process.Pid
	for _, s := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		select {
		case <-p.ended:
			return
		default:
		}
		syscall.Kill(-pid, s)
		select {
		case <-p.ended:
			return
		case <-time.After(2 * time.Second):
		}
	}
	<-p.ended
}

// await waits until the process accepts connections.
func (p *process) await(addr string) error {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		select {
		case <-p.ended:
			return fmt.Errorf("it ended at once: %v: %s", p.cmd.ProcessState, p.output)
		case <-time.After(10 * time.Millisecond):
		}
		if c, err := net.Dial("tcp", addr); err == nil {
			return c.Close()
		}
	}
	return errors.New("it does not listen after 10 s: " + p.output.String())
}

// follow finds the descendants of the process.
func (p *process) follow() {
	children := map[int][]int{}
	dir, _ := os.ReadDir("/proc")
	for _, e := range dir {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if f := statFields(pid); len(f) > 1 {
			parent, _ := strconv.Atoi(f[1])
			children[parent] = append(children[parent], pid)
		}
	}
	p.pids = []int{p.cmd.Process.Pid}
	for i := 0; i < len(p.pids); i++ {
		p.pids = append(p.pids, children[p.pids[i]]...)
	}
}

// statFields are the fields of /proc/PID/stat from the third on: the second, a name in brackets, may hold anything.
func statFields(pid int) []string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
}

// cpu is the processor time that the process and its descendants have used, user and system. The kernel's clock of a
// process counts in nanoseconds what utime and stime in /proc/PID/stat show in hundredths of a second.
func (p *process) cpu() (sum time.Duration) {
	for _, pid := range p.pids {
		sum += cpuOf(pid)
	}
	return sum
}

func cpuOf(pid int) time.Duration {
	const sched = 2 // CPUCLOCK_SCHED
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|sched), &t); err == nil {
		return time.Duration(t.Nano())
	}
	f := statFields(pid)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * tick
}

// memory sums one line of /proc/PID/status, in bytes: VmHWM is the peak, VmRSS the present.
func (p *process) memory(line string) (sum int64) {
	for _, pid := range p.pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if _, rest, ok := strings.Cut(string(b), line+":"); ok {
			if f := strings.Fields(rest); len(f) > 0 {
				kib, _ := strconv.ParseInt(f[0], 10, 64)
				sum += kib << 10
			}
		}
	}
	return sum
}

// tick is the unit of /proc/stat: USER_HZ is 100 on every platform that Go has.
const tick = time.Second / 100

// busy is what the kernel counted on one processor: time in which it ran anything, and time that the host took away.
func busy(cpu int) (ran, stolen time.Duration) {
	b, _ := os.ReadFile("/proc/stat")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != "cpu"+strconv.Itoa(cpu) {
			continue
		}
		for i, v := range f[1:9] {
			n, _ := strconv.ParseInt(v, 10, 64)
			switch i {
			case 3, 4: // idle, iowait
			case 7:
				stolen = time.Duration(n) * tick
			default:
				ran += time.Duration(n) * tick
			}
		}
	}
	return ran, stolen
}

// freeAddr is a loopback address that nobody listens on.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// A tail keeps the last lines of what a process prints, for the message of its failure.
type tail struct {
	mu  sync.Mutex
	end []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.end = append(t.end, p...)
	if over := len(t.end) - 1000; over > 0 {
		t.end = append(t.end[:0], t.end[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.end) == 0 {
		return "it printed nothing"
	}
	return strings.TrimSpace(string(t.end))
}
