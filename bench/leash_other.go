//go:build !linux

package main

import "syscall"

// ownGroup and leash are what Linux has; elsewhere the servers do not run.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

func leash() *syscall.SysProcAttr { return ownGroup() }
