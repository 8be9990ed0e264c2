package tinkergate_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

// train pipelines steps and gives the losses. between runs after each has been submitted.
func train(t *testing.T, model *tinkergate.TrainingModel, steps int, between func(int)) []float64 {
	t.Helper()
	var gradients []*tinkergate.Future[*tinkergate.ForwardBackwardResult]
	var updates []*tinkergate.Future[*tinkergate.OptimStepResult]
	for step := range steps {
		gradients = append(gradients,
			model.ForwardBackward(examples(t), tinkergate.CrossEntropy, tinkergate.LossOptions{}))
		updates = append(updates, model.OptimStep(adam))
		between(step)
	}
	var losses []float64
	for step, gradient := range gradients {
		losses = append(losses, wait(t, gradient).Loss())
		if norm := wait(t, updates[step]).Metrics["grad_norm:mean"]; norm <= 0 {
			t.Errorf("step %d has a gradient of norm %v", step, norm)
		}
	}
	return losses
}

func nothing(int) {}

func TestPipelinedStepsRunInOrder(t *testing.T) {
	_, session := connected(t, address)
	model := newModel(t, session)
	losses := train(t, model, 5, nothing)
	if !slices.IsSortedFunc(losses, func(a, b float64) int { return int(math.Copysign(1, b-a)) }) {
		t.Errorf("losses do not fall: %v", losses)
	}
	last := model.OptimStep(nil)
	if operations := get[[]*v1.Operation](t)(last.Accepted(t.Context())); *operations[0].SeqId != 11 {
		t.Errorf("the eleventh operation has seq_id %d", *operations[0].SeqId)
	}
	wait(t, last)
	if info := get[*v1.Model](t)(model.Info(t.Context())); info.OptimizerSteps != 6 {
		t.Errorf("%d steps were taken, not 6", info.OptimizerSteps)
	}
}

func TestLossIsTheWeightedSumOfLogprobs(t *testing.T) {
	_, session := connected(t, address)
	result := wait(t, newModel(t, session).Forward(
		examples(t), tinkergate.CrossEntropy, tinkergate.LossOptions{}))
	weights := [][]float32{{0, 1, 1, 0.5}, {1, 1}}
	var sum float64
	for i, logprobs := range result.Logprobs() {
		if len(logprobs) != len(weights[i]) {
			t.Fatalf("datum %d has %d logprobs, not %d", i, len(logprobs), len(weights[i]))
		}
		for j, logprob := range logprobs {
			sum -= float64(weights[i][j] * logprob)
		}
	}
	if math.Abs(sum-result.Loss()) > 1e-4 {
		t.Errorf("the loss is %v, the weighted sum %v", result.Loss(), sum)
	}
}

func TestLargeBatchesAreSplitAndPutTogether(t *testing.T) {
	client, session := connected(t, address)
	limits := get[*v1.GetCapabilitiesResponse](t)(client.Capabilities(t.Context())).Limits
	many := slices.Repeat(examples(t), int(limits.ChunkDatums))
	model := newModel(t, session)
	whole := model.ForwardBackward(many, tinkergate.CrossEntropy, tinkergate.LossOptions{})
	if names := get[[]*v1.Operation](t)(whole.Accepted(t.Context())); len(names) != 2 {
		t.Errorf("the batch went in %d chunks, not 2", len(names))
	}
	one := wait(t, model.Forward(examples(t), tinkergate.CrossEntropy, tinkergate.LossOptions{}))
	result := wait(t, whole)
	if expected := one.Loss() * float64(limits.ChunkDatums); math.Abs(result.Loss()/expected-1) > 1e-5 {
		t.Errorf("the loss is %v, not %v", result.Loss(), expected)
	}
	if len(result.Logprobs()) != len(many) {
		t.Errorf("%d datums have logprobs, not %d", len(result.Logprobs()), len(many))
	}
}

func TestRejectedRequestsTakeNoPlace(t *testing.T) {
	_, session := connected(t, address)
	model := newModel(t, session)
	bad := model.ForwardBackward(examples(t), "no_such_loss", tinkergate.LossOptions{})
	good := model.ForwardBackward(examples(t), tinkergate.CrossEntropy, tinkergate.LossOptions{})
	_, err := bad.Wait(t.Context())
	var failure *tinkergate.Error
	if !errors.As(err, &failure) || !errors.Is(err, tinkergate.InvalidRequest) {
		t.Fatalf("the failure is %v", err)
	}
	if failure.Code != codes.InvalidArgument || failure.Reason != "INVALID_FIELD" ||
		len(failure.Violations) != 1 || failure.Violations[0].Field != "loss_fn" {
		t.Errorf("the failure is %+v", failure)
	}
	wait(t, good)
	if place := *get[[]*v1.Operation](t)(good.Accepted(t.Context()))[0].SeqId; place != 1 {
		t.Errorf("the first request that was taken has seq_id %d", place)
	}
}

