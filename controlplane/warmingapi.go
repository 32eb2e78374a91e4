package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cachemesh/cachemesh/mesh"
	"github.com/cachemesh/cachemesh/warming"
)

// maxPlanBytes is what a file of plans may have.
const maxPlanBytes = 1 << 20

// maxConcurrency is that of mesh.yaml.
const maxConcurrency = 256

// PlanFile is the body of POST /v1/warming/plans: plans to be applied to the region.
type PlanFile struct {
	Name    string `json:"name"` // for errors
	Content string `json:"content"`
}

// CopyRequest is the body of POST /v1/warming/copy: keys that the region is to have from another.
type CopyRequest struct {
	From   string      `json:"from"`
	Route  string      `json:"route"`
	Budget mesh.Budget `json:"budget,omitzero"`
}

// warmingAPI is the part of the HTTP API about warming. Only the control plane that leads knows; the others send whoever asks there.
type warmingAPI struct {
	commandAPI
	warmer *warmer
}

func (a warmingAPI) register(mux *http.ServeMux) {
	mux.HandleFunc("GET /v1/warming", func(w http.ResponseWriter, r *http.Request) {
		if s := a.known(w, r); s != nil {
			writeJSON(w, http.StatusOK, s)
		}
	})
	mux.HandleFunc("GET /v1/warming/runs", func(w http.ResponseWriter, r *http.Request) {
		if s := a.known(w, r); s != nil {
			writeJSON(w, http.StatusOK, WarmingRuns{s.Region, s.Runs})
		}
	})
	mux.HandleFunc("POST /v1/warming/plans", a.apply)
	mux.HandleFunc("POST /v1/warming/plans/{name}/run", func(w http.ResponseWriter, r *http.Request) {
		a.command(w, r, &struct{}{}, func(ctx context.Context) (any, error) { return a.warmer.manual(ctx, r.PathValue("name")) })
	})
	mux.HandleFunc("POST /v1/warming/plans/{name}/remove", func(w http.ResponseWriter, r *http.Request) {
		a.command(w, r, &struct{}{}, func(ctx context.Context) (any, error) { return a.warmer.withdraw(ctx, r.PathValue("name")) })
	})
	mux.HandleFunc("POST /v1/warming/copy", func(w http.ResponseWriter, r *http.Request) {
		var wanted CopyRequest
		a.command(w, r, &wanted, func(ctx context.Context) (any, error) { return a.warmer.copy(ctx, wanted) })
	})
	for verb, to := range map[string]warming.State{"pause": warming.Paused, "resume": warming.Running, "cancel": warming.Cancelled} {
		mux.HandleFunc("POST /v1/warming/runs/{id}/"+verb, func(w http.ResponseWriter, r *http.Request) {
			a.command(w, r, &struct{}{}, func(ctx context.Context) (any, error) {
				record, err := a.warmer.steer(ctx, r.PathValue("id"), to)
				return runStatus(&record, time.Now()), err
			})
		})
	}
}

// known is how things are, if this control plane leads; else it has answered.
func (a warmingAPI) known(w http.ResponseWriter, r *http.Request) *WarmingStatus {
	if err := a.warmer.leads(); err != nil {
		a.refuse(w, r, err)
		return nil
	}
	s := a.warmer.shown.Load()
	if !s.Leading {
		writeError(w, http.StatusServiceUnavailable, errors.New("this control plane has just come to lead: ask again"))
		return nil
	}
	return s
}

// command answers with what the loop says.
func (a warmingAPI) command(w http.ResponseWriter, r *http.Request, body any, do func(context.Context) (any, error)) {
	if !a.accepts(w, r, body) {
		return
	}
	a.answer(w, r, do)
}

func (a warmingAPI) answer(w http.ResponseWriter, r *http.Request, do func(context.Context) (any, error)) {
	var answer any
	err := a.warmer.order(r.Context(), func(ctx context.Context) (err error) {
		answer, err = do(ctx)
		return err
	})
	var problems mesh.Problems
	switch {
	case errors.As(err, &problems):
		writeError(w, http.StatusBadRequest, problems)
	case err != nil:
		a.refuse(w, r, err)
	default:
		writeJSON(w, http.StatusOK, answer)
	}
}

