package tinkergate_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

// address is that of a gateway with the micro model, for all tests; modelDir is the model's folder.
var address, modelDir string

const makeModel = `
import sys
from pathlib import Path
sys.path.insert(0, "tests/fixtures")
from micro_model import write_micro_model
write_micro_model(Path(sys.argv[1]))
`

func TestMain(m *testing.M) { os.Exit(withGateway(m.Run)) }

func withGateway(run func() int) int {
	folder, err := os.MkdirTemp("", "tinkergate-go")
	must(err)
	defer os.RemoveAll(folder)
	modelDir = filepath.Join(folder, "micro")
	output, err := python("-c", makeModel, modelDir).CombinedOutput()
	if err != nil {
		panic(fmt.Sprintf("no model: %s", output))
	}
	found, stop := startGateway(folder, nil, "--model", modelDir)
	defer stop()
	address = found
	return run()
}

// startGateway starts one with its data in a folder; its address, and what stops it.
func startGateway(folder string, environment []string, flags ...string) (string, func()) {
	flags = append([]string{
		"-m", "tinkergate", "serve", "--grpc", "127.0.0.1:0", "--data-dir", filepath.Join(folder, "data"),
	}, flags...)
	gateway := python(flags...)
	gateway.Env = append(gateway.Env, environment...)
	stdout, err := gateway.StdoutPipe()
	must(err)
	log, err := os.Create(filepath.Join(folder, "log"))
	must(err)
	gateway.Stderr = log
	must(gateway.Start())
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	for _, word := range strings.Fields(line) {
		if door, ok := strings.CutPrefix(word, "grpc="); ok {
			return door, func() {
				must(gateway.Process.Signal(syscall.SIGTERM))
				_, _ = io.Copy(io.Discard, stdout)
				must(gateway.Wait())
			}
		}
	}
	text, _ := os.ReadFile(log.Name())
	panic(fmt.Sprintf("the gateway did not start: %s", text))
}

// python runs the project's own Python, without what would configure the gateway.
func python(arguments ...string) *exec.Cmd {
	root, err := filepath.Abs("../..")
	must(err)
	command := exec.Command(filepath.Join(root, ".venv", "bin", "python"), arguments...)
	command.Dir = root
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "TINKERGATE_") {
			command.Env = append(command.Env, variable)
		}
	}
	return command
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// get is what a call gives, which must not fail.
func get[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func wait[T any](t *testing.T, future *tinkergate.Future[T]) T {
	t.Helper()
	value, err := future.Wait(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// connected is a client of the gateway at target, and a session of it.
func connected(t *testing.T, target string) (*tinkergate.Client, *tinkergate.Session) {
	t.Helper()
	client := get[*tinkergate.Client](t)(tinkergate.Connect(t.Context(), target))
	session := get[*tinkergate.Session](t)(
		client.CreateSession(t.Context(), tinkergate.SessionOptions{DisplayName: t.Name()}))
	t.Cleanup(func() {
		if err := session.Finish(context.Background(), nil); err != nil {
			t.Error(err)
		}
		_ = client.Close()
	})
	return client, session
}

func newModel(t *testing.T, session *tinkergate.Session) *tinkergate.TrainingModel {
	t.Helper()
	return get[*tinkergate.TrainingModel](t)(session.CreateModel(t.Context(), "",
		tinkergate.ModelOptions{Lora: &v1.LoraConfig{
			Rank: tinkergate.Ptr(int32(4)), Seed: tinkergate.Ptr(int64(0)),
		}}))
}

var adam = &v1.AdamParams{LearningRate: tinkergate.Ptr(1e-2)}

func examples(t *testing.T) []*v1.Datum {
	t.Helper()
	return []*v1.Datum{
		get[*v1.Datum](t)(tinkergate.SupervisedDatum(
			[]int32{5, 6, 7, 8, 9}, []float32{0, 0, 1, 1, 0.5})),
		get[*v1.Datum](t)(tinkergate.SupervisedDatum(
			[]int32{300, 21, 22}, []float32{1, 1, 1})),
	}
}

// proxy hands connections on to the gateway, and breaks all of them when told.
type proxy struct {
	listener net.Listener
	mutex    sync.Mutex
	open     []net.Conn
	losing   int
	lost     int
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	made := &proxy{listener: get[net.Listener](t)(net.Listen("tcp", "127.0.0.1:0"))}
	go made.serve()
	t.Cleanup(func() {
		_ = made.listener.Close()
		made.breakAll()
	})
	return made
}

func (p *proxy) serve() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", address)
		must(err)
		p.mutex.Lock()
		p.open = append(p.open, client, server)
		p.mutex.Unlock()
		go func() { _, _ = io.Copy(server, client); _ = server.Close() }()
		go func() { p.answer(client, server); _ = client.Close(); _ = server.Close() }()
	}
}

// answer hands answers on, until one is to be lost.
func (p *proxy) answer(client, server net.Conn) {
	data := make([]byte, 1<<16)
	for {
		count, err := server.Read(data)
		if err != nil || p.loses() {
			return
		}
		if _, err := client.Write(data[:count]); err != nil {
			return
		}
	}
}

func (p *proxy) loses() bool {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	if p.losing == 0 {
		return false
	}
	p.losing--
	p.lost++
	return true
}

// loseAnswers has the connection break when an answer comes, which is lost, so many times.
func (p *proxy) loseAnswers(times int) {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.losing += times
}

// breakAll ends every connection, whatever is on its way.
func (p *proxy) breakAll() {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	for _, connection := range p.open {
		_ = connection.Close()
	}
	p.open = nil
}
