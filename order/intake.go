package order

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/google/uuid"

	"pizzaflow/outbox"
	"pizzaflow/sqldb"
)

// A newOrder is an order on its way into the database. Its id is fixed before
// the first try, so that it can be looked up after a commit whose answer was
// lost, and is never stored twice.
type newOrder struct {
	Order
	key         string // Idempotency-Key, or ""
	sum         []byte // SHA-256 of the request's body, with a key
	traceparent string
	answer      []byte // the body of the 201
	keyTaken    bool   // the key belongs to another order
}

// name draws the order's number and writes the answer that tells it.
func (o *newOrder) name(draw func() string) (err error) {
	o.Number = draw()
	o.answer, err = createdBody(&o.Order)
	return err
}

// store puts new orders into the database, all in one transaction, and says of
// each why it is not there: errKeyTaken or nil. It is the flush function of the
// group that all placements go through.
func (s *Service) store(ctx context.Context, orders []*newOrder) ([]error, error) {
	// In the order of their keys, so that of two groups that share some, one
	// waits for the other and never each for the other.
	batch := slices.Clone(orders)
	slices.SortStableFunc(batch, func(a, b *newOrder) int { return cmp.Compare(a.key, b.key) })
	for i, o := range batch {
		o.keyTaken = i > 0 && o.key != "" && o.key == batch[i-1].key // the first to come has it
	}
	batch = withoutTaken(batch)
	for try := 1; len(batch) > 0; {
		err := s.insert(ctx, batch)
		if errors.Is(err, errKeyTaken) {
			batch = withoutTaken(batch)
			continue
		}
		if err != nil {
			err = s.lookUp(ctx, batch, err)
		}
		if err == nil {
			s.metrics.orders.WithLabelValues(string(Pending)).Add(float64(len(batch)))
			break
		}
		if !errors.Is(err, sqldb.ErrOutcomeUnknown) || try == 3 {
			return nil, err
		}
		try++ // they are not there: under the same ids they can be stored only once
	}
	reasons := make([]error, len(orders))
	for i, o := range orders {
		if o.keyTaken {
			reasons[i] = errKeyTaken
		}
	}
	return reasons, nil
}

func withoutTaken(orders []*newOrder) []*newOrder {
	return slices.DeleteFunc(orders, func(o *newOrder) bool { return o.keyTaken })
}

// insert is the one transaction in which orders come into being. With
// errKeyTaken nothing is stored, and those to blame are marked.
func (s *Service) insert(ctx context.Context, batch []*newOrder) error {
	return s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		if err := insertOrders(ctx, s.db, tx.Tx, batch, s.number); err != nil {
			return err
		}
		if err := insertKeys(ctx, s.db, tx.Tx, batch); err != nil {
			return err
		}
		for _, o := range batch {
			tx.Cause("", o.traceparent)
			tx.Add(o.Version, o.created())
		}
		return nil
	})
}

// lookUp turns the error of an insert into nil, if the orders turn out to be
// stored. That can be when the answer to the commit was lost, and when an
// id of theirs is taken, which can only be by themselves.
func (s *Service) lookUp(ctx context.Context, batch []*newOrder, err error) error {
	if !errors.Is(err, sqldb.ErrOutcomeUnknown) && !sqldb.IsUnique(err) {
		return err
	}
	numbers, e := selectNumbers(ctx, s.db.DB, batch)
	if e != nil {
		return errors.Join(err, e)
	}
	for _, o := range batch {
		number, stored := numbers[o.ID]
		if !stored {
			return err
		}
		if e := o.name(func() string { return number }); e != nil {
			return errors.Join(err, e)
		}
	}
	return nil
}

// newOrder makes a placement's order ready to be stored.
func (s *Service) newOrder(ctx context.Context, p Placement) (*newOrder, error) {
	o, err := compose(s.menu, p.Draft)
	if err != nil {
		return nil, err
	}
	n := &newOrder{Order: o, key: p.Key, traceparent: outbox.Traceparent(ctx)}
	if p.Key != "" {
		n.sum = bodySum(p.Body)
	}
	id, err := uuid.NewV7()
	if err != nil {
		return nil, fmt.Errorf("place order: %w", err)
	}
	n.ID, n.Currency, n.CreatedAt = id.String(), s.currency, sqldb.Now()
	n.enter(Pending, n.CreatedAt)
	if err := n.name(s.number); err != nil {
		return nil, fmt.Errorf("place order: %w", err)
	}
	return n, nil
}
