package controlplane

import (
	"strings"
	"testing"
	"time"
)

func TestLinksThatNeedAPersonAreAlerts(t *testing.T) {
	now := time.Now()
	ms := func(n float64) *float64 { return &n }
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	for name, c := range map[string]struct {
		link LinkStatus
		want string // "" is no alert
	}{
		"well":               {LinkStatus{State: LinkUp, Since: ago(time.Hour), LagMS: ms(40), Gaps: 2}, ""},
		"down for a moment":  {LinkStatus{State: LinkDown, Since: ago(time.Second), Problem: "no agent"}, ""},
		"down":               {LinkStatus{State: LinkDown, Since: ago(time.Minute), Problem: "no agent"}, "for 1m0s: no agent"},
		"paused":             {LinkStatus{State: LinkPaused, Since: ago(time.Minute), LagMS: ms(60000)}, "as an operator asked"},
		"behind":             {LinkStatus{State: LinkUp, LagMS: ms(9000)}, "9 s behind"},
		"a fence on its way": {LinkStatus{State: LinkUp, Journals: []JournalStatus{{Fences: []FenceStatus{{Since: ago(5 * time.Second)}}}}}, ""},
		"an old fence": {LinkStatus{State: LinkUp, Journals: []JournalStatus{{Shard: "p-0", Fences: []FenceStatus{{Reason: "lost", Since: ago(time.Minute)}}}}},
			"a fence of shard p-0 (lost) is not carried out for 1m0s"},
	} {
		c.link.From, c.link.To, c.link.Pool = "here", "there", "p"
		got := RegionsStatus{Links: []LinkStatus{c.link}}.alerts(now)
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s: %+v, want no alert", name, got)
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0].Message, c.want) || got[0].Subject != "here to there, p" || got[0].Remedy == ""):
			t.Errorf("%s: %+v, want one alert that says %q", name, got, c.want)
		}
	}
}
