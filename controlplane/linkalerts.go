package controlplane

import (
	"fmt"
	"time"
)

const (
	// linkDownAfter is how long a link may be down before that is an alert: another agent takes over sooner.
	linkDownAfter = 5 * time.Second
	// fenceAfter is how long a region may take to carry out a fence.
	fenceAfter = 30 * time.Second
	// lagAfter is how far a region may be behind, in milliseconds.
	lagAfter = 5000
)

// alerts derives from what is known of links what needs a person.
func (s RegionsStatus) alerts(now time.Time) []Alert {
	var found []Alert
	for _, l := range s.Links {
		add := func(remedy, format string, args ...any) {
			found = append(found, Alert{Subject: fmt.Sprintf("%s to %s, %s", l.From, l.To, l.Pool), Message: fmt.Sprintf(format, args...), Remedy: remedy})
		}
		switch {
		case l.State == LinkPaused:
			add("resume it within ten minutes, which is what journals keep: `cachemesh region resume "+l.To+"`", "nothing is sent, as an operator asked %s ago", now.Sub(l.Since).Round(time.Second))
		case l.State == LinkDown && now.Sub(l.Since) > linkDownAfter:
			add("mend it within ten minutes, which is what journals keep; until then "+l.To+" may serve old values", "writes are not told for %s: %s", now.Sub(l.Since).Round(time.Second), l.Problem)
		case l.LagMS != nil && *l.LagMS > lagAfter:
			add("`cachemesh region status --watch` tells whether it catches up", "%s is %.0f s behind", l.To, *l.LagMS/1000)
		}
		for _, j := range l.Journals {
			for _, f := range j.Fences {
				if age := now.Sub(f.Since); age > fenceAfter {
					add("see whether "+l.To+"'s shards answer; until then it may serve old values", "a fence of shard %s (%s) is not carried out for %s", j.Shard, f.Reason, age.Round(time.Second))
				}
			}
		}
	}
	return found
}
