package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// drainTime is how long a clean stop waits for requests under way.
const drainTime = 3 * time.Second

// Config configures a [Sandbox].
type Config struct {
	Dir string       // the folder of the evidence, created with mode 0700; one process at a time
	Log *slog.Logger // may be nil
}

// Sandbox is the simulated outside world: payment provider, mail server, SMS
// gateway and the page that shows them.
type Sandbox struct {
	log      *slog.Logger
	payments *payments
	mails    *messages
	sms      *messages
	handler  http.Handler

	stop     chan struct{} // closed when hanging requests are released
	stopOnce sync.Once
	close    func() error
}

// Open loads the evidence of the folder, or begins an empty one. Late charges are made
// from then on until Close, also without Run.
func Open(cfg Config) (*Sandbox, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("open sandbox: %w", err)
	}
	s := &Sandbox{log: log, stop: make(chan struct{})}
	s.close = sync.OnceValue(s.closeFiles)
	if err := s.load(cfg.Dir); err != nil {
		return nil, errors.Join(fmt.Errorf("open sandbox: %w", err), s.Close())
	}
	handler, err := s.routes()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open sandbox: %w", err), s.Close())
	}
	s.handler = handler
	s.payments.scheduleAll()
	return s, nil
}

func (s *Sandbox) load(dir string) (err error) {
	if s.payments, err = openPayments(filepath.Join(dir, "payments.jsonl"), s.log, s.stop); err != nil {
		return err
	}
	if s.mails, err = openMessages(filepath.Join(dir, "mail.jsonl"), s.log); err != nil {
		return err
	}
	if s.sms, err = openMessages(filepath.Join(dir, "sms.jsonl"), s.log); err != nil {
		return err
	}
	return syncDir(dir)
}

// Handler serves /, /payments/, /mail/messages and /sms/messages. Hanging requests end
// when their client leaves or with Close.
func (s *Sandbox) Handler() http.Handler { return s.handler }

// Run serves HTTP and SMTP until ctx ends. Then it releases hanging requests, waits up
// to three seconds for the others, and closes the files.
func (s *Sandbox) Run(ctx context.Context, http, smtp net.Listener) error {
	web, mail := s.httpServer(http), s.mailServer(smtp)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return web.serve() })
	g.Go(func() error { return mail.serve() })
	g.Go(func() error {
		<-ctx.Done()
		s.releaseHanging()
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		var stops errgroup.Group
		stops.Go(func() error { return web.stop(drain) })
		stops.Go(func() error { return mail.stop(drain) })
		return stops.Wait()
	})
	err := g.Wait()
	if err != nil {
		err = fmt.Errorf("run sandbox: %w", err)
	}
	return errors.Join(err, s.Close())
}

// releaseHanging ends every hanging request without an answer.
func (s *Sandbox) releaseHanging() { s.stopOnce.Do(func() { close(s.stop) }) }

// Close releases hanging requests, stops late charges until the next Open, and closes
// the files. It may be called more than once.
func (s *Sandbox) Close() error { return s.close() }

func (s *Sandbox) closeFiles() error {
	s.releaseHanging()
	var errs []error
	if s.payments != nil {
		errs = append(errs, s.payments.close())
	}
	for _, m := range []*messages{s.mails, s.sms} {
		if m != nil {
			errs = append(errs, m.journal.close())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close sandbox: %w", err)
	}
	return nil
}

// now returns the time as it is stored: UTC, whole microseconds.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
