package tinkergate

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	v1 "tinkergate.example/tinkergate/v1"
)

// Checkpoints looks after the checkpoints that a gateway keeps.
type Checkpoints struct{ connection *connection }

// List lists the checkpoints of a model, or all if it is empty, newest first.
func (c *Checkpoints) List(ctx context.Context, modelID string) iter.Seq2[*v1.Checkpoint, error] {
	return pages(func(token string) ([]*v1.Checkpoint, string, error) {
		page, err := call(ctx, c.connection, c.connection.checkpoints.ListCheckpoints,
			&v1.ListCheckpointsRequest{ModelId: modelID, PageSize: pageSize, PageToken: token},
			attempt{})
		return page.GetCheckpoints(), page.GetNextPageToken(), err
	})
}

// Get is the checkpoint of that path.
func (c *Checkpoints) Get(ctx context.Context, path string) (*v1.Checkpoint, error) {
	answer, err := call(ctx, c.connection, c.connection.checkpoints.GetCheckpoint,
		&v1.GetCheckpointRequest{Path: path}, attempt{})
	return answer.GetCheckpoint(), err
}

// Delete removes a checkpoint for good. Samplers made from it go on.
func (c *Checkpoints) Delete(ctx context.Context, path string) error {
	_, err := call(ctx, c.connection, c.connection.checkpoints.DeleteCheckpoint,
		&v1.DeleteCheckpointRequest{Path: path}, attempt{})
	return err
}

// Publish marks a checkpoint as one that everybody may read. Fails with [Conflict] if it is marked
// already, which may also be by this call, if its first answer was lost.
func (c *Checkpoints) Publish(ctx context.Context, path string) (*v1.Checkpoint, error) {
	answer, err := call(ctx, c.connection, c.connection.checkpoints.PublishCheckpoint,
		&v1.PublishCheckpointRequest{Path: path}, attempt{})
	return answer.GetCheckpoint(), err
}

// Unpublish takes the mark away. Fails with [Conflict] if there is none, as Publish does.
func (c *Checkpoints) Unpublish(ctx context.Context, path string) (*v1.Checkpoint, error) {
	answer, err := call(ctx, c.connection, c.connection.checkpoints.UnpublishCheckpoint,
		&v1.UnpublishCheckpointRequest{Path: path}, attempt{})
	return answer.GetCheckpoint(), err
}

// SetTTL has a checkpoint removed so long from now; never if ttl is 0.
func (c *Checkpoints) SetTTL(
	ctx context.Context, path string, ttl time.Duration,
) (*v1.Checkpoint, error) {
	request := &v1.SetCheckpointTtlRequest{Path: path}
	if ttl != 0 {
		request.Ttl = durationpb.New(ttl)
	}
	answer, err := call(
		ctx, c.connection, c.connection.checkpoints.SetCheckpointTtl, request, attempt{})
	return answer.GetCheckpoint(), err
}

// Files lists the files of a checkpoint, by name.
func (c *Checkpoints) Files(ctx context.Context, path string) iter.Seq2[*v1.CheckpointFile, error] {
	return pages(func(token string) ([]*v1.CheckpointFile, string, error) {
		page, err := call(ctx, c.connection, c.connection.checkpoints.ListCheckpointFiles,
			&v1.ListCheckpointFilesRequest{Path: path, PageSize: pageSize, PageToken: token},
			attempt{})
		return page.GetFiles(), page.GetNextPageToken(), err
	})
}

// CopyCheckpoint makes a checkpoint of the same weights, which outlives the original, under a
// training run of this session that cannot be trained on. After ttl the gateway removes it; never
// if it is 0.
func (s *Session) CopyCheckpoint(
	ctx context.Context, path string, ttl time.Duration,
) (*v1.Checkpoint, error) {
	request := &v1.CopyCheckpointRequest{
		Path: path, SessionId: s.SessionID, ModelSeqId: Ptr(s.modelIDs.Add(1) - 1),
	}
	if ttl != 0 {
		request.Ttl = durationpb.New(ttl)
	}
	answer, err := call(
		ctx, s.connection, s.connection.checkpoints.CopyCheckpoint, request, attempt{})
	return answer.GetCheckpoint(), err
}

// ImportOptions say what an adapter is taken in as. The zero value has all defaults.
type ImportOptions struct {
	// Name is the checkpoint's; the folder's if empty.
	Name string
	// BaseModel is as the gateway names it; that of adapter_config.json if empty.
	BaseModel string
	// Backend is to hold it; empty leaves the choice to the gateway.
	Backend string
	// UserMetadata are your own notes.
	UserMetadata map[string]string
}

const pieceBytes = 1 << 20

// ImportAdapter takes in an adapter that PEFT saved in folder, as a checkpoint to train or sample
// from. The folder holds adapter_config.json and adapter_model.safetensors.
func (c *Checkpoints) ImportAdapter(
	ctx context.Context, folder string, options ImportOptions,
) (*v1.Checkpoint, error) {
	if options.Name == "" {
		whole, err := filepath.Abs(folder)
		if err != nil {
			return nil, err
		}
		options.Name = filepath.Base(whole)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.connection.checkpoints.ImportCheckpoint(ctx)
	if err != nil {
		return nil, errorFromCall(err)
	}
	err = stream.Send(&v1.ImportCheckpointRequest{Piece: &v1.ImportCheckpointRequest_Header{
		Header: &v1.ImportHeader{
			BaseModel: options.BaseModel, Name: options.Name, Backend: options.Backend,
			UserMetadata: options.UserMetadata,
		},
	}})
	for _, name := range []string{"adapter_config.json", "adapter_model.safetensors"} {
		if err == nil {
			err = sendFile(filepath.Join(folder, name), func(data []byte) error {
				return stream.Send(&v1.ImportCheckpointRequest{
					Piece: &v1.ImportCheckpointRequest_File{
						File: &v1.FilePiece{Name: name, Data: data},
					},
				})
			})
		}
	}
	// A stream that the gateway ended answers io.EOF to Send; why, the answer tells.
	if err != nil && !errors.Is(err, errEnded) {
		return nil, err
	}
	answer, err := stream.CloseAndRecv()
	if err != nil {
		return nil, errorFromCall(err)
	}
	return answer.Checkpoint, nil
}

var errEnded = errors.New("the gateway ended the stream")

func sendFile(path string, send func([]byte) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for {
		// A buffer of its own for each message: gRPC may still hold the one before.
		piece := make([]byte, pieceBytes)
		count, err := io.ReadFull(file, piece)
		if count > 0 {
			if failure := send(piece[:count]); errors.Is(failure, io.EOF) {
				return errEnded
			} else if failure != nil {
				return errorFromCall(failure)
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
