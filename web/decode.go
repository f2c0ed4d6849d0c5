package web

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"os"
	"strings"
)

// MaxBody is the largest request body that is read, in bytes.
const MaxBody = 64 << 10

// The codes of the field errors that [Decode] reports. They never change.
const (
	// CodeSyntax is a body that is not JSON.
	CodeSyntax = "syntax"
	// CodeEmpty is a body without a value.
	CodeEmpty = "empty_body"
	// CodeIncomplete is a body that was cut off or badly framed.
	CodeIncomplete = "incomplete_body"
	// CodeTrailingData is anything but white space after the value.
	CodeTrailingData = "trailing_data"
	// CodeInvalidUTF8 is a body that is not UTF-8.
	CodeInvalidUTF8 = "invalid_utf8"
	// CodeLoneSurrogate is half of a \uXXXX\uXXXX pair, which is no character.
	CodeLoneSurrogate = "lone_surrogate"
	// CodeTooDeep is nesting deeper than 32 levels.
	CodeTooDeep = "too_deep"
	// CodeUnknownField is a field that is not part of the request.
	CodeUnknownField = "unknown_field"
	// CodeDuplicateField is a field given twice in one object.
	CodeDuplicateField = "duplicate_field"
	// CodeNull is null where a value is required.
	CodeNull = "null"
	// CodeWrongType is a value of another JSON type, or of another form, than the field has.
	CodeWrongType = "wrong_type"
	// CodeOutOfRange is a number that does not fit.
	CodeOutOfRange = "out_of_range"
	// CodeNUL is a text with the character U+0000; its status is 422.
	CodeNUL = "nul_character"
)

// Decode decodes the request's JSON body strictly into v, a pointer, and returns the
// body as it was sent. The content type must be application/json (else 415),
// the body at most [MaxBody] bytes long (else 413), and it must arrive in time
// (else 408).
//
// The body is refused with 400 and a [FieldError] for each fault where it has a
// duplicate or an unknown field (names match exactly, letter case included), null
// for a required field, a value of another type or a number that does not fit,
// data after its end, invalid UTF-8, a lone surrogate, more than 32 levels, or is
// no JSON at all: the codes from [CodeSyntax] on. A text with the character
// U+0000, which no database column takes, is refused with 422. A field is
// optional if it is a pointer or its tag says omitempty or omitzero; there null means
// absent. A field that is absent stays zero, which the caller checks. Types with their
// own UnmarshalJSON or UnmarshalText are supported.
//
// Every error is a [*Problem], and leaves v unchanged.
func Decode(w http.ResponseWriter, r *http.Request, v any) (body []byte, err error) {
	if p := checkContentType(r.Header); p != nil {
		return nil, p
	}
	if r.ContentLength > MaxBody {
		return nil, statusProblem(http.StatusRequestEntityTooLarge)
	}
	if r.Body != nil {
		if body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, MaxBody)); err != nil {
			return nil, readProblem(err)
		}
	}
	if p := unmarshal(body, v); p != nil {
		return nil, p
	}
	return body, nil
}

// checkContentType requires exactly one Content-Type: application/json, with no
// parameter but charset=utf-8. It refuses forms and text/plain, which a page of another
// origin can send without a preflight request.
func checkContentType(h http.Header) *Problem {
	p := NewProblem(http.StatusUnsupportedMediaType, "unsupported-media-type", "Unsupported media type",
		"Send the body as application/json in UTF-8, without a content encoding.")
	types := h.Values("Content-Type")
	if len(types) != 1 || strings.HasSuffix(strings.TrimSpace(types[0]), ";") {
		return p
	}
	media, params, err := mime.ParseMediaType(types[0])
	if err != nil || media != "application/json" {
		return p
	}
	for name, value := range params {
		if name != "charset" || !strings.EqualFold(value, "utf-8") {
			return p
		}
	}
	for _, encoding := range h.Values("Content-Encoding") {
		if !strings.EqualFold(encoding, "identity") {
			return p
		}
	}
	return nil
}

// readProblem returns the problem for the error of a read: a body that is too long, one
// that stalls, or one that is cut off or badly framed.
func readProblem(err error) *Problem {
	var tooLarge *http.MaxBytesError
	var network net.Error
	switch {
	case errors.As(err, &tooLarge):
		return statusProblem(http.StatusRequestEntityTooLarge)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return NewProblem(http.StatusRequestTimeout, "request-timeout", "The request took too long",
			"The request body did not arrive in time.").Because(err)
	}
	p := malformed("The request body did not arrive whole.", FieldError{
		Pointer: "#", Code: CodeIncomplete, Detail: "The body ends before its announced end.",
	})
	return p.Because(fmt.Errorf("read body: %w", err))
}

// malformed returns the 400 problem for a body that cannot be decoded.
func malformed(detail string, errs ...FieldError) *Problem {
	p := NewProblem(http.StatusBadRequest, "malformed-body", "The request body cannot be decoded", detail)
	p.Errors = errs
	return p
}
