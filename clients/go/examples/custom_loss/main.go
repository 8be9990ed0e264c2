// Custom_loss learns a preference by a loss that is written here, the hinge of the margin between
// the logprobs of a chosen and a rejected answer, and prints it at every step:
//
//	go run ./examples/custom_loss
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

// margin is by how much the chosen answer is to be likelier, in nats.
const margin = 5

func main() {
	steps := flag.Int("steps", 10, "optimizer steps")
	rate := flag.Float64("learning-rate", 1e-3, "of AdamW")
	address := flag.String("address", "", "the gateway; TINKERGATE_ADDRESS if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := learn(ctx, *address, *steps, *rate); err != nil {
		log.Fatal(err)
	}
}

// hinge is the sum, over pairs of datums, of max(0, margin - chosen + rejected), where both are the
// sums of logprobs that weigh. Its slope is -1 for those of the chosen, 1 for those of the rejected
// as long as the margin is not reached, and 0 after that.
func hinge(data []*v1.Datum, logprobs [][]float32) (tinkergate.LossValue, error) {
	value := tinkergate.LossValue{Gradients: make([][]float32, len(data))}
	for pair := 0; pair < len(data); pair += 2 {
		short := float64(margin)
		for side, sign := range []float32{-1, 1} {
			weights, err := tinkergate.Floats(data[pair+side].LossFnInputs["weights"])
			if err != nil {
				return value, err
			}
			gradient := make([]float32, len(weights))
			for i, weight := range weights {
				gradient[i] = sign * weight
				short += float64(gradient[i] * logprobs[pair+side][i])
			}
			value.Gradients[pair+side] = gradient
		}
		if short <= 0 {
			clear(value.Gradients[pair])
			clear(value.Gradients[pair+1])
		}
		value.Loss += max(short, 0)
	}
	return value, nil
}

func learn(ctx context.Context, address string, steps int, rate float64) (failure error) {
	client, err := tinkergate.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer client.Close()
	renderer, err := client.Renderer("")
	if err != nil {
		return err
	}
	question := tinkergate.Message("user", "What is ice?")
	rendered, err := renderer.Training(ctx, []*v1.Conversation{
		tinkergate.Conversation(question, tinkergate.Message("assistant", "Iceway isway oldcay.")),
		tinkergate.Conversation(question, tinkergate.Message("assistant", "Ice is cold.")),
	}, tinkergate.TrainingOptions{})
	if err != nil {
		return err
	}
	pair := []*v1.Datum{rendered[0].Datum, rendered[1].Datum}
	session, err := client.CreateSession(ctx, tinkergate.SessionOptions{DisplayName: "custom_loss"})
	if err != nil {
		return err
	}
	defer func() { _ = session.Finish(context.WithoutCancel(ctx), failure) }()
	model, err := session.CreateModel(ctx, "", tinkergate.ModelOptions{
		Lora: &v1.LoraConfig{Rank: tinkergate.Ptr(int32(16)), Seed: tinkergate.Ptr(int64(0))},
	})
	if err != nil {
		return err
	}
	var gradients []*tinkergate.Future[*tinkergate.ForwardBackwardResult]
	for range steps {
		gradients = append(gradients, model.ForwardBackwardCustom(pair, hinge))
		model.OptimStep(&v1.AdamParams{LearningRate: &rate})
	}
	for step, gradient := range gradients {
		result, err := gradient.Wait(ctx)
		if err != nil {
			return err
		}
		fmt.Printf("step %d loss %.6f\n", step+1, result.Loss())
	}
	return nil
}
