package e2e

import "syscall"

// dieWithParent lets the kernel kill a child when the test process has ended.
func dieWithParent() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
