#!/usr/bin/env python3
"""A server of the Kubernetes API that is killed at any moment loses no acknowledged write, and its watchers miss and double no event.

    conformance/kube-api/kills.py --slipway target/release/slipway [--rounds 50] [SUBSTRING ...] [--list] [--junit FILE]

In each round eight clients create, update and delete objects, eight others watch all of them, and the server is killed with SIGKILL at a random
moment. Clients go on as client-go does: a writer whose answer was lost reads what came of it, and a watcher resumes from its last version.
"""

import contextlib
import http.client
import json
import pathlib
import random
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from lib import Slipway
from suite import Suite, eventually

SUITE = Suite("kube-api kills", limit=900)
WRITERS = WATCHERS = 8
NAMES = 5
OBJECTS = "/api/v1/configmaps"


class Lost(Exception):
    """There was no answer, so the request may have been carried out or not."""


class Client:
    """Requests of one thread. The address changes with each start of the server."""

    def __init__(self, slipway):
        self.slipway, self.connection, self.address = slipway, None, None

    def request(self, method, path, body=None, timeout=30):
        """The response, whose body is not read yet."""
        try:
            if self.connection is None or self.address != self.slipway.url:
                self.address = self.slipway.url
                self.connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.address).netloc, timeout=timeout)
            self.connection.request(method, path, body and json.dumps(body), {"content-type": "application/json", **self.slipway.authorization})
            return self.connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Lost from error

    def call(self, method, path, body=None):
        """The status and the JSON of a response."""
        response = self.request(method, path, body)
        try:
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.close()
            raise Lost from error
        if response.status >= 500:
            raise Lost(answer)
        return response.status, answer

    def close(self):
        if self.connection:
            self.connection.close()
        self.connection = None


def key(thing):
    return thing["metadata"]["namespace"], thing["metadata"]["name"]


def version(thing):
    return int(thing["metadata"]["resourceVersion"])


