package event_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"pizzaflow/event"
)

var update = flag.Bool("update", false, "write the golden files anew; an old one must never change")

var at = time.Date(2024, 1, 15, 10, 30, 0, 123456000, time.UTC)

const (
	orderID   = "0190c1a2-0000-7000-8000-000000000001"
	paymentID = "0190c1a2-0000-7000-8000-000000000002"
)

type contract interface {
	EventType() string
	Topic() string
	AggregateID() string
	Validate() error
}

// samples is one of each event, with all fields set.
var samples = []contract{
	event.OrderCreated{
		OrderID: orderID, OrderNumber: "K7M-42P", CustomerName: "Иван Иванов", CustomerEmail: "ivan@example.com", CustomerPhone: "+79001234567",
		TotalAmount: 120000, Currency: "RUB", DeliveryAddress: "ул. Пушкина, д. 10", Locale: "ru", CreatedAt: at,
		Items: []event.Item{{PizzaID: "ac2176b3-ac09-4589-9a12-de3265692c5b", Name: "Маргарита", Size: "large", Quantity: 2, Price: 60000}},
	},
	event.OrderPaid{OrderID: orderID, PaymentID: paymentID, Amount: 120000, Currency: "RUB", PaidAt: at},
	event.OrderPaymentFailed{OrderID: orderID, PaymentID: paymentID, Reason: "insufficient_funds", FailedAt: at},
	event.PaymentCompleted{PaymentID: paymentID, OrderID: orderID, Amount: 120000, Currency: "RUB", TransactionID: "ch_1", CompletedAt: at},
	event.PaymentFailed{PaymentID: paymentID, OrderID: orderID, Amount: 120000, Currency: "RUB", ErrorCode: "insufficient_funds", ErrorMessage: "The card has not enough money.", FailedAt: at},
}

// The golden files are what every reader of the topics relies on: they may get
// new siblings, never another content.
func TestGoldens(t *testing.T) {
	for _, e := range samples {
		t.Run(e.EventType(), func(t *testing.T) {
			file := filepath.Join("testdata", e.EventType()+".v1.json")
			got, err := json.MarshalIndent(e, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := os.WriteFile(file, append(got, '\n'), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(append(got, '\n'), want) {
				t.Errorf("%s is written as\n%s\nthe contract says\n%s", e.EventType(), got, want)
			}
			back := reflect.New(reflect.TypeOf(e))
			if err := json.Unmarshal(want, back.Interface()); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(back.Elem().Interface(), any(e)) {
				t.Errorf("reads back as %+v", back.Elem().Interface())
			}
			if err := e.Validate(); err != nil {
				t.Errorf("a good event is refused: %v", err)
			}
		})
	}
}

func TestTopicsAndAggregates(t *testing.T) {
	for _, e := range samples {
		topic, id := event.OrderTopic, orderID
		if e.EventType()[:7] == "Payment" {
			topic, id = event.PaymentTopic, paymentID
		}
		if e.Topic() != topic || e.AggregateID() != id {
			t.Errorf("%s travels on %s under %s, want %s under %s", e.EventType(), e.Topic(), e.AggregateID(), topic, id)
		}
	}
}

func TestEnvelope(t *testing.T) {
	value := `{"event_id":"0190c1a2-0000-7000-8000-000000000003","event_type":"OrderPaid","aggregate_id":"` + orderID + `","event_data":{"order_id":"x","new":1},"timestamp":"2024-01-15T10:30:00Z","later":true}`
	e, err := event.Open([]byte(value))
	if err != nil {
		t.Fatal(err)
	}
	if e.EventType != "OrderPaid" || e.AggregateID != orderID || string(e.EventData) != `{"order_id":"x","new":1}` || !e.Timestamp.Equal(at.Truncate(time.Second)) {
		t.Errorf("opened as %+v", e)
	}
	if _, err := event.Open([]byte("not JSON")); err == nil {
		t.Error("what is not JSON was opened")
	}
}

func TestInvalidEventsAreRefused(t *testing.T) {
	good := samples[0].(event.OrderCreated)
	for name, spoil := range map[string]func(*event.OrderCreated){
		"no order id":       func(e *event.OrderCreated) { e.OrderID = "" },
		"no e-mail":         func(e *event.OrderCreated) { e.CustomerEmail = "" },
		"no items":          func(e *event.OrderCreated) { e.Items = nil },
		"nothing to pay":    func(e *event.OrderCreated) { e.TotalAmount = 0 },
		"no pieces":         func(e *event.OrderCreated) { e.Items = []event.Item{{Quantity: 0, Price: 1}} },
		"a total too small": func(e *event.OrderCreated) { e.TotalAmount-- },
	} {
		e := good
		spoil(&e)
		if e.Validate() == nil {
			t.Errorf("accepted with %s", name)
		}
	}
	for _, e := range []contract{event.OrderPaid{}, event.OrderPaymentFailed{}, event.PaymentCompleted{}, event.PaymentFailed{}} {
		if e.Validate() == nil {
			t.Errorf("an empty %s is accepted", e.EventType())
		}
	}
}
