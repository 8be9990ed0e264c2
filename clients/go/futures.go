package tinkergate

import (
	"context"
	"sync"

	v1 "tinkergate.example/tinkergate/v1"
)

// acceptance is what the gateway says to a submission, once it has.
type acceptance struct {
	mutex      sync.Mutex
	started    bool
	done       chan struct{}
	operations []*v1.Operation
	err        error
}

func newAcceptance() *acceptance { return &acceptance{done: make(chan struct{})} }

// begin marks it as being sent; false if it was cancelled before.
func (a *acceptance) begin() bool {
	a.mutex.Lock()
	defer a.mutex.Unlock()
	if a.started {
		return false
	}
	a.started = true
	return true
}

// settle tells the outcome, after a begin that answered true.
func (a *acceptance) settle(operations []*v1.Operation, err error) {
	a.operations, a.err = operations, err
	close(a.done)
}

// Future is the result of an operation, or of the several that a large call was split into. Safe
// for concurrent use.
//
// The gateway keeps the result for a while: waiting goes on by the operation's name when the
// connection breaks, and any other client may wait for it too ([Client.Operation]).
type Future[Result any] struct {
	connection *connection
	accepted   *acceptance
	read       func([]*v1.Operation) (Result, error)

	mutex    sync.Mutex
	finished []*v1.Operation
}

// accepted is the future of one operation that was accepted before.
func accepted[Result any](
	connection *connection, operation *v1.Operation, read func([]*v1.Operation) (Result, error),
) *Future[Result] {
	known := newAcceptance()
	known.begin()
	known.settle([]*v1.Operation{operation}, nil)
	return &Future[Result]{connection: connection, accepted: known, read: read}
}

// Accepted waits until the gateway has accepted the work, and answers the operations as they were
// then, with their names and seq_ids.
func (f *Future[Result]) Accepted(ctx context.Context) ([]*v1.Operation, error) {
	select {
	case <-f.accepted.done:
		return f.accepted.operations, f.accepted.err
	case <-ctx.Done():
		return nil, errorFromContext(ctx)
	}
}

// Name is the operation's name; the first one's if the call was split. Waits until the gateway has
// accepted the work.
func (f *Future[Result]) Name(ctx context.Context) (string, error) {
	operations, err := f.Accepted(ctx)
	if err != nil {
		return "", err
	}
	return operations[0].Name, nil
}

// Wait waits for the result. A context that ends ends the waiting, not the work: wait again.
func (f *Future[Result]) Wait(ctx context.Context) (Result, error) {
	var none Result
	operations, err := f.Accepted(ctx)
	if err != nil {
		return none, err
	}
	f.mutex.Lock()
	finished := f.finished
	f.mutex.Unlock()
	if finished == nil {
		for _, operation := range operations {
			done, err := waitFor(ctx, f.connection, operation)
			if err != nil {
				return none, err
			}
			finished = append(finished, done)
		}
		f.mutex.Lock()
		f.finished = finished
		f.mutex.Unlock()
	}
	for _, operation := range finished {
		if err := errorFromOperation(operation); err != nil {
			return none, err
		}
	}
	return f.read(finished)
}

// Cancel asks that the work take no effect, and answers whether all of it was cancelled. Work that
// the gateway is already doing is cancelled only if that leaves nothing half-done.
func (f *Future[Result]) Cancel(ctx context.Context) (bool, error) {
	if f.accepted.begin() {
		f.accepted.settle(nil, cancelledBefore())
		return true, nil
	}
	operations, err := f.Accepted(ctx)
	if err != nil {
		return false, err
	}
	all := true
	for _, operation := range operations {
		answer, err := call(ctx, f.connection, f.connection.operations.CancelOperation,
			&v1.CancelOperationRequest{Name: operation.Name}, attempt{})
		if err != nil {
			return false, err
		}
		all = all && answer.Operation.State == v1.OperationState_OPERATION_STATE_CANCELLED
	}
	return all, nil
}

// waitFor asks for an operation, by its name, until it is done.
func waitFor(
	ctx context.Context, c *connection, operation *v1.Operation,
) (*v1.Operation, error) {
	// The gateway answers after MaxWait at the latest; after that the connection is dead.
	longest := c.limits.MaxWait.AsDuration() + answerMargin
	for !isDone(operation) {
		if ctx.Err() != nil {
			return nil, errorFromContext(ctx)
		}
		// The gateway answers before a call's own deadline. Were it told the caller's, the last
		// moments before that would be spent in asking over and over.
		free, cancel := context.WithCancel(context.WithoutCancel(ctx))
		stop := context.AfterFunc(ctx, cancel)
		answer, err := call(free, c, c.operations.WaitOperation,
			&v1.WaitOperationRequest{Name: operation.Name}, attempt{timeout: longest})
		stop()
		cancel()
		if ctx.Err() != nil && err != nil {
			return nil, errorFromContext(ctx)
		}
		if err != nil {
			return nil, err
		}
		operation = answer.Operation
	}
	return operation, nil
}

func isDone(operation *v1.Operation) bool {
	switch operation.State {
	case v1.OperationState_OPERATION_STATE_SUCCEEDED, v1.OperationState_OPERATION_STATE_FAILED,
		v1.OperationState_OPERATION_STATE_CANCELLED:
		return true
	}
	return false
}
