package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

// Limits of the API.
const (
	maxTweet = 280 // characters
	maxBio   = 300
	maxBody  = 8 << 10 // bytes

	maxFanOutBody = 64 << 10
	fanOutPath    = "/internal/fanout"
)

// forwardedBy is the header with which an app passes a request on to the user's home, once.
const forwardedBy = "Twitter-Forwarded-By"

// apiError is an answer of 400 and above.
type apiError struct {
	status  int
	message string
}

func (e apiError) Error() string { return e.message }

func (a *App) routes() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, h func(http.ResponseWriter, *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			a.requests.Add(1)
			if err := h(w, r); err != nil {
				a.fail(w, r, err)
			}
		})
	}
	handle("POST /tweets", a.postTweet)
	handle("GET /tweets/{id}", a.getTweet)
	handle("GET /timeline/{id}", a.getTimeline)
	handle("GET /users/{id}", a.getUser)
	handle("PATCH /users/{id}", a.patchUser)
	handle("GET /trending", a.getTrending)
	handle("POST "+fanOutPath, a.postFanOut)
	handle("/", func(_ http.ResponseWriter, r *http.Request) error {
		return apiError{http.StatusNotFound, fmt.Sprintf("there is no %s %s", r.Method, r.URL.Path)}
	})
	if a.LoaderToken != "" {
		mux.HandleFunc("POST "+loaderPath, func(w http.ResponseWriter, r *http.Request) {
			if err := a.postLoader(w, r); err != nil {
				a.fail(w, r, err)
			}
		})
	}
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, http.StatusOK, a.Stats()) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := a.Store.Ping(r.Context()); err != nil {
			writeJSON(w, http.StatusServiceUnavailable, map[string]string{"error": "the database does not answer"})
			return
		}
		writeJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	return mux
}

func (a *App) postTweet(w http.ResponseWriter, r *http.Request) error {
	var in struct {
		User int64  `json:"user"`
		Text string `json:"text"`
		Geo  *Place `json:"geo"`
	}
	if err := decode(w, r, maxBody, &in); err != nil {
		return err
	}
	if in.User <= 0 {
		return apiError{http.StatusBadRequest, `"user" must be a positive number`}
	}
	if strings.TrimSpace(in.Text) == "" {
		return apiError{http.StatusBadRequest, `"text" must not be empty`}
	}
	if err := checkText("text", in.Text, maxTweet); err != nil {
		return err
	}
	if g := in.Geo; g != nil && (math.Abs(g.Latitude) > 90 || math.Abs(g.Longitude) > 180) {
		return apiError{http.StatusBadRequest, `"geo" has a latitude of -90 to 90 and a longitude of -180 to 180`}
	}
	if passed, err := a.passOn(w, r, in.User); passed || err != nil {
		return err
	}
	t, followers, err := a.Store.Post(r.Context(), in.User, in.Text, time.Now())
	if err != nil {
		return err
	}
	a.Events.tell(event{Type: "tweet.created", ID: t.ID, Author: eventAuthor{ID: t.User, Home: a.Region, Followers: len(followers)}, Geo: in.Geo, At: t.At})
	a.startFanOut(t, followers)
	writeJSON(w, http.StatusCreated, t)
	return nil
}

func (a *App) getTweet(w http.ResponseWriter, r *http.Request) error {
	id, err := pathID(r)
	if err != nil {
		return err
	}
	tweets, err := a.tweets(r.Context(), []int64{id})
	if err != nil {
		return err
	}
	if len(tweets) == 0 {
		return apiError{http.StatusNotFound, fmt.Sprintf("there is no tweet %d", id)}
	}
	writeText(w, tweets[0])
	return nil
}

func (a *App) getTimeline(w http.ResponseWriter, r *http.Request) error {
	user, err := pathID(r)
	if err != nil {
		return err
	}
	if passed, err := a.passOn(w, r, user); passed || err != nil {
		return err
	}
	ids, err := a.timeline(r.Context(), user)
	if err != nil {
		return err
	}
	tweets, err := a.tweets(r.Context(), ids)
	if err != nil {
		return err
	}
	writeText(w, `{"user":`+strconv.FormatInt(user, 10)+`,"tweets":[`+strings.Join(tweets, ",")+`]}`)
	return nil
}

func (a *App) getUser(w http.ResponseWriter, r *http.Request) error {
	user, err := pathID(r)
	if err != nil {
		return err
	}
	if passed, err := a.passOnProfile(w, r, user); passed || err != nil {
		return err
	}
	profile, err := a.profile(r.Context(), user)
	if err != nil {
		return err
	}
	writeText(w, profile)
	return nil
}

