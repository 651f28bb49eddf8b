package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"
)

const (
	etcdPort     = "12379"
	apiPort      = "6443"
	serviceRange = "10.96.0.0/16"
	firstService = "10.96.0.1"
	podRange     = "10.244.0.0/16"
)

// startControlPlane starts etcd, kube-apiserver, kube-controller-manager and kube-scheduler, and waits until they work.
func (l *lab) startControlPlane() error {
	server := l.server()
	signer, err := newAuthority(l.pki())
	if err != nil {
		return err
	}
	hosts := []string{"127.0.0.1", l.Address, firstService, "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}
	if err := signer.issue("etcd", "etcd", nil, "127.0.0.1", "localhost"); err != nil {
		return err
	}
	if err := signer.issue("kube-apiserver", "kube-apiserver", nil, hosts...); err != nil {
		return err
	}
	if err := signer.issue("front-proxy", "front-proxy", nil); err != nil {
		return err
	}
	if err := signer.client("admin", "admin", []string{"system:masters"}, server); err != nil {
		return err
	}
	for _, name := range []string{"kube-controller-manager", "kube-scheduler", "kube-proxy"} {
		if err := signer.client(name, "system:"+name, nil, server); err != nil {
			return err
		}
	}
	for i := 1; i <= l.Nodes; i++ {
		name := nodeName(i)
		if err := signer.client(name, "system:node:"+name, []string{"system:nodes"}, server, nodeAddress(i), name); err != nil {
			return err
		}
	}
	pki := func(name string) string { return filepath.Join(l.pki(), name) }
	program := func(name string) string { return filepath.Join(l.bin, name) }
	etcd, peer := "https://127.0.0.1:"+etcdPort, "http://127.0.0.1:12380"
	kubeconfig := func(name string) []string {
		file := pki(name + ".kubeconfig")
		return []string{program(name), "--kubeconfig=" + file, "--authentication-kubeconfig=" + file, "--authorization-kubeconfig=" + file,
			"--bind-address=127.0.0.1", "--leader-elect=false"}
	}
	controllers := append(kubeconfig("kube-controller-manager"),
		"--use-service-account-credentials", "--service-account-private-key-file="+pki("service-account.key"),
		"--root-ca-file="+pki("ca.crt"), "--cluster-signing-cert-file="+pki("ca.crt"), "--cluster-signing-key-file="+pki("ca.key"),
		"--cluster-cidr="+podRange, "--allocate-node-cidrs=false", "--node-monitor-grace-period=20s")
	for _, p := range []*process{
		{Name: "etcd", Args: []string{program("etcd"), "--data-dir", filepath.Join(l.folder, "etcd"), "--unsafe-no-fsync",
			"--listen-client-urls", etcd, "--advertise-client-urls", etcd, "--listen-peer-urls", peer,
			"--initial-advertise-peer-urls", peer, "--initial-cluster", "default=" + peer, "--client-cert-auth",
			"--trusted-ca-file", pki("ca.crt"), "--cert-file", pki("etcd.crt"), "--key-file", pki("etcd.key")}},
		{Name: "kube-apiserver", Args: []string{program("kube-apiserver"), "--etcd-servers=" + etcd,
			"--etcd-cafile=" + pki("ca.crt"), "--etcd-certfile=" + pki("etcd.crt"), "--etcd-keyfile=" + pki("etcd.key"),
			"--bind-address=" + l.Address, "--advertise-address=" + l.Address, "--secure-port=" + apiPort,
			"--tls-cert-file=" + pki("kube-apiserver.crt"), "--tls-private-key-file=" + pki("kube-apiserver.key"),
			"--client-ca-file=" + pki("ca.crt"), "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
			"--service-account-key-file=" + pki("service-account.pub"), "--service-account-signing-key-file=" + pki("service-account.key"),
			"--service-cluster-ip-range=" + serviceRange, "--allow-privileged=true",
			"--kubelet-client-certificate=" + pki("admin.crt"), "--kubelet-client-key=" + pki("admin.key"),
			"--kubelet-certificate-authority=" + pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
			"--requestheader-client-ca-file=" + pki("ca.crt"), "--requestheader-allowed-names=front-proxy",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + pki("front-proxy.crt"), "--proxy-client-key-file=" + pki("front-proxy.key")}},
		{Name: "kube-controller-manager", Args: controllers},
		{Name: "kube-scheduler", Args: kubeconfig("kube-scheduler")},
	} {
		if err := l.start(p); err != nil {
			return err
		}
		if p.Name == "kube-apiserver" {
			if err := l.waitForAPI(); err != nil {
				return err
			}
		}
	}
	// Pods need the service account of their namespace; once it exists, the controllers work.
	return l.wait("the default service account", time.Minute, []string{"kube-controller-manager"}, func() error {
		_, err := l.get("/api/v1/namespaces/default/serviceaccounts/default")
		return err
	})
}

func (l *lab) waitForAPI() error {
	return l.wait("the API server", 2*time.Minute, []string{"etcd", "kube-apiserver"}, func() error {
		_, err := l.get("/readyz")
		return err
	})
}

func (l *lab) server() string { return "https://" + l.Address + ":" + apiPort }

// get sends a request to the API server as administrator.
func (l *lab) get(path string) (string, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(l.pki(), "admin.crt"), filepath.Join(l.pki(), "admin.key"))
	if err != nil {
		return "", err
	}
	ca, err := os.ReadFile(filepath.Join(l.pki(), "ca.crt"))
	if err != nil {
		return "", err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots}}
	defer transport.CloseIdleConnections()
	client := &http.Client{Timeout: 5 * time.Second, Transport: transport}
	response, err := client.Get(l.server() + path)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", path, response.Status)
	}
	return string(body), err
}
