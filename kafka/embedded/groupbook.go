package embedded

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// maxGroups bounds the groups that requests can make: the broker makes one of each name it is asked about.
const maxGroups = 10_000

// A groupProtocol is how the members of a group agree on who reads what.
type groupProtocol int

const (
	anyProtocol      groupProtocol = iota // nobody joined yet: offsets were committed by themselves
	classicProtocol                       // its members join, and one of them assigns
	consumerProtocol                      // KIP-848: the broker assigns
)

// A groupBook knows which protocol each group has. The broker lets members of both into one group, where neither can
// commit, so that one request would take a group from those who use it. Here a group keeps the protocol that it was
// first used with until it is deleted.
type groupBook struct {
	exists func(group string) bool // does the broker know the group?
	kept   []string                // the groups that only classic members have

	mu     sync.Mutex
	groups map[string]groupProtocol
	full   time.Time // when no room was found last
}

// readGroups returns the protocols of the groups in groups.log.
func readGroups(dir string) (map[string]groupProtocol, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "groups.log"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	groups := make(map[string]groupProtocol)
	frames, _ := wholeFrames(raw)
	for _, f := range frames {
		var entry struct {
			Type  string `json:"type"`
			Group string `json:"g"`
		}
		if json.Unmarshal(f[frameHead:], &entry) != nil || entry.Group == "" {
			continue
		}
		switch entry.Type {
		case "meta":
			groups[entry.Group] = classicProtocol
		case "meta848":
			groups[entry.Group] = consumerProtocol
		default:
			groups[entry.Group] |= anyProtocol // makes it known
		}
	}
	return groups, nil
}

// claim notes that the group is used with a protocol, and reports whether it may be.
func (b *groupBook) claim(group string, protocol groupProtocol) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	had, known := b.groups[group]
	kept := slices.Contains(b.kept, group)
	switch {
	case kept && protocol == consumerProtocol, !known && !kept && !b.room():
		return false
	case !known, had == anyProtocol:
		b.groups[group] = protocol
	case protocol == anyProtocol, protocol == had:
	case b.exists(group):
		return false
	default: // it was deleted, and is made anew
		b.groups[group] = protocol
	}
	return true
}

// room reports whether one more group may be made, and forgets those that are gone when there seems to be none.
func (b *groupBook) room() bool {
	if len(b.groups) < maxGroups {
		return true
	}
	if time.Since(b.full) < time.Minute {
		return false
	}
	b.full = time.Now()
	for group := range b.groups {
		if !b.exists(group) {
			delete(b.groups, group)
		}
	}
	return len(b.groups) < maxGroups
}
