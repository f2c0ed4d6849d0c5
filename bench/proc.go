package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// This file reads /proc: without it the figures of processor and memory are missing, and the run says why.

const tick = 10 * time.Millisecond // of /proc/PID/stat: 100 a second on every Linux that Go runs on

// peakMemory is the most that a living process has had in memory, in bytes.
func peakMemory(pid int) (int64, error) { return memory(pid, "VmHWM:") }

// residentMemory is what it has now.
func residentMemory(pid int) (int64, error) { return memory(pid, "VmRSS:") }

func memory(pid int, field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("read memory: %w", err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, field); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return kib << 10, err
		}
	}
	return 0, os.ErrNotExist // a process that has ended and was not waited for
}

// processTime is the processor time that a process and all its descendants
// have used, those it has waited for included.
func processTime(pid int) (time.Duration, error) {
	if pid == 0 {
		return 0, nil
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	type process struct {
		parent int
		ticks  int64
	}
	all := map[int]process{}
	for _, name := range stats {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended meanwhile, and its parent has its time
		}
		// the name of the program stands in parentheses and may hold anything
		head, rest, _ := strings.Cut(string(text[:]), " (")
		fields := strings.Fields(rest[strings.LastIndexByte(rest, ')')+1:])
		id, err := strconv.Atoi(head)
		if err != nil || len(fields) < 15 {
			return 0, fmt.Errorf("read %s: %q", name, text)
		}
		var p process
		p.parent, _ = strconv.Atoi(fields[1])
		for _, field := range fields[11:15] { // utime, stime, and those of waited-for children
			n, err := strconv.ParseInt(field, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read %s: %w", name, err)
			}
			p.ticks += n
		}
		all[id] = p
	}
	var total int64
	for id, p := range all {
		for a := id; a > 1; a = all[a].parent {
			if a == pid {
				total += p.ticks
				break
			}
		}
	}
	return time.Duration(total) * tick, nil
}