class Writer(threading.Thread):
    """Writes objects in a namespace of its own, and records what was acknowledged."""

    def __init__(self, slipway, number, seed):
        super().__init__(name=f"writer-{number}", daemon=True)
        self.client, self.namespace, self.choices = Client(slipway), f"writer-{number}", random.Random(seed)
        self.state, self.acknowledged, self.count, self.lost, self.error = {}, [], 0, 0, None
        self.stopping = threading.Event()

    def run(self):
        try:
            while not self.stopping.is_set():
                self.write()
        except BaseException as error:
            self.error = error

    def write(self):
        """One write of a random object. If its answer is lost, the object is read until there is an answer."""
        name = f"object-{self.choices.randrange(NAMES)}"
        path = f"/api/v1/namespaces/{self.namespace}/configmaps"
        before, self.count = self.state.get(name), self.count + 1
        after = {"metadata": {"name": name}, "data": {"count": str(self.count)}}
        if before is None:
            method, target, kind = "POST", path, "ADDED"
        elif self.choices.random() < 0.3:
            method, target, kind, after = "DELETE", f"{path}/{name}", "DELETED", None
        else:
            method, target, kind = "PUT", f"{path}/{name}", "MODIFIED"
            after["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
        try:
            status, answer = self.client.call(method, target, after)
            assert status in (200, 201), (method, target, status, answer)
            found = None if kind == "DELETED" else answer
        except Lost:
            self.lost += 1
            found = self.read(f"{path}/{name}")
            written = found is None if after is None else found is not None and found["data"] == after["data"]
            assert written or found == before, f"{method} {target}: {before} became {found}"
            if not written:
                return
        self.state[name] = found
        self.acknowledged.append((kind, self.namespace, name, found and (version(found), found["data"])))

    def read(self, path):
        """An object; None if there is none."""
        while True:
            try:
                status, answer = self.client.call("GET", path)
            except Lost:
                # Until the server is started again.
                time.sleep(0.01)
                continue
            assert status in (200, 404), (path, status, answer)
            return answer if status == 200 else None


class Watcher(threading.Thread):
    """Follows all objects, and resumes from the last version that it has seen."""

    def __init__(self, slipway, number, start):
        super().__init__(name=f"watcher-{number}", daemon=True)
        self.client, self.last, self.events, self.resumed, self.error = Client(slipway), start, [], 0, None
        self.stopping = threading.Event()

    def run(self):
        try:
            while not self.stopping.is_set():
                with contextlib.suppress(Lost, OSError, http.client.HTTPException, ValueError):
                    self.follow()
                self.client.close()
                self.resumed += 1
                time.sleep(0.01)
        except BaseException as error:
            self.error = error

    def follow(self):
        response = self.client.request("GET", f"{OBJECTS}?watch=true&resourceVersion={self.last}&allowWatchBookmarks=true")
        if response.status >= 500:
            return
        assert response.status == 200, response.read()
        while line := response.readline():
            if not line.endswith(b"\n"):
                return  # The server was killed while it sent this event.
            event = json.loads(line)
            assert event["type"] != "ERROR", event
            if event["type"] != "BOOKMARK":
                self.events.append((event["type"], *key(event["object"]), version(event["object"]), event["object"].get("data")))
            self.last = max(self.last, version(event["object"]))


def check(events, acknowledged, state):
    """Compares the events of a watcher with what the writers were told, and with the objects that are left."""
    versions = [event[3] for event in events]
    assert versions == sorted(set(versions)), "events are doubled, or out of order"
    seen, deletions = {}, {}
    for kind, namespace, name, number, data in events:
        exists = (namespace, name) in seen
        assert exists == (kind != "ADDED"), f"{kind} of {namespace}/{name} at {number}, which {'exists' if exists else 'does not exist'}"
        if kind == "DELETED":
            del seen[namespace, name]
            deletions[namespace, name] = deletions.get((namespace, name), 0) + 1
        else:
            seen[namespace, name] = (number, data)
    assert seen == state, "the events do not lead to the objects that are left"
    by_version = {event[3]: event for event in events}
    for kind, namespace, name, written in acknowledged:
        if kind == "DELETED":
            deletions[namespace, name] -= 1
        else:
            assert by_version.get(written[0]) == (kind, namespace, name, *written), f"{kind} of {namespace}/{name} is missing: {written}"
    assert not any(deletions.values()), f"deletions that no writer was told of, or that no watcher saw: {deletions}"


@SUITE.test
def nothing_acknowledged_is_lost_and_no_event_is_missed_or_doubled(options):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    with Slipway(options.slipway) as slipway:
        for number in range(WRITERS):
            status, answer = slipway.call("POST", "/api/v1/namespaces", {"metadata": {"name": f"writer-{number}"}})
            assert status == 201, answer
        start = int(slipway.call("GET", OBJECTS)[1]["metadata"]["resourceVersion"])
        writers = [Writer(slipway, number, moments.randrange(1 << 32)) for number in range(WRITERS)]
        watchers = [Watcher(slipway, number, start) for number in range(WATCHERS)]
        for thread in writers + watchers:
            thread.start()
        for _ in range(options.rounds):
            time.sleep(moments.uniform(0.02, 0.3))
            slipway.stop(how=9)
            slipway.start()
            for thread in writers + watchers:
                if thread.error:
                    raise AssertionError(thread.name) from thread.error
        for thread in writers:
            thread.stopping.set()
        for thread in writers:
            thread.join(60)
            assert not thread.is_alive() and thread.error is None, (thread.name, thread.error)
        status, left = slipway.call("GET", OBJECTS)
        assert status == 200, left
        state = {key(item): (version(item), item.get("data")) for item in left["items"]}
        acknowledged = [write for writer in writers for write in writer.acknowledged]
        end = int(left["metadata"]["resourceVersion"])
        for watcher in watchers:
            eventually(lambda: watcher.error or watcher.last >= end, timeout=60, message=f"{watcher.name} has seen the last write")
            watcher.stopping.set()
            assert watcher.error is None, (watcher.name, watcher.error)
            check(list(watcher.events), acknowledged, state)
        print(f"{options.rounds} kills; {len(acknowledged)} acknowledged writes, {sum(w.lost for w in writers)} lost answers; "
              f"watchers resumed {sum(w.resumed for w in watchers)} times and saw {len(watchers[0].events)} events each")
        assert sum(w.lost for w in writers) and sum(w.resumed for w in watchers) >= options.rounds, "no kill hit a request"


def main():
    options = SUITE.options(__doc__, slipway={"default": "target/release/slipway"}, rounds={"type": int, "default": 50})
    return SUITE.main(options, lambda _: contextlib.nullcontext(options))


if __name__ == "__main__":
    sys.exit(main())