func (a *App) patchUser(w http.ResponseWriter, r *http.Request) error {
	user, err := pathID(r)
	if err != nil {
		return err
	}
	var in struct {
		Bio *string `json:"bio"`
	}
	if err := decode(w, r, maxBody, &in); err != nil {
		return err
	}
	if in.Bio == nil {
		return apiError{http.StatusBadRequest, `"bio" is missing`}
	}
	if err := checkText("bio", *in.Bio, maxBio); err != nil {
		return err
	}
	if passed, err := a.passOnProfile(w, r, user); passed || err != nil {
		return err
	}
	if err := a.Store.SetBio(r.Context(), user, *in.Bio); err != nil {
		return err
	}
	a.forget(r.Context(), profileKey(user))
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (a *App) getTrending(w http.ResponseWriter, r *http.Request) error {
	trends, err := a.trending(r.Context())
	if err != nil {
		return err
	}
	writeText(w, trends)
	return nil
}

// postFanOut is for the apps of other regions.
func (a *App) postFanOut(w http.ResponseWriter, r *http.Request) error {
	var in fanOut
	if err := decode(w, r, maxFanOutBody, &in); err != nil {
		return err
	}
	if in.Tweet.ID <= 0 || in.Tweet.User <= 0 || len(in.Followers) == 0 || len(in.Followers) > fanOutBatch {
		return apiError{http.StatusBadRequest, fmt.Sprintf("a fan-out has a tweet and 1 to %d followers", fanOutBatch)}
	}
	a.applyFanOut(r.Context(), in, a.Events == nil)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// passOn lets the app of the user's home region answer, if that is another one.
func (a *App) passOn(w http.ResponseWriter, r *http.Request, user int64) (passed bool, err error) {
	home, err := a.home(r.Context(), user)
	if err != nil || home == a.Region {
		return false, err
	}
	if from := r.Header.Get(forwardedBy); from != "" {
		return false, apiError{http.StatusMisdirectedRequest,
			fmt.Sprintf("%s passed a request for user %d to %s, but the user's home is %s: correct its --peers", from, user, a.Region, home)}
	}
	proxy := a.proxies[home]
	if proxy == nil {
		return false, apiError{http.StatusServiceUnavailable,
			fmt.Sprintf("user %d lives in %s, which this app has no peer for: name it with --peers", user, home)}
	}
	proxy.ServeHTTP(w, r)
	return true, nil
}

func (a *App) passOnProfile(w http.ResponseWriter, r *http.Request, user int64) (passed bool, err error) {
	if a.Coherent {
		return false, nil
	}
	return a.passOn(w, r, user)
}

func (a *App) newProxy(region string, peer *url.URL, transport http.RoundTripper) *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(peer)
			p.Out.Header.Set(forwardedBy, a.Region)
		},
		ModifyResponse: func(resp *http.Response) error {
			if resp.StatusCode >= http.StatusInternalServerError {
				a.errors.Add(1)
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			a.fail(w, r, apiError{http.StatusBadGateway, fmt.Sprintf("region %s does not answer: %v", region, err)})
		},
	}
}

func (a *App) fail(w http.ResponseWriter, r *http.Request, err error) {
	var answer apiError
	switch {
	case errors.As(err, &answer):
	case errors.Is(err, store.ErrNotFound):
		answer = apiError{http.StatusNotFound, err.Error()}
	case r.Context().Err() != nil:
		return // the client has gone
	default:
		a.Log.Error("request failed", "method", r.Method, "path", r.URL.Path, "error", err)
		answer = apiError{http.StatusInternalServerError, "the database does not answer as it should"}
	}
	if answer.status >= http.StatusInternalServerError {
		a.errors.Add(1)
	}
	writeJSON(w, answer.status, map[string]string{"error": answer.message})
}

// decode reads a JSON body of limited size, and leaves it to be read again by a proxy.
func decode(w http.ResponseWriter, r *http.Request, limit int64, into any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return apiError{http.StatusRequestEntityTooLarge, fmt.Sprintf("the body is larger than %d bytes", limit)}
	}
	if err != nil {
		return apiError{http.StatusBadRequest, "the body ended early"}
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return apiError{http.StatusBadRequest, "the body must be a JSON object: " + strings.TrimPrefix(err.Error(), "json: ")}
	}
	if _, err := dec.Token(); err != io.EOF {
		return apiError{http.StatusBadRequest, "the body must be one JSON object"}
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return nil
}

// checkText refuses what is too long or what a database does not take.
func checkText(field, text string, limit int) error {
	if n := utf8.RuneCountInString(text); n > limit {
		return apiError{http.StatusBadRequest, fmt.Sprintf("%q has %d characters: at most %d", field, n, limit)}
	}
	if strings.ContainsRune(text, 0) {
		return apiError{http.StatusBadRequest, fmt.Sprintf("%q must not contain NUL", field)}
	}
	return nil
}

func pathID(r *http.Request) (int64, error) {
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil || id <= 0 {
		return 0, apiError{http.StatusBadRequest, fmt.Sprintf("%q is no id: use a positive number", r.PathValue("id"))}
	}
	return id, nil
}

// writeText answers with what is JSON already.
func writeText(w http.ResponseWriter, text string) {
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, text) // an error means that the client has gone
}

func writeJSON(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(value) // an error means that the client has gone
}
