#!/usr/bin/env python3
"""Tests the Kubernetes API of `slipway up` with the real kubectl: reading, writing, waiting, watching, deleting, and its errors.

    conformance/kube-api/run.py --slipway target/release/slipway --kubectl kubectl [SUBSTRING ...] [--list] [--junit FILE]

Each test has a namespace of its own. The expected outputs are those of kube-apiserver 1.36.
"""

import contextlib
import http.client
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import Slipway
from suite import Suite, eventually

SUITE = Suite("kube-api", limit=120)


def test(function=None, **settings):
    """Registers a test that gets kubectl in a namespace of its own."""
    def register(function):
        name = function.__name__.replace("_", "-")[:63].strip("-")

        def run(in_namespace):
            kubectl = in_namespace(name)
            kubectl("create", "namespace", name)
            function(kubectl)
        SUITE.add(function.__name__, run, **settings)
    return register(function) if function else register


class Kubectl:
    """kubectl in one namespace of a server."""

    def __init__(self, program, server, kubeconfig, namespace):
        self.program, self.server, self.kubeconfig, self.namespace = program, server, kubeconfig, namespace

    def arguments(self, *arguments):
        return [self.program, "--kubeconfig", self.kubeconfig, "--namespace", self.namespace, "--cache-dir", f"{self.kubeconfig}.cache", *arguments]

    def run(self, *arguments, stdin=None, environment=None):
        return subprocess.run(self.arguments(*arguments), input=stdin, capture_output=True, text=True, timeout=60,
                              env={**os.environ, **(environment or {})})

    def __call__(self, *arguments, **options):
        """The standard output of a command that succeeds."""
        done = self.run(*arguments, **options)
        assert done.returncode == 0, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def fails(self, *arguments, **options):
        """The error of a command that fails."""
        done = self.run(*arguments, **options)
        assert done.returncode != 0, f"{arguments} succeeded:\n{done.stdout}"
        return done.stderr

    def get(self, *arguments):
        return json.loads(self("get", *arguments, "-o", "json"))

    def call(self, method, path, body=None, content_type="application/json"):
        return self.server.call(method, path, body, headers={"content-type": content_type})


def manifest(name, data=None, kind="ConfigMap", **fields):
    metadata = {"name": name, **fields.pop("metadata", {})}
    return json.dumps({"apiVersion": "v1", "kind": kind, "metadata": metadata, **({} if data is None else {"data": data}), **fields})


def path(kubectl, name="", plural="configmaps"):
    return f"/api/v1/namespaces/{kubectl.namespace}/{plural}" + (f"/{name}" if name else "")


@test
def resources_and_versions_are_discovered(kubectl):
    listed = kubectl("api-resources", "--no-headers", "--sort-by=name")
    rows = [line.split() for line in listed.splitlines()]
    assert ["configmaps", "cm", "v1", "true", "ConfigMap"] in rows, listed
    assert ["namespaces", "ns", "v1", "false", "Namespace"] in rows, listed
    assert "v1" in kubectl("api-versions").splitlines()
    assert json.loads(kubectl("version", "-o", "json"))["serverVersion"]["minor"] == "36"


@test
def manifest_is_applied_changed_and_applied_again(kubectl):
    assert kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "1", "old": "x"})) == "configmap/a created\n"
    assert kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "1", "old": "x"})) == "configmap/a unchanged\n"
    assert kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "2"})) == "configmap/a configured\n"
    assert kubectl.get("configmap", "a")["data"] == {"k": "2"}
    assert kubectl("get", "cm", "a", "-o", "jsonpath={.data.k}") == "2"
    assert "+  k: \"3\"" in kubectl.run("diff", "-f", "-", stdin=manifest("a", {"k": "3"})).stdout


@test
def tables_have_the_columns_of_upstream(kubectl):
    kubectl("create", "configmap", "a", "--from-literal=x=1", "--from-literal=y=2")
    kubectl("create", "secret", "generic", "s", "--from-literal=p=hunter2")
    assert kubectl("get", "cm").split()[:5] == ["NAME", "DATA", "AGE", "a", "2"]
    assert kubectl("get", "secrets").splitlines()[0].split() == ["NAME", "TYPE", "DATA", "AGE"]
    assert kubectl("get", "secrets", "--no-headers").split()[:3] == ["s", "Opaque", "1"]
    assert kubectl("get", "ns", kubectl.namespace, "--no-headers").split()[1] == "Active"
    assert [kubectl.namespace, "a", "2"] in [line.split()[:3] for line in kubectl("get", "cm", "-A", "--no-headers").splitlines()]


