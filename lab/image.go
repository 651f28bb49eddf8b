package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
)

// Images are created without Docker: one layer of files, written as an OCI image layout in a tar file.
// Source: OCI Image Format Specification 1.1, image-layout.md, manifest.md, config.md.

type layer struct {
	content bytes.Buffer
	writer  *tar.Writer
	// added holds the paths that the layer already contains.
	added map[string]bool
}

func newLayer() *layer {
	l := &layer{added: map[string]bool{}}
	l.writer = tar.NewWriter(&l.content)
	return l
}

func (l *layer) folder(name string) error {
	name = strings.Trim(name, "/")
	if name == "" || name == "." || l.added[name] {
		return nil
	}
	if err := l.folder(path.Dir(name)); err != nil {
		return err
	}
	l.added[name] = true
	mode := int64(0o755)
	if name == "tmp" {
		mode = 0o1777
	}
	return l.writer.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode})
}

func (l *layer) file(source, target string) error {
	target = strings.Trim(target, "/")
	if l.added[target] {
		return nil
	}
	l.added[target] = true
	if err := l.folder(path.Dir(target)); err != nil {
		return err
	}
	if link, isLink := strings.CutPrefix(source, "@"); isLink {
		return l.writer.WriteHeader(&tar.Header{Name: target, Typeflag: tar.TypeSymlink, Linkname: link})
	}
	file, err := os.Open(source)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if err := l.writer.WriteHeader(&tar.Header{Name: target, Mode: 0o755, Size: info.Size()}); err != nil {
		return err
	}
	_, err = io.Copy(l.writer, file)
	return err
}

var library = regexp.MustCompile(`(?m)^\s*(?:\S+ => )?(/\S+) \(0x`)

// libraries are the paths of the shared libraries of a program; none for a static program.
func libraries(program string) []string {
	output, err := exec.Command("ldd", program).Output()
	if err != nil {
		return nil
	}
	var found []string
	for _, match := range library.FindAllStringSubmatch(string(output), -1) {
		found = append(found, match[1])
	}
	return found
}

// writeImage writes an image with the name NAME:TAG to a tar file. Files are SOURCE=TARGET, or @LINK=TARGET for a symbolic link;
// shared libraries of programs are added.
func writeImage(output, name string, entrypoint []string, files []string) error {
	if !strings.Contains(path.Base(name), ":") {
		return fmt.Errorf("image name %q has no tag; write it like lab.local/tool:1", name)
	}
	l := newLayer()
	for _, folder := range []string{"dev", "proc", "sys", "etc", "tmp", "root", "run"} {
		if err := l.folder(folder); err != nil {
			return err
		}
	}
	for _, pair := range files {
		source, target, found := strings.Cut(pair, "=")
		if !found {
			return fmt.Errorf("%q is not SOURCE=TARGET", pair)
		}
		if err := l.file(source, target); err != nil {
			return err
		}
		for _, needed := range libraries(source) {
			if err := l.file(needed, needed); err != nil {
				return err
			}
		}
	}
	if err := l.writer.Close(); err != nil {
		return err
	}
	blobs := map[string][]byte{}
	blob := func(content []byte, kind string) map[string]any {
		digest := fmt.Sprintf("%x", sha256.Sum256(content))
		blobs["blobs/sha256/"+digest] = content
		return map[string]any{"mediaType": "application/vnd.oci.image." + kind, "digest": "sha256:" + digest, "size": len(content)}
	}
	encode := func(value any) []byte {
		content, err := json.Marshal(value)
		if err != nil {
			panic("maps of strings and numbers can always be encoded: " + err.Error())
		}
		return content
	}
	tarred := blob(l.content.Bytes(), "layer.v1.tar")
	platform := map[string]any{"os": "linux", "architecture": runtime.GOARCH}
	config := blob(encode(map[string]any{
		"os": "linux", "architecture": runtime.GOARCH,
		"config": map[string]any{"Entrypoint": entrypoint, "Env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []any{tarred["digest"]}},
	}), "config.v1+json")
	manifest := blob(encode(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": []any{tarred},
	}), "manifest.v1+json")
	manifest["platform"] = platform
	manifest["annotations"] = map[string]string{
		"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name[strings.LastIndex(name, ":")+1:],
	}
	blobs["oci-layout"] = []byte(`{"imageLayoutVersion":"1.0.0"}`)
	blobs["index.json"] = encode(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{manifest},
	})
	file, err := os.Create(output)
	if err != nil {
		return err
	}
	defer file.Close()
	writer := tar.NewWriter(file)
	names := make([]string, 0, len(blobs))
	for name := range blobs {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := writer.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(blobs[name]))}); err != nil {
			return err
		}
		if _, err := writer.Write(blobs[name]); err != nil {
			return err
		}
	}
	return writer.Close()
}
