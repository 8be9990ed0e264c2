package tinkergate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "tinkergate.example/tinkergate/v1"
)

// Kind is what sort of failure an [Error] is. Kinds are errors themselves, to be given to
// [errors.Is].
type Kind string

// The kinds of failures.
const (
	// GatewayUnreachable: no gateway answered, the connection broke, or this client is closed.
	// What was sent before may have been done.
	GatewayUnreachable Kind = "gateway unreachable"
	// InvalidRequest: the request breaks a rule, and nothing of it was done.
	InvalidRequest Kind = "invalid request"
	// AccessDenied: no API key was sent, a wrong one, or one that may not do this.
	AccessDenied Kind = "access denied"
	// NotFound: there is no such session, model, sampler, checkpoint or operation.
	NotFound Kind = "not found"
	// Conflict: the name is taken, or the same identity was used before with another request.
	Conflict Kind = "conflict"
	// FailedPrecondition: things are not in the state that the request needs.
	FailedPrecondition Kind = "failed precondition"
	// Overloaded: a queue is full, or a bound of the gateway's is passed.
	Overloaded Kind = "overloaded"
	// Unsupported: the backend does not do this.
	Unsupported Kind = "unsupported"
	// OperationFailed: the gateway accepted the work, and the work failed.
	OperationFailed Kind = "operation failed"
	// OperationCancelled: the work was cancelled before it took effect. It is an OperationFailed.
	OperationCancelled Kind = "operation cancelled"
	// Other is every other failure.
	Other Kind = "failed"
)

// Error says the kind in words.
func (k Kind) Error() string { return string(k) }

// Violation is one broken rule of a request.
type Violation struct {
	// Field is the field's path, such as `data[3].loss_fn_inputs["weights"]`.
	Field string
	// Description is the value and the rule that it breaks.
	Description string
}

// Error is the failure of a call, or of the work that it asked for.
type Error struct {
	// Kind is what sort of failure it is.
	Kind Kind
	// Message says what went wrong, for people.
	Message string
	// Code is the gRPC status code.
	Code codes.Code
	// Reason says what went wrong, for programs: a name of ErrorReason without its prefix, such as
	// "CHECKPOINT_NOT_FOUND". Empty if no gateway said so.
	Reason string
	// Violations are the broken rules of a request.
	Violations []Violation
	// RetryAfter is the time after which a retry makes sense; 0 if the gateway did not say.
	RetryAfter time.Duration
	// Backend is the backend that failed or refused; empty if it was the gateway.
	Backend string
	// Metadata holds further facts by name.
	Metadata map[string]string
	// Operation is the name of the operation that failed; empty for failed calls.
	Operation string
	// Retryable tells whether a failed operation, submitted anew, may succeed.
	Retryable bool

	cause error
}

// Error says what went wrong, with the reason.
func (e *Error) Error() string {
	if e.Reason == "" {
		return fmt.Sprintf("tinkergate: %s: %s", e.Kind, e.Message)
	}
	return fmt.Sprintf("tinkergate: %s (%s): %s", e.Kind, e.Reason, e.Message)
}

// Is tells whether target is this error's [Kind].
func (e *Error) Is(target error) bool {
	kind, ok := target.(Kind)
	return ok && (e.Kind == kind || (kind == OperationFailed && e.Kind == OperationCancelled))
}

// Unwrap gives the context's error if it was the caller's context that ended the call.
func (e *Error) Unwrap() error { return e.cause }

var kindOfCode = map[codes.Code]Kind{
	codes.InvalidArgument:    InvalidRequest,
	codes.OutOfRange:         InvalidRequest,
	codes.Unauthenticated:    AccessDenied,
	codes.PermissionDenied:   AccessDenied,
	codes.NotFound:           NotFound,
	codes.AlreadyExists:      Conflict,
	codes.FailedPrecondition: FailedPrecondition,
	codes.ResourceExhausted:  Overloaded,
	codes.Unimplemented:      Unsupported,
}

// errorFromCall is the failure of a call, with the details that the gateway sent.
func errorFromCall(failure error) *Error {
	var known *Error
	if errors.As(failure, &known) {
		return known
	}
	answer := status.Convert(failure)
	made := &Error{Kind: Other, Message: answer.Message(), Code: answer.Code()}
	for _, detail := range answer.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			made.Reason, made.Metadata = detail.Reason, detail.Metadata
			made.Backend = detail.Metadata["backend"]
		case *errdetails.RetryInfo:
			made.RetryAfter = detail.RetryDelay.AsDuration()
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				made.Violations = append(
					made.Violations, Violation{violation.Field, violation.Description})
			}
		}
	}
	if kind, ok := kindOfCode[made.Code]; ok {
		made.Kind = kind
	}
	if made.Reason == "" {
		// Without a reason these come from the connection, not from a gateway.
		switch made.Code {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled:
			made.Kind = GatewayUnreachable
		}
	}
	return made
}

// errorFromContext is what a call ends with whose context ended.
func errorFromContext(ctx context.Context) *Error {
	code := codes.Canceled
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	return &Error{
		Kind: Other, Message: "the caller stopped waiting: " + ctx.Err().Error(), Code: code,
		cause: ctx.Err(),
	}
}

// errorFromOperation is the failure of an operation; nil if it has a result.
func errorFromOperation(operation *v1.Operation) error {
	if operation.ResultExpired {
		return &Error{
			Kind:    OperationFailed,
			Message: "the operation is done, but its result is no longer kept",
			Code:    codes.FailedPrecondition, Reason: "RESULT_EXPIRED", Operation: operation.Name,
		}
	}
	failure := operation.GetError()
	if failure == nil {
		return nil
	}
	kind := OperationFailed
	if codes.Code(failure.Code) == codes.Canceled {
		kind = OperationCancelled
	}
	return &Error{
		Kind: kind, Message: failure.Message, Code: codes.Code(failure.Code),
		Reason:     reasonName(failure.Reason),
		RetryAfter: failure.RetryDelay.AsDuration(), Backend: failure.Backend,
		Metadata: failure.Metadata, Operation: operation.Name, Retryable: failure.Retryable,
	}
}

// reasonName is the reason without its prefix. A newer gateway may know others.
func reasonName(reason v1.ErrorReason) string {
	if name, ok := v1.ErrorReason_name[int32(reason)]; ok {
		return strings.TrimPrefix(name, "ERROR_REASON_")
	}
	return fmt.Sprintf("UNKNOWN_%d", reason)
}

func clientClosed() *Error {
	return &Error{Kind: GatewayUnreachable, Message: "this client is closed", Code: codes.Canceled}
}

func cancelledBefore() *Error {
	return &Error{
		Kind: OperationCancelled, Message: "cancelled before it was done", Code: codes.Canceled,
		Reason: "CANCELLED",
	}
}

func invalid(field, format string, arguments ...any) *Error {
	description := fmt.Sprintf(format, arguments...)
	return &Error{
		Kind: InvalidRequest, Message: field + ": " + description, Code: codes.InvalidArgument,
		Reason: "INVALID_FIELD", Violations: []Violation{{field, description}},
	}
}
