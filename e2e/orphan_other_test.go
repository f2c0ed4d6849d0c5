//go:build !linux

package e2e

import "syscall"

// dieWithUs is for Linux alone; elsewhere a killed test leaves its processes.
func dieWithUs() *syscall.SysProcAttr { return nil }
