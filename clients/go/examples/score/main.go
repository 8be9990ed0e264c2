// Score reads texts, one JSON object {"text": ...} a line, and writes them with the logprobs of
// their tokens under the gateway's default model, in the same order:
//
//	echo '{"text": "Ethay yskay"}' | go run ./examples/score
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"log"
	"os"
	"os/signal"

	"tinkergate.example/tinkergate"
)

type scored struct {
	Text     string    `json:"text"`
	Logprob  float64   `json:"logprob"`
	Logprobs []float32 `json:"logprobs"`
}

func main() {
	address := flag.String("address", "", "the gateway; TINKERGATE_ADDRESS if empty")
	path := flag.String("model-path", "", "a checkpoint; the default model if empty")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := score(ctx, *address, *path); err != nil {
		log.Fatal(err)
	}
}

func score(ctx context.Context, address, path string) error {
	client, err := tinkergate.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer client.Close()
	renderer, err := client.Renderer("")
	if err != nil {
		return err
	}
	sampler, err := client.Sampler(tinkergate.Source{ModelPath: path})
	if err != nil {
		return err
	}
	// Lines are read as scores are asked for; their texts wait here for them.
	var texts []string
	var failure error
	scores := sampler.ScoreStream(
		ctx, sequences(ctx, renderer, &texts, &failure), tinkergate.ScoreOptions{})
	output := json.NewEncoder(os.Stdout)
	for score, err := range scores {
		if err != nil {
			return err
		}
		// The first token has nothing before it; its logprob is no number, and left out.
		line := scored{Text: texts[0], Logprobs: score.Logprobs[1:]}
		texts = texts[1:]
		for _, logprob := range line.Logprobs {
			line.Logprob += float64(logprob)
		}
		if err := output.Encode(line); err != nil {
			return err
		}
	}
	return failure
}

func sequences(
	ctx context.Context, renderer *tinkergate.Renderer, texts *[]string, failure *error,
) iter.Seq[[]int32] {
	return func(yield func([]int32) bool) {
		lines := bufio.NewScanner(os.Stdin)
		for number := 1; lines.Scan(); number++ {
			var line struct{ Text string }
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				*failure = fmt.Errorf("line %d: %w", number, err)
				return
			}
			tokens, err := renderer.Encode(ctx, []string{line.Text}, false)
			if err != nil {
				*failure = err
				return
			}
			*texts = append(*texts, line.Text)
			if !yield(tokens[0]) {
				return
			}
		}
		*failure = lines.Err()
	}
}
