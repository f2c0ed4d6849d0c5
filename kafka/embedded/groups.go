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

// maxGroups limits the number of groups: the broker creates one for each name that it is asked about.
const maxGroups = 10_000

// A groupProtocol is the protocol by which the members of a group get their partitions.
type groupProtocol int

const (
	anyProtocol      groupProtocol = iota // no member joined yet, as when offsets are committed without a group's members
	classicProtocol                       // members join, and one of them assigns the partitions
	consumerProtocol                      // KIP-848: the broker assigns the partitions
)

// A groupRegistry has the protocol of each group. The broker would let members of both protocols into one group, where
// neither can commit, so that one request would stop the group's consumers. With the registry a group keeps the protocol
// of its first request until it is deleted.
type groupRegistry struct {
	exists   func(group string) bool // whether the broker has the group
	reserved []string                // groups of the classic protocol, even while they are empty

	mu     sync.Mutex
	groups map[string]groupProtocol
	fullAt time.Time // when there was no room last
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
			groups[entry.Group] |= anyProtocol // adds the group, if it is new
		}
	}
	return groups, nil
}

// register records that the group is used with a protocol. It returns false if the group has the other protocol, or if
// there are too many groups.
func (r *groupRegistry) register(group string, protocol groupProtocol) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	had, known := r.groups[group]
	reserved := slices.Contains(r.reserved, group)
	switch {
	case reserved && protocol == consumerProtocol, !known && !reserved && !r.makeRoom():
		return false
	case !known, had == anyProtocol:
		r.groups[group] = protocol
	case protocol == anyProtocol, protocol == had:
	case r.exists(group):
		return false
	default: // the group was deleted, and is created anew
		r.groups[group] = protocol
	}
	return true
}

// makeRoom reports whether there may be one more group. When there are too many it removes those that were deleted, at
// most once a minute.
func (r *groupRegistry) makeRoom() bool {
	if len(r.groups) < maxGroups {
		return true
	}
	if time.Since(r.fullAt) < time.Minute {
		return false
	}
	r.fullAt = time.Now()
	for group := range r.groups {
		if !r.exists(group) {
			delete(r.groups, group)
		}
	}
	return len(r.groups) < maxGroups
}
