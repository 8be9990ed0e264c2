// Grpo is a small loop of reinforcement learning: the gateway's default model answers a question in
// groups, a program rewards short answers, and the advantage of an answer is its reward less the
// mean of its group, over their deviation. It prints the mean reward of every step:
//
//	go run ./examples/grpo
package main

import (
	"context"
	"flag"
	"fmt"
	"log"
	"math"
	"os"
	"os/signal"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

// maxTokens is the length of an answer whose reward is 0.
const maxTokens = 16

func main() {
	steps := flag.Int("steps", 5, "optimizer steps")
	group := flag.Int("group", 8, "answers a step")
	rate := flag.Float64("learning-rate", 1e-3, "of AdamW")
	address := flag.String("address", "", "the gateway; TINKERGATE_ADDRESS if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := reinforce(ctx, *address, *steps, *group, *rate); err != nil {
		log.Fatal(err)
	}
}

func reinforce(
	ctx context.Context, address string, steps, group int, rate float64,
) (failure error) {
	client, err := tinkergate.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer client.Close()
	renderer, err := client.Renderer("")
	if err != nil {
		return err
	}
	prompts, err := renderer.Prompts(ctx, []*v1.Conversation{
		tinkergate.Conversation(tinkergate.Message("user", "What is ice?")),
	}, nil)
	if err != nil {
		return err
	}
	session, err := client.CreateSession(ctx, tinkergate.SessionOptions{DisplayName: "grpo"})
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
	for step := range steps {
		sampler, err := model.SaveWeightsForSampler("", tinkergate.SaveOptions{}).Wait(ctx)
		if err != nil {
			return err
		}
		drawn, err := sampler.Sample(ctx, tinkergate.Tokens(prompts[0]), tinkergate.SampleOptions{
			NumSamples: group, MaxTokens: maxTokens, Seed: tinkergate.Ptr(uint64(step)),
		})
		if err != nil {
			return err
		}
		rewards := make([]float64, len(drawn.Sequences))
		data := make([]*v1.Datum, len(drawn.Sequences))
		for i, sequence := range drawn.Sequences {
			rewards[i] = 1 - float64(len(sequence.Tokens))/maxTokens
		}
		mean, advantages := compare(rewards)
		for i, sequence := range drawn.Sequences {
			data[i] = datum(prompts[0], sequence, advantages[i])
		}
		gradient := model.ForwardBackward(data, "importance_sampling", tinkergate.LossOptions{})
		model.OptimStep(&v1.AdamParams{LearningRate: &rate})
		if _, err := gradient.Wait(ctx); err != nil {
			return err
		}
		fmt.Printf("step %d reward %.6f\n", step+1, mean)
	}
	return nil
}

// compare gives the mean of rewards, and how far each is from it in their deviation.
func compare(rewards []float64) (float64, []float32) {
	var mean, square float64
	for _, reward := range rewards {
		mean += reward / float64(len(rewards))
	}
	for _, reward := range rewards {
		square += (reward - mean) * (reward - mean) / float64(len(rewards))
	}
	advantages := make([]float32, len(rewards))
	for i, reward := range rewards {
		advantages[i] = float32((reward - mean) / (math.Sqrt(square) + 1e-6))
	}
	return mean, advantages
}

// datum is an answer to learn from: the prompt's tokens have no advantage, and none of the
// sampler's logprobs.
func datum(prompt []int32, answer tinkergate.SampledSequence, advantage float32) *v1.Datum {
	tokens := append(append([]int32{}, prompt...), answer.Tokens...)
	count, before := len(tokens)-1, len(prompt)-1
	logprobs, advantages := make([]float32, count), make([]float32, count)
	copy(logprobs[before:], answer.Logprobs)
	for i := before; i < count; i++ {
		advantages[i] = advantage
	}
	return tinkergate.Datum(tinkergate.Tokens(tokens[:count]), map[string]*v1.Tensor{
		"target_tokens": tinkergate.Tensor(tokens[1:]),
		"logprobs":      tinkergate.Tensor(logprobs),
		"advantages":    tinkergate.Tensor(advantages),
	})
}
