// Informers follows config maps with client-go's shared informers and indexers, as controllers do, and compares what they saw with what was
// written. It also records events with both recorders, and uses the dynamic client with types from discovery.
//
//	informers KUBECONFIG NAMESPACE
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/retry"
)

const objects = 20

// journal has what handlers were told, in order.
type journal struct {
	sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.Lock()
	defer j.Unlock()
	j.lines = append(j.lines, line)
}

func (j *journal) count(prefix string) int {
	j.Lock()
	defer j.Unlock()
	count := 0
	for _, line := range j.lines {
		if len(line) >= len(prefix) && line[:len(prefix)] == prefix {
			count++
		}
	}
	return count
}

func until(what string, holds func() (bool, error)) error {
	err := wait.PollUntilContextTimeout(context.Background(), 20*time.Millisecond, 30*time.Second, true, func(context.Context) (bool, error) { return holds() })
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

func informed(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	maps := clients.CoreV1().ConfigMaps(namespace)
	create := func(number int) error {
		object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("map-%d", number), Labels: map[string]string{"app": "informers"}}, Data: map[string]string{"count": "0"}}
		_, err := maps.Create(ctx, object, metav1.CreateOptions{})
		return err
	}
	for number := range objects / 2 { // Half of the objects are there before the informer lists them.
		if err := create(number); err != nil {
			return err
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(clients, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(options *metav1.ListOptions) { options.LabelSelector = "app=informers" }))
	informer, seen := factory.Core().V1().ConfigMaps(), &journal{}
	name := func(object any) string {
		if gone, ok := object.(cache.DeletedFinalStateUnknown); ok {
			object = gone.Obj
		}
		return object.(*corev1.ConfigMap).Name
	}
	if _, err := informer.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(object any) { seen.add("added " + name(object)) },
		UpdateFunc: func(_, object any) {
			seen.add("updated " + name(object) + " " + object.(*corev1.ConfigMap).Data["count"])
		},
		DeleteFunc: func(object any) { seen.add("deleted " + name(object)) },
	}); err != nil {
		return err
	}
	factory.StartWithContext(ctx)
	if !cache.WaitForCacheSync(ctx.Done(), informer.Informer().HasSynced) {
		return errors.New("the informer did not synchronize")
	}
	for number := objects / 2; number < objects; number++ {
		if err := create(number); err != nil {
			return err
		}
	}
	for number := range objects {
		err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			object, err := maps.Get(ctx, fmt.Sprintf("map-%d", number), metav1.GetOptions{})
			if err != nil {
				return err
			}
			object.Data["count"] = "1"
			_, err = maps.Update(ctx, object, metav1.UpdateOptions{})
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := maps.Delete(ctx, "map-0", metav1.DeleteOptions{}); err != nil {
		return err
	}
	if err := until("the deletion is seen", func() (bool, error) { return seen.count("deleted map-0") == 1, nil }); err != nil {
		return err
	}
	if added, updated, deleted := seen.count("added"), seen.count("updated"), seen.count("deleted"); added != objects || updated != objects || deleted != 1 {
		return fmt.Errorf("handlers saw %d added, %d updated and %d deleted objects: %v", added, updated, deleted, seen.lines)
	}
	cached, err := informer.Lister().ConfigMaps(namespace).List(labels.Everything())
	if err != nil || len(cached) != objects-1 || slices.ContainsFunc(cached, func(object *corev1.ConfigMap) bool { return object.Data["count"] != "1" }) {
		return fmt.Errorf("the cache has %d objects (%v)", len(cached), err)
	}
	return maps.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{LabelSelector: "app=informers"})
}

func refused(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	maps := clients.CoreV1().ConfigMaps(namespace)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "refused"}}
	first, err := maps.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return err
	}
	if _, err = maps.Create(ctx, object, metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("a second creation: %v", err)
	}
	if _, err = maps.Patch(ctx, "refused", types.MergePatchType, []byte(`{"data":{"a":"b"}}`), metav1.PatchOptions{}); err != nil {
		return err
	}
	if _, err = maps.Update(ctx, first, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		return fmt.Errorf("an update of an old version: %v", err)
	}
	if _, err = maps.Get(ctx, "missing", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		return fmt.Errorf("a missing object: %v", err)
	}
	invalid := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "In_valid"}}
	if _, err = maps.Create(ctx, invalid, metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !apierrors.HasStatusCause(err, metav1.CauseTypeFieldValueInvalid) {
		return fmt.Errorf("an invalid name: %v", err)
	}
	return nil
}

