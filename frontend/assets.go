package frontend

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"
)

//go:embed static
var static embed.FS

// assets are the files under /static/. Pages link to them with the version in the
// path (/static/v-<version>/app.css), so that browsers may cache them for ever and
// a script imports modules of its own version. Under a path without the version,
// or with that of another release, browsers revalidate a file each time.
type assets struct {
	version string
	files   map[string]asset
}

type asset struct {
	contentType string
	etag        string
	body        []byte
}

// contentTypes are ours, so that they do not depend on the machine's table.
var contentTypes = map[string]string{
	".css": "text/css; charset=utf-8",
	".js":  "text/javascript; charset=utf-8",
	".svg": "image/svg+xml; charset=utf-8",
}

func newAsset(name string, body []byte) asset {
	sum := sha256.Sum256(body)
	return asset{contentType: contentTypes[path.Ext(name)], etag: `"` + hex.EncodeToString(sum[:10]) + `"`, body: body}
}

func loadAssets() (*assets, error) {
	a := &assets{files: map[string]asset{}}
	err := fs.WalkDir(static, "static", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		body, err := static.ReadFile(name)
		if err != nil {
			return err
		}
		if contentTypes[path.Ext(name)] == "" {
			return fmt.Errorf("%s has no content type", name)
		}
		name = strings.TrimPrefix(name, "static/")
		a.files[name] = newAsset(name, body)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("load static files: %w", err)
	}
	for slug := range recipes {
		name := pictureName(slug)
		a.files[name] = newAsset(name, drawPizza(slug))
	}
	all := sha256.New()
	names := make([]string, 0, len(a.files))
	for name := range a.files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(all, "%s %s\n", name, a.files[name].etag)
	}
	a.version = hex.EncodeToString(all.Sum(nil)[:8])
	return a, nil
}

func pictureName(slug string) string { return "pizzas/" + slug + ".svg" }

// versionedURL is the path under which pages link to a file.
func (a *assets) versionedURL(name string) string { return "/static/v-" + a.version + "/" + name }

// pictureURL is the path of a pizza's picture, given its image on the menu. The
// content security policy allows our own host only, so an image of another host
// is replaced by a drawn pizza.
func (a *assets) pictureURL(image string) string {
	name, ours := strings.CutPrefix(image, "/static/")
	switch {
	case ours && a.files[name].body != nil:
		return a.versionedURL(name)
	case strings.HasPrefix(image, "/") && !strings.HasPrefix(image, "//") && !strings.HasPrefix(image, `/\`):
		return image
	}
	return "/static/" + pictureName("pizza")
}

func (s *Service) handleGetStatic(w http.ResponseWriter, r *http.Request) {
	name, cache := r.PathValue("name"), "no-cache"
	if rest, versioned := strings.CutPrefix(name, "v-"); versioned {
		var version string
		version, name, _ = strings.Cut(rest, "/")
		if version == s.assets.version {
			cache = "public, max-age=31536000, immutable"
		}
	}
	file, ok := s.assets.files[name]
	if slug, picture := strings.CutPrefix(name, "pizzas/"); !ok && picture {
		slug, ok = strings.CutSuffix(slug, ".svg")
		ok = ok && slug != "" && len(slug) <= 100
		file = newAsset(name, drawPizza(slug))
	}
	if !ok {
		s.handleNotFound(w, r)
		return
	}
	h := w.Header()
	h.Set("Content-Type", file.contentType)
	h.Set("Cache-Control", cache)
	h.Set("ETag", file.etag)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file.body))
}

func (s *Service) handleGetRobots(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "public, max-age=86400")
	fmt.Fprint(w, "User-agent: *\nDisallow: /orders\nDisallow: /api/\n")
}
