package order

import (
	"embed"
	"net/http"
	"sync"

	"github.com/swaggest/swgui/v5emb"
)

// The contracts are written by hand; tests compare them with the code.
var (
	//go:embed openapi.json
	openAPI []byte
	//go:embed asyncapi.yaml
	asyncAPI []byte
	//go:embed docs
	docs embed.FS
)

// docsPolicy lets the documentation page run its own scripts and call the API,
// and nothing else. The pictures in its style sheet are data URLs.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

func handleGetOpenAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	_, _ = w.Write(openAPI) // the only error is a client that is gone
}

func handleGetAsyncAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/yaml; charset=utf-8")
	_, _ = w.Write(asyncAPI)
}

// swaggerUI serves the files of Swagger UI. Its own page has inline scripts, which
// docsPolicy forbids, so docs/page.html replaces it.
var swaggerUI = sync.OnceValue(func() http.Handler { return v5emb.New("Pizzaflow", "/openapi.json", "/docs/") })

func handleGetDocs(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Security-Policy", docsPolicy)
	switch r.URL.Path {
	case "/docs/":
		http.ServeFileFS(w, r, docs, "docs/page.html")
	case "/docs/start.js":
		http.ServeFileFS(w, r, docs, "docs/start.js")
	default:
		swaggerUI().ServeHTTP(w, r)
	}
}
