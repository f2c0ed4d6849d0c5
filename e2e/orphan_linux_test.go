package e2e

import "syscall"

// dieWithUs has a child killed when the test process is gone, however it went.
func dieWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