func TestOperationsThatFailSayWhy(t *testing.T) {
	_, session := connected(t, address)
	_, err := newModel(t, session).LoadState("tinker://nobody/weights/nothing", false).
		Wait(t.Context())
	var failure *tinkergate.Error
	if !errors.As(err, &failure) || failure.Reason != "CHECKPOINT_NOT_FOUND" {
		t.Errorf("the failure is %v", err)
	}
}

func TestContextsEndWaitingNotWork(t *testing.T) {
	client, session := connected(t, address)
	future := newModel(t, session).ForwardBackward(
		examples(t), tinkergate.CrossEntropy, tinkergate.LossOptions{})
	name := get[string](t)(future.Name(t.Context()))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := future.Wait(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that was cancelled ends waiting with %v", err)
	}
	passed, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	if _, err := client.Capabilities(passed); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a deadline that is over ends a call with %v", err)
	}
	result := wait(t, future)
	other, _ := connected(t, address)
	again := wait(t, get[*tinkergate.Future[any]](t)(other.Operation(t.Context(), name)))
	if again.(*tinkergate.ForwardBackwardResult).Loss() != result.Loss() {
		t.Error("another client finds another result under the operation's name")
	}
}

func TestBrokenConnectionsLoseNothing(t *testing.T) {
	_, undisturbed := connected(t, address)
	expected := train(t, newModel(t, undisturbed), 8, nothing)
	broken := newProxy(t)
	_, session := connected(t, broken.listener.Addr().String())
	model := newModel(t, session)
	broken.loseAnswers(1) // that of the first step
	losses := train(t, model, 8, func(step int) {
		switch step {
		case 2, 6:
			broken.breakAll()
		case 4:
			broken.loseAnswers(2)
		}
	})
	if !slices.Equal(losses, expected) {
		t.Errorf("losses are %v, undisturbed %v", losses, expected)
	}
	if broken.lost != 3 {
		t.Errorf("%d answers were lost, not 3", broken.lost)
	}
	if info := get[*v1.Model](t)(model.Info(t.Context())); info.OptimizerSteps != 8 {
		t.Errorf("%d steps were taken, not 8", info.OptimizerSteps)
	}
}

func TestFullQueuesAreWaitedFor(t *testing.T) {
	target, stop := startGateway(
		t.TempDir(), []string{"TINKERGATE_LIMITS_MAX_QUEUED_OPERATIONS=2"}, "--model", modelDir)
	t.Cleanup(stop) // after the session's end
	client, session := connected(t, target)
	limits := get[*v1.GetCapabilitiesResponse](t)(client.Capabilities(t.Context())).Limits
	if limits.MaxQueuedOperations != 2 {
		t.Fatalf("the queue holds %d", limits.MaxQueuedOperations)
	}
	_, elsewhere := connected(t, address)
	expected := train(t, newModel(t, elsewhere), 8, nothing)
	if losses := train(t, newModel(t, session), 8, nothing); !slices.Equal(losses, expected) {
		t.Errorf("losses are %v, with room in the queue %v", losses, expected)
	}
}

func TestModelsGoOnFromCheckpoints(t *testing.T) {
	_, session := connected(t, address)
	model := newModel(t, session)
	train(t, model, 2, nothing)
	path := wait(t, model.SaveState("two", tinkergate.SaveOptions{}))
	expected := train(t, model, 2, nothing)
	other := get[*tinkergate.TrainingModel](t)(session.CreateModelFromCheckpoint(
		t.Context(), path, true, tinkergate.ModelOptions{}))
	if losses := train(t, other, 2, nothing); !slices.Equal(losses, expected) {
		t.Errorf("losses are %v, without the pause %v", losses, expected)
	}
	attached := get[*tinkergate.TrainingModel](t)(session.AttachModel(t.Context(), model.ModelID))
	wait(t, attached.OptimStep(nil))
}

func TestNobodyThere(t *testing.T) {
	_, err := tinkergate.Connect(t.Context(), "127.0.0.1:1",
		tinkergate.WithTimeout(200*time.Millisecond))
	if !errors.Is(err, tinkergate.GatewayUnreachable) {
		t.Errorf("connecting to nobody fails with %v", err)
	}
}

func TestAClosedClientGivesUp(t *testing.T) {
	client := get[*tinkergate.Client](t)(tinkergate.Connect(t.Context(), address))
	session := get[*tinkergate.Session](t)(
		client.CreateSession(t.Context(), tinkergate.SessionOptions{}))
	model := newModel(t, session)
	_ = client.Close()
	if _, err := model.OptimStep(nil).Wait(t.Context()); !errors.Is(err, tinkergate.GatewayUnreachable) {
		t.Errorf("a closed client's work fails with %v", err)
	}
	if _, err := client.Capabilities(t.Context()); !errors.Is(err, tinkergate.GatewayUnreachable) {
		t.Errorf("a closed client's call fails with %v", err)
	}
}
