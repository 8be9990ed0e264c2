package tinkergate

import (
	"container/heap"
	"context"
	"errors"
	"slices"
	"sync"

	"google.golang.org/grpc"

	v1 "tinkergate.example/tinkergate/v1"
)

// modelRequest is one request of a model, of whatever kind.
type modelRequest struct {
	send func(context.Context, attempt) (*v1.Operation, error)
	// place is the request's seq_id; nil for one that has none, and comes when it comes.
	place **int32
}

// requestOf wraps a request. place is where its seq_id goes.
func requestOf[Request any](
	c *connection, method rpc[Request, v1.Operation], request *Request, place **int32,
) modelRequest {
	return modelRequest{
		send: func(ctx context.Context, how attempt) (*v1.Operation, error) {
			return call(ctx, c, method, request, how)
		},
		place: place,
	}
}

// submission is one call of the caller's: a request, or the chunks of a large one, accepted
// together. They are prepared when its turn comes, which holds the place of what cannot be known
// before.
type submission struct {
	prepare  func(context.Context) ([]modelRequest, error)
	accepted *acceptance
}

const maxWaiting = 1024

// submitter sends what is submitted for one model: in order, each exactly once.
//
// A request that the gateway rejects takes no seq_id, so the next id is known only once the answer
// is there: one goroutine a model sends request after request, and the caller goes on meanwhile.
// While no gateway answers, the same request is sent again under the same seq_id, which the
// gateway answers with the same operation.
type submitter struct {
	connection *connection
	modelID    string
	alive      context.Context
	end        context.CancelFunc
	// Bounded, so that a program that is faster than the gateway waits instead of piling up.
	waiting chan *submission

	// mutex makes the order of calls the order of the queue.
	mutex  sync.Mutex
	used   bool
	closed bool

	// Of the goroutine alone.
	next       int32
	returned   idHeap // ids below the next that nothing took
	leftHoles  bool
	placeKnown bool
}

func newSubmitter(c *connection, modelID string, next int32) *submitter {
	alive, end := context.WithCancel(c.alive)
	return &submitter{
		connection: c, modelID: modelID, alive: alive, end: end, next: next, placeKnown: true,
		waiting: make(chan *submission, maxWaiting),
	}
}

// submit puts a call behind those before it.
func (s *submitter) submit(prepare func(context.Context) ([]modelRequest, error)) *acceptance {
	made := &submission{prepare, newAcceptance()}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if !s.closed && s.alive.Err() == nil {
		if !s.used {
			s.used = true
			go s.run()
		}
		select {
		case s.waiting <- made:
			return made.accepted
		case <-s.alive.Done():
		}
	}
	made.accepted.begin()
	made.accepted.settle(nil, clientClosed())
	return made.accepted
}

// isUsed tells whether anything was submitted, and more may be.
func (s *submitter) isUsed() bool {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.used && !s.closed
}

// close takes nothing more; what waits fails.
func (s *submitter) close() { s.end() }

func (s *submitter) run() {
	for {
		select {
		case next := <-s.waiting:
			s.handle(next)
		case <-s.alive.Done():
			// With the lock nobody is in the middle of submitting.
			s.mutex.Lock()
			defer s.mutex.Unlock()
			s.closed = true
			s.failWaiting(clientClosed())
			return
		}
	}
}

func (s *submitter) handle(next *submission) {
	if !next.accepted.begin() {
		return
	}
	requests, err := next.prepare(s.alive)
	if err != nil {
		next.accepted.settle(nil, err)
		return
	}
	operations, err := s.send(requests)
	next.accepted.settle(operations, err)
	if err != nil && !s.placeKnown {
		// What waits was meant to follow what is lost.
		s.failWaiting(err)
	}
}

func (s *submitter) failWaiting(err error) {
	for {
		select {
		case next := <-s.waiting:
			if next.accepted.begin() {
				next.accepted.settle(nil, err)
			}
		default:
			return
		}
	}
}

func (s *submitter) send(requests []modelRequest) ([]*v1.Operation, error) {
	if !s.placeKnown {
		if err := s.findPlace(); err != nil {
			return nil, err
		}
	}
	operations, err := s.sendOnce(requests)
	var failure *Error
	if err == nil || !errors.As(err, &failure) || failure.Reason != "SEQUENCE_PASSED" || !s.leftHoles {
		return operations, err
	}
	// The gateway waits for a hole only for a while, then goes on after it.
	if err := s.findPlace(); err != nil {
		return nil, err
	}
	return s.sendOnce(requests)
}

