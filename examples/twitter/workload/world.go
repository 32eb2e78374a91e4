package workload

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/cachemesh/cachemesh/examples/twitter/store"
)

// Longest texts, in bytes of the ASCII that this package writes; the application allows as many characters.
const (
	longestTweet = 280
	longestBio   = 300
)

// Parameters describe a world; the same ones always make the same world, but for the tweets' ages.
type Parameters struct {
	Users, Tweets int
	Regions       []string
	Seed          uint64
}

func (p Parameters) String() string {
	return fmt.Sprintf("users=%d tweets=%d regions=%s seed=%d", p.Users, p.Tweets, strings.Join(p.Regions, ","), p.Seed)
}

// NewWorld makes users with homes in turn, who follows whom, and tweets over the day before now.
//
// The facts say nothing about followers. Their numbers follow a power law here, whose exponent by rank (0.83) makes a
// few celebrities whom most follow; a user follows 20 others on average, one in twenty nobody.
func NewWorld(p Parameters, now time.Time) store.World {
	rng := rand.New(rand.NewPCG(p.Seed, 1))
	w := store.World{Parameters: p.String()}
	for i := range p.Users {
		w.Users = append(w.Users, store.User{
			ID: int64(i + 1), Name: fmt.Sprintf("user%d", i+1), Home: p.Regions[i%len(p.Regions)],
			Bio: text(rng, Default.Cluster(Profile).ValueBytes, longestBio), Version: 1,
		})
	}

	const meanFollowed, followerExponent = 20, 0.83
	famous := rng.Perm(p.Users)
	fame := NewZipf(p.Users, followerExponent)
	for i := range p.Users {
		n := min(int(rng.ExpFloat64()*meanFollowed), p.Users/2)
		followed := map[int]bool{i: true}
		for len(followed) <= n {
			f := famous[fame.Draw(rng)]
			if !followed[f] {
				followed[f] = true
				w.Follows = append(w.Follows, store.Follow{Follower: int64(i + 1), Followee: int64(f + 1)})
			}
		}
	}

	start, step := now.Add(-24*time.Hour), 24*time.Hour/time.Duration(max(p.Tweets, 1))
	for i := range p.Tweets {
		w.Tweets = append(w.Tweets, store.Tweet{
			ID: int64(i + 1), User: 1 + rng.Int64N(int64(p.Users)), Text: TweetText(rng),
			At: start.Add(time.Duration(i) * step).UnixMilli(),
		})
	}
	return w
}

// TweetText writes a tweet of a measured size, three in ten with a hashtag.
func TweetText(rng *rand.Rand) string {
	t := text(rng, Default.Cluster(TweetOf).ValueBytes, longestTweet)
	if rng.Float64() < 0.3 {
		if tag := " #" + words[hashtagPopularity.Draw(rng)]; len(t)+len(tag) <= longestTweet {
			t += tag
		}
	}
	return t
}

// BioText writes a bio of a measured size.
func BioText(rng *rand.Rand) string {
	return text(rng, Default.Cluster(Profile).ValueBytes, longestBio)
}

// text writes words of about mean bytes in all. The facts give only the mean; the sizes are log-normal around it.
func text(rng *rand.Rand, mean, longest int) string {
	const sigma = 0.5
	size := min(int(float64(mean)*math.Exp(sigma*rng.NormFloat64()-sigma*sigma/2)), longest)
	var b strings.Builder
	b.WriteString(words[rng.IntN(len(words))])
	for {
		word := words[rng.IntN(len(words))]
		if b.Len()+1+len(word) > size {
			return b.String()
		}
		b.WriteByte(' ')
		b.WriteString(word)
	}
}

var words = strings.Fields(`morning coffee rain train music goal election storm market game night summer winter city river
	mountain bread garden library museum concert movie trailer album song launch rocket moon eclipse ocean reef whale
	forest bicycle marathon match derby penalty season finale episode recipe dinner breakfast festival parade holiday
	travel airport delay traffic bridge school exam science physics climate energy battery robot software keyboard cache
	weekend monday friday birthday wedding puppy kitten photo sunset`)

var hashtagPopularity = NewZipf(len(words), 1)
