package tinkergate_test

import (
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"errors"

	"tinkergate.example/tinkergate"
	v1 "tinkergate.example/tinkergate/v1"
)

func sampler(t *testing.T) *tinkergate.Sampler {
	t.Helper()
	_, session := connected(t, address)
	model := newModel(t, session)
	train(t, model, 1, nothing)
	return wait(t, model.SaveWeightsForSampler("", tinkergate.SaveOptions{}))
}

func TestSeedsGiveTheSameSequences(t *testing.T) {
	drawn := sampler(t)
	options := tinkergate.SampleOptions{
		NumSamples: 3, MaxTokens: 6, Seed: tinkergate.Ptr(uint64(3)), Stop: []string{},
		PromptLogprobs: true, TopKSampleLogprobs: 2, TopKPromptLogprobs: 2,
	}
	prompt := tinkergate.Tokens([]int32{5, 6, 7})
	result := get[*tinkergate.SampleResult](t)(drawn.Sample(t.Context(), prompt, options))
	if len(result.Sequences) != 3 || len(result.PromptLogprobs) != 3 ||
		!math.IsNaN(float64(result.PromptLogprobs[0])) || result.TopKPromptLogprobs.K != 2 {
		t.Fatalf("the result is %+v", result)
	}
	seen := 0
	for found, err := range drawn.Stream(t.Context(), prompt, options) {
		if err != nil {
			t.Fatal(err)
		}
		seen++
		expected := result.Sequences[found.Index]
		if !slices.Equal(found.Sequence.Tokens, expected.Tokens) || len(expected.Tokens) != 6 ||
			expected.StopReason != "length" || len(expected.Logprobs) != 6 ||
			len(expected.TopK.Tokens) != 12 {
			t.Errorf("streamed %+v, at once %+v", found.Sequence, expected)
		}
	}
	if seen != 3 {
		t.Errorf("%d sequences were streamed", seen)
	}
}

func TestScoresComeInOrder(t *testing.T) {
	drawn := sampler(t)
	var sequences [][]int32
	for i := range int32(20) {
		sequences = append(sequences, slices.Repeat([]int32{i, 2 * i, 300 - i}, int(i)+1))
	}
	scores := get[[]tinkergate.Score](t)(drawn.Score(t.Context(), sequences,
		tinkergate.ScoreOptions{BatchTokens: 50, InFlight: 3, TopK: 2}))
	if len(scores) != 20 {
		t.Fatalf("%d sequences have scores", len(scores))
	}
	for i, score := range scores {
		alone := get[*tinkergate.SampleResult](t)(drawn.Sample(t.Context(),
			tinkergate.Tokens(sequences[i]),
			tinkergate.SampleOptions{MaxTokens: 1, PromptLogprobs: true})).PromptLogprobs
		if len(score.Logprobs) != len(alone) || len(score.TopK.Tokens) != 2*len(alone) {
			t.Fatalf("sequence %d has %d scores, not %d", i, len(score.Logprobs), len(alone))
		}
		for j := 1; j < len(alone); j++ {
			if math.Abs(float64(score.Logprobs[j]-alone[j])) > 1e-4 {
				t.Errorf("token %d of %d has %v, alone %v", j, i, score.Logprobs[j], alone[j])
			}
		}
	}
	for _, err := range drawn.ScoreStream(t.Context(), slices.Values(sequences),
		tinkergate.ScoreOptions{BatchTokens: 5}) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
	if _, err := drawn.Score(t.Context(), [][]int32{{1, 2}, {}}, tinkergate.ScoreOptions{}); !errors.Is(
		err, tinkergate.InvalidRequest) {
		t.Errorf("an empty sequence fails with %v", err)
	}
}