// findPlace asks the gateway which seq_id comes next.
func (s *submitter) findPlace() error {
	answer, err := call(s.alive, s.connection, s.connection.models.GetModel,
		&v1.GetModelRequest{ModelId: s.modelID}, attempt{})
	if err != nil {
		return err
	}
	s.next, s.returned = answer.Model.NextSeqId, nil
	s.leftHoles, s.placeKnown = false, true
	return nil
}

func (s *submitter) sendOnce(requests []modelRequest) ([]*v1.Operation, error) {
	for _, request := range requests {
		if request.place != nil {
			*request.place = Ptr(s.takeID())
		}
	}
	operations := make([]*v1.Operation, len(requests))
	err := s.sendFirstLast(requests, operations)
	if err == nil {
		return operations, nil
	}
	if isRejection(err) {
		s.withdraw(requests, operations)
	} else {
		s.placeKnown = false
	}
	return nil, err
}

// sendFirstLast sends the chunks of a call, the first one last: until it arrives the others are
// parked, so that a call of which one chunk is rejected can be withdrawn as a whole.
func (s *submitter) sendFirstLast(requests []modelRequest, operations []*v1.Operation) error {
	send := func(index int, how attempt) (err error) {
		operations[index], err = requests[index].send(s.alive, how)
		return err
	}
	for index := 1; index < len(requests); index++ {
		err := send(index, attempt{noRoom: operations[0] == nil})
		var failure *Error
		if err != nil && errors.As(err, &failure) && failure.Reason == "QUEUE_FULL" &&
			operations[0] == nil {
			// More than the queue holds: only work that runs makes room.
			if err = send(0, attempt{}); err == nil {
				err = send(index, attempt{})
			}
		}
		if err != nil {
			return err
		}
	}
	if operations[0] == nil {
		return send(0, attempt{})
	}
	return nil
}

// withdraw cancels the accepted chunks, and takes back the ids of the others.
func (s *submitter) withdraw(requests []modelRequest, operations []*v1.Operation) {
	for index, request := range requests {
		if operations[index] != nil {
			s.leftHoles = true
			_, err := call(s.alive, s.connection, s.connection.operations.CancelOperation,
				&v1.CancelOperationRequest{Name: operations[index].Name}, attempt{})
			if err != nil {
				s.placeKnown = false
			}
		} else if request.place != nil {
			heap.Push(&s.returned, **request.place)
		}
	}
}

func (s *submitter) takeID() int32 {
	if len(s.returned) > 0 {
		return heap.Pop(&s.returned).(int32)
	}
	s.next++
	return s.next - 1
}

// isRejection tells whether it is certain that the request took no place in the order.
func isRejection(err error) bool {
	var failure *Error
	return errors.As(err, &failure) && slices.Contains([]Kind{
		AccessDenied, FailedPrecondition, InvalidRequest, NotFound, Overloaded, Unsupported,
	}, failure.Kind)
}

type idHeap []int32

func (h idHeap) Len() int           { return len(h) }
func (h idHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h idHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *idHeap) Push(id any)       { *h = append(*h, id.(int32)) }
func (h *idHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// submit puts requests in the model's order and answers the future of their result.
func submit[Result any](
	s *submitter, read func([]*v1.Operation) (Result, error),
	prepare func(context.Context) ([]modelRequest, error),
) *Future[Result] {
	return &Future[Result]{connection: s.connection, accepted: s.submit(prepare), read: read}
}

// submitOne is submit for one request that is ready.
func submitOne[Request, Result any](
	s *submitter, method func(context.Context, *Request, ...grpc.CallOption) (*v1.Operation, error),
	request *Request, place **int32, read func(*v1.Operation) Result,
) *Future[Result] {
	ready := []modelRequest{requestOf(s.connection, method, request, place)}
	return submit(s,
		func(operations []*v1.Operation) (Result, error) { return read(operations[0]), nil },
		func(context.Context) ([]modelRequest, error) { return ready, nil })
}
