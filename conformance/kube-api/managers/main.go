// Managers records what upstream's field managers do to objects: sequences of writes by several clients, and after each of them the object, its
// managed fields or the error. The unit tests of the crate slipway-objects repeat the recorded sequences.
//
//	go run . >recorded/managers.json    # the sequences that are kept
//	go run . COUNT [SEED] >FILE         # more, of random writes
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/validation/spec"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// recordedCount is the number of random sequences that are kept.
const recordedCount = 24

var (
	kind    = schema.GroupVersionKind{Version: "v1", Kind: "Example"}
	started = time.Now().Add(-time.Hour)
	// begin is the time before the first step of a sequence; each step takes a second.
	begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
)

// fields is an object or a part of one.
type fields = map[string]any

// step is a write, and what became of it.
type step struct {
	Operation   string   `json:"operation"`
	Manager     string   `json:"manager"`
	Subresource string   `json:"subresource,omitempty"`
	Force       bool     `json:"force,omitempty"`
	Object      fields   `json:"object"`
	Error       string   `json:"error,omitempty"`
	Causes      [][2]any `json:"causes,omitempty"`
	Result      fields   `json:"result,omitempty"`
	Managers    []entry  `json:"managers,omitempty"`
}

// entry is an entry of managed fields.
type entry struct {
	Manager     string `json:"manager"`
	Operation   string `json:"operation"`
	Version     string `json:"version"`
	Subresource string `json:"subresource,omitempty"`
	Time        string `json:"time,omitempty"`
	Fields      string `json:"fields"`
}

// plain converts, defaults and creates objects of a kind that has one version.
type plain struct{}

func (plain) Convert(in, out, context any) error {
	return fmt.Errorf("not supported")
}

func (plain) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	if version, ok := target.(schema.GroupVersion); ok && version != kind.GroupVersion() {
		return nil, runtime.NewNotRegisteredErrForTarget("plain", nil, target)
	}
	return in, nil
}

func (plain) ConvertFieldLabel(_ schema.GroupVersionKind, label, value string) (string, string, error) {
	return label, value, nil
}

func (plain) Default(runtime.Object) {}

func (plain) New(kind schema.GroupVersionKind) (runtime.Object, error) {
	object := &unstructured.Unstructured{Object: fields{}}
	object.SetGroupVersionKind(kind)
	return object, nil
}

func readSchema(path string) spec.Schema {
	text, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	var read spec.Schema
	if err := json.Unmarshal(text, &read); err != nil {
		log.Fatal(err)
	}
	return read
}

// fieldManagers are the managers of the object and of its status.
func fieldManagers() map[string]*managedfields.FieldManager {
	example := readSchema("example.json")
	example.Properties["metadata"] = readSchema(filepath.Join("..", "..", "..", "crates", "objects", "schemas", "metadata.json"))
	for _, name := range []string{"apiVersion", "kind"} {
		example.Properties[name] = *spec.StringProperty()
	}
	example.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{"group": "", "version": kind.Version, "kind": kind.Kind}})
	converter, err := managedfields.NewTypeConverter(map[string]*spec.Schema{"example": &example}, false)
	if err != nil {
		log.Fatal(err)
	}
	filters := map[string]fieldpath.Filter{
		"":       fieldpath.NewExcludeSetFilter(fieldpath.NewSet(fieldpath.MakePathOrDie("status"))),
		"status": fieldpath.NewIncludeMatcherFilter(fieldpath.MakePrefixMatcherOrDie("status")),
	}
	managers := map[string]*managedfields.FieldManager{}
	for subresource, filter := range filters {
		reset := map[fieldpath.APIVersion]fieldpath.Filter{"v1": filter}
		managers[subresource], err = managedfields.NewDefaultCRDFieldManager(
			converter, plain{}, plain{}, plain{}, kind, kind.GroupVersion(), subresource, reset)
		if err != nil {
			log.Fatal(err)
		}
	}
	return managers
}

// copied is a deep copy with the types that JSON has.
func copied(value fields) fields {
	return runtime.DeepCopyJSON(value)
}

