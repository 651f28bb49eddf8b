// Load measures a server of the Kubernetes API: creates and updates of config maps, lists, and the time from a change to watchers.
// It prints one JSON object; rates are per second, times in milliseconds.
//
//	load --server https://127.0.0.1:6443 --token TOKEN [--objects 10000] [--watchers 1000] [--changes 50] [--connections 16]
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const namespace = "load"

var (
	server      = flag.String("server", "", "URL of the server")
	token       = flag.String("token", "", "bearer token")
	objects     = flag.Int("objects", 10000, "number of objects that are created, updated and listed")
	watchers    = flag.Int("watchers", 1000, "number of concurrent watches")
	changes     = flag.Int("changes", 50, "number of changes that are sent to all watches")
	connections = flag.Int("connections", 16, "number of concurrent writers")
)

// Each watch has a connection of its own, as that of a client of its own.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, // The server of a benchmark has a certificate of its own.
		MaxIdleConnsPerHost: *connections,
	}}
}

func send(ctx context.Context, client *http.Client, method, path, kind string, body []byte) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, method, *server+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+*token)
	request.Header.Set("Content-Type", kind)
	request.Header.Set("Accept", "application/json")
	response, err := client.Do(request)
	if err == nil && response.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1000))
		response.Body.Close()
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	return response, err
}

// exchange sends a request and reads the whole response; returns its length.
func exchange(client *http.Client, method, path, kind string, body []byte) (int64, error) {
	response, err := send(context.Background(), client, method, path, kind, body)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	return io.Copy(io.Discard, response.Body)
}

type summary struct {
	Rate float64 `json:"rate"`
	P50  float64 `json:"p50"`
	P99  float64 `json:"p99"`
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

func summarize(times []time.Duration, elapsed time.Duration) summary {
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	at := func(share float64) float64 { return milliseconds(times[int(share*float64(len(times)-1))]) }
	return summary{Rate: float64(len(times)) / elapsed.Seconds(), P50: at(0.5), P99: at(0.99)}
}

// each calls write for all numbers below count, from several writers.
func each(count int, write func(number int) error) (summary, error) {
	var next atomic.Int64
	var group sync.WaitGroup
	times, failures := make([]time.Duration, count), make(chan error, *connections)
	began := time.Now()
	for range *connections {
		group.Go(func() {
			for {
				number := int(next.Add(1)) - 1
				if number >= count {
					return
				}
				sent := time.Now()
				if err := write(number); err != nil {
					failures <- err
					return
				}
				times[number] = time.Since(sent)
			}
		})
	}
	group.Wait()
	select {
	case err := <-failures:
		return summary{}, err
	default:
		return summarize(times, time.Since(began)), nil
	}
}

// fanOut changes one object again and again while all watches follow it. The time of a change is the time from sending its request to the
// moment at which a watcher has read the event.
func fanOut(path string) (summary, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	writer := newClient()
	if _, err := exchange(writer, "POST", path, "application/json", []byte(`{"metadata":{"name":"watched"}}`)); err != nil {
		return summary{}, err
	}
	sent := make([]time.Time, *changes)
	times := make([][]time.Duration, *watchers)
	failures := make(chan error, *watchers)
	var ready, group sync.WaitGroup
	received := make([]sync.WaitGroup, *changes)
	for i := range received {
		received[i].Add(*watchers)
	}
	ready.Add(*watchers)
	for watcher := range *watchers {
		group.Go(func() {
			isReady := sync.OnceFunc(ready.Done)
			defer isReady()
			response, err := send(ctx, newClient(), "GET", path+"?watch=true&fieldSelector=metadata.name%3Dwatched", "", nil)
			if err != nil {
				failures <- err
				return
			}
			defer response.Body.Close()
			lines := bufio.NewReaderSize(response.Body, 4096)
			for next := -1; next < *changes; next++ {
				line, err := lines.ReadString('\n')
				if err != nil {
					failures <- err
					return
				}
				if next < 0 { // The first event is the object as it is.
					isReady()
					continue
				}
				if !strings.Contains(line, fmt.Sprintf("\"change\":\"%d\"", next)) {
					failures <- fmt.Errorf("watcher %d: change %d is not in %s", watcher, next, line)
					return
				}
				times[watcher] = append(times[watcher], time.Since(sent[next]))
				received[next].Done()
			}
		})
	}
	ready.Wait()
	began := time.Now()
	for number := range *changes {
		body := fmt.Appendf(nil, `{"data":{"change":"%d"}}`, number)
		sent[number] = time.Now()
		if _, err := exchange(writer, "PATCH", path+"/watched", "application/merge-patch+json", body); err != nil {
			return summary{}, err
		}
		done := make(chan struct{})
		go func() { received[number].Wait(); close(done) }()
		select {
		case <-done:
		case err := <-failures:
			return summary{}, err
		case <-time.After(time.Minute):
			return summary{}, fmt.Errorf("change %d did not reach all watchers within a minute", number)
		}
	}
	elapsed := time.Since(began)
	group.Wait()
	all := []time.Duration{}
	for _, one := range times {
		all = append(all, one...)
	}
	return summarize(all, elapsed), nil
}

func measure() (map[string]any, error) {
	client, path := newClient(), "/api/v1/namespaces/"+namespace+"/configmaps"
	namespaceBody := []byte(`{"metadata":{"name":"` + namespace + `"}}`)
	if _, err := exchange(client, "POST", "/api/v1/namespaces", "application/json", namespaceBody); err != nil {
		return nil, err
	}
	filler := strings.Repeat("x", 512)
	create, err := each(*objects, func(number int) error {
		body := fmt.Appendf(nil, `{"metadata":{"name":"object-%d","labels":{"app":"load"}},"data":{"filler":"%s"}}`, number, filler)
		_, err := exchange(client, "POST", path, "application/json", body)
		return err
	})
	if err != nil {
		return nil, err
	}
	update, err := each(*objects, func(number int) error {
		body := fmt.Appendf(nil, `{"data":{"number":"%d"}}`, number)
		_, err := exchange(client, "PATCH", fmt.Sprintf("%s/object-%d", path, number), "application/merge-patch+json", body)
		return err
	})
	if err != nil {
		return nil, err
	}
	var bytesOfList int64
	times := []time.Duration{}
	began := time.Now()
	for range 5 {
		sent := time.Now()
		if bytesOfList, err = exchange(client, "GET", path, "", nil); err != nil {
			return nil, err
		}
		times = append(times, time.Since(sent))
	}
	list := summarize(times, time.Since(began))
	watch, err := fanOut(path)
	if err != nil {
		return nil, err
	}
	return map[string]any{"create": create, "update": update, "list": list, "list_bytes": bytesOfList, "watch": watch}, nil
}

func main() {
	flag.Parse()
	results, err := measure()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(results)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
