package tinkergate

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	v1 "tinkergate.example/tinkergate/v1"
)

// DownloadProgress is how far a download is.
type DownloadProgress struct {
	// Name is the file that is being read; empty for an archive.
	Name string
	// DoneBytes and TotalBytes are of all files together.
	DoneBytes, TotalBytes int64
}

// DownloadOptions say how to bring a checkpoint here. The zero value has all defaults.
type DownloadOptions struct {
	// Overwrite replaces files that are there.
	Overwrite bool
	// Progress is called after every piece.
	Progress func(DownloadProgress)
}

// Downloaded is a file that is here now.
type Downloaded struct {
	// Name is as the checkpoint has it; empty for an archive.
	Name string
	// Path is where it is.
	Path      string
	SizeBytes int64
	// SHA256 is of what is here, in hexadecimal.
	SHA256 string
	// Verified tells whether that is known to be right: by the SHA-256 that the backend says, or by
	// the checksum at the end of an archive.
	Verified bool
}

const staging = ".tinkergate.part"

// Download brings the files of a checkpoint into a directory, which is made if it is not there. A
// connection that breaks off is taken up again where it broke. Until all files are there, and are
// what they should be, they wait in the folder .tinkergate.part in the directory.
//
// Fails with the reason UNSAFE_FILE_NAME for names that lead elsewhere, CHECKPOINT_MISMATCH if the
// checkpoint is replaced or removed meanwhile, CHECKSUM_MISMATCH for bytes that are not what they
// should be, and with [os.ErrExist], before anything is read, for files that are there already.
func (c *Checkpoints) Download(
	ctx context.Context, checkpoint, directory string, options DownloadOptions,
) ([]Downloaded, error) {
	var files []*v1.CheckpointFile
	var total int64
	for file, err := range c.Files(ctx, checkpoint) {
		if err != nil {
			return nil, err
		}
		if err := checkName(file.Name); err != nil {
			return nil, err
		}
		files = append(files, file)
		total += file.SizeBytes
	}
	if err := os.MkdirAll(directory, 0o777); err != nil {
		return nil, err
	}
	// Nothing under a root leads out of it, through links neither.
	root, err := os.OpenRoot(directory)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	for _, file := range files {
		if err := refuseIfThere(root, file.Name, options.Overwrite); err != nil {
			return nil, err
		}
	}
	if err := root.RemoveAll(staging); err != nil {
		return nil, err
	}
	defer func() { _ = root.RemoveAll(staging) }()
	var results []Downloaded
	var before int64
	for _, file := range files {
		done, err := c.downloadFile(ctx, root, checkpoint, file, func(here int64) {
			options.tell(file.Name, before+here, total)
		})
		if err != nil {
			return nil, err
		}
		done.Path = filepath.Join(directory, filepath.FromSlash(file.Name))
		results = append(results, done)
		before += file.SizeBytes
	}
	for _, file := range files {
		if err := root.MkdirAll(path.Dir(file.Name), 0o777); err != nil {
			return nil, err
		}
		if err := root.Rename(path.Join(staging, file.Name), file.Name); err != nil {
			return nil, err
		}
	}
	return results, nil
}

func (c *Checkpoints) downloadFile(
	ctx context.Context, root *os.Root, checkpoint string, file *v1.CheckpointFile,
	tell func(int64),
) (Downloaded, error) {
	place := path.Join(staging, file.Name)
	if err := root.MkdirAll(path.Dir(place), 0o777); err != nil {
		return Downloaded{}, err
	}
	target, err := root.Create(place)
	if err != nil {
		return Downloaded{}, err
	}
	defer target.Close()
	part := &part{file: target, etag: file.Etag, digest: sha256.New(), tell: tell}
	err = readOn(ctx, c.connection, func(ctx context.Context, progress func()) error {
		stream, err := c.connection.checkpoints.ReadCheckpointFile(ctx,
			&v1.ReadCheckpointFileRequest{
				Path: checkpoint, Name: file.Name, Offset: part.offset, ExpectedEtag: part.etag,
			})
		if err != nil {
			return err
		}
		return part.take(progress, func() (*v1.ReadHeader, []byte, *uint32, error) {
			message, err := stream.Recv()
			return message.GetHeader(), message.GetData(), nil, err
		})
	})
	if err == nil {
		err = part.check(len(part.expected) > 0)
	}
	return part.result(file.Name, place, len(part.expected) > 0), err
}

