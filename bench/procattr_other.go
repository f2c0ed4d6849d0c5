//go:build !linux

package main

import "syscall"

// Process groups and parent-death signals are set on Linux only: elsewhere the servers
// do not run.

func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{} }

func dieWithParent() *syscall.SysProcAttr { return ownGroup() }