@test
def typed_clients_create_objects_in_protobuf(kubectl):
    assert kubectl("create", "configmap", "a", "--from-literal=k=v") == "configmap/a created\n"
    error = kubectl.fails("create", "configmap", "a", "--from-literal=k=v")
    assert error == 'error: failed to create configmap: configmaps "a" already exists\n', error
    kubectl("create", "secret", "generic", "s", "--from-literal=password=hunter2")
    assert kubectl("get", "secret", "s", "-o", "jsonpath={.data.password}") == "aHVudGVyMg=="


@test
def all_three_kinds_of_patches_are_applied(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "1", "l": "2"}))
    kubectl("patch", "cm", "a", "-p", '{"data":{"k":"s"}}')
    kubectl("patch", "cm", "a", "--type=merge", "-p", '{"data":{"l":null}}')
    kubectl("patch", "cm", "a", "--type=json", "-p", '[{"op":"add","path":"/data/m","value":"j"}]')
    assert kubectl.get("cm", "a")["data"] == {"k": "s", "m": "j"}
    assert kubectl("patch", "cm", "a", "-p", '{"data":{"k":"s"}}') == "configmap/a patched (no change)\n"
    failed = kubectl.fails("patch", "cm", "a", "--type=json", "-p", '[{"op":"remove","path":"/data/none"}]')
    assert "the server rejected our request due to an error in our request" in failed, failed
    kubectl("label", "cm", "a", "app=web")
    kubectl("annotate", "cm", "a", "note=x")
    assert kubectl("get", "cm", "-l", "app in (web)", "-o", "name") == "configmap/a\n"
    assert kubectl("get", "cm", "-l", "app notin (web)", "-o", "name") == ""


@test
def object_is_edited(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "before"}))
    assert "edited" in kubectl("edit", "cm", "a", environment={"KUBE_EDITOR": "sed -i s/before/after/"})
    assert kubectl.get("cm", "a")["data"]["k"] == "after"


@test
def older_version_is_refused(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "1"}))
    stale = kubectl.get("cm", "a")
    kubectl("patch", "cm", "a", "-p", '{"data":{"k":"2"}}')
    error = kubectl.fails("replace", "-f", "-", stdin=json.dumps(stale))
    expected = 'Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again'
    assert expected in error, error
    stale["metadata"].pop("resourceVersion")
    assert kubectl("replace", "-f", "-", stdin=json.dumps(stale)) == "configmap/a replaced\n"


@test
def errors_have_the_words_of_the_api_server(kubectl):
    assert kubectl.fails("get", "cm", "none") == 'Error from server (NotFound): configmaps "none" not found\n'
    invalid = kubectl.fails("create", "-f", "-", stdin=manifest("Not_Valid", {}))
    assert 'The ConfigMap "Not_Valid" is invalid: metadata.name: Invalid value: "Not_Valid": a lowercase RFC 1123 subdomain' in invalid, invalid
    unknown = kubectl.fails("apply", "-f", "-", stdin=manifest("a", spec={}))
    assert 'strict decoding error: unknown field "spec"' in unknown, unknown
    unserved = kubectl.fails("apply", "-f", "-", stdin=json.dumps({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}}))
    assert 'no matches for kind "Deployment" in version "apps/v1"' in unserved, unserved
    missing = kubectl.fails("create", "-n", "nowhere", "-f", "-", stdin=manifest("a", {}))
    assert 'namespaces "nowhere" not found' in missing, missing
    kubectl("create", "-f", "-", stdin=manifest("fixed", {"k": "1"}, immutable=True))
    immutable = kubectl.fails("patch", "cm", "fixed", "-p", '{"data":{"k":"2"}}')
    assert "data: Forbidden: field is immutable when `immutable` is set" in immutable, immutable
    assert "default" in kubectl.fails("delete", "ns", "default")
    status, body = kubectl.call("POST", path(kubectl), {"metadata": {"name": "big"}, "data": {"k": "x" * (1 << 20) + "x"}})
    assert (status, body["reason"]) == (422, "Invalid"), body
    status, body = kubectl.call("POST", path(kubectl), {"metadata": {"name": "huge"}, "data": {"k": "x" * (3 << 20)}})
    assert (status, body["reason"]) == (413, "RequestEntityTooLarge"), body
    assert kubectl.call("POST", path(kubectl), b"{", "application/cbor")[0] == 415


