package load

import "context"

func (j *job) look(ctx context.Context) { <-ctx.Done() }
