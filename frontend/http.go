package frontend

import (
	"encoding/json"
	"errors"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"pizzaflow/event"
	"pizzaflow/web"
)

// shopView is what the shop's page shows.
type shopView struct {
	page
	Currency string
	Pizzas   []pizzaView
	Form     formView
}

type pizzaView struct {
	pizza
	Picture  string
	Sizes    []sizeView
	Quantity string
	Fault    string
}

type sizeView struct {
	Size    string
	Price   event.Money
	Checked bool
}

type formView struct {
	form
	Trouble string // what is wrong with the form as a whole
	Faults  []fault
	Lines   string // the lines as JSON, for the script
}

// Value is what was typed into a field.
func (f formView) Value(field string) string { return f.values[field] }

// Key is the form's idempotency key.
func (f formView) Key() string { return f.key }

// Refused tells whether the form was sent and comes back.
func (f formView) Refused() bool { return f.Trouble != "" || len(f.Faults) > 0 }

// Fault is what is wrong with a field, "" if nothing.
func (f formView) Fault(field string) string {
	for _, x := range f.Faults {
		if x.Field == field {
			return x.Text
		}
	}
	return ""
}

func (s *Service) handleGetShop(w http.ResponseWriter, r *http.Request) {
	lang := s.language(w, r)
	s.showShop(w, r, http.StatusOK, formView{form: newForm(lang)})
}

// handleGetOrders is where a browser comes that loads a refused form's address.
func (s *Service) handleGetOrders(w http.ResponseWriter, r *http.Request) {
	s.language(w, r)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Service) showShop(w http.ResponseWriter, r *http.Request, status int, f formView) {
	m, err := s.readMenu(r, f.locale)
	if err != nil {
		s.showTrouble(w, r, f.locale, err)
		return
	}
	v := shopView{page: s.page(f.locale, "/"), Currency: m.Currency, Form: f}
	v.Title = v.T("shop.title")
	if f.Refused() {
		v.Title = v.T("checkout.refused_title")
	}
	lines, err := json.Marshal(append([]line{}, f.lines...))
	if err != nil {
		s.showTrouble(w, r, f.locale, err)
		return
	}
	v.Form.Lines = string(lines)
	for _, p := range m.Pizzas {
		v.Pizzas = append(v.Pizzas, s.viewPizza(p, f))
	}
	s.show(w, r, status, "shop", v)
}

func (s *Service) viewPizza(p pizza, f formView) pizzaView {
	v := pizzaView{pizza: p, Picture: s.assets.picture(p.Image), Fault: f.Fault(p.ID)}
	chosen := "medium"
	for _, l := range f.lines {
		if l.PizzaID == p.ID {
			chosen, v.Quantity = l.Size, l.Quantity
			break
		}
	}
	for _, o := range []sizeView{{"small", p.Prices.Small, false}, {"medium", p.Prices.Medium, false}, {"large", p.Prices.Large, false}} {
		if o.Price > 0 {
			o.Checked = o.Size == chosen
			v.Sizes = append(v.Sizes, o)
		}
	}
	if len(v.Sizes) == 1 {
		v.Sizes[0].Checked = true
	}
	return v
}

// handlePostOrder places the order of a form, and sends the browser on to its
// tracker. Whatever goes wrong, the form comes back as it was typed.
func (s *Service) handlePostOrder(w http.ResponseWriter, r *http.Request) {
	lang := s.language(w, r)
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		s.showTrouble(w, r, lang, &web.Problem{Status: http.StatusUnsupportedMediaType})
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, web.MaxBody)
	if err := r.ParseForm(); err != nil {
		status := http.StatusBadRequest
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			status = http.StatusRequestEntityTooLarge
		}
		s.showTrouble(w, r, lang, &web.Problem{Status: status})
		return
	}
	f := readForm(r.PostForm, lang)
	body, err := f.body()
	if err != nil {
		s.showTrouble(w, r, f.locale, err)
		return
	}
	id, err := s.place(r, f.key, body)
	if err != nil {
		s.refuse(w, r, f, err)
		return
	}
	http.Redirect(w, r, "/orders/"+url.PathEscape(id), http.StatusSeeOther)
}

// refuse shows the form again with what is wrong.
func (s *Service) refuse(w http.ResponseWriter, r *http.Request, f form, err error) {
	p := s.problem(r, err)
	v := formView{form: f, Faults: s.words.faults(f, p.Errors, s.pizzaNames(r, f.locale))}
	slug := strings.TrimPrefix(p.Type, web.ProblemBase)
	switch {
	case slug == "idempotency-key-reused":
		v.key = newForm(f.locale).key // an order stands behind the old one; another needs its own
		v.Trouble = s.words.say(f.locale, nil, "trouble.sent_before")
	case len(v.Faults) > 0:
		v.Trouble = s.words.say(f.locale, nil, "trouble.fields")
	default:
		v.Trouble = s.words.say(f.locale, nil, "trouble."+strconv.Itoa(p.Status), "trouble.order")
	}
	retryAfter(w, p)
	s.showShop(w, r, p.Status, v)
}

