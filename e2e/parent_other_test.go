//go:build !linux

package e2e

import "syscall"

// dieWithParent does nothing: only Linux can kill the children of a process that was
// killed.
func dieWithParent() *syscall.SysProcAttr { return nil }
