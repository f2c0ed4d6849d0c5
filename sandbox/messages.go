package sandbox

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// sms is one message that the gateway accepted.
type sms struct {
	ID         string    `json:"id"`
	To         string    `json:"to"`
	Text       string    `json:"text"`
	Reference  string    `json:"reference"`
	ReceivedAt time.Time `json:"received_at"`
}

// messages are the messages that one channel accepted. A line of the file is a message
// as the list shows it; memory has only its location and its recipients.
type messages struct {
	log     *slog.Logger
	journal *journal

	mu   sync.RWMutex
	all  []location
	byTo map[string][]int // indices of all, by recipient in lower case
}

type location struct {
	at  int64
	len int
}

func openMessages(path string, log *slog.Logger) (*messages, error) {
	m := &messages{log: log, byTo: map[string][]int{}}
	j, err := openJournal(path, log, func(line []byte, at int64) error {
		to, err := recipientsOf(line)
		if err != nil {
			return err
		}
		m.add(location{at, len(line)}, to)
		return nil
	})
	if err != nil {
		return nil, err
	}
	m.journal = j
	return m, nil
}

// recipientsOf reads a line as far as "to", which is near its beginning, so that a
// start does not decode every mail.
func recipientsOf(line []byte) ([]string, error) {
	dec := json.NewDecoder(bytes.NewReader(line))
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		if name != "to" {
			continue
		}
		if one, ok := value.(string); ok {
			return []string{one}, nil
		}
		var to []string
		many, _ := value.([]any)
		for _, v := range many {
			one, _ := v.(string)
			to = append(to, one)
		}
		return to, nil
	}
	return nil, errors.New("no recipient")
}

func (m *messages) add(where location, to []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, where)
	seen := map[string]bool{}
	for _, address := range to {
		address = strings.ToLower(address)
		if !seen[address] {
			seen[address] = true
			m.byTo[address] = append(m.byTo[address], len(m.all)-1)
		}
	}
}

// append makes the message durable and then visible.
func (m *messages) append(message any, to []string) error {
	line, err := encodeLine(message)
	if err != nil {
		return err
	}
	return m.journal.append(line, func(at int64) { m.add(location{at, len(line)}, to) })
}

// findNumbers returns the messages to an address, or all with nil, oldest first, as
// indices of all.
func (m *messages) findNumbers(to *string) []int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if to != nil {
		known := m.byTo[strings.ToLower(strings.ReplaceAll(*to, " ", "+"))]
		return slices.Clip(known)
	}
	numbers := make([]int, len(m.all))
	for i := range numbers {
		numbers[i] = i
	}
	return numbers
}

// countAll returns the number of messages.
func (m *messages) countAll() int {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return len(m.all)
}

// readMessage returns the line of a message.
func (m *messages) readMessage(number int) ([]byte, error) {
	m.mu.RLock()
	where := m.all[number]
	m.mu.RUnlock()
	line := make([]byte, where.len)
	if err := m.journal.readAt(line, where.at); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	return line, nil
}

func (m *messages) handleList(w http.ResponseWriter, r *http.Request) {
	var to *string
	if query := r.URL.Query(); query.Has("to") {
		address := query.Get("to")
		to = &address
	}
	streamList(w, m.log, func(item func(any) error) error {
		for _, number := range m.findNumbers(to) {
			line, err := m.readMessage(number)
			if err != nil {
				return err
			}
			if err := item(line); err != nil {
				return err
			}
		}
		return nil
	})
}

var phoneNumber = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`)

// handleSendSMS is the SMS gateway. It does not deduplicate: a message that is sent
// twice is received twice.
func (s *Sandbox) handleSendSMS(w http.ResponseWriter, r *http.Request) {
	var in struct {
		To        string `json:"to"`
		Text      string `json:"text"`
		Reference string `json:"reference"`
	}
	err := decode(w, r, &in)
	switch {
	case err != nil:
	case !phoneNumber.MatchString(in.To):
		err = invalid("invalid_to", "to must be a number like +79001234567")
	case strings.TrimSpace(in.Text) == "" || len(in.Text) > 4096:
		err = invalid("invalid_text", "text must have 1 to 4096 bytes")
	case len(in.Reference) > maxKey:
		err = invalid("invalid_reference", "reference may have 255 bytes")
	}
	message := sms{ID: "sms_" + rand.Text(), To: in.To, Text: in.Text, Reference: in.Reference, ReceivedAt: now()}
	if err == nil {
		err = s.sms.append(message, []string{message.To})
	}
	if err != nil {
		writeError(w, s.log, err)
		return
	}
	writeJSON(w, s.log, http.StatusAccepted, map[string]string{"id": message.ID})
}
