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

// shopView is the data of the shop's page.
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
	Error  string // the error of the form as a whole; "" if there is none
	Faults []fault
	Lines  string // the lines as JSON, for shop.js
}

// Value is the text of a field as it was typed.
func (f formView) Value(field string) string { return f.values[field] }

// Key is the form's idempotency key.
func (f formView) Key() string { return f.key }

// Refused reports whether the order of the form was refused.
func (f formView) Refused() bool { return f.Error != "" || len(f.Faults) > 0 }

// Fault is the text of a field's fault, "" if it has none.
func (f formView) Fault(field string) string {
	for _, x := range f.Faults {
		if x.Field == field {
			return x.Text
		}
	}
	return ""
}

func (s *Service) handleGetShop(w http.ResponseWriter, r *http.Request) {
	lang := s.chooseLanguage(w, r)
	s.renderShop(w, r, http.StatusOK, formView{form: newForm(lang)})
}

// handleGetOrders redirects to the shop: a browser that reloads the page of a
// refused form asks for /orders.
func (s *Service) handleGetOrders(w http.ResponseWriter, r *http.Request) {
	s.chooseLanguage(w, r)
	http.Redirect(w, r, "/", http.StatusSeeOther)
}

func (s *Service) renderShop(w http.ResponseWriter, r *http.Request, status int, f formView) {
	m, err := s.readMenu(r, f.locale)
	if err != nil {
		s.renderError(w, r, f.locale, err)
		return
	}
	v := shopView{page: s.newPage(f.locale, "/"), Currency: m.Currency, Form: f}
	v.Title = v.T("shop.title")
	if f.Refused() {
		v.Title = v.T("checkout.refused_title")
	}
	lines, err := json.Marshal(append([]line{}, f.lines...))
	if err != nil {
		s.renderError(w, r, f.locale, err)
		return
	}
	v.Form.Lines = string(lines)
	for _, p := range m.Pizzas {
		v.Pizzas = append(v.Pizzas, s.viewPizza(p, f))
	}
	s.renderPage(w, r, status, "shop", v)
}

func (s *Service) viewPizza(p pizza, f formView) pizzaView {
	v := pizzaView{pizza: p, Picture: s.assets.pictureURL(p.Image), Fault: f.Fault(p.ID)}
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

// handlePostOrder places the order of a form and redirects to its tracker. If the
// order is refused, the form is shown again as it was typed.
func (s *Service) handlePostOrder(w http.ResponseWriter, r *http.Request) {
	lang := s.chooseLanguage(w, r)
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		s.renderError(w, r, lang, &web.Problem{Status: http.StatusUnsupportedMediaType})
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, web.MaxBody)
	if err := r.ParseForm(); err != nil {
		status := http.StatusBadRequest
		if _, tooLarge := errors.AsType[*http.MaxBytesError](err); tooLarge {
			status = http.StatusRequestEntityTooLarge
		}
		s.renderError(w, r, lang, &web.Problem{Status: status})
		return
	}
	f := readForm(r.PostForm, lang)
	body, err := f.encodeOrder()
	if err != nil {
		s.renderError(w, r, f.locale, err)
		return
	}
	id, err := s.placeOrder(r, f.key, body)
	if err != nil {
		s.renderRefusedForm(w, r, f, err)
		return
	}
	http.Redirect(w, r, "/orders/"+url.PathEscape(id), http.StatusSeeOther)
}

// renderRefusedForm shows the form again, with the faults that the order API found.
func (s *Service) renderRefusedForm(w http.ResponseWriter, r *http.Request, f form, err error) {
	p := s.problemOf(r, err)
	v := formView{form: f, Faults: s.texts.translateFaults(f, p.Errors, s.readPizzaNames(r, f.locale))}
	slug := strings.TrimPrefix(p.Type, web.ProblemBase)
	switch {
	case slug == "idempotency-key-reused":
		v.key = newForm(f.locale).key // the old key belongs to an order already; another order needs another key
		v.Error = s.texts.translate(f.locale, nil, "form_error.sent_before")
	case len(v.Faults) > 0:
		v.Error = s.texts.translate(f.locale, nil, "form_error.fields")
	default:
		v.Error = s.texts.translate(f.locale, nil, "form_error."+strconv.Itoa(p.Status), "form_error.order")
	}
	setRetryAfter(w, p)
	s.renderShop(w, r, p.Status, v)
}

