// Package notification tells customers what becomes of their order, by e-mail
// and by SMS.
//
// It owns the tables order_contacts, notifications and
// notification_deliveries, serves no routes, consumes OrderCreated,
// PaymentCompleted and PaymentFailed, and emits no events.
//
// An order has at most one notification of each type. Contacts come with
// OrderCreated; a payment event that arrives first waits for them in its row.
// A notification becomes one delivery for each channel, and each delivery
// lives on its own: a failing SMS never repeats or holds up an e-mail.
//
// What it promises: each notification reaches each channel at least once, or
// its delivery is failed with the reason. It reaches it exactly once unless
// the process died or stood still for longer than its leases, or the answer was
// lost, between the moment the other side took the message and the moment that
// was recorded. Only then a message is sent again, under the same Message-ID
// (e-mail) or reference (SMS), so that the receiver can recognise it. At most
// 32 messages of a channel are between the two at a time: results are recorded
// many together, but none of their senders takes another message before. What
// fails for now is tried again for a day.
//
// # Templates
//
// The texts are templates, embedded and overridable file by file from a folder
// of the same layout (Config.Templates):
//
//	layout.html                  the frame of every HTML mail
//	layout.txt                   the parts that text mails share
//	{ru,en}/words.txt            the words that layout.html and layout.txt need
//	{ru,en}/TYPE.html            the HTML mail: templates "title" and "content"
//	{ru,en}/TYPE.txt             the text mail: templates "subject" and "content"
//	{ru,en}/TYPE_sms.txt         the SMS
//
// where TYPE is order_confirmation, payment_confirmation or payment_failed.
// They see the fields of [Page] and a function plural, which picks the form of
// a word for a number: {{plural .Count "pizza" "pizzas"}}, in Russian
// {{plural .Count "пицца" "пиццы" "пицц"}}. Customer text is data for
// them, never template, and always a single line.
package notification
