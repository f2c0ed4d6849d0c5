// Command deploy asks the program whether it takes what the deployment files
// tell it: every environment variable of every container must be one of its
// options, and all of them together a configuration that it would start with.
// The Compose file is checked against the Compose specification on the way.
//
//	deploy PIZZA COMPOSE-FILE [KUBERNETES-MANIFESTS…]
package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/compose-spec/compose-go/v2/cli"
	"gopkg.in/yaml.v3"
)

// secrets stand for those of the Secret that the chart is given.
var secrets = map[string]string{
	"DATABASE_URL":         "postgres://pizza:secret@postgres/pizza?sslmode=verify-full",
	"PAYMENT_PROVIDER_URL": "sandbox://provider:8082",
	"SMTP_URL":             "smtp://mail:25",
	"SMS_URL":              "http://sms:80/sms/messages",
}

// nowhere is a folder that nobody can make: on a pod's own disk no order may stand.
const nowhere = "/proc/none"

// A container is one that runs the program.
type container struct {
	name        string
	environment map[string]string
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: deploy PIZZA COMPOSE-FILE [KUBERNETES-MANIFESTS…]")
		os.Exit(2)
	}
	if err := check(context.Background(), os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// mounted are the options that name a file of a volume, which is not here.
var mounted = []string{"KAFKA_TLS_CA", "KAFKA_TLS_CERT", "KAFKA_TLS_KEY"}

// writePEM writes a certificate and its key to a new file, which the caller removes.
// It stands for each of the mounted files.
func writePEM() (path string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp("", "pizza-*.pem")
	if err != nil {
		return "", err
	}
	err = errors.Join(
		pem.Encode(f, &pem.Block{Type: "CERTIFICATE", Bytes: certificate}), pem.Encode(f, &pem.Block{Type: "PRIVATE KEY", Bytes: private}), f.Close())
	return f.Name(), err
}

func check(ctx context.Context, pizza, composeFile string, manifests []string) (err error) {
	file, err := writePEM()
	if err != nil {
		return fmt.Errorf("stand in for the mounted files: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(file)) }()
	containers, err := composed(ctx, composeFile)
	if err != nil {
		return fmt.Errorf("%s: %w", composeFile, err)
	}
	for _, file := range manifests {
		more, err := charted(file)
		if err == nil && len(more) == 0 {
			err = errors.New("no container")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		containers = append(containers, more...)
	}
	var errs []error
	for _, c := range containers {
		for _, key := range mounted {
			if c.environment[key] != "" {
				c.environment[key] = file
			}
		}
		if err := c.check(ctx, pizza); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.name, err))
			continue
		}
		fmt.Println(c.name, "has a configuration to start with")
	}
	return errors.Join(errs...)
}

// composed are the containers of a Compose file that are built here.
func composed(ctx context.Context, file string) ([]container, error) {
	opts, err := cli.NewProjectOptions([]string{file}, cli.WithOsEnv)
	if err != nil {
		return nil, err
	}
	project, err := opts.LoadProject(ctx)
	if err != nil {
		return nil, err
	}
	var out []container
	for _, name := range project.ServiceNames() {
		if service := project.Services[name]; service.Build != nil {
			out = append(out, container{"compose " + name, service.Environment.ToMapping()})
		}
	}
	return out, nil
}

// charted are the containers of Kubernetes manifests.
func charted(file string) ([]container, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var out []container
	for docs := yaml.NewDecoder(bytes.NewReader(content)); ; {
		var doc struct {
			Metadata struct{ Name string }
			Spec     struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Env []struct{ Name, Value string }
						}
					}
				}
			}
		}
		if err := docs.Decode(&doc); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, err
		}
		for _, c := range doc.Spec.Template.Spec.Containers {
			env := maps.Clone(secrets)
			for _, v := range c.Env {
				env[v.Name] = v.Value
			}
			if env["DATA_DIR"] != nowhere {
				return nil, fmt.Errorf("%s: DATA_DIR is %q, where orders would go if its Secret lacked DATABASE_URL, and end with the pod", doc.Metadata.Name, env["DATA_DIR"])
			}
			out = append(out, container{"chart " + doc.Metadata.Name, env})
		}
	}
}

func (c container) check(ctx context.Context, pizza string) error {
	cmd := exec.CommandContext(ctx, pizza, "config", "-o", "json")
	cmd.Env = []string{"HOME=/"}
	for key, value := range c.environment {
		cmd.Env = append(cmd.Env, key+"="+value)
	}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%w: %s", err, &said)
	}
	var options []struct{ Env string }
	if err := json.Unmarshal(out, &options); err != nil {
		return err
	}
	known := map[string]bool{}
	for _, o := range options {
		known[o.Env] = true
	}
	for _, key := range slices.Sorted(maps.Keys(c.environment)) {
		if !known[key] {
			return fmt.Errorf("%s is no option", key)
		}
	}
	return nil
}