def managers(kubectl, name):
    """The managers of an object's fields: pairs of name and operation."""
    shown = json.loads(kubectl("get", "cm", name, "-o", "json", "--show-managed-fields"))
    return [(entry["manager"], entry["operation"]) for entry in shown["metadata"].get("managedFields", [])]


@test
def configuration_is_applied_by_the_server(kubectl):
    apply = ("apply", "--server-side", "-f", "-")
    assert kubectl(*apply, stdin=manifest("a", {"k": "1", "old": "x"})) == "configmap/a serverside-applied\n"
    version = kubectl.get("cm", "a")["metadata"]["resourceVersion"]
    kubectl(*apply, stdin=manifest("a", {"k": "1", "old": "x"}))
    assert kubectl.get("cm", "a")["metadata"]["resourceVersion"] == version, "an apply without a change changed the object"
    kubectl("patch", "cm", "a", "-p", '{"data":{"other":"y"}}')
    kubectl(*apply, stdin=manifest("a", {"k": "2"}))
    assert kubectl.get("cm", "a")["data"] == {"k": "2", "other": "y"}
    assert managers(kubectl, "a") == [("kubectl", "Apply"), ("kubectl-patch", "Update")], managers(kubectl, "a")
    shown = kubectl("get", "cm", "a", "-o", "yaml", "--show-managed-fields")
    assert "f:data:" in shown and "managedFields" not in kubectl("get", "cm", "a", "-o", "yaml"), shown
    yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: b\ndata:\n  k: v\n"
    assert kubectl(*apply, stdin=yaml) == "configmap/b serverside-applied\n"


@test
def responses_are_yaml_for_clients_that_prefer_it(kubectl):
    data = {"text": "true", "lines": "a\n  b\n", "number": "1e3", "colon": "a: b", "hash": "#x", "empty": "", "quote": "it's \"q\"", "null": "~"}
    kubectl("create", "-f", "-", stdin=manifest("a", data))

    def get(place):
        return kubectl.server.call("GET", place, headers={"accept": "application/yaml"})
    code, text = get(path(kubectl, "a"))
    assert code == 200 and text.startswith(("apiVersion: v1\n", "data:")), text
    assert json.loads(kubectl("create", "--dry-run=client", "-o", "json", "-f", "-", stdin=text))["data"] == data
    code, text = get(path(kubectl))
    assert code == 200 and "kind: ConfigMapList\n" in text, text
    code, text = get(path(kubectl, "missing"))
    assert code == 404 and "reason: NotFound\n" in text, text


@test
def conflicts_of_appliers_are_reported_and_forced(kubectl):
    first = ("apply", "--server-side", "--field-manager=first", "-f", "-")
    second = ("apply", "--server-side", "--field-manager=second", "-f", "-")
    kubectl(*first, stdin=manifest("a", {"k": "1", "l": "1"}))
    done = kubectl.run(*second, stdin=manifest("a", {"k": "2"}))
    assert done.returncode == 1 and 'Apply failed with 1 conflict: conflict with "first": .data.k' in done.stderr, done
    several = kubectl.fails(*second, stdin=manifest("a", {"k": "2", "l": "2"}))
    assert 'Apply failed with 2 conflicts: conflicts with "first":\n- .data.k\n- .data.l' in several, several
    kubectl(*second, "--force-conflicts", stdin=manifest("a", {"k": "2"}))
    kubectl(*first, stdin=manifest("a", {"l": "1"}))
    assert kubectl.get("cm", "a")["data"] == {"k": "2", "l": "1"}
    kubectl(*second, stdin=manifest("a"))
    assert kubectl.get("cm", "a")["data"] == {"l": "1"}, "a field that nobody applies any longer is still there"
    kubectl("label", "cm", "a", "app=web", "--field-manager=third")
    labelled = kubectl.fails(*first, stdin=manifest("a", {"l": "1"}, metadata={"labels": {"app": "db"}}))
    assert 'conflict with "third" using v1: .metadata.labels.app' in labelled, labelled


