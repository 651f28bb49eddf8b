#!/usr/bin/env python3
"""Sends the same requests to upstream's kube-apiserver and to `slipway up`, and compares the responses.

    conformance/kube-api/compare.py --slipway target/release/slipway --programs FOLDER [SUBSTRING ...] [--list] [--junit FILE]

`--programs` is the folder with upstream's etcd, kube-apiserver and kube-controller-manager, which the lab builds. Each script below runs once
against each of them, in namespaces of its own; statuses, warnings and bodies must be equal, but for what differs between any two servers:
unique ids, versions, times, and generated names.
"""

import contextlib
import difflib
import http.client
import json
import pathlib
import re
import sys
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import Slipway
from original import Original
from suite import Suite, eventually

SUITE = Suite("kube-api compare", limit=180)
JSON, MERGE, STRATEGIC = "application/json", "application/merge-patch+json", "application/strategic-merge-patch+json"
JSON_PATCH, APPLY = "application/json-patch+json", "application/apply-patch+yaml"
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
METADATA = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
# Requests of whose responses only the statuses are compared, with the reasons, and with slipway's status if it is another one.
DIFFERENCES = [(re.compile(pattern), status, reason) for pattern, reason, *status in [
    (r"^GET /apis/unknown", "below /apis, the API of pipelines answers for unknown paths; clients look at the status only"),
    (r"^GET \S*/unknowns/", "/api/v1 also has slipway's own routes, which answer for unknown paths; clients look at the status only"),
    (r"^PATCH .*\"op\"", "slipway adds which operation of a JSON patch failed to the message"),
    (r"^PATCH \S+ {}$", "slipway lists the media types of patches that it accepts"),
    (r'^PUT .*"resourceVersion": "odd"', "a malformed version is a mistake of the client, for which upstream answers 500", 400),
    (r"^GET \S*watch=1&resourceVersion=odd", "the same mistake in a watch", 400),
    (r" accept text/html", "slipway has no representations in protobuf, and does not list them"),
    (r"watch=1\S*  accept application/yaml", "the same for watches"),
]]
# Of these, only the presence is compared.
MASKED = {"uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "time", "continue"}
UID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def masked(value, name=None):
    """A value without what differs between any two servers."""
    if isinstance(value, dict):
        if value.get("kind") == "Table":
            ages = [i for i, column in enumerate(value["columnDefinitions"]) if column["name"] in ("Age", "Last Seen", "First Seen")]
            for row in value["rows"] or []:
                for age in ages:
                    row["cells"][age] = "AGE"
        # Descriptions of columns are prose. Of two validations that find the same fault, upstream lists both.
        # Names of managed fields contain the ids of owners.
        kept = {re.sub(UID, "UID", k): masked(v, k) for k, v in value.items() if k != "description"}
        if "causes" in kept:
            kept["causes"] = [cause for i, cause in enumerate(kept["causes"]) if cause not in kept["causes"][:i]]
        if "generateName" in kept and "name" in kept:
            kept["name"] = re.sub(r"[a-z0-9]{5}$", "XXXXX", kept["name"])
        return kept
    if isinstance(value, list):
        values = [masked(v, name) for v in value]
        # The order of the entries depends on their times, which are in seconds.
        return sorted(values, key=lambda entry: json.dumps(entry, sort_keys=True)) if name == "managedFields" else values
    if name in MASKED and value:
        return name.upper()
    if isinstance(value, str):
        value = re.sub(UID, "UID", value)
        # The place in upstream's source, and the object, which slipway does not repeat.
        value = re.sub(r' in scheme "[^"]*"', "", value)
        value = re.sub(r"of type struct \{.*?\} \(", "of type struct (", value)
        value = re.sub(r'Invalid value: "(\{.*\}|map\[.*\])?": (?=json: |strict )', "Invalid value: OBJECT: ", value)
        value = re.sub(r"in record \(\d+\)", "in record (VERSION)", value)
        value = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "TIME", value)
    return value


