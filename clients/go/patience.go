package tinkergate

import (
	"context"
	"math/rand/v2"
	"time"
)

const (
	firstDelay   = 50 * time.Millisecond
	longestDelay = 5 * time.Second
)

// patience says how long to wait before a call is tried again, and when to give up.
//
// A full queue is waited for without end: the gateway lives and says when to come back. While no
// gateway answers, waits grow from 50 ms to 5 s, until most have passed in a row.
type patience struct {
	most     time.Duration
	noRoom   bool // do not wait for room in the queue
	since    time.Time
	attempts uint
}

// delayAfter is how long to wait before the next attempt; false if the failure is final.
func (p *patience) delayAfter(failure *Error) (time.Duration, bool) {
	if failure.Reason == "QUEUE_FULL" {
		p.since, p.attempts = time.Time{}, 0
		return max(failure.RetryAfter, firstDelay), !p.noRoom
	}
	passing := failure.Reason == "SHUTTING_DOWN" || failure.Reason == "BACKEND_UNAVAILABLE"
	if failure.Kind != GatewayUnreachable && !passing {
		return 0, false
	}
	if p.since.IsZero() {
		p.since = time.Now()
	}
	if time.Since(p.since) >= p.most {
		return 0, false
	}
	// Half of each delay is random, so that many clients do not come back at once.
	delay := min(firstDelay<<p.attempts, longestDelay)
	delay = delay/2 + rand.N(delay/2)
	p.attempts = min(p.attempts+1, 16)
	return max(delay, failure.RetryAfter), true
}

// sleep waits; false if the context ended first.
func sleep(ctx context.Context, delay time.Duration) bool {
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
