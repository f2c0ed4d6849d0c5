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

// drainTime is how long a clean stop waits for what is being answered.
const drainTime = 3 * time.Second

// Config says where a [Sandbox] keeps its evidence.
type Config struct {
	Dir string       // the folder of the evidence, created with mode 0700; one process at a time
	Log *slog.Logger // nil means silence
}

// Sandbox is the simulated outside world: payment provider, mail server, SMS
// gateway and the page that shows them.
type Sandbox struct {
	log      *slog.Logger
	payments *payments
	mails    *messages
	sms      *messages
	handler  http.Handler

	stop     chan struct{} // closed when hanging answers are released
	stopOnce sync.Once
	close    func() error
}

// Open loads the evidence in the folder, or begins an empty one. The sandbox
// works from then on, whether or not Run serves it; Close ends it.
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
	s.payments.scheduleLate()
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

// Handler serves /, /payments/, /mail/messages and /sms/messages. Requests
// that are never answered end with their client or with Close.
func (s *Sandbox) Handler() http.Handler { return s.handler }

// Run serves HTTP and SMTP until ctx ends, then lets what is being answered
// finish for up to three seconds, releases what hangs, and closes the files.
func (s *Sandbox) Run(ctx context.Context, http, smtp net.Listener) error {
	web, mail := s.httpServer(http), s.mailServer(smtp)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return web.serve() })
	g.Go(func() error { return mail.serve() })
	g.Go(func() error {
		<-ctx.Done()
		s.release()
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

// release lets every hanging request go, unanswered.
func (s *Sandbox) release() { s.stopOnce.Do(func() { close(s.stop) }) }

// Close releases what hangs, stops the charges to come until the next Open,
// and closes the files. It may be called more than once.
func (s *Sandbox) Close() error { return s.close() }

func (s *Sandbox) closeFiles() error {
	s.release()
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

// now is the time as it is stored: UTC, whole microseconds.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
