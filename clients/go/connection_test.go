package tinkergate_test

import (
	"crypto/tls"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"tinkergate.example/tinkergate"
)

const makeCertificates = `
import sys
from pathlib import Path
sys.path.insert(0, "tests/fixtures")
from certificates import write_certificates
write_certificates(Path(sys.argv[1]))
`

func TestKeysAndCertificatesAreAskedFor(t *testing.T) {
	folder := t.TempDir()
	if output, err := python("-c", makeCertificates, folder).CombinedOutput(); err != nil {
		t.Fatalf("no certificates: %s", output)
	}
	pem := func(name string) string { return filepath.Join(folder, name+".pem") }
	target, stop := startGateway(folder,
		[]string{"TINKERGATE_ENGINE_ENABLED=false", "TINKERGATE_API_KEY=correct"},
		"--tls-cert", pem("cert"), "--tls-key", pem("key"), "--tls-client-ca", pem("ca"))
	defer stop()
	files := func(ca, certificate, key string) *tls.Config {
		return get[*tls.Config](t)(tinkergate.TLSFiles(ca, certificate, key))
	}
	ours := files(pem("ca"), pem("client_cert"), pem("client_key"))
	for name, trial := range map[string]struct {
		key      string
		security *tls.Config
		expected error
	}{
		"everything":               {"correct", ours, nil},
		"a wrong key":              {"wrong", ours, tinkergate.AccessDenied},
		"no key":                   {"", ours, tinkergate.AccessDenied},
		"no certificate":           {"correct", files(pem("ca"), "", ""), tinkergate.GatewayUnreachable},
		"a stranger's certificate": {"correct", files(pem("ca"), pem("stranger_cert"), pem("stranger_key")), tinkergate.GatewayUnreachable},
		"another authority":        {"correct", files(pem("stranger_ca"), "", ""), tinkergate.GatewayUnreachable},
		"plain text":               {"correct", nil, tinkergate.GatewayUnreachable},
	} {
		options := []tinkergate.Option{tinkergate.WithAPIKey(trial.key), tinkergate.WithTLS(trial.security)}
		if trial.expected == tinkergate.GatewayUnreachable {
			options = append(options, tinkergate.WithTimeout(300*time.Millisecond))
		}
		client, err := tinkergate.Connect(t.Context(), target, options...)
		if !errors.Is(err, trial.expected) {
			t.Errorf("with %s connecting ends with %v", name, err)
		}
		if client != nil {
			_ = client.Close()
		}
	}
	if _, err := tinkergate.TLSFiles("", pem("client_cert"), ""); err == nil {
		t.Error("a certificate without its key is taken")
	}
}
