// Package notification notifies customers of their order and its payment, by e-mail
// and by SMS.
//
// It owns the tables order_contacts, notifications and
// notification_deliveries, serves no routes, consumes OrderCreated,
// PaymentCompleted and PaymentFailed, and emits no events.
//
// An order has at most one notification of each type. Contacts come with
// OrderCreated; the notification of a payment event that arrives first is stored and
// waits for them. A notification becomes one delivery for each channel, and each
// delivery is sent by itself: a failing SMS never repeats or holds up an e-mail.
//
// It promises that each notification is sent by each channel at least once, or its
// delivery is failed with the reason. A message is sent exactly once, unless the
// process died or stood still for longer than its leases, or the answer was lost,
// between the moment the other side accepted the message and the moment that was
// recorded. Then it is sent again, under the same Message-ID (e-mail) or reference
// (SMS), by which the receiver can recognise it. An attempt whose answer was lost, or
// did not come within ten minutes after a mail's final dot, has an unknown outcome:
// after three of them a mail is failed, and an SMS after two, for the operator to look
// at. At most 128 messages of a channel are in flight, that is sent and not recorded,
// besides as many that have waited for their answer for half a minute: results are
// recorded many together, but a worker takes no other message before. A delivery that fails with a temporary
// error is tried again for a day.
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