func TestCheckpointsComeHere(t *testing.T) {
	client, session := connected(t, address)
	path := wait(t, newModel(t, session).SaveState("here", tinkergate.SaveOptions{
		UserMetadata: map[string]string{"why": "test"},
	}))
	if found := get[*v1.Checkpoint](t)(client.Checkpoints.Get(t.Context(), path)); found.UserMetadata["why"] != "test" {
		t.Errorf("the checkpoint is %v", found)
	}
	folder := filepath.Join(t.TempDir(), "new", "folder")
	var last tinkergate.DownloadProgress
	options := tinkergate.DownloadOptions{Progress: func(p tinkergate.DownloadProgress) { last = p }}
	files := get[[]tinkergate.Downloaded](t)(
		client.Checkpoints.Download(t.Context(), path, folder, options))
	var total int64
	for _, file := range files {
		info := get[os.FileInfo](t)(os.Stat(file.Path))
		if info.Size() != file.SizeBytes || !file.Verified {
			t.Errorf("%+v has %d bytes", file, info.Size())
		}
		total += file.SizeBytes
	}
	if len(files) < 2 || last.DoneBytes != total || last.TotalBytes != total {
		t.Errorf("%d files of %d bytes; progress ended with %+v", len(files), total, last)
	}
	if entries := get[[]os.DirEntry](t)(os.ReadDir(folder)); len(entries) != len(files) {
		t.Errorf("the folder has %v", entries)
	}
	_, err := client.Checkpoints.Download(t.Context(), path, folder, options)
	if !errors.Is(err, os.ErrExist) {
		t.Errorf("files that are there are met with %v", err)
	}
	options.Overwrite = true
	get[[]tinkergate.Downloaded](t)(client.Checkpoints.Download(t.Context(), path, folder, options))
	archive := filepath.Join(t.TempDir(), "all.tar.gz")
	whole := get[tinkergate.Downloaded](t)(
		client.Checkpoints.DownloadArchive(t.Context(), path, archive, options))
	if last.DoneBytes != whole.SizeBytes || last.TotalBytes != whole.SizeBytes {
		t.Errorf("%+v; progress ended with %+v", whole, last)
	}
	if info := get[os.FileInfo](t)(os.Stat(archive)); info.Size() != whole.SizeBytes {
		t.Errorf("%+v has %d bytes", whole, info.Size())
	}
	imported := get[*v1.Checkpoint](t)(client.Checkpoints.ImportAdapter(
		t.Context(), folder, tinkergate.ImportOptions{BaseModel: "micro"}))
	if imported.LoraRank != 4 {
		t.Errorf("imported as %v", imported)
	}
	if err := client.Checkpoints.Delete(t.Context(), imported.Path); err != nil {
		t.Error(err)
	}
	for found, err := range client.Checkpoints.List(t.Context(), "") {
		if err != nil || found.Path == imported.Path {
			t.Errorf("listed: %v, %v", found, err)
		}
	}
}

func TestConversationsBecomeTokens(t *testing.T) {
	client, session := connected(t, address)
	renderer := get[*tinkergate.Renderer](t)(client.Renderer(""))
	texts := []string{"Grüße, 世界", "", "plain"}
	tokens := get[[][]int32](t)(renderer.Encode(t.Context(), texts, false))
	if back := get[[]string](t)(renderer.Decode(t.Context(), tokens, false)); !slices.Equal(back, texts) {
		t.Errorf("%q came back as %q", texts, back)
	}
	talk := tinkergate.Conversation(
		tinkergate.Message("user", "Hi"), tinkergate.Message("assistant", "Hello"))
	many := slices.Repeat([]*v1.Conversation{talk}, 600)
	rendered := get[[]*v1.RenderedDatum](t)(
		renderer.Training(t.Context(), many, tinkergate.TrainingOptions{}))
	if len(rendered) != 600 {
		t.Fatalf("%d conversations were rendered", len(rendered))
	}
	weights := get[[]float32](t)(tinkergate.Floats(rendered[599].Datum.LossFnInputs["weights"]))
	if weights[0] != 0 || slices.Max(weights) != 1 {
		t.Errorf("weights are %v", weights)
	}
	wait(t, newModel(t, session).ForwardBackward(
		[]*v1.Datum{rendered[0].Datum}, tinkergate.CrossEntropy, tinkergate.LossOptions{}))
	prompts := get[[][]int32](t)(renderer.Prompts(t.Context(), many[:2], nil))
	if len(prompts) != 2 || len(prompts[0]) == 0 {
		t.Errorf("prompts are %v", prompts)
	}
	stops := get[[]int32](t)(renderer.StopTokens(t.Context()))
	answer := append(get[[][]int32](t)(renderer.Encode(t.Context(), []string{"Yes"}, false))[0], stops[0])
	parsed := get[[]*v1.ParsedMessage](t)(renderer.Parse(t.Context(), [][]int32{answer}))
	if parsed[0].Message.Content != "Yes" || !parsed[0].Complete {
		t.Errorf("parsed as %v", parsed[0])
	}
}
