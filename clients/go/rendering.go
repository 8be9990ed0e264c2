package tinkergate

import (
	"context"
	"encoding/json"
	"slices"

	"google.golang.org/protobuf/proto"

	v1 "tinkergate.example/tinkergate/v1"
)

// Renderer turns chat messages into tokens and back by the tokenizer and the chat template of one
// base model, at the gateway: no tokenizer is needed here. Methods fail with [Unsupported] if the
// gateway has no tokenizer of the model, or the tokenizer no chat template; with [InvalidRequest]
// for conversations that cannot be rendered, whose places are those in one request of at most 512.
type Renderer struct {
	connection *connection
	// BaseModel is the base model.
	BaseModel string
}

// Message is a message of a conversation. The role is "system", "user", "assistant", "tool", or
// whatever else the template knows.
func Message(role, content string) *v1.ChatMessage {
	return &v1.ChatMessage{Role: role, Content: content}
}

// Conversation is messages in order.
func Conversation(messages ...*v1.ChatMessage) *v1.Conversation {
	return &v1.Conversation{Messages: messages}
}

// TrainingOptions say how conversations become datums. The zero value has all defaults.
type TrainingOptions struct {
	// TrainOn says which tokens are learned; what the assistant says if unspecified.
	TrainOn v1.TrainOn
	// MaxTokens cuts longer conversations; at the model's context if 0.
	MaxTokens int
	// TemplateVariables are further variables of the template, such as "enable_thinking": false.
	TemplateVariables map[string]any
}

// A request of batchBytes may have an answer of sixteen times as many, which must fit into a
// message.
const (
	batchBytes = 1 << 20
	batchItems = 512
)

// Prompts are, for each conversation, the tokens that ask the assistant for its next message.
// Template variables may be nil.
func (r *Renderer) Prompts(
	ctx context.Context, conversations []*v1.Conversation, templateVariables map[string]any,
) ([][]int32, error) {
	variables, err := variablesOf(templateVariables)
	if err != nil {
		return nil, err
	}
	var prompts [][]int32
	err = inBatches(conversations, sizeOfMessage, func(batch []*v1.Conversation) error {
		answer, err := call(ctx, r.connection, r.connection.rendering.RenderPrompt,
			&v1.RenderPromptRequest{
				BaseModel: r.BaseModel, Conversations: batch, TemplateVariablesJson: variables,
			}, attempt{})
		for _, prompt := range answer.GetPrompts() {
			tokens, err := unpacked[int32](prompt.Chunks[0].GetEncodedText().GetTokens())
			if err != nil {
				return err
			}
			prompts = append(prompts, tokens)
		}
		return err
	})
	return prompts, err
}

// StopTokens are what ends the model's message when sampling; the tokenizer's end of sequence is
// first.
func (r *Renderer) StopTokens(ctx context.Context) ([]int32, error) {
	answer, err := call(ctx, r.connection, r.connection.rendering.RenderPrompt,
		&v1.RenderPromptRequest{BaseModel: r.BaseModel}, attempt{})
	return answer.GetStopTokens().GetValues(), err
}

// Training gives one datum a conversation for the cross_entropy loss, already shifted.
func (r *Renderer) Training(
	ctx context.Context, conversations []*v1.Conversation, options TrainingOptions,
) ([]*v1.RenderedDatum, error) {
	variables, err := variablesOf(options.TemplateVariables)
	if err != nil {
		return nil, err
	}
	var datums []*v1.RenderedDatum
	err = inBatches(conversations, sizeOfMessage, func(batch []*v1.Conversation) error {
		answer, err := call(ctx, r.connection, r.connection.rendering.RenderTraining,
			&v1.RenderTrainingRequest{
				BaseModel: r.BaseModel, Conversations: batch, TrainOn: options.TrainOn,
				MaxTokens: int32(options.MaxTokens), TemplateVariablesJson: variables,
			}, attempt{})
		datums = append(datums, answer.GetDatums()...)
		return err
	})
	return datums, err
}

// Parse reads sampled tokens as messages of the assistant.
func (r *Renderer) Parse(ctx context.Context, sequences [][]int32) ([]*v1.ParsedMessage, error) {
	var messages []*v1.ParsedMessage
	err := inBatches(packedAll(sequences), sizeOfBytes, func(batch [][]byte) error {
		answer, err := call(ctx, r.connection, r.connection.rendering.ParseResponse,
			&v1.ParseResponseRequest{BaseModel: r.BaseModel, Tokens: batch}, attempt{})
		messages = append(messages, answer.GetMessages()...)
		return err
	})
	return messages, err
}

// Encode gives the tokens of texts, without any template.
func (r *Renderer) Encode(
	ctx context.Context, texts []string, addSpecialTokens bool,
) ([][]int32, error) {
	var tokens [][]int32
	err := inBatches(texts, func(text string) int { return len(text) }, func(batch []string) error {
		answer, err := call(ctx, r.connection, r.connection.rendering.Encode,
			&v1.EncodeRequest{
				BaseModel: r.BaseModel, Texts: batch, AddSpecialTokens: addSpecialTokens,
			}, attempt{})
		for _, packed := range answer.GetTokens() {
			each, err := unpacked[int32](packed)
			if err != nil {
				return err
			}
			tokens = append(tokens, each)
		}
		return err
	})
	return tokens, err
}

// Decode gives the texts of token ids.
func (r *Renderer) Decode(
	ctx context.Context, sequences [][]int32, skipSpecialTokens bool,
) ([]string, error) {
	var texts []string
	err := inBatches(packedAll(sequences), sizeOfBytes, func(batch [][]byte) error {
		answer, err := call(ctx, r.connection, r.connection.rendering.Decode,
			&v1.DecodeRequest{
				BaseModel: r.BaseModel, Tokens: batch, SkipSpecialTokens: skipSpecialTokens,
			}, attempt{})
		texts = append(texts, answer.GetTexts()...)
		return err
	})
	return texts, err
}

func packedAll(sequences [][]int32) [][]byte {
	all := make([][]byte, len(sequences))
	for i, sequence := range sequences {
		all[i] = packed(sequence)
	}
	return all
}

func sizeOfMessage(conversation *v1.Conversation) int { return proto.Size(conversation) }

func sizeOfBytes(packed []byte) int { return len(packed) }

func inBatches[Item any](items []Item, sizeOf func(Item) int, send func([]Item) error) error {
	start, size := 0, 0
	for i, item := range items {
		if i > start && (size+sizeOf(item) > batchBytes || i-start == batchItems) {
			if err := send(slices.Clip(items[start:i])); err != nil {
				return err
			}
			start, size = i, 0
		}
		size += sizeOf(item)
	}
	if start == len(items) {
		return nil
	}
	return send(items[start:])
}

func variablesOf(variables map[string]any) (map[string]string, error) {
	made := make(map[string]string, len(variables))
	for name, value := range variables {
		text, err := json.Marshal(value)
		if err != nil {
			return nil, invalid("template_variables", "%q: %v", name, err)
		}
		made[name] = string(text)
	}
	return made, nil
}