// readPizzaNames returns the names of the pizzas by id, nil while the menu cannot
// be read.
func (s *Service) readPizzaNames(r *http.Request, lang string) map[string]string {
	m, err := s.readMenu(r, lang)
	if err != nil {
		return nil // renderShop needs the menu as well and shows the error
	}
	names := map[string]string{}
	for _, p := range m.Pizzas {
		names[p.ID] = p.Name
	}
	return names
}

// trackerView is the data of the tracker's page.
type trackerView struct {
	page
	Order order
	Steps []stageView
}

// A stageView is one stage of the tracker, reached or not.
type stageView struct {
	Name  string // in the ids of its texts
	State string // done, now, failed or next
	At    string // RFC 3339; empty while not reached
	Clock string // the same as shown without JavaScript
}

// Final reports whether the order keeps its status.
func (v trackerView) Final() bool { return isFinal(v.Order.Status) }

// Failed reports whether the payment failed.
func (v trackerView) Failed() bool { return v.Order.Status == statusFailed }

// Headline is the order's status as a sentence.
func (v trackerView) Headline() string {
	return v.texts.translate(v.Lang, nil, "status."+v.Order.Status, "status.other")
}

// Reason is the reason of a failed payment as a sentence.
func (v trackerView) Reason() string {
	return v.texts.translate(v.Lang, nil, "reason."+v.Order.FailureReason, "reason.other")
}

func (s *Service) handleGetTracker(w http.ResponseWriter, r *http.Request) {
	lang := s.chooseLanguage(w, r)
	id := r.PathValue("id")
	o, err := s.readOrder(r.Context(), r, id)
	if err != nil {
		s.renderError(w, r, lang, err)
		return
	}
	v := trackerView{page: s.newPage(lang, "/orders/"+url.PathEscape(id)), Order: o, Steps: orderStages(o)}
	v.Title = v.T("tracker.title", "Number", o.OrderNumber, "Status", v.Headline())
	s.renderPage(w, r, http.StatusOK, "tracker", v)
}

// orderStages returns the stages placed, payment and kitchen with their states. A
// stage is done only if the order's history has its step.
func orderStages(o order) []stageView {
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

// handleNotFound answers requests for unknown paths.
func (s *Service) handleNotFound(w http.ResponseWriter, r *http.Request) {
	s.renderError(w, r, s.chooseLanguage(w, r), web.NotFound("There is nothing at this address."))
}

// errorView is the data of the error page.
type errorView struct {
	page
	Heading, Text string
}

// renderError answers with the error page for the problem in err.
func (s *Service) renderError(w http.ResponseWriter, r *http.Request, lang string, err error) {
	p := s.problemOf(r, err)
	v := errorView{page: s.newPage(lang, "/")}
	kind := strconv.Itoa(p.Status)
	v.Heading = s.texts.translate(lang, nil, "page."+kind+".title", "page.500.title")
	v.Text = s.texts.translate(lang, nil, "page."+kind+".text", "page.500.text")
	v.Title = v.Heading
	setRetryAfter(w, p)
	s.renderPage(w, r, p.Status, "error", v)
}

// problemOf returns the problem in err. Any other error is logged and becomes 503.
func (s *Service) problemOf(r *http.Request, err error) *web.Problem {
	if p := findProblem(err); p != nil && p.Status >= 400 {
		return p
	}
	if r.Context().Err() == nil {
		s.log.Error("page failed", "request_id", web.RequestID(r), "error", err.Error())
	}
	return &web.Problem{Status: http.StatusServiceUnavailable}
}

func setRetryAfter(w http.ResponseWriter, p *web.Problem) {
	if p.RetryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(p.RetryAfter.Seconds()))))
	}
}
