package main

import "syscall"

// ownGroup puts a process in a group of its own, so that Ctrl-C reaches this
// program alone, which then ends the others in order.
func ownGroup() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// leash is ownGroup for one that dies with this program if it is killed.
func leash() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
