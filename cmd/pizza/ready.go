package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// readyLimit is how long the process may take to answer.
const readyLimit = 5 * time.Second

type readyCmd struct{}

// Run asks the process that serves ADMIN_ADDR whether it is ready: a health check for containers that have no other program.
func (readyCmd) Run(ctx context.Context, p *program) error {
	host, port, err := net.SplitHostPort(p.cfg.AdminAddr)
	if err != nil {
		return fmt.Errorf("%w: ADMIN_ADDR: %w", errUsage, err)
	}
	if a, err := netip.ParseAddr(host); host == "" || err == nil && a.IsUnspecified() {
		host = "localhost" // it listens everywhere
	}
	ctx, cancel := context.WithTimeout(ctx, readyLimit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask whether it is ready: %w", err)
	}
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req) // without the proxy of the environment
	if err != nil {
		return fmt.Errorf("ask whether it is ready, at ADMIN_ADDR: %w", err)
	}
	defer resp.Body.Close()
	why, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("ask whether it is ready: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(why))) // not ready: …
	}
	return nil
}