func (a warmingAPI) apply(w http.ResponseWriter, r *http.Request) {
	var file PlanFile
	if a.acceptsUpTo(maxPlanBytes, w, r, &file) {
		a.answer(w, r, func(ctx context.Context) (any, error) { return a.warmer.apply(ctx, file) })
	}
}

// apply takes all plans of a file, or none.
func (w *warmer) apply(ctx context.Context, file PlanFile) (*PlansApplied, error) {
	if w.compiled == nil {
		return nil, errors.New("the mesh is not known yet")
	}
	with, err := w.compiled.LoadPlans(file.Name, []byte(file.Content))
	if err != nil {
		return nil, err
	}
	all, problems := warming.Compile(with)
	for i, p := range with.Warming.Plans {
		if w.inMesh(p.Name) {
			problems = append(problems, with.Locate(mesh.Problem{Field: fmt.Sprintf("warming.plans[%d].name", i), Message: fmt.Sprintf("mesh.yaml has a plan %q", p.Name), Remedy: "change it there, or rename this one"}))
		}
	}
	if err := w.ready(); err != nil {
		return nil, err
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if err := w.change(ctx, func(b *warming.Book) error { return b.Apply(with.Warming.Plans) }); err != nil {
		return nil, err
	}
	w.compiled = nil
	w.compile()
	applied := &PlansApplied{Region: w.region, Plans: []string{}}
	for _, p := range all {
		applied.Plans = append(applied.Plans, p.Name)
	}
	w.log.Info("an operator applies plans of warming", "plans", applied.Plans)
	return applied, nil
}

func (w *warmer) inMesh(plan string) bool {
	m := w.compiled
	return m.Warming != nil && slices.ContainsFunc(m.Warming.Plans, func(p mesh.Plan) bool { return p.Name == plan })
}

// ready says whether agents know what warming needs.
func (w *warmer) ready() error {
	if w.compiled == nil || w.compiled.Warming == nil {
		return errors.New("mesh.yaml has no warming section, so sidecars do not know of other regions: add `warming: {}` to it")
	}
	return nil
}

// withdraw removes a plan that was applied.
func (w *warmer) withdraw(ctx context.Context, name string) (*PlansApplied, error) {
	if err := w.change(ctx, func(b *warming.Book) error { return b.Withdraw(name) }); err != nil {
		return nil, err
	}
	w.log.Info("an operator removes a plan of warming", "plan", name)
	w.compiled = nil
	w.compile()
	return &PlansApplied{Region: w.region, Plans: []string{name}}, nil
}

// manual begins a plan because an operator asks for it.
func (w *warmer) manual(ctx context.Context, name string) (*RunStatus, error) {
	p := w.plans[name]
	switch {
	case p == nil:
		return nil, fmt.Errorf("there is no plan %q: see `cachemesh warm list`", name)
	case !p.Warms(w.region):
		return nil, fmt.Errorf("plan %q does not warm region %q", name, w.region)
	case p.Rule != nil:
		return nil, fmt.Errorf("plan %q runs on events, which say which keys it loads: send one", name)
	}
	r := p.Run(w.region, time.Now())
	if hour, ok := p.Hour(w.now().Add(time.Hour)); ok {
		r.Keys.Hour = &hour
	}
	return w.started(ctx, r)
}

// copy begins a run that is of no plan.
func (w *warmer) copy(ctx context.Context, c CopyRequest) (*RunStatus, error) {
	if err := w.ready(); err != nil {
		return nil, err
	}
	p, err := warming.Copy(w.compiled, c.From, w.region, c.Route)
	if err != nil {
		return nil, err
	}
	r := p.Run(w.region, time.Now())
	if r.Budget = c.Budget.Or(r.Budget); r.Budget.Concurrency > maxConcurrency {
		return nil, fmt.Errorf("a concurrency of %d is too much: choose at most %d", r.Budget.Concurrency, maxConcurrency)
	}
	return w.started(ctx, r)
}

func (w *warmer) started(ctx context.Context, r warming.Run) (*RunStatus, error) {
	if err := w.begin(ctx, r, "manual", time.Time{}, nil); err != nil {
		return nil, err
	}
	record := w.book.Runs[len(w.book.Runs)-1]
	s := runStatus(&record, time.Now())
	return &s, nil
}
