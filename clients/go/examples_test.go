package tinkergate_test

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// goRun runs a program of this module and gives what it prints.
func goRun(t *testing.T, input string, arguments ...string) string {
	t.Helper()
	var stderr bytes.Buffer
	command := exec.Command("go", append([]string{"run"}, arguments...)...)
	command.Stdin, command.Stderr = strings.NewReader(input), &stderr
	output, err := command.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", arguments, err, stderr.Bytes())
	}
	return string(output)
}

// losses are those that an example printed.
func losses(t *testing.T, output string) []float64 {
	t.Helper()
	var found []float64
	for _, match := range regexp.MustCompile(`(?m)^step \d+ loss (\S+)$`).FindAllStringSubmatch(output, -1) {
		found = append(found, get[float64](t)(strconv.ParseFloat(match[1], 64)))
	}
	return found
}

func TestExamplesRun(t *testing.T) {
	fine := losses(t, goRun(t, "", "./examples/sft", "-address", address, "-steps", "24",
		"../../data/pig_latin.jsonl"))
	if len(fine) != 24 || fine[23] >= fine[0] {
		t.Errorf("sft's losses are %v", fine)
	}
	own := losses(t, goRun(t, "", "./examples/custom_loss", "-address", address, "-steps", "12"))
	if len(own) != 12 || own[11] >= own[0] {
		t.Errorf("custom_loss's losses are %v", own)
	}
	rewards := goRun(t, "", "./examples/grpo", "-address", address, "-steps", "3")
	if !regexp.MustCompile(`^step 1 reward 0\.\d+\nstep 2 reward 0\.\d+\nstep 3 reward 0\.\d+\n$`).MatchString(rewards) {
		t.Errorf("grpo printed %q", rewards)
	}
	texts := `{"text": "Ethay yskay"}` + "\n" + `{"text": "世界 is one"}` + "\n"
	lines := strings.Split(strings.TrimSpace(goRun(t, texts, "./examples/score", "-address", address)), "\n")
	if len(lines) != 2 {
		t.Fatalf("score printed %q", lines)
	}
	var second struct {
		Text    string
		Logprob float64
	}
	if err := json.Unmarshal([]byte(lines[1]), &second); err != nil || second.Text != "世界 is one" ||
		second.Logprob >= 0 {
		t.Errorf("score printed %q", lines[1])
	}
}

func TestTheReadmesProgramRuns(t *testing.T) {
	readme := string(get[[]byte](t)(os.ReadFile("README.md")))
	program := regexp.MustCompile("(?s)```go\n(.*?)```").FindStringSubmatch(readme)[1]
	program = strings.ReplaceAll(program, "127.0.0.1:7700", address)
	file := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(file, []byte(program), 0o666); err != nil {
		t.Fatal(err)
	}
	output := goRun(t, "", file)
	if !strings.Contains(output, "NotFound CHECKPOINT_NOT_FOUND") {
		t.Errorf("it printed %q", output)
	}
}
