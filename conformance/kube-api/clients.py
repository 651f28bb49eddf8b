#!/usr/bin/env python3
"""Tests the Kubernetes API of `slipway up` with the official clients for Python and Go.

    conformance/kube-api/clients.py --slipway target/release/slipway [--informers PROGRAM] [SUBSTRING ...] [--list] [--junit FILE]

Needs the package `kubernetes`. The client for Go, client-go with its informers, is the program in the folder `informers`.
"""

import contextlib
import os
import pathlib
import subprocess
import sys
import tempfile
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from kubernetes import client, config, dynamic, watch

from lib import Slipway
from suite import Skip, Suite, eventually

SUITE = Suite("kube-api clients", limit=180)


def test(function):
    """Registers a test that gets the path of a kubeconfig, a namespace of its own, and the options."""
    name = function.__name__.replace("_", "-")[:50].strip("-")

    def run(environment):
        kubeconfig, options = environment
        api = client.CoreV1Api(config.new_client_from_config(kubeconfig))
        api.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=name)))
        function(kubeconfig, name, options)
    SUITE.add(function.__name__, run)
    return function


def config_map(name, data, **metadata):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, **metadata), data=data)


def fails(status, reason, function, *arguments, **options):
    """Checks that a call is refused with a status and a reason."""
    try:
        function(*arguments, **options)
    except client.ApiException as error:
        assert error.status == status and f'"reason":"{reason}"' in error.body, (error.status, error.body)
    else:
        raise AssertionError(f"{function.__name__} succeeded")


@test
def python_client_reads_and_writes_objects(kubeconfig, namespace, _):
    api = client.CoreV1Api(config.new_client_from_config(kubeconfig))
    made = api.create_namespaced_config_map(namespace, config_map("a", {"k": "1"}, labels={"app": "x"}))
    assert made.metadata.uid and made.metadata.resource_version and made.metadata.creation_timestamp.tzinfo
    fails(409, "AlreadyExists", api.create_namespaced_config_map, namespace, config_map("a", {}))
    patched = api.patch_namespaced_config_map("a", namespace, {"data": {"l": "2"}})
    assert patched.data == {"k": "1", "l": "2"}
    fails(409, "Conflict", api.replace_namespaced_config_map, "a", namespace, made)
    patched.data = {"m": "3"}
    assert api.replace_namespaced_config_map("a", namespace, patched).data == {"m": "3"}
    fails(404, "NotFound", api.read_namespaced_config_map, "missing", namespace)
    fails(422, "Invalid", api.create_namespaced_config_map, namespace, config_map("In_valid", {}))
    for number in range(5):
        api.create_namespaced_config_map(namespace, config_map(f"n{number}", {}, labels={"app": "y"}))
    found, token = [], None
    while token != "":
        page = api.list_namespaced_config_map(namespace, label_selector="app=y", limit=2, _continue=token)
        found += [item.metadata.name for item in page.items]
        token = page.metadata._continue or ""
    assert found == [f"n{number}" for number in range(5)], found
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"password": "p"})
    assert api.create_namespaced_secret(namespace, secret).data == {"password": "cA=="}
    assert api.delete_namespaced_config_map("a", namespace).status == "Success"
    api.delete_collection_namespaced_config_map(namespace)
    assert not api.list_namespaced_config_map(namespace).items


@test
def python_client_watches_objects(kubeconfig, namespace, _):
    api = client.CoreV1Api(config.new_client_from_config(kubeconfig))
    start = api.list_namespaced_config_map(namespace).metadata.resource_version
    seen, watcher = [], watch.Watch()

    def follow():
        own = client.CoreV1Api(config.new_client_from_config(kubeconfig))
        for event in watcher.stream(own.list_namespaced_config_map, namespace, resource_version=start, timeout_seconds=60):
            seen.append((event["type"], event["object"].metadata.name))
            if len(seen) == 3:
                watcher.stop()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    api.create_namespaced_config_map(namespace, config_map("a", {"k": "1"}))
    api.patch_namespaced_config_map("a", namespace, {"data": {"k": "2"}})
    api.delete_namespaced_config_map("a", namespace)
    eventually(lambda: len(seen) == 3, timeout=30, message="three events")
    assert seen == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")], seen


@test
def python_dynamic_client_discovers_kinds(kubeconfig, namespace, _):
    with tempfile.TemporaryDirectory() as folder:
        cache = os.path.join(folder, "discovery.json")
        dynamic_client = dynamic.DynamicClient(config.new_client_from_config(kubeconfig), cache_file=cache)
        maps = dynamic_client.resources.get(api_version="v1", kind="ConfigMap")
        maps.create(namespace=namespace, body={"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}})
        assert maps.get(namespace=namespace, name="a").data.k == "v"
        assert [item.metadata.name for item in maps.get(namespace=namespace, label_selector="!missing").items] == ["a"]
        try:
            dynamic_client.resources.get(api_version="unknown.example.com/v1", kind="Thing")
            raise AssertionError("an unknown kind was found")
        except dynamic.exceptions.ResourceNotFoundError:
            pass


@test
def client_go_informers_see_every_change(kubeconfig, namespace, options):
    if not options.informers:
        raise Skip("needs the program in the folder informers (--informers)")
    done = subprocess.run([options.informers, kubeconfig, namespace], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr


def main():
    options = SUITE.options(__doc__, slipway={"default": "target/release/slipway"}, informers={})

    @contextlib.contextmanager
    def server(_):
        with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway) as running:
            kubeconfig = os.path.join(folder, "kubeconfig")
            running.command("config", "kubeconfig", "--save", kubeconfig)
            yield kubeconfig, options

    return SUITE.main(options, server)


if __name__ == "__main__":
    sys.exit(main())