@test
def client_side_apply_is_continued_by_the_server(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "1", "old": "x"}))
    assert managers(kubectl, "a") == [("kubectl-client-side-apply", "Update")]
    kubectl("apply", "--server-side", "-f", "-", stdin=manifest("a", {"k": "2"}))
    assert kubectl.get("cm", "a")["data"] == {"k": "2"}
    # kubectl itself moves the fields of its client-side apply, and owns the annotation under another name.
    assert sorted(managers(kubectl, "a")) == [("kubectl", "Apply"), ("kubectl-last-applied", "Apply")], managers(kubectl, "a")
    assert kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "3"})) == "configmap/a configured\n"
    assert kubectl.get("cm", "a")["data"] == {"k": "3"}


@test
def server_side_apply_has_dry_runs_and_differences(kubectl):
    apply = ("apply", "--server-side", "-f", "-")
    assert kubectl(*apply, "--dry-run=server", stdin=manifest("a", {"k": "1"})) == "configmap/a serverside-applied (server dry run)\n"
    assert kubectl("get", "cm", "-o", "name") == ""
    kubectl(*apply, stdin=manifest("a", {"k": "1"}))
    kubectl(*apply, "--dry-run=server", stdin=manifest("a", {"k": "2"}))
    assert kubectl.get("cm", "a")["data"] == {"k": "1"}
    compared = kubectl.run("diff", "--server-side", "-f", "-", stdin=manifest("a", {"k": "2"}))
    assert compared.returncode == 1 and '+  k: "2"' in compared.stdout, compared
    assert kubectl.run("diff", "--server-side", "-f", "-", stdin=manifest("a", {"k": "1"})).returncode == 0


@test
def dry_run_changes_nothing(kubectl):
    assert "created (server dry run)" in kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifest("a", {}))
    assert kubectl("get", "cm", "-o", "name") == ""
    kubectl("create", "cm", "a")
    kubectl("delete", "cm", "a", "--dry-run=server")
    assert kubectl("get", "cm", "-o", "name") == "configmap/a\n"


@test
def kubectl_waits_for_changes_and_deletions(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {"state": "new"}))
    waiting = subprocess.Popen(kubectl.arguments("wait", "cm/a", "--for=jsonpath={.data.state}=done", "--timeout=60s"), stdout=subprocess.PIPE, text=True)
    kubectl("patch", "cm", "a", "-p", '{"data":{"state":"done"}}')
    assert waiting.communicate(timeout=60)[0] == "configmap/a condition met\n"
    waiting = subprocess.Popen(kubectl.arguments("wait", "cm/a", "--for=delete", "--timeout=60s"), stdout=subprocess.PIPE, text=True)
    assert kubectl("delete", "cm", "a").startswith('configmap "a" deleted')
    # Nothing is printed if the object was deleted before kubectl looked for it.
    assert waiting.wait(timeout=60) == 0 and waiting.stdout.read() in ("configmap/a condition met\n", "")


@contextlib.contextmanager
def watching(kubectl, query):
    """The events of a watch, in a list that grows."""
    address = urllib.parse.urlsplit(kubectl.server.url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", f"{path(kubectl)}?watch=1&{query}", headers=kubectl.server.authorization)
    stream, events = connection.sock, []
    response = connection.getresponse()
    assert response.status == 200, response.read()

    def read():
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            for line in response:
                events.append(json.loads(line))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield events
    finally:
        # A watch does not end by itself, and closing the response would wait for its next event.
        with contextlib.suppress(OSError):
            stream.shutdown(socket.SHUT_RDWR)
        thread.join(30)
        connection.close()


def kinds(events):
    return [(event["type"], event["object"]["metadata"]["name"]) for event in events]


@test
def watch_resumes_after_a_version_without_gaps(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {"k": "0"}))
    version = kubectl.get("cm", "a")["metadata"]["resourceVersion"]
    for i in range(3):
        kubectl.call("PATCH", path(kubectl, "a"), {"data": {"k": str(i + 1)}}, "application/merge-patch+json")
    kubectl.call("DELETE", path(kubectl, "a"))
    with watching(kubectl, f"resourceVersion={version}") as events:
        eventually(lambda: len(events) >= 4, timeout=30, message="four events")
        assert kinds(events) == [("MODIFIED", "a")] * 3 + [("DELETED", "a")]
        assert [event["object"]["data"]["k"] for event in events] == ["1", "2", "3", "3"]
        versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
        assert versions == sorted(set(versions)) and versions[0] > int(version), versions
    with watching(kubectl, "resourceVersion=1") as events:
        eventually(lambda: events, timeout=30, message="an event")
        # The first change of a new server made the namespace `default`.
        assert events[0]["type"] in ("ADDED", "ERROR"), events


