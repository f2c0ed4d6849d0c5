package main

import "syscall"

// ownGroup puts a child in a process group of its own, so that Ctrl-C reaches only
// this program, which then ends its children in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// dieWithParent is ownGroup, and has the kernel kill the child when this program dies.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
