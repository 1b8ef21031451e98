package browsertest

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
)

// startArena runs the example and returns its URL.
func startArena(t *testing.T) string {
	browserPath(t)
	program := filepath.Join(t.TempDir(), "arena")
	build := exec.Command("go", "build", "-o", program, "./arena")
	build.Dir = filepath.Join("..", "examples")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	run := exec.CommandContext(t.Context(), program, "-addr", "127.0.0.1:0")
	run.Stderr = t.Output()
	run.Cancel = func() error { return run.Process.Signal(os.Interrupt) }
	out, err := run.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := run.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = run.Wait() // it was interrupted
		if !run.ProcessState.Success() {
			t.Errorf("the arena ended with %v", run.ProcessState)
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	address, ok := strings.CutPrefix(strings.TrimSpace(line), "Arena: ")
	if err != nil || !ok {
		t.Fatalf("the first line is %q, %v", line, err)
	}
	return address
}

func (b *tab) click(selector string) {
	b.t.Helper()
	b.run(chromedp.Click(chromedp.CSS(selector)))
}

const arenaLive = `document.getElementById("link").textContent === "Live"`

// lane is an expression for the text of a lane.
func lane(name, part string) string {
	return fmt.Sprintf(`document.querySelector(".lane.%s .%s").textContent`, name, part)
}

func TestArena(t *testing.T) {
	address := startArena(t)
	b := open(t, 1200, false)
	b.run(chromedp.Navigate(address))
	b.waitFor("the page is live", arenaLive, 5*time.Second)
	b.quiet()

	b.click(`[data-fire="15"]`)
	for name, want := range map[string]string{"token": "10 passed, 5 refused", "fixed": "passed, "} {
		b.waitFor(name, fmt.Sprintf(`%s.includes(%q)`, lane(name, "sum"), want), 2*time.Second)
	}
	b.waitFor("the queue", lane("leaky", "what")+`.startsWith("8 in the queue")`, 2*time.Second)

	b.click(`[value="failing"]`)
	b.waitFor("the switch", `document.querySelector('[value="failing"]').checked`, time.Second)
	b.click(`[data-call="5"]`)
	took := b.waitFor("the open circuit", `document.querySelector(".on[data-state=open]") !== null`, 3*time.Second)
	t.Logf("open after %v", took)
	b.waitFor("calls that are spared", `document.querySelectorAll(".calls .spared").length === 2`, 2*time.Second)
	b.click(`[value="healthy"]`)
	b.waitFor("half-open", `document.querySelector('.on[data-state="half-open"]') !== null`, 6*time.Second)
	b.click(`[data-call="5"]`)
	b.waitFor("closed", `document.querySelector(".on[data-state=closed]") !== null`, 2*time.Second)

	b.waitFor("a verdict", `document.querySelector("#verdict .answer").textContent === "200 OK from users"`, 2*time.Second)
	b.click(`[data-try="GET http://api.example/users/7"]`)
	b.waitFor("the host's route", `document.querySelector("#verdict .answer").textContent === "200 OK from users-v2"`, 2*time.Second)
	b.click(`[data-try="DELETE /users/7"]`)
	b.waitFor("405", `document.querySelector("#verdict .answer").textContent.startsWith("405")`, 2*time.Second)
	b.click("#conflict")
	b.waitFor("the panic", `(document.querySelector("#verdict .problem") || {textContent: ""}).textContent.startsWith("line 2: panic: gateway:")`, 2*time.Second)
	b.quiet()
}

func TestArenaLayout(t *testing.T) {
	address := startArena(t)
	for _, p := range []struct {
		name          string
		width, height int
		dark          bool
	}{
		{"arena.png", 1200, 1200, false},
		{"arena-phone.png", 360, 2500, true},
	} {
		b := open(t, p.width, p.dark)
		b.run(chromedp.Navigate(address))
		b.waitFor("the page is live", arenaLive, 5*time.Second)
		b.click(`[data-fire="5"]`)
		b.click(`[data-call="5"]`)
		b.click(`[value="failing"]`)
		b.waitFor("the switch", `document.querySelector('[value="failing"]').checked`, time.Second)
		b.click(`[data-fire="15"]`)
		b.click(`[data-call="5"]`)
		b.click(`[data-try="GET http://api.example/users/7"]`)
		b.waitFor("the open circuit", `document.querySelector(".on[data-state=open]") !== null`, 3*time.Second)
		b.waitFor("a verdict", `document.querySelector("#verdict tr.taken") !== null`, 2*time.Second)
		b.fits()
		b.shoot(p.name, p.width, p.height)
		b.quiet()
		b.click(`[value="healthy"]`)
		b.waitFor("time for probes", `document.querySelector('.on[data-state="half-open"]') !== null`, 6*time.Second)
		b.click(`[data-call="5"]`)
		b.waitFor("closed", `document.querySelector(".on[data-state=closed]") !== null`, 2*time.Second)
	}
}