@test
def selected_objects_come_and_go_in_a_watch(kubectl):
    with watching(kubectl, "labelSelector=on%3Dyes&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true") as events:
        eventually(lambda: events, timeout=30, message="the bookmark behind the initial objects")
        assert events[0]["type"] == "BOOKMARK" and events[0]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
        kubectl("apply", "-f", "-", stdin=manifest("a", {}))
        kubectl("label", "cm", "a", "on=yes")
        kubectl("annotate", "cm", "a", "x=y")
        kubectl("label", "cm", "a", "on-")
        kubectl("delete", "cm", "a")
        kubectl("apply", "-f", "-", stdin=manifest("b", {}, metadata={"labels": {"on": "yes"}}))
        eventually(lambda: len(events) >= 5, timeout=30, message="five events")
        assert kinds(events[1:]) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a"), ("ADDED", "b")], events


@test
def pages_of_a_list_are_of_one_version(kubectl):
    for i in range(5):
        kubectl.call("POST", path(kubectl), {"metadata": {"name": f"c{i}"}, "data": {"k": "old"}})
    status, first = kubectl.call("GET", path(kubectl) + "?limit=2")
    assert status == 200 and first["metadata"]["remainingItemCount"] == 3, first["metadata"]
    kubectl.call("DELETE", path(kubectl, "c3"))
    kubectl.call("PATCH", path(kubectl, "c4"), {"data": {"k": "new"}}, "application/merge-patch+json")
    kubectl.call("POST", path(kubectl), {"metadata": {"name": "c9"}})
    status, rest = kubectl.call("GET", path(kubectl) + f"?continue={first['metadata']['continue']}")
    names = [item["metadata"]["name"] for item in first["items"] + rest["items"]]
    assert names == ["c0", "c1", "c2", "c3", "c4"] and rest["items"][2]["data"] == {"k": "old"}, names
    assert rest["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    assert len(kubectl("get", "cm", "--chunk-size=2", "-o", "name").splitlines()) == 5


@test
def finalizers_delay_a_deletion(kubectl):
    kubectl("apply", "-f", "-", stdin=manifest("a", {}, metadata={"finalizers": ["example.com/hold"]}))
    kubectl("delete", "cm", "a", "--wait=false")
    assert kubectl.get("cm", "a")["metadata"]["deletionTimestamp"]
    added = kubectl.fails("patch", "cm", "a", "-p", '{"metadata":{"finalizers":["example.com/more"]}}')
    assert "no new finalizers can be added if the object is being deleted" in added, added
    kubectl("patch", "cm", "a", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    assert "NotFound" in kubectl.fails("get", "cm", "a")


def owned(kubectl, name, owner, **fields):
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], **fields}
    kubectl("apply", "-f", "-", stdin=manifest(name, {}, metadata={"ownerReferences": [reference]}))


@test
def dependents_follow_their_owner(kubectl):
    for owner, policy in [("background", "background"), ("foreground", "foreground"), ("orphan", "orphan")]:
        kubectl("create", "cm", owner)
        owned(kubectl, f"{owner}-child", kubectl.get("cm", owner), blockOwnerDeletion=True)
        kubectl("delete", "cm", owner, f"--cascade={policy}")
    eventually(lambda: kubectl("get", "cm", "-o", "name") == "configmap/orphan-child\n", timeout=30, message="only the orphan remains")
    assert "ownerReferences" not in kubectl.get("cm", "orphan-child")["metadata"]


@test
def deleted_namespace_takes_its_objects_along(kubectl):
    kubectl("create", "namespace", "short-lived")
    kubectl("create", "cm", "a", "-n", "short-lived")
    kubectl("delete", "namespace", "short-lived", "--timeout=60s")
    assert kubectl("get", "cm", "-n", "short-lived", "-o", "name") == ""
    assert "NotFound" in kubectl.fails("get", "ns", "short-lived")


@test
def generated_names_are_unique(kubectl):
    body = {"metadata": {"generateName": "run-"}}
    names = {kubectl.call("POST", path(kubectl), body)[1]["metadata"]["name"] for _ in range(20)}
    assert len(names) == 20 and all(name.startswith("run-") and len(name) == 9 for name in names), names