func recorded(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	object, err := clients.CoreV1().ConfigMaps(namespace).Get(ctx, "refused", metav1.GetOptions{})
	if err != nil {
		return err
	}
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	defer broadcaster.Shutdown()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: clients.CoreV1().Events(namespace)})
	recorder := broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "informers"})
	for range 3 { // Equal events are counted in one object.
		recorder.Event(object, corev1.EventTypeNormal, "Tested", "it was tested")
	}
	return until("the event is recorded and counted", func() (bool, error) {
		events, err := clients.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=Tested"})
		return err == nil && len(events.Items) == 1 && events.Items[0].Count == 3, err
	})
}

// noted records an event as new controllers do, through events.k8s.io, and reads it in both groups.
func noted(ctx context.Context, clients kubernetes.Interface, namespace string) error {
	object, err := clients.CoreV1().ConfigMaps(namespace).Get(ctx, "refused", metav1.GetOptions{})
	if err != nil {
		return err
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: clients.EventsV1()})
	defer broadcaster.Shutdown()
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return err
	}
	recorder := broadcaster.NewRecorder(scheme.Scheme, "slipway.dev/informers")
	for range 2 { // The second event begins a series.
		recorder.Eventf(object, nil, corev1.EventTypeNormal, "Noted", "Testing", "it was %s", "noted")
	}
	selected := metav1.ListOptions{FieldSelector: "reason=Noted"}
	if err := until("the event is recorded with a series", func() (bool, error) {
		found, err := clients.EventsV1().Events(namespace).List(ctx, selected)
		return err == nil && len(found.Items) == 1 && found.Items[0].Series != nil && found.Items[0].Series.Count == 2, err
	}); err != nil {
		return err
	}
	found, err := clients.CoreV1().Events(namespace).List(ctx, selected)
	if err != nil {
		return err
	}
	if len(found.Items) != 1 || found.Items[0].Message != "it was noted" || found.Items[0].InvolvedObject.Name != "refused" {
		return fmt.Errorf("the core group has other events: %v", found.Items)
	}
	return nil
}

func discovered(ctx context.Context, config *rest.Config, clients kubernetes.Interface, namespace string) error {
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(clients.Discovery()))
	mapping, err := mapper.RESTMapping(schema.GroupKind{Kind: "ConfigMap"}, "v1")
	if err != nil {
		return err
	}
	if _, err = mapper.RESTMapping(schema.GroupKind{Group: "unknown.example.com", Kind: "Thing"}); !meta.IsNoMatchError(err) {
		return fmt.Errorf("an unknown kind: %v", err)
	}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	object, err := client.Resource(mapping.Resource).Namespace(namespace).Get(ctx, "refused", metav1.GetOptions{})
	if err != nil {
		return err
	}
	if value, _, _ := unstructured.NestedString(object.Object, "data", "a"); value != "b" {
		return fmt.Errorf("the dynamic client read %v", object.Object)
	}
	return nil
}

func run() error {
	config, err := clientcmd.BuildConfigFromFlags("", os.Args[1])
	if err != nil {
		return err
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	namespace := os.Args[2]
	if err := informed(ctx, clients, namespace); err != nil {
		return fmt.Errorf("informers: %w", err)
	}
	if err := refused(ctx, clients, namespace); err != nil {
		return fmt.Errorf("errors: %w", err)
	}
	if err := recorded(ctx, clients, namespace); err != nil {
		return fmt.Errorf("events: %w", err)
	}
	if err := noted(ctx, clients, namespace); err != nil {
		return fmt.Errorf("events of events.k8s.io: %w", err)
	}
	if err := discovered(ctx, config, clients, namespace); err != nil {
		return fmt.Errorf("discovery: %w", err)
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