// pizzaNames is what the pizzas are called, if it can be known.
func (s *Service) pizzaNames(r *http.Request, lang string) map[string]string {
	m, err := s.readMenu(r, lang)
	if err != nil {
		return nil // showing the form again needs the menu as well, and says so
	}
	names := map[string]string{}
	for _, p := range m.Pizzas {
		names[p.ID] = p.Name
	}
	return names
}

// trackerView is what the tracker's page shows.
type trackerView struct {
	page
	Order order
	Steps []stageView
}

// A stageView is one stage of an order's way, passed or yet to come.
type stageView struct {
	Name  string // of its texts
	State string // done, now, failed or next
	At    string // RFC 3339; empty when not reached
	Clock string // the same for people without a script
}

// Final tells whether the order's way is at its end.
func (v trackerView) Final() bool { return final(v.Order.Status) }

// Failed tells whether the order was not paid.
func (v trackerView) Failed() bool { return v.Order.Status == statusFailed }

// Headline says where the order stands, in one sentence.
func (v trackerView) Headline() string {
	return v.words.say(v.Lang, nil, "status."+v.Order.Status, "status.other")
}

// Reason says why the payment failed.
func (v trackerView) Reason() string {
	return v.words.say(v.Lang, nil, "reason."+v.Order.FailureReason, "reason.other")
}

func (s *Service) handleGetTracker(w http.ResponseWriter, r *http.Request) {
	lang := s.language(w, r)
	id := r.PathValue("id")
	o, err := s.readOrder(r.Context(), r, id)
	if err != nil {
		s.showTrouble(w, r, lang, err)
		return
	}
	v := trackerView{page: s.page(lang, "/orders/"+url.PathEscape(id)), Order: o, Steps: stages(o)}
	v.Title = v.T("tracker.title", "Number", o.OrderNumber, "Status", v.Headline())
	s.show(w, r, http.StatusOK, "tracker", v)
}

// stages says how far the order has come: placed, payment, kitchen. Only what has
// been recorded is shown as done.
func stages(o order) []stageView {
	at := map[string]stageView{}
	for _, h := range o.History {
		if _, seen := at[h.Status]; !seen {
			t := h.At.UTC()
			at[h.Status] = stageView{At: t.Format("2006-01-02T15:04:05.000Z"), Clock: t.Format("15:04:05") + " UTC"}
		}
	}
	stage := func(name, state, status string) stageView {
		v := at[status]
		v.Name, v.State = name, state
		return v
	}
	placed := stage("placed", "done", statusPending)
	_, paid := at[statusPaid]
	switch {
	case paid:
		return []stageView{placed, stage("paid", "done", statusPaid), {Name: "kitchen_now", State: "now"}}
	case o.Status == statusFailed:
		return []stageView{placed, stage("failed", "failed", statusFailed), {Name: "kitchen_not", State: "next"}}
	}
	return []stageView{placed, {Name: "payment", State: "now"}, {Name: "kitchen", State: "next"}}
}

// handleUnknown is the page for addresses where nothing is.
func (s *Service) handleUnknown(w http.ResponseWriter, r *http.Request) {
	s.showTrouble(w, r, s.language(w, r), web.NotFound("There is nothing at this address."))
}

// troubleView is what the page shows that stands in for another.
type troubleView struct {
	page
	Heading, Text string
}

// showTrouble answers with a page that says what is wrong.
func (s *Service) showTrouble(w http.ResponseWriter, r *http.Request, lang string, err error) {
	p := s.problem(r, err)
	v := troubleView{page: s.page(lang, "/")}
	kind := strconv.Itoa(p.Status)
	v.Heading = s.words.say(lang, nil, "page."+kind+".title", "page.500.title")
	v.Text = s.words.say(lang, nil, "page."+kind+".text", "page.500.text")
	v.Title = v.Heading
	retryAfter(w, p)
	s.show(w, r, p.Status, "trouble", v)
}

// problem is the problem in err; any other error is our fault and logged.
func (s *Service) problem(r *http.Request, err error) *web.Problem {
	if p := problemIn(err); p != nil && p.Status >= 400 {
		return p
	}
	if r.Context().Err() == nil {
		s.log.Error("page failed", "request_id", web.RequestID(r), "error", err.Error())
	}
	return &web.Problem{Status: http.StatusServiceUnavailable}
}

func retryAfter(w http.ResponseWriter, p *web.Problem) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.RetryAfter.Seconds()))))
	}
}
