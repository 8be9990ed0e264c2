// Sft fine-tunes the gateway's default model on conversations, one JSON object a line, and prints
// the loss of every step:
//
//	go run ./examples/sft ../../data/pig_latin.jsonl
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"os/signal"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

func main() {
	steps := flag.Int("steps", 10, "optimizer steps")
	batch := flag.Int("batch-size", 4, "conversations a step")
	rate := flag.Float64("learning-rate", 4e-3, "of AdamW")
	address := flag.String("address", "", "the gateway; TINKERGATE_ADDRESS if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := train(ctx, *address, flag.Arg(0), *steps, *batch, *rate); err != nil {
		log.Fatal(err)
	}
}

func train(
	ctx context.Context, address, path string, steps, batch int, rate float64,
) (failure error) {
	conversations, err := read(path)
	if err != nil {
		return err
	}
	client, err := tinkergate.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer client.Close()
	renderer, err := client.Renderer("")
	if err != nil {
		return err
	}
	rendered, err := renderer.Training(ctx, conversations, tinkergate.TrainingOptions{})
	if err != nil {
		return err
	}
	session, err := client.CreateSession(ctx, tinkergate.SessionOptions{DisplayName: "sft"})
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
	// All steps are sent off; the losses are asked for afterwards.
	var gradients []*tinkergate.Future[*tinkergate.ForwardBackwardResult]
	for step := range steps {
		data := make([]*v1.Datum, batch)
		for i := range data {
			data[i] = rendered[(step*batch+i)%len(rendered)].Datum
		}
		gradients = append(gradients,
			model.ForwardBackward(data, tinkergate.CrossEntropy, tinkergate.LossOptions{}))
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

// read gives the conversations of a file, at least one.
func read(path string) ([]*v1.Conversation, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var conversations []*v1.Conversation
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var line struct {
			Messages []struct{ Role, Content string }
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, len(conversations)+1, err)
		}
		talk := &v1.Conversation{}
		for _, message := range line.Messages {
			talk.Messages = append(talk.Messages, tinkergate.Message(message.Role, message.Content))
		}
		conversations = append(conversations, talk)
	}
	if len(conversations) == 0 && lines.Err() == nil {
		return nil, fmt.Errorf("%s has no conversations", path)
	}
	return conversations, lines.Err()
}