class Session:
    """The requests of one script to one server, and the responses."""

    def __init__(self, server, namespace):
        self.server, self.namespace, self.exchanges = server, namespace, []

    def path(self, name="", plural="configmaps", namespace=None):
        return f"/api/v1/namespaces/{namespace or self.namespace}/{plural}" + (f"/{name}" if name else "")

    def send(self, method, path, body=None, kind=JSON, accept=JSON, compare=True):
        """Sends a request, records what is compared, and returns the JSON of the response."""
        netloc = urllib.parse.urlsplit(self.server.url).netloc
        connection = self.server.connection() if hasattr(self.server, "connection") else http.client.HTTPConnection(netloc, timeout=60)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"accept": accept, "user-agent": "compare", **self.server.authorization, **({"content-type": kind} if data is not None else {})}
        with contextlib.closing(connection):
            connection.request(method, path, data, headers)
            response = connection.getresponse()
            text = response.read().decode()
            try:
                answer = json.loads(text)
            except ValueError:
                answer = text
            if compare:
                described = f"{method} {path} {'' if data is None else data[:200].decode(errors='replace')}"
                described += "" if accept == JSON else f" accept {accept}"
                self.exchanges.append((described, {
                    "status": response.status, "warnings": sorted(response.headers.get_all("warning") or []),
                    "type": response.headers.get_content_type(), "body": masked(json.loads(text) if isinstance(answer, dict) else answer),
                }))
        return answer

    def get(self, path, **options):
        return self.send("GET", path, **options)

    def create(self, name, data=None, plural="configmaps", query="", **fields):
        metadata = {"name": name, **fields.pop("metadata", {})}
        return self.send("POST", self.path(plural=plural) + query, {"metadata": metadata, **({"data": data} if data is not None else {}), **fields})

    def watch(self, path, until):
        """The events of a watch until the first for which `until` is true."""
        netloc = urllib.parse.urlsplit(self.server.url).netloc
        connection = self.server.connection() if hasattr(self.server, "connection") else http.client.HTTPConnection(netloc, timeout=60)
        events = []
        with contextlib.closing(connection):
            connection.request("GET", path, headers=self.server.authorization)
            response = connection.getresponse()
            while line := response.readline():
                events.append(json.loads(line))
                if until(events[-1]):
                    break
        self.exchanges.append((f"WATCH {path}", {"status": response.status, "events": [masked(event) for event in events]}))
        return events

    def gone(self, path):
        """Waits until an object is deleted."""
        eventually(lambda: self.send("GET", path, compare=False).get("code") == 404, timeout=60, message=f"{path} is deleted")


def test(script):
    """Registers a script, which is run against both servers."""
    name = script.__name__.replace("_", "-")[:50].strip("-")

    def run(servers):
        sessions = []
        for server in servers:
            session = Session(server, name)
            status, answer = server.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
            assert status == 201, answer
            script(session)
            sessions.append(session)
        expected, found = (session.exchanges for session in sessions)
        different = []
        assert len(expected) == len(found), "the servers were sent different requests"
        for (request, wanted), (_, given) in zip(expected, found):
            for pattern, status, _ in DIFFERENCES:
                if pattern.search(request):
                    wanted, given = (status or [wanted["status"]])[0], given["status"]
                    break
            if wanted != given:
                lines = [json.dumps(side, indent=1, sort_keys=True).splitlines() for side in (wanted, given)]
                different.append(request + "\n" + "\n".join(difflib.unified_diff(*lines, "upstream", "slipway", lineterm="", n=2)))
        print(f"{len(expected)} requests")
        assert not different, f"{len(different)} of {len(expected)} responses differ:\n" + "\n\n".join(different)
    SUITE.add(script.__name__, run)
    return script


