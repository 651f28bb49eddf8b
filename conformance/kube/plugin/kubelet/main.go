// A test kubelet: it accepts registrations of device plugins, sends each plugin all requests of a real kubelet, and prints the responses.
//
//	kubelet FOLDER SECONDS
//
// Plugins connect to FOLDER/kubelet.sock. The program waits for registrations until none has arrived for SECONDS. Then it reads commands
// from standard input: `wait SECONDS` sleeps, and then prints the health of all devices as one line.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

type kubelet struct {
	api.UnimplementedRegistrationServer
	registered chan *api.RegisterRequest
}

func (k *kubelet) Register(_ context.Context, request *api.RegisterRequest) (*api.Empty, error) {
	k.registered <- request
	return &api.Empty{}, nil
}

// resource holds the responses of the plugin for one resource.
type resource struct {
	Options   *api.DevicePluginOptions `json:"options"`
	Devices   map[string]string        `json:"devices"`
	Preferred map[string]any           `json:"preferred"`
	Allocate  map[string]any           `json:"allocate"`
	client    api.DevicePluginClient
	mutex     sync.Mutex
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet:", err)
		os.Exit(1)
	}
}

func (r *resource) watch(first chan<- bool) {
	stream, err := r.client.ListAndWatch(context.Background(), &api.Empty{})
	check(err)
	for {
		list, err := stream.Recv()
		if err != nil {
			return
		}
		r.mutex.Lock()
		r.Devices = map[string]string{}
		for _, device := range list.Devices {
			r.Devices[device.ID] = device.Health
		}
		r.mutex.Unlock()
		if first != nil {
			first <- true
			first = nil
		}
	}
}

func (r *resource) health() map[string]string {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	health := map[string]string{}
	for id, state := range r.Devices {
		health[id] = state
	}
	return health
}

func (r *resource) query() {
	ids := []string{}
	for id := range r.Devices {
		ids = append(ids, id)
	}
	sort.Strings(ids)
	deadline, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	r.Preferred, r.Allocate = map[string]any{}, map[string]any{}
	for _, size := range []int{1, 2, 4, len(ids)} {
		for _, must := range []int{0, 1} {
			if size > len(ids) || must > size {
				continue
			}
			response, err := r.client.GetPreferredAllocation(deadline, &api.PreferredAllocationRequest{ContainerRequests: []*api.ContainerPreferredAllocationRequest{
				{AvailableDeviceIDs: ids, MustIncludeDeviceIDs: ids[len(ids)-must:], AllocationSize: int32(size)}}})
			key := fmt.Sprintf("%d, %d given", size, must)
			if err != nil {
				r.Preferred[key] = err.Error()
				continue
			}
			chosen := response.ContainerResponses[0].DeviceIDs
			sort.Strings(chosen)
			r.Preferred[key] = chosen
		}
	}
	requests := map[string][]string{"one": ids[:1], "all": ids, "unknown": {"GPU-none"}}
	if len(ids) > 1 {
		requests["two"] = ids[len(ids)-2:]
	}
	for name, devices := range requests {
		response, err := r.client.Allocate(deadline, &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: devices}}})
		if err != nil {
			r.Allocate[name] = err.Error()
		} else {
			r.Allocate[name] = response.ContainerResponses[0]
		}
	}
}

func main() {
	folder := os.Args[1]
	quiet, err := time.ParseDuration(os.Args[2] + "s")
	check(err)
	k := &kubelet{registered: make(chan *api.RegisterRequest, 64)}
	listener, err := net.Listen("unix", filepath.Join(folder, "kubelet.sock"))
	check(err)
	server := grpc.NewServer()
	api.RegisterRegistrationServer(server, k)
	go server.Serve(listener)

	fmt.Println(`"ready"`)
	resources := map[string]*resource{}
	for waiting := true; waiting; {
		select {
		case request := <-k.registered:
			connection, err := grpc.NewClient("unix:"+filepath.Join(folder, request.Endpoint), grpc.WithTransportCredentials(insecure.NewCredentials()))
			check(err)
			r := &resource{Options: request.Options, client: api.NewDevicePluginClient(connection)}
			first := make(chan bool, 1)
			go r.watch(first)
			select {
			case <-first:
			case <-time.After(10 * time.Second):
				check(fmt.Errorf("%s lists no devices", request.ResourceName))
			}
			resources[request.ResourceName] = r
		case <-time.After(quiet):
			waiting = false
		}
	}
	out := json.NewEncoder(os.Stdout)
	for _, r := range resources {
		r.query()
	}
	check(out.Encode(resources))

	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		seconds, found := strings.CutPrefix(lines.Text(), "wait ")
		delay, err := time.ParseDuration(seconds + "s")
		if !found || err != nil {
			check(fmt.Errorf("unknown command %q", lines.Text()))
		}
		time.Sleep(delay)
		health := map[string]map[string]string{}
		for name, r := range resources {
			health[name] = r.health()
		}
		check(out.Encode(health))
	}
}