// run carries out a write at a time, records what became of it, and returns the object after it.
func run(managers map[string]*managedfields.FieldManager, live *unstructured.Unstructured, s *step, now time.Time) *unstructured.Unstructured {
	given := &unstructured.Unstructured{Object: copied(s.Object)}
	exists := live.GetUID() != ""
	var result runtime.Object
	if s.Operation == "apply" {
		applied, err := managers[s.Subresource].Apply(live.DeepCopy(), given, s.Manager, s.Force)
		if err != nil {
			s.Error = err.Error()
			if status, ok := err.(*apierrors.StatusError); ok && status.ErrStatus.Details != nil {
				for _, cause := range status.ErrStatus.Details.Causes {
					s.Causes = append(s.Causes, [2]any{cause.Message, cause.Field})
				}
			}
			return live
		}
		result = applied
	} else {
		if exists {
			given.SetUID(live.GetUID())
		}
		result = managers[s.Subresource].UpdateNoErrors(live.DeepCopy(), given, s.Manager)
	}
	object := result.(*unstructured.Unstructured)
	if exists && s.Subresource == "" {
		// The server keeps the status in a write of the main part.
		delete(object.Object, "status")
		if status, ok := live.Object["status"]; ok {
			object.Object["status"] = runtime.DeepCopyJSONValue(status)
		}
	}
	object.SetUID("1")
	entries := object.GetManagedFields()
	for i := range entries {
		if entries[i].Time != nil && entries[i].Time.After(started) {
			entries[i].Time = &metav1.Time{Time: now}
		}
	}
	object.SetManagedFields(entries)
	s.Managers = []entry{}
	for _, e := range entries {
		recorded := entry{Manager: e.Manager, Operation: string(e.Operation), Version: e.APIVersion, Subresource: e.Subresource, Fields: e.FieldsV1.GetRawString()}
		if e.Time != nil {
			recorded.Time = e.Time.UTC().Format(time.RFC3339)
		}
		s.Managers = append(s.Managers, recorded)
	}
	// Objects of Kubernetes' own kinds have no empty lists and maps in their metadata.
	metadata := object.Object["metadata"].(fields)
	for name, value := range metadata {
		switch value := value.(type) {
		case nil:
			delete(metadata, name)
		case fields:
			if len(value) == 0 {
				delete(metadata, name)
			}
		case []any:
			if len(value) == 0 {
				delete(metadata, name)
			}
		}
	}
	s.Result = copied(object.Object)
	metadata = s.Result["metadata"].(fields)
	delete(metadata, "managedFields")
	delete(metadata, "uid")
	return object
}

// sequence carries out all writes of one sequence.
func sequence(managers map[string]*managedfields.FieldManager, next func(live fields, number int) *step) []*step {
	empty, _ := plain{}.New(kind)
	live := empty.(*unstructured.Unstructured)
	var steps []*step
	for number := 0; ; number++ {
		s := next(live.Object, number)
		if s == nil {
			return steps
		}
		func() {
			defer func() {
				if failure := recover(); failure != nil {
					log.Fatalf("%v\n%s\nin %+v", failure, debug.Stack(), s)
				}
			}()
			live = run(managers, live, s, begin.Add(time.Duration(number+1)*time.Second))
		}()
		steps = append(steps, s)
	}
}

func main() {
	count, seed := recordedCount, uint64(1)
	if len(os.Args) > 1 {
		number, err := strconv.Atoi(os.Args[1])
		if err != nil {
			log.Fatal(err)
		}
		count, seed = number, uint64(time.Now().UnixNano())
	}
	if len(os.Args) > 2 {
		number, err := strconv.ParseUint(os.Args[2], 10, 64)
		if err != nil {
			log.Fatal(err)
		}
		seed = number
	}
	managers := fieldManagers()
	all := [][]*step{}
	for _, steps := range chosen() {
		all = append(all, sequence(managers, func(_ fields, number int) *step {
			if number == len(steps) {
				return nil
			}
			return &steps[number]
		}))
	}
	random := writes{rand.New(rand.NewPCG(seed, 0))}
	for range count {
		length := 2 + random.IntN(8)
		if random.IntN(8) == 0 {
			length = 24
		}
		all = append(all, sequence(managers, func(live fields, number int) *step {
			if number == length {
				return nil
			}
			return random.step(live, number, length)
		}))
	}
	if err := json.NewEncoder(os.Stdout).Encode(all); err != nil {
		log.Fatal(err)
	}
	log.Printf("%d sequences, seed %d", len(all), seed)
}
