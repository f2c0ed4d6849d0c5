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

const (
	maxStores  = 3  // how often a group of orders is stored at most, when nobody knows whether it is
	maxNumbers = 20 // how many numbers are drawn for an order at most
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

// encodeAnswer encodes the answer, which holds the order's number.
func (o *newOrder) encodeAnswer() (err error) {
	o.answer, err = createdBody(&o.Order)
	return err
}

// newOrder makes a placement's order ready to be stored. The answer is encoded
// here, before the transaction that orders placed at the same time share, and
// again only when the number turns out to be taken.
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
	n.ID, n.Number, n.Currency, n.CreatedAt = id.String(), s.drawNumber(), s.currency, sqldb.Now()
	n.enter(Pending, n.CreatedAt)
	if err := n.encodeAnswer(); err != nil {
		return nil, fmt.Errorf("place order: %w", err)
	}
	return n, nil
}

// store stores new orders in one transaction and returns for each nil, or
// errKeyTaken when it is not stored because another order has its key. It is
// the flush function of the group that all placements go through.
func (s *Service) store(ctx context.Context, orders []*newOrder) ([]error, error) {
	// Sorted by key: of two groups that share some keys one waits for the other,
	// and never each for the other.
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
		if !errors.Is(err, sqldb.ErrOutcomeUnknown) || try == maxStores {
			return nil, err
		}
		try++ // the orders are not there: under the same ids they can be stored only once
	}
	refused := make([]error, len(orders))
	for i, o := range orders {
		if o.keyTaken {
			refused[i] = errKeyTaken
		}
	}
	return refused, nil
}

func withoutTaken(orders []*newOrder) []*newOrder {
	return slices.DeleteFunc(orders, func(o *newOrder) bool { return o.keyTaken })
}

// insert is the one transaction in which orders come into being. It stores
// nothing and returns errKeyTaken when keys are taken, and marks their orders.
func (s *Service) insert(ctx context.Context, batch []*newOrder) error {
	return s.outbox.Tx(ctx, func(tx *outbox.Tx) error {
		if err := s.insertNumbered(ctx, tx, batch); err != nil {
			return err
		}
		if err := insertDetails(ctx, s.db, tx.Tx, batch); err != nil {
			return err
		}
		taken, err := insertKeys(ctx, s.db, tx.Tx, batch)
		if err != nil {
			return err
		}
		for _, o := range taken {
			o.keyTaken, err = true, errKeyTaken
		}
		if err != nil {
			return err
		}
		for _, o := range batch {
			tx.Cause("", o.traceparent)
			tx.Add(o.Version, o.created())
		}
		return nil
	})
}

// insertNumbered inserts the orders' rows. An order whose number is taken gets
// another number, and its answer is encoded again.
func (s *Service) insertNumbered(ctx context.Context, tx *outbox.Tx, batch []*newOrder) error {
	for range maxNumbers {
		taken, err := insertOrders(ctx, s.db, tx.Tx, batch)
		if err != nil || len(taken) == 0 {
			return err
		}
		for _, o := range taken {
			o.Number = s.drawNumber()
			if err := o.encodeAnswer(); err != nil {
				return err
			}
		}
		batch = taken
	}
	return errors.New("insert orders: no free order number")
}

// lookUp turns the error of an insert into nil, if the orders turn out to be
// stored: when the answer to the commit was lost, and when an order's id is
// taken, which only the order itself can have done. Their answers then have the
// numbers that are stored.
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
		o.Number = number
		if e := o.encodeAnswer(); e != nil {
			return errors.Join(err, e)
		}
	}
	return nil
}