@test
def events_are_described_with_their_object(kubectl):
    kubectl("create", "cm", "a", "--from-literal=k=v")
    about = {"apiVersion": "v1", "kind": "ConfigMap", "name": "a", "namespace": kubectl.namespace, "uid": kubectl.get("cm", "a")["metadata"]["uid"]}
    event = manifest("a.1", kind="Event", involvedObject=about, reason="Tested", message="it was tested", type="Normal", count=2,
                     source={"component": "test"}, lastTimestamp="2026-01-01T00:00:00Z")
    kubectl("create", "-f", "-", stdin=event)
    described = kubectl("describe", "cm", "a")
    assert "Tested" in described and "it was tested" in described, described
    assert kubectl("get", "events", "--no-headers").split()[1:4] == ["Normal", "Tested", "configmap/a"]
    assert kubectl("get", "events", "--field-selector", "reason=Other", "-o", "name") == ""
    # The same object in the other group.
    assert kubectl("get", "events.events.k8s.io", "--no-headers").split()[1:4] == ["Normal", "Tested", "configmap/a"]
    assert kubectl.get("events.v1.events.k8s.io", "a.1")["regarding"]["name"] == "a"
    explained = kubectl("explain", "events.regarding", "--api-version", "events.k8s.io/v1")
    assert "GROUP:      events.k8s.io" in explained and "fieldPath" in explained, explained
    wrong = kubectl.fails("get", "events", "--field-selector", "spec.odd=1")
    assert "field label not supported: spec.odd" in wrong, wrong


@test
def permissions_are_answered(kubectl):
    assert kubectl("auth", "can-i", "create", "configmaps") == "yes\n"
    assert "owner" in kubectl("auth", "whoami")
    listed = {line.split()[0]: line for line in kubectl("auth", "can-i", "--list").splitlines()[1:]}
    assert "delete" in listed["configmaps"] and "delete" not in listed["pods"], listed
    request = urllib.request.Request(kubectl.server.url + path(kubectl))
    try:
        urllib.request.urlopen(request, timeout=30)
        raise AssertionError("a client without a token read objects")
    except urllib.error.HTTPError as error:
        assert error.code == 401


@test
def definitions_of_custom_resources_are_refused_with_a_hint(kubectl):
    definition = json.dumps({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                 "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {"type": "object"}}}]},
    })
    refused = kubectl.fails("apply", "-f", "-", stdin=definition)
    assert "Thing is not one of them" in refused and "slipway up --kube" in refused, refused


@test
def fields_are_explained(kubectl):
    explained = kubectl("explain", "configmap.data")
    assert "FIELD: data" in explained and "map[string]string" in explained, explained


@test
def secrets_are_encrypted_at_rest(kubectl):
    kubectl("create", "secret", "generic", "s", "--from-literal=password=correct-horse-battery")
    files = [file for file in kubectl.server.home.glob("slipway.db*")]
    assert files
    for file in files:
        content = file.read_bytes()
        assert b"correct-horse-battery" not in content and b"Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5" not in content, file
    assert (kubectl.server.home / "kubernetes-objects.key").stat().st_mode & 0o777 == 0o600


@test(serial=True)
def objects_survive_a_killed_server(kubectl):
    kubectl("create", "cm", "a", "--from-literal=k=v")
    version = kubectl.get("cm", "a")["metadata"]["resourceVersion"]
    kubectl.server.process.kill()
    kubectl.server.process.wait()
    kubectl.server.start()
    kubectl("config", "set-cluster", "slipway", "--server", kubectl.server.url.replace("://", f"://slipway:{kubectl.server.token}@"))
    assert kubectl.get("cm", "a")["metadata"]["resourceVersion"] == version
    kubectl.call("PATCH", path(kubectl, "a"), {"data": {"k": "w"}}, "application/merge-patch+json")
    with watching(kubectl, f"resourceVersion={version}") as events:
        eventually(lambda: events, timeout=30, message="an event")
        assert kinds(events) == [("MODIFIED", "a")]


@contextlib.contextmanager
def running(options):
    """A running server: a function that gives kubectl in a namespace of it."""
    with tempfile.TemporaryDirectory() as folder, Slipway(options.slipway) as server:
        kubeconfig = os.path.join(folder, "kubeconfig")
        server.command("config", "kubeconfig", "--save", kubeconfig)
        yield lambda namespace: Kubectl(options.kubectl, server, kubeconfig, namespace)


def options_of(suite, description):
    return suite.options(description, slipway={"default": "target/release/slipway"}, kubectl={"default": "kubectl"})


def main():
    options = options_of(SUITE, __doc__)
    return SUITE.main(options, lambda _: running(options))


if __name__ == "__main__":
    sys.exit(main())
