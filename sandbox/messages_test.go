package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/smtp"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	gomail "github.com/wneessen/go-mail"
	"golang.org/x/text/encoding/charmap"
)

// sendMail sends a message as it is.
func sendMail(addr, to, message string) error {
	return smtp.SendMail(addr, nil, "shop@example.com", []string{to}, []byte(message))
}

func TestRussianMultipart(t *testing.T) {
	w := start(t, t.TempDir())
	const (
		subject = "Заказ 1204 оплачен: две «Маргариты» большого размера уже готовятся"
		text    = "Иван, спасибо!\nСумма: 1 200,00 ₽\nПицца едет."
		html    = `<p style="color:#222">Иван, <b>спасибо</b>! Сумма: 1 200,00 ₽</p>`
	)
	m := gomail.NewMsg()
	for _, err := range []error{
		m.FromFormat("Пиццерия", "shop@example.com"), m.To("ivan+pizza@example.com"), m.Cc("maria@example.com"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	m.Subject(subject)
	m.SetMessageIDWithValue("delivery-1@pizzaflow")
	m.SetBodyString(gomail.TypeTextPlain, text)
	m.AddAlternativeString(gomail.TypeTextHTML, html)
	m.AttachReadSeeker("note.txt", bytes.NewReader([]byte("not the text")))
	host, port, err := net.SplitHostPort(w.mail)
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	client, err := gomail.NewClient(host, gomail.WithPort(number), gomail.WithTLSPolicy(gomail.NoTLS), gomail.WithHELO("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.DialAndSendWithContext(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	found := get[[]mail](w, "/mail/messages?to=ivan+pizza@example.com") // the plus arrives as a space
	if len(found) != 1 {
		t.Fatalf("%+v", found)
	}
	got := found[0]
	if got.Subject != subject || got.Text != text || got.HTML != html || got.MessageID != "delivery-1@pizzaflow" ||
		got.From != "shop@example.com" || !slices.Equal(got.To, []string{"ivan+pizza@example.com", "maria@example.com"}) ||
		time.Since(got.ReceivedAt) > time.Minute {
		t.Errorf("%+v", got)
	}
	for query, count := range map[string]int{
		"": 1, "?to=ivan%2Bpizza@example.com": 1, "?to=IVAN%20pizza@Example.com": 1, "?to=maria@example.com": 1,
		"?to=ivan@example.com": 0, "?to=": 0,
	} {
		if got := get[[]mail](w, "/mail/messages"+query); len(got) != count {
			t.Errorf("%q: %d mails", query, len(got))
		}
	}
}

func TestMailEncodings(t *testing.T) {
	w := start(t, t.TempDir())
	koi, err := charmap.KOI8R.NewEncoder().String("Пицца")
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range []struct{ name, message, subject, text, html string }{
		{"plain", "Subject: hi\r\n\r\nline\r\nline\r\n", "hi", "line\nline\n", ""},
		{"koi8-r", "Subject: =?koi8-r?B?8MnDw8E=?=\r\nContent-Type: text/plain; charset=koi8-r\r\n\r\n" + koi, "Пицца", "Пицца\n", ""},
		{"quoted", "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n=D0=9F=\r\n<b>\r\n", "", "", "П<b>\n"},
		{"base64", "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n0J/QuNGG\r\n0YbQsA==\r\n", "", "Пицца", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			to := fmt.Sprintf("user%d@example.com", i)
			if err := sendMail(w.mail, to, c.message); err != nil {
				t.Fatal(err)
			}
			got := get[[]mail](w, "/mail/messages?to="+to)
			if len(got) != 1 || got[0].Subject != c.subject || got[0].Text != c.text || got[0].HTML != c.html {
				t.Errorf("%+v", got)
			}
		})
	}
}

func smtpCode(err error) int {
	if protocol, ok := errors.AsType[*textproto.Error](err); ok {
		return protocol.Code
	}
	return 0
}

func TestMailRefused(t *testing.T) {
	w := start(t, t.TempDir())
	const fine = "Subject: hi\r\n\r\nhi\r\n"
	for _, c := range []struct {
		name, to, message string
		code              int // 0 if it is accepted
	}{
		{"bounce", "ivan+bounce@example.com", fine, 550},
		{"bounce again", "ivan+bounce@example.com", fine, 550},
		{"tempfail", "ivan+tempfail@example.com", fine, 451},
		{"tempfail again", "Ivan+tempfail@example.com", fine, 0},
		{"tempfail of another", "maria+tempfail@example.com", fine, 451},
		{"tempfail always", "ivan+tempfail-always@example.com", fine, 451},
		{"tempfail always again", "ivan+tempfail-always@example.com", fine, 451},
		{"provider's tag", "ivan+declined@example.com", fine, 0},
		{"too large", "ivan@example.com", "Subject: hi\r\n\r\n" + strings.Repeat("x\r\n", 400_000), 552},
		{"no header", "ivan@example.com", "this is not a header\r\n", 554},
		{"unknown charset", "ivan@example.com", "Content-Type: text/plain; charset=klingon\r\n\r\nhi\r\n", 554},
	} {
		if err := sendMail(w.mail, c.to, c.message); smtpCode(err) != c.code || (err == nil) != (c.code == 0) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	if found := get[[]mail](w, "/mail/messages"); len(found) != 2 {
		t.Errorf("%d mails", len(found))
	}
}

func TestMailOutlivesRestart(t *testing.T) {
	w := start(t, t.TempDir())
	var all sync.WaitGroup
	for i := range 30 {
		all.Go(func() {
			to := fmt.Sprintf("user%d@example.com", i%3)
			if err := sendMail(w.mail, to, fmt.Sprintf("Subject: %d\r\n\r\nПицца %d\r\n", i, i)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	before := get[[]mail](w, "/mail/messages")
	w = start(t, w.dir) // the first sandbox is still open, as if killed
	after := get[[]mail](w, "/mail/messages")
	same := slices.EqualFunc(before, after, func(a, b mail) bool {
		return a.Subject == b.Subject && a.Text == b.Text && slices.Equal(a.To, b.To)
	})
	if len(before) != 30 || !same {
		t.Errorf("%d before, %d after", len(before), len(after))
	}
	if found := get[[]mail](w, "/mail/messages?to=user1@example.com"); len(found) != 10 {
		t.Errorf("%d to one", len(found))
	}
}

// TestStopLetsMailFinish stops the sandbox while a message is under way: the message is
// accepted, or else the sender would send it twice.
func TestStopLetsMailFinish(t *testing.T) {
	w := start(t, t.TempDir())
	c, err := smtp.Dial(w.mail)
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{c.Mail("shop@example.com"), c.Rcpt("ivan@example.com")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	data, err := c.Data()
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error, 1)
	go func() { stopped <- w.stop() }()
	eventually(t, "new mail clients are turned away", func() bool {
		conn, err := net.Dial("tcp", w.mail)
		if err != nil {
			return true
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		return false
	})
	if _, err := data.Write([]byte("Subject: last\r\n\r\nlast\r\n")); err != nil {
		t.Error(err)
	}
	for _, err := range []error{data.Close(), c.Quit(), <-stopped} {
		if err != nil {
			t.Error(err)
		}
	}
	w = start(t, w.dir)
	if found := get[[]mail](w, "/mail/messages"); len(found) != 1 {
		t.Errorf("%d mails", len(found))
	}
}

func TestSMS(t *testing.T) {
	w := start(t, t.TempDir())
	send := func(body string) (int, []byte) { return w.post("/sms/messages", "", body) }
	status, body := send(`{"to":"+79001234567","text":"Заказ оплачен","reference":"delivery-1"}`)
	id := decodeAs[map[string]string](t, body)["id"]
	if status != 202 || id == "" {
		t.Fatalf("%d %s", status, body)
	}
	send(`{"to":"+79007654321","text":"other"}`)
	for _, query := range []string{"?to=+79001234567", "?to=%2B79001234567"} {
		found := get[[]sms](w, "/sms/messages"+query)
		if len(found) != 1 || found[0] != (sms{id, "+79001234567", "Заказ оплачен", "delivery-1", found[0].ReceivedAt}) {
			t.Errorf("%s: %+v", query, found)
		}
	}
	for body, want := range map[string]int{
		`{`: 400, `{"to":"+79001234567"}`: 422, `{"to":"8-900","text":"hi"}`: 422, `{"text":"hi"}`: 422,
		`{"to":"+79001234567","text":"hi","from":"x"}`:                                     400,
		`{"to":"+79001234567","text":"hi","reference":"` + strings.Repeat("r", 256) + `"}`: 422,
	} {
		if status, answer := send(body); status != want {
			t.Errorf("%s: %d %s", body, status, answer)
		}
	}
	before := get[[]sms](w, "/sms/messages")
	w = start(t, w.dir)
	if after := get[[]sms](w, "/sms/messages"); len(after) != 2 || !slices.Equal(before, after) {
		t.Errorf("%+v", after)
	}
}

func TestDeepMailIsRefused(t *testing.T) {
	var message strings.Builder
	for i := range 2 * maxDepth {
		fmt.Fprintf(&message, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	if _, err := parseMail([]byte(message.String())); !errors.Is(err, errTooDeep) {
		t.Errorf("%v", err)
	}
}