// DownloadArchive brings all files of a checkpoint here as one .tar.gz. As Download; until it is
// whole its bytes are in the file with .part after its name.
func (c *Checkpoints) DownloadArchive(
	ctx context.Context, checkpoint, file string, options DownloadOptions,
) (Downloaded, error) {
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return Downloaded{}, err
	}
	defer root.Close()
	name := filepath.Base(file)
	if err := refuseIfThere(root, name, options.Overwrite); err != nil {
		return Downloaded{}, err
	}
	target, err := root.Create(name + ".part")
	if err != nil {
		return Downloaded{}, err
	}
	defer func() { _ = root.Remove(name + ".part") }()
	defer target.Close()
	part := &part{file: target, digest: sha256.New()}
	part.tell = func(here int64) { options.tell("", here, part.size) }
	err = readOn(ctx, c.connection, func(ctx context.Context, progress func()) error {
		stream, err := c.connection.checkpoints.ReadCheckpointArchive(ctx,
			&v1.ReadCheckpointArchiveRequest{
				Path: checkpoint, Offset: part.offset, ExpectedEtag: part.etag,
				ContentsCrc32: part.checksum,
			})
		if err != nil {
			return err
		}
		return part.take(progress, func() (*v1.ReadHeader, []byte, *uint32, error) {
			message, err := stream.Recv()
			var checksum *uint32
			if message != nil {
				checksum = message.ContentsCrc32
			}
			return message.GetHeader(), message.GetData(), checksum, err
		})
	})
	if err == nil {
		err = part.check(true)
	}
	if err == nil {
		err = unpacks(target)
	}
	if err == nil {
		err = root.Rename(name+".part", name)
	}
	return part.result("", file, true), err
}

func (o DownloadOptions) tell(name string, done, total int64) {
	if o.Progress != nil {
		o.Progress(DownloadProgress{name, done, total})
	}
}

// part is a download on its way.
type part struct {
	file         *os.File
	etag         string
	expected     []byte
	checksum     *uint32
	digest       hash.Hash
	offset, size int64
	tell         func(int64)
}

// take reads a stream to its end.
func (p *part) take(
	progress func(), next func() (*v1.ReadHeader, []byte, *uint32, error),
) error {
	for {
		header, data, checksum, err := next()
		if errors.Is(err, io.EOF) {
			if p.offset != p.size {
				return status.Error(codes.Unavailable, "the stream ended before its end")
			}
			return nil
		}
		if err != nil {
			return err
		}
		if header != nil {
			p.etag, p.size, p.expected = header.Etag, header.SizeBytes, header.Sha256
			continue
		}
		if _, err := p.file.Write(data); err != nil {
			return err
		}
		p.digest.Write(data)
		p.offset += int64(len(data))
		p.checksum = checksum
		progress()
		p.tell(p.offset)
	}
}

// check sees that what is there is right, as far as that is known, and that it stays.
func (p *part) check(known bool) error {
	if known && len(p.expected) > 0 && !bytes.Equal(p.expected, p.digest.Sum(nil)) {
		return damaged()
	}
	return p.file.Sync()
}

func (p *part) result(name, place string, verified bool) Downloaded {
	return Downloaded{name, place, p.offset, hex.EncodeToString(p.digest.Sum(nil)), verified}
}

// unpacks reads an archive to the checksum at its end.
func unpacks(file *os.File) error {
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	contents, err := gzip.NewReader(file)
	if err != nil {
		return damaged()
	}
	if _, err := io.Copy(io.Discard, contents); err != nil {
		return damaged()
	}
	return nil
}

func damaged() error {
	return &Error{
		Kind: Other, Code: codes.DataLoss, Reason: "CHECKSUM_MISMATCH",
		Message: "what arrived is not what was saved: it was thrown away",
	}
}

func refuseIfThere(root *os.Root, name string, overwrite bool) error {
	if _, err := root.Lstat(name); err == nil && !overwrite {
		return fmt.Errorf("%s in %s: %w", name, root.Name(), os.ErrExist)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// checkName refuses what is no plain relative path on every kind of machine.
func checkName(name string) error {
	safe := filepath.IsLocal(filepath.FromSlash(name)) && path.Clean(name) == name &&
		!strings.ContainsAny(name, "<>:\"|?*\\\x7f")
	for _, part := range strings.Split(name, "/") {
		safe = safe && part != "" && part[0] != '.' && !strings.HasSuffix(part, ".") &&
			!strings.HasSuffix(part, " ") && len(part) <= 255
	}
	for _, letter := range name {
		safe = safe && letter >= ' '
	}
	if safe {
		return nil
	}
	return &Error{
		Kind: FailedPrecondition, Code: codes.FailedPrecondition, Reason: "UNSAFE_FILE_NAME",
		Message: fmt.Sprintf("the gateway tells of a file %.200q: nothing was written there", name),
	}
}
