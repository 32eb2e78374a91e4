package day

import "time"

// curve is how much is asked for at each hour of the day where the users are, of the most that is: people sleep, get up, and have evenings. It is an
// assumption; the measurements of caches in production say nothing of the hour.
var curve = [24]float64{0.35, 0.2, 0.1, 0.06, 0.05, 0.08, 0.2, 0.7, 1, 0.9, 0.7, 0.6, 0.65, 0.65, 0.6, 0.6, 0.62, 0.7, 0.8, 0.9, 1, 1, 0.9, 0.7}

// posting is how many of those post who would in the evening, when most do. There is news in the morning, too.
var posting = [24]float64{0.8, 0.6, 0.5, 0.4, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.2, 0.4, 0.7, 0.85, 1, 1, 1, 0.9}

// catchingUp is which part of the requests is for what has spread while people slept, whatever of it: in the morning they look through it.
func catchingUp(at time.Time) float64 {
	if hour := at.Hour(); hour >= morning && hour < morningEnd {
		return 0.5
	}
	return 0
}

// The morning peak, of the region's own time.
const (
	morning    = 7
	morningEnd = 10
)

// level is what share of the most is asked for at a time, of the time's zone.
func level(at time.Time) float64 {
	return between(curve, at)
}

// between takes the part of the hour that is over.
func between(hours [24]float64, at time.Time) float64 {
	part := float64(at.Minute()*60+at.Second()) / 3600
	return hours[at.Hour()]*(1-part) + hours[(at.Hour()+1)%24]*part
}
