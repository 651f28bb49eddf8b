// A kubelet as far as device plugins see it: takes registrations, asks each plugin everything the kubelet asks, and prints the answers.
//
//	kubelet FOLDER SECONDS
//
// FOLDER is where plugins look for kubelet.sock. Registrations are awaited until none came for SECONDS. Then every line of standard
// input is an event: whatever the caller did to the machine, `wait SECONDS` later the devices' health is printed as one more line.
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

// What one plugin said.
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

func (r *resource) follow(first chan<- bool) {
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

func (r *resource) ask() {
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
			answer, err := r.client.GetPreferredAllocation(deadline, &api.PreferredAllocationRequest{ContainerRequests: []*api.ContainerPreferredAllocationRequest{
				{AvailableDeviceIDs: ids, MustIncludeDeviceIDs: ids[len(ids)-must:], AllocationSize: int32(size)}}})
			key := fmt.Sprintf("%d, %d given", size, must)
			if err != nil {
				r.Preferred[key] = err.Error()
				continue
			}
			chosen := answer.ContainerResponses[0].DeviceIDs
			sort.Strings(chosen)
			r.Preferred[key] = chosen
		}
	}
	asked := map[string][]string{"one": ids[:1], "all": ids, "unknown": {"GPU-none"}}
	if len(ids) > 1 {
		asked["two"] = ids[len(ids)-2:]
	}
	for name, devices := range asked {
		answer, err := r.client.Allocate(deadline, &api.AllocateRequest{ContainerRequests: []*api.ContainerAllocateRequest{{DevicesIds: devices}}})
		if err != nil {
			r.Allocate[name] = err.Error()
		} else {
			r.Allocate[name] = answer.ContainerResponses[0]
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
			one := &resource{Options: request.Options, client: api.NewDevicePluginClient(connection)}
			first := make(chan bool, 1)
			go one.follow(first)
			select {
			case <-first:
			case <-time.After(10 * time.Second):
				check(fmt.Errorf("%s lists no devices", request.ResourceName))
			}
			resources[request.ResourceName] = one
		case <-time.After(quiet):
			waiting = false
		}
	}
	out := json.NewEncoder(os.Stdout)
	for _, one := range resources {
		one.ask()
	}
	check(out.Encode(resources))

	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		seconds, found := strings.CutPrefix(lines.Text(), "wait ")
		pause, err := time.ParseDuration(seconds + "s")
		if !found || err != nil {
			check(fmt.Errorf("%q is not understood", lines.Text()))
		}
		time.Sleep(pause)
		now := map[string]map[string]string{}
		for name, one := range resources {
			now[name] = one.health()
		}
		check(out.Encode(now))
	}
}