@test
def objects_are_created_read_and_deleted(s):
    s.create("a", {"k": "v"})
    s.create("a", {"k": "v"})
    s.get(s.path("a"))
    s.get(s.path("missing"))
    s.get(s.path("a", namespace="missing"))
    s.get(s.path("a", plural="unknowns"))
    s.get("/apis/unknown.example.com/v1/things")
    s.create("b", {"k": "v"}, metadata={"labels": {"app": "x"}, "annotations": {"note": "y"}})
    s.send("POST", s.path(), {"metadata": {"generateName": "made-"}})
    s.send("POST", s.path(), {"metadata": {}})
    s.create("c", metadata={"namespace": "other"})
    s.send("POST", s.path(namespace="missing"), {"metadata": {"name": "a"}})
    s.send("POST", s.path(), {"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "d"}})
    s.send("POST", s.path(), {"kind": "ConfigMap", "apiVersion": "v2", "metadata": {"name": "d"}})
    s.send("POST", s.path(), b"{")
    s.send("POST", s.path(), b"[]")
    s.send("POST", s.path(), b"")
    s.send("POST", s.path(), {"metadata": {"name": "d"}, "data": {"k": 1}})
    s.send("POST", s.path(), {"metadata": {"name": "d"}}, kind="text/plain")
    s.send("POST", s.path("a"), {"metadata": {"name": "a"}})
    s.send("DELETE", s.path("a"))
    s.send("DELETE", s.path("a"))
    s.send("DELETE", s.path("b"), {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"})


@test
def invalid_objects_are_refused_with_the_field(s):
    for name in ("UPPER", "under_score", "-dash", "a" * 254, "dots..dots", "ü"):
        s.create(name)
    s.create("a", metadata={"labels": {"bad key": "v"}})
    s.create("a", metadata={"labels": {"k": "bad value!"}})
    s.create("a", metadata={"labels": {"k": "v" * 64}})
    s.create("a", metadata={"annotations": {"bad key": "v"}})
    s.create("a", metadata={"annotations": {"k": "v" * 262145}})
    s.create("a", metadata={"finalizers": ["unqualified"]})
    s.create("a", metadata={"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "", "uid": ""}]})
    s.create("a", {"bad key": "v"})
    s.create("a", {"k": "v"}, binaryData={"k": "dg=="})
    s.create("a", binaryData={"k": "not base64"})
    s.create("a", {"k": "v" * (1 << 20), "l": "x"})
    s.create("a", plural="secrets", data={"k": "not base64"})
    s.create("a", plural="secrets", type="kubernetes.io/tls", data={"tls.crt": "eA=="})
    s.create("a", plural="secrets", type="kubernetes.io/dockerconfigjson", data={".dockerconfigjson": "eA=="})
    s.create("a", plural="secrets", type="kubernetes.io/basic-auth")
    s.create("a", plural="secrets", type="kubernetes.io/ssh-auth")


@test
def unknown_fields_are_ignored_reported_or_refused(s):
    for validation in ("", "Ignore", "Warn", "Strict", "Odd"):
        s.create(f"a{validation.lower()}", {"k": "v"}, query=f"?fieldValidation={validation}" if validation else "", unknown=1, metadata={"odd": {"x": 1}})
    s.send("PATCH", s.path("awarn") + "?fieldValidation=Strict", {"spec": {"x": 1}}, kind=MERGE)
    s.send("PATCH", s.path("awarn") + "?fieldValidation=Warn", {"spec": {"x": 1}}, kind=MERGE)
    s.send("PUT", s.path("awarn") + "?fieldValidation=Strict", {"metadata": {"name": "awarn"}, "other": True})
    s.send("POST", s.path() + "?fieldValidation=Strict", b'{"metadata": {"name": "b", "name": "b"}, "data": {"k": "1", "k": "2"}}')
    s.send("POST", s.path() + "?fieldValidation=Warn", b'{"metadata": {"name": "c"}, "data": {"k": "1", "k": "2"}}')


@test
def objects_are_replaced(s):
    first = s.create("a", {"k": "1"})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a", "resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "2"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a", "resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "3"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a"}, "data": {"k": "4"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "other"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a", "uid": "00000000-0000-0000-0000-000000000000"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a", "namespace": "other"}})
    s.send("PUT", s.path("missing"), {"metadata": {"name": "missing"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a", "resourceVersion": "odd"}})
    s.create("fixed", {"k": "1"}, immutable=True)
    s.send("PUT", s.path("fixed"), {"metadata": {"name": "fixed"}, "data": {"k": "2"}, "immutable": True})
    s.send("PUT", s.path("fixed"), {"metadata": {"name": "fixed"}, "data": {"k": "1"}})
    s.create("s", plural="secrets", stringData={"p": "x"})
    s.send("PUT", s.path("s", "secrets"), {"metadata": {"name": "s"}, "type": "other/type", "data": {"p": "eA=="}})


@test
def objects_are_patched(s):
    s.create("a", {"k": "1", "l": "2"}, metadata={"finalizers": ["example.com/one"], "labels": {"x": "1"}})
    s.send("PATCH", s.path("a"), {"data": {"k": "3", "l": None}, "metadata": {"labels": {"y": "2"}}}, kind=MERGE)
    s.send("PATCH", s.path("a"), {"data": {"m": "4", "$patch": "replace"}}, kind=STRATEGIC)
    s.send("PATCH", s.path("a"), {"metadata": {"finalizers": ["example.com/two"]}}, kind=STRATEGIC)
    s.send("PATCH", s.path("a"), {"metadata": {"$deleteFromPrimitiveList/finalizers": ["example.com/one"]}}, kind=STRATEGIC)
    s.send("PATCH", s.path("a"), [{"op": "test", "path": "/data/m", "value": "4"}, {"op": "add", "path": "/data/n", "value": "5"}], kind=JSON_PATCH)
    s.send("PATCH", s.path("a"), [{"op": "test", "path": "/data/m", "value": "5"}], kind=JSON_PATCH)
    s.send("PATCH", s.path("a"), [{"op": "remove", "path": "/data/missing"}], kind=JSON_PATCH)
    s.send("PATCH", s.path("a"), [{"op": "odd", "path": "/data/missing"}], kind=JSON_PATCH)
    s.send("PATCH", s.path("a"), [{"op": "replace", "path": "/metadata/name", "value": "b"}], kind=JSON_PATCH)
    s.send("PATCH", s.path("a"), {"data": {"k": 1}}, kind=MERGE)
    s.send("PATCH", s.path("a"), {"metadata": {"resourceVersion": "1"}}, kind=MERGE)
    s.send("PATCH", s.path("a"), b"{", kind=MERGE)
    s.send("PATCH", s.path("a"), {}, kind=JSON)
    s.send("PATCH", s.path("missing"), {}, kind=MERGE)
    s.send("PATCH", s.path("a"), {"metadata": {"finalizers": None}}, kind=MERGE)


@test
def dry_runs_change_nothing(s):
    s.create("a", {"k": "1"}, query="?dryRun=All")
    s.get(s.path("a"))
    s.create("a", {"k": "1"}, query="?dryRun=Odd")
    s.create("a", {"k": "1"})
    s.send("PUT", s.path("a") + "?dryRun=All", {"metadata": {"name": "a"}, "data": {"k": "2"}})
    s.send("PATCH", s.path("a") + "?dryRun=All", {"data": {"k": "3"}}, kind=MERGE)
    s.send("DELETE", s.path("a") + "?dryRun=All")
    s.send("DELETE", s.path("a"), {"dryRun": ["All"]})
    s.get(s.path("a"))


@test
def faults_of_fields_are_in_the_order_of_the_text(s):
    body = b'{"zeta": 1, "metadata": {"name": "a", "odd": {"x": 1}, "labels": {"l": "1", "l": "2"}, "name": "a"}, "data": {"k": "1", "k": "2"}, "alpha": {"b": 1}, "data": {"l": "1"}}'
    for validation in ("Strict", "Warn"):
        s.send("POST", s.path() + f"?dryRun=All&fieldValidation={validation}", body)


@test
def duplicate_keys_are_refused_or_reported(s):
    s.send("POST", s.path() + "?fieldValidation=Ignore", b'{"metadata": {"name": "a"}, "data": {"k": "1", "k": "2"}}')
    s.send("POST", s.path(), b'{"metadata": {"name": "b", "labels": {"x": "1"}, "labels": {"y": "2"}}, "data": {"k": "1"}, "data": {"l": "2"}}')
    yaml = b"apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: c\ndata:\n  k: one\n  k: two\n  l: x\n  l: y\n"
    for validation in ("Strict", "Ignore", "Warn"):
        s.send("POST", s.path() + f"?dryRun=All&fieldValidation={validation}", yaml, kind="application/yaml")
        s.send("PATCH", s.path("c") + f"?fieldManager=m&dryRun=All&fieldValidation={validation}", yaml, kind=APPLY)
        s.send("PATCH", s.path("a") + f"?dryRun=All&fieldValidation={validation}", b'{"data": {"k": "3", "k": "4"}}', kind=MERGE)
        s.send("PATCH", s.path("a") + f"?dryRun=All&fieldValidation={validation}", b'{"data": {"k": "3", "k": "4"}}', kind=STRATEGIC)
        s.send("PUT", s.path("a") + f"?dryRun=All&fieldValidation={validation}", b'{"metadata": {"name": "a"}, "data": {"k": "3", "k": "4"}}')


@test
def writes_record_their_managers(s):
    s.create("a", {"k": "1"}, query="?fieldManager=first", metadata={"labels": {"x": "1"}, "finalizers": ["example.com/hold"]})
    s.send("PATCH", s.path("a") + "?fieldManager=second", {"data": {"l": "2"}}, kind=MERGE)
    s.send("PATCH", s.path("a") + "?fieldManager=second", {"data": {"l": "2"}}, kind=MERGE)
    s.send("PUT", s.path("a") + "?fieldManager=third", {"metadata": {"name": "a"}, "data": {"k": "3", "l": "2"}})
    s.send("PUT", s.path("a"), {"metadata": {"name": "a", "managedFields": [{}]}, "data": {"k": "4"}})
    s.send("PATCH", s.path("a") + "?fieldManager=second", {"data": {"l": "2"}}, kind=MERGE)
    s.send("PATCH", s.path("a") + "?fieldManager=" + "m" * 129, {}, kind=MERGE)
    s.send("PATCH", s.path("a") + "?fieldManager=a%0Ab", {}, kind=MERGE)
    s.send("PATCH", s.path("a") + "?force=true", {}, kind=MERGE)
    s.send("PATCH", s.path("a"), {"metadata": {"finalizers": None}}, kind=MERGE)
    s.create("s", plural="secrets", query="?fieldManager=first", stringData={"p": "x"}, data={"q": "eA=="})
    for number in range(13):
        s.send("PATCH", s.path("s", "secrets") + f"?fieldManager=m{number:02}", {"stringData": {f"k{number}": "x"}}, kind=MERGE)
    s.get("/api/v1/namespaces/" + s.namespace)
    s.send("PATCH", "/api/v1/namespaces/" + s.namespace, {"metadata": {"labels": {"x": "1"}}, "status": {"phase": "Odd"}}, kind=MERGE)
    condition = {"type": "Tested", "status": "True", "reason": "R", "message": "it works", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    s.send("PATCH", f"/api/v1/namespaces/{s.namespace}/status?fieldManager=first", {"status": {"conditions": [condition]}}, kind=MERGE)


@test
def configurations_are_applied(s):
    def apply(name, manager, data=None, query="", plural="configmaps", **fields):
        kind = {"configmaps": "ConfigMap", "secrets": "Secret"}[plural]
        metadata = {"name": name, **fields.pop("metadata", {})}
        body = {"apiVersion": "v1", "kind": kind, "metadata": metadata, **({} if data is None else {"data": data}), **fields}
        return s.send("PATCH", s.path(name, plural) + f"?fieldManager={manager}{query}", body, kind=APPLY)
    apply("a", "first", {"k": "1", "l": "1"}, query="&dryRun=All")
    apply("a", "first", {"k": "1", "l": "1"})
    apply("a", "first", {"k": "1", "l": "1"})
    apply("a", "second", {"k": "2"})
    apply("a", "second", {"k": "2", "l": "2"})
    apply("a", "second", {"k": "1"})
    apply("a", "second", {"k": "2"}, query="&force=true")
    apply("a", "first", {"l": "1"})
    apply("a", "first", metadata={"labels": {"x": "1"}, "annotations": {"y": "2"}, "finalizers": ["example.com/hold"]})
    s.send("PATCH", s.path("a") + "?fieldManager=third", {"data": {"k": "5", "m": "5"}, "metadata": {"labels": {"x": "2"}}}, kind=MERGE)
    apply("a", "second", {"k": "2"})
    apply("a", "first", metadata={"finalizers": []})
    apply("a", "second")
    apply("a", "first", {"k": 1})
    apply("a", "first", odd=True)
    apply("a", "first", {"k": "1"}, metadata={"managedFields": []})
    apply("a", "first", metadata={"resourceVersion": "1"})
    apply("a", "first", metadata={"namespace": "other"})
    apply("a", "first", metadata={"name": "other"})
    apply("a", "first", binaryData={"b": "not base64"})
    apply("new", "first", metadata={"uid": "00000000-0000-0000-0000-000000000000"})
    apply("Bad_Name", "first")
    s.send("PATCH", s.path("new") + "?fieldManager=first", {"apiVersion": "v1", "kind": "ConfigMap"}, kind=APPLY)
    s.send("PATCH", s.path("new") + "?fieldManager=first", {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "new"}}, kind=APPLY)
    s.send("PATCH", s.path("new") + "?fieldManager=first", {"metadata": {"name": "new"}}, kind=APPLY)
    s.send("PATCH", s.path("new"), {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}}, kind=APPLY)
    s.send("PATCH", s.path("a", namespace="missing") + "?fieldManager=first", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}, kind=APPLY)
    apply("s", "first", {"q": "eA=="}, plural="secrets", stringData={"p": "x"})
    apply("s", "first", {"q": "eA=="}, plural="secrets")
    s.create("old", {"k": "1"}, query="?fieldManager=kubectl-client-side-apply", metadata={"annotations": {
        "kubectl.kubernetes.io/last-applied-configuration": '{"apiVersion":"v1","data":{"k":"1"},"kind":"ConfigMap","metadata":{"name":"old"}}'}})
    apply("old", "kubectl", {"k": "2"})
    s.send("PATCH", s.path("old") + "?fieldManager=other", {"data": {"k": "3"}}, kind=MERGE)
    apply("old", "kubectl", {"k": "4"})
    s.create("untracked", {"k": "1"}, metadata={"managedFields": [{}]})
    s.send("PUT", s.path("untracked"), {"metadata": {"name": "untracked", "managedFields": []}, "data": {"k": "1"}})
    apply("untracked", "first", {"k": "1", "l": "2"})


@test
def lists_are_selected_and_paged(s):
    for number in range(5):
        s.create(f"n{number}", metadata={"labels": {"parity": "even" if number % 2 == 0 else "odd", **({"first": "yes"} if number == 0 else {})}})
    for selector in ("parity=even", "parity==odd", "parity!=even", "parity in (odd)", "parity notin (odd)", "first", "!first", "parity=even,first",
                     "parity in (odd", "=x", "parity=even,,", "a b", "parity>3", "parity in ()"):
        s.get(s.path() + "?" + urllib.parse.urlencode({"labelSelector": selector}))
    for selector in ("metadata.name=n1", "metadata.name!=n1", "metadata.namespace=odd", "spec.x=1", "metadata.name", "metadata.name=n1,metadata.name=n2"):
        s.get(s.path() + "?" + urllib.parse.urlencode({"fieldSelector": selector}))
    page = s.get(s.path() + "?limit=2")
    page = s.get(s.path() + "?limit=2&continue=" + urllib.parse.quote(page["metadata"]["continue"]))
    s.get(s.path() + "?limit=2&continue=" + urllib.parse.quote(page["metadata"]["continue"]))
    s.get(s.path() + "?continue=odd")
    s.get(s.path() + "?limit=odd")
    s.get(s.path() + "?resourceVersion=odd")
    s.get(s.path() + "?resourceVersionMatch=Exact")
    s.get(s.path() + "?resourceVersion=0&resourceVersionMatch=Exact")
    s.get(s.path() + "?resourceVersion=0&resourceVersionMatch=NotOlderThan")
    s.get(s.path() + "?resourceVersionMatch=Odd&resourceVersion=1")
    s.get(s.path("n1") + "?resourceVersion=0")
    s.get(s.path(), accept=METADATA_LIST)
    s.get(s.path("n1"), accept=METADATA)
    s.get(s.path(), accept=TABLE)
    s.get(s.path("n1"), accept=TABLE)
    s.get(s.path() + "?includeObject=None", accept=TABLE)
    s.get(s.path("n1"), accept="text/html")
    s.get(s.path("n1"), accept="application/vnd.kubernetes.protobuf;as=Odd,application/json")
    s.get(s.path() + "?watch=1&timeoutSeconds=1", accept="application/yaml")
    s.get(s.path(plural="secrets"), accept=TABLE)
    s.send("DELETE", s.path() + "?" + urllib.parse.urlencode({"labelSelector": "parity=odd"}))
    s.get(s.path())
    s.send("DELETE", s.path())


@test
def watches_deliver_every_change(s):
    first = s.create("a", {"k": "1"})
    start = first["metadata"]["resourceVersion"]
    s.create("b", {"k": "1"}, metadata={"labels": {"watched": "yes"}})
    s.send("PATCH", s.path("a"), {"data": {"k": "2"}}, kind=MERGE)
    s.send("PATCH", s.path("b"), {"metadata": {"labels": {"watched": "no"}}}, kind=MERGE)
    s.send("DELETE", s.path("a"))
    last = lambda event: event["type"] == "DELETED"
    s.watch(s.path() + f"?watch=1&resourceVersion={start}", last)
    s.watch(s.path() + f"?watch=1&resourceVersion={start}&labelSelector=watched%3Dyes", last)
    s.watch(s.path() + f"?watch=1&resourceVersion={start}&fieldSelector=metadata.name%3Da", last)
    s.get(s.path() + "?watch=1&resourceVersion=odd")
    s.get(s.path() + "?watch=1&sendInitialEvents=true")
    s.watch(s.path() + "?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true", lambda event: event["type"] == "BOOKMARK")
    s.get(s.path() + "?watch=1&timeoutSeconds=odd")


@test
def deletion_waits_for_finalizers_and_keeps_preconditions(s):
    made = s.create("a", metadata={"finalizers": ["example.com/hold"]})
    s.send("DELETE", s.path("a"), {"preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}})
    s.send("DELETE", s.path("a"), {"preconditions": {"resourceVersion": "1"}})
    s.send("DELETE", s.path("a"), {"propagationPolicy": "Odd"})
    s.send("DELETE", s.path("a"), {"propagationPolicy": "Orphan", "orphanDependents": True})
    s.send("DELETE", s.path("a"), {"gracePeriodSeconds": -1})
    s.send("DELETE", s.path("a"), {"preconditions": {"uid": made["metadata"]["uid"]}})
    s.send("DELETE", s.path("a"))
    s.send("PATCH", s.path("a"), {"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}}, kind=MERGE)
    s.send("PATCH", s.path("a"), {"metadata": {"deletionTimestamp": None}}, kind=MERGE)
    s.send("PATCH", s.path("a"), {"metadata": {"finalizers": []}}, kind=MERGE)
    s.get(s.path("a"))


@test
def dependents_follow_their_owner(s):
    def owned(name, owner, **more):
        reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], **more}
        return s.create(name, metadata={"ownerReferences": [reference]})
    owner = s.create("background")
    owned("child", owner)
    s.send("DELETE", s.path("background"), {"propagationPolicy": "Background"})
    s.gone(s.path("child"))
    owner = s.create("foreground")
    owned("blocking", owner, blockOwnerDeletion=True)
    s.send("DELETE", s.path("foreground"), {"propagationPolicy": "Foreground"})
    s.gone(s.path("foreground"))
    s.get(s.path("blocking"))
    owner = s.create("orphaning")
    owned("orphan", owner)
    s.send("DELETE", s.path("orphaning"), {"propagationPolicy": "Orphan"})
    s.gone(s.path("orphaning"))
    s.get(s.path("orphan"))


@test
def namespaces_end_with_their_contents(s):
    s.get("/api/v1/namespaces/" + s.namespace)
    s.send("POST", "/api/v1/namespaces", {"metadata": {"name": "Bad"}})
    s.send("POST", "/api/v1/namespaces", {"metadata": {"name": "a.b"}})
    s.send("DELETE", "/api/v1/namespaces/default")
    s.send("DELETE", "/api/v1/namespaces/missing")
    s.create("held", metadata={"finalizers": ["example.com/hold"]})
    s.send("DELETE", "/api/v1/namespaces/" + s.namespace)
    s.create("late")
    eventually(lambda: "deletionTimestamp" in s.send("GET", s.path("held"), compare=False)["metadata"], timeout=60, message="contents are deleted")
    s.send("PATCH", s.path("held"), {"metadata": {"finalizers": None}}, kind=MERGE)
    s.gone("/api/v1/namespaces/" + s.namespace)
    s.get(s.path("held"))


@test
def namespaces_are_finalized(s):
    name = f"{s.namespace}-f"
    path = f"/api/v1/namespaces/{name}"
    made = s.send("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    s.send("PUT", path, {**made, "spec": {"finalizers": []}})

    def finalize(*finalizers, **metadata):
        return s.send("PUT", f"{path}/finalize?fieldManager=m", {"metadata": {"name": name, **metadata}, "spec": {"finalizers": list(finalizers)}})
    finalize("kubernetes", "example.com/hold")
    finalize("odd")
    finalize("kubernetes", name="other")
    finalize("kubernetes", resourceVersion=made["metadata"]["resourceVersion"])
    s.get(f"{path}/finalize")
    s.send("PUT", "/api/v1/namespaces/missing/finalize", {"metadata": {"name": "missing"}})
    s.send("DELETE", path)
    eventually(lambda: s.get(path, compare=False)["spec"] == {"finalizers": ["example.com/hold"]}, timeout=60, message="the contents are deleted")
    s.send("PUT", f"{path}/finalize", {"metadata": {"name": name}}, compare=False)
    s.gone(path)


@test
def watches_have_paths_of_their_own(s):
    start = s.create("a", {"k": "1"})["metadata"]["resourceVersion"]
    s.create("b", {"k": "1"})
    for name in ("b", "a"):
        s.send("DELETE", s.path(name))
    watched = f"/api/v1/watch/namespaces/{s.namespace}/configmaps"
    for path in (f"{watched}?resourceVersion={start}", f"{watched}/a?resourceVersion={start}", f"{watched}/a?resourceVersion={start}&fieldSelector=metadata.name%3Da",
                 f"/api/v1/watch/configmaps?resourceVersion={start}&fieldSelector=metadata.namespace%3D{s.namespace}"):
        s.watch(path, lambda event: event["type"] == "DELETED" and event["object"]["metadata"]["name"] == "a")
    s.get(f"{watched}/a?fieldSelector=metadata.name%3Db")


@test
def options_of_logs_are_checked(s):
    for query in ("tailLines=-1", "limitBytes=0", "sinceSeconds=0", "sinceSeconds=-5&tailLines=-2", "sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", "tailLines=1"):
        s.get(s.path("missing/log", plural="pods") + f"?{query}")


@test
def replaced_events_are_created(s):
    event = {"involvedObject": {"kind": "ConfigMap", "namespace": s.namespace, "name": "a"}, "reason": "Tested", "message": "it was tested", "type": "Normal",
             "source": {"component": "test"}, "count": 1, "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"}

    def put(name, **fields):
        return s.send("PUT", s.path(name, plural="events") + "?fieldManager=m", {"metadata": {"name": name}, **event, **fields})
    put("new")
    put("new", count=2)
    put("odd", type="Odd")
    put("other", metadata={"name": "different"})
    put("identified", metadata={"name": "identified", "uid": "c86bf5a0-0b0a-4c0e-8f3e-000000000000"})
    s.send("PUT", s.path("dry", plural="events") + "?dryRun=All", {"metadata": {"name": "dry"}, **event})
    s.get(s.path("dry", plural="events"))
    s.send("PATCH", s.path("patched", plural="events"), {"count": 2}, kind=MERGE)
    grouped = {"regarding": event["involvedObject"], "reason": "Tested", "note": "it was tested", "type": "Normal", "action": "Test",
               "eventTime": "2026-01-01T00:00:00.000001Z", "reportingController": "slipway.dev/test", "reportingInstance": "test-1"}
    s.send("PUT", f"/apis/events.k8s.io/v1/namespaces/{s.namespace}/events/grouped?fieldManager=m", {"metadata": {"name": "grouped"}, **grouped})
    s.send("PUT", s.path("missing"), {"metadata": {"name": "missing"}})


@test
def events_are_kept(s):
    about = {"kind": "ConfigMap", "namespace": s.namespace, "name": "a"}
    event = {"involvedObject": about, "reason": "Tested", "message": "it was tested", "type": "Normal", "source": {"component": "test"}, "count": 1,
             "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"}
    s.create("e1", plural="events", **event)
    s.create("e2", plural="events", **{**event, "involvedObject": {**about, "namespace": "other"}})
    s.create("e3", plural="events", **{**event, "type": "Odd"})
    s.create("e4", plural="events", **{k: v for k, v in event.items() if k != "involvedObject"})
    s.get(s.path(plural="events") + "?fieldSelector=involvedObject.name%3Da%2Creason%3DTested")
    s.get(s.path(plural="events") + "?fieldSelector=involvedObject.odd%3Da")
    s.get(s.path(plural="events"), accept=TABLE)


@test
def events_are_the_same_objects_in_both_groups(s):
    core, grouped = s.path(plural="events"), f"/apis/events.k8s.io/v1/namespaces/{s.namespace}/events"
    about = {"kind": "ConfigMap", "apiVersion": "v1", "namespace": s.namespace, "name": "a"}
    event = {"regarding": about, "reason": "Tested", "note": "it was tested", "type": "Normal", "action": "Test", "eventTime": "2026-01-01T00:00:00.000001Z",
             "reportingController": "slipway.dev/test", "reportingInstance": "test-1"}

    def create(name, **fields):
        return s.send("POST", grouped + "?fieldManager=recorder", {"metadata": {"name": name}, **event, **fields})
    s.get("/apis/events.k8s.io")
    create("e1", related={"kind": "Secret", "name": "s"})
    create("e1")
    s.get(f"{core}/e1")
    s.get(f"{grouped}/e1")
    series = {"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}
    s.send("PATCH", f"{grouped}/e1?fieldManager=recorder", series, kind=STRATEGIC)
    s.send("PATCH", f"{core}/e1?fieldManager=other", {"message": "changed", "series": {"count": 3}}, kind=MERGE)
    s.get(f"{grouped}/e1")
    s.send("PATCH", f"{grouped}/e1?fieldManager=recorder", {"note": "restored"}, kind=MERGE)
    for change in ({"regarding": {"name": "b"}}, {"reason": None}, {"type": "Warning"}, {"action": ""}, {"related": None}, {"deprecatedCount": 2},
                   {"eventTime": "2027-01-01T00:00:00.000000Z"}, {"reportingController": "other.example/x"}, {"series": {"count": 1}},
                   {"deprecatedSource": {"component": "c"}}, {"metadata": {"labels": {"x": "1"}}}):
        s.send("PATCH", f"{grouped}/e1?fieldManager=recorder", change, kind=MERGE)
    for fields in ({"type": "Odd"}, {"eventTime": None}, {"reportingController": ""}, {"reportingController": "not valid"}, {"reportingInstance": "i" * 129},
                   {"action": ""}, {"reason": "r" * 129}, {"note": "n" * 1025}, {"series": {"count": 1}}, {"deprecatedCount": 1},
                   {"deprecatedSource": {"component": "c"}}, {"deprecatedFirstTimestamp": "2026-01-01T00:00:00Z"}, {"regarding": {"kind": "Node", "name": "n"}},
                   {"regarding": {**about, "namespace": "other"}}, {"message": "of the other form"}):
        create("invalid", **fields)
        s.send("DELETE", f"{grouped}/invalid", compare=False)
    old = {"involvedObject": about, "reason": "Tested", "message": "it was tested", "type": "Normal", "source": {"component": "test"}, "count": 1,
           "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:00Z"}
    s.send("POST", core, {"metadata": {"name": "e2"}, **old})
    s.send("POST", core, {"metadata": {"name": "e3"}, **old, "eventTime": "2026-01-01T00:00:00.000000Z"})
    s.get(f"{grouped}/e2")
    for selector in ("regarding.name=a,reason=Tested", "regarding.kind!=ConfigMap", "reportingController=slipway.dev/test", "involvedObject.name=a", "source=test"):
        s.get(grouped + "?" + urllib.parse.urlencode({"fieldSelector": selector}))
    s.get(grouped)
    s.get(core)
    s.get(grouped, accept=TABLE)
    s.get(grouped, accept=METADATA_LIST)
    s.get("/apis/events.k8s.io/v1/events?fieldSelector=metadata.namespace%3D" + s.namespace)
    configuration = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e4"}, **event}
    s.send("PATCH", f"{grouped}/e4?fieldManager=applier", configuration, kind=APPLY)
    s.get(f"{core}/e4")
    s.send("PATCH", f"{core}/e4?fieldManager=other", {"message": "changed"}, kind=MERGE)
    s.send("PATCH", f"{grouped}/e4?fieldManager=applier", configuration, kind=APPLY)
    s.send("DELETE", f"{grouped}/missing")
    s.send("DELETE", f"{grouped}/e4")
    s.get(f"{core}/e4")


@test
def watches_of_events_show_the_form_of_their_group(s):
    core, grouped = s.path(plural="events"), f"/apis/events.k8s.io/v1/namespaces/{s.namespace}/events"
    about = {"kind": "ConfigMap", "namespace": s.namespace, "name": "a"}
    first = s.send("POST", core, {"metadata": {"name": "e1"}, "involvedObject": about, "message": "m", "reason": "R", "type": "Normal"})
    s.send("POST", grouped, {"metadata": {"name": "e2"}, "regarding": about, "note": "n", "reason": "R", "type": "Normal", "action": "A",
                             "eventTime": "2026-01-01T00:00:00.000001Z", "reportingController": "slipway.dev/test", "reportingInstance": "i"})
    s.send("DELETE", f"{core}/e2")
    start = first["metadata"]["resourceVersion"]
    for path in (core, grouped):
        s.watch(f"{path}?watch=1&resourceVersion={start}", lambda event: event["type"] == "DELETED")
        s.watch(f"{path}?watch=1&resourceVersion={start}&fieldSelector=reason%3DR", lambda event: event["type"] == "DELETED")


@test
def permissions_are_reviewed(s):
    review = {"kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1",
              "spec": {"resourceAttributes": {"namespace": s.namespace, "verb": "create", "resource": "configmaps"}}}
    answer = s.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review, compare=False)
    assert answer["status"]["allowed"] is True, answer
    s.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", {"spec": {}})
    s.get("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews")
    s.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {}})
    rules = s.send("POST", "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", {"spec": {"namespace": s.namespace}}, compare=False)
    assert rules["status"]["resourceRules"] and not rules["status"]["incomplete"], rules


def main():
    options = SUITE.options(__doc__, slipway={"default": "target/release/slipway"}, programs={"required": True})

    @contextlib.contextmanager
    def servers(_):
        with Original(options.programs) as original, Slipway(options.slipway) as slipway:
            yield original, slipway

    return SUITE.main(options, servers)


if __name__ == "__main__":
    sys.exit(main())
