"""Simulates the APIs of DigitalOcean and Paperspace, with test hosts as machines.

Like the real APIs, it pages lists, creates machines in the background, changes addresses after a power cycle (Paperspace), limits request
rates and rejects invalid requests. A test sets failures in `faults`.

Source: DigitalOcean API 2.0 (`droplets`, `droplet_actions`, `sizes`; as the official client pydo has them), Paperspace API v1 (`machines`).
"""

import contextlib
import datetime
import http.server
import json
import re
import sys
import threading
import time
import urllib.parse

SIZES = {"s-2vcpu-4gb": (0.03571, 24.0), "s-4vcpu-8gb": (0.07143, 48.0), "gpu-h100x1-80gb": (3.39, 2522.16), "gpu-gone": (9.99, 7432.56)}
# The GPUs of a size, in the words of DigitalOcean's API.
GPUS = {"gpu-h100x1-80gb": {"count": 1, "model": "nvidia_h100", "vram": {"amount": 80, "unit": "gib"}}}
RATES = {"C4": 0.04, "A4000": 0.76}
TOKEN = "dop_v1_secret-of-the-test"


class Machine:
    def __init__(self, cloud, identifier, name, size, body):
        self.cloud, self.id, self.name, self.size, self.body = cloud, identifier, name, size, body
        self.state, self.created_at = "new", datetime.datetime.now(datetime.timezone.utc)
        self.visible_at = time.monotonic() + cloud.faults.get("lag", 0)
        self.host = None

    def boot(self):
        """Boots the machine in the background; creates its host on the first boot."""
        def in_background():
            # A real machine is not created or booted at once.
            time.sleep(self.cloud.faults.get("slow", 0.5))
            if self.host is None:
                self.host = self.cloud.hosts.add(self.name)
            self.host.start()
            self.host.wait()
            self.state = "on"

        self.state = "new" if self.host is None else "starting"
        threading.Thread(target=in_background, daemon=True).start()

    def power_off(self, new_address):
        """Powers the machine off in the background."""
        def in_background():
            # A real machine shuts down first.
            time.sleep(0.5)
            self.host.stop()
            if new_address:
                self.host.change_address()
            self.state = "off"

        self.state = "stopping"
        threading.Thread(target=in_background, daemon=True).start()

    def remove(self):
        if self.host:
            self.host.remove()

    def address(self):
        return self.host.address if self.host and self.state in ("on", "stopping") else None

    # The machine in the responses of each provider.

    def droplet(self):
        networks = [{"ip_address": self.address(), "netmask": "255.255.255.0", "gateway": f"{self.cloud.hosts.network}.1", "type": kind} for kind in ("private", "public")] if self.address() else []
        return {"id": int(self.id), "name": self.name, "memory": 8192, "vcpus": 4, "disk": 160, "locked": False,
                "status": {"new": "new", "on": "active", "off": "off", "starting": "off", "stopping": "active"}[self.state],
                "created_at": f"{self.created_at:%Y-%m-%dT%H:%M:%SZ}", "features": [], "backup_ids": [], "snapshot_ids": [], "volume_ids": [],
                "size_slug": self.size, "size": {"slug": self.size, "price_hourly": SIZES[self.size][0], "price_monthly": SIZES[self.size][1]},
                "networks": {"v4": networks, "v6": []}, "region": {"slug": self.body.get("region")}, "tags": self.body.get("tags", []), "image": {}}

    def machine(self):
        return {"id": self.id, "name": self.name, "machineType": self.size, "region": self.body.get("region"), "os": "Ubuntu 22.04", "agentType": "LinuxHeadless",
                "state": {"new": "provisioning", "on": "ready", "off": "off", "starting": "starting", "stopping": "stopping"}[self.state],
                "publicIpType": self.body.get("publicIpType"), "publicIp": self.address(), "privateIp": self.address(), "usageRate": RATES[self.size],
                "dtCreated": f"{self.created_at:%Y-%m-%dT%H:%M:%S.000Z}"}


class Clouds:
    """A server with both APIs; a context manager: `with Clouds(hosts) as clouds: clouds.url`."""

    def __init__(self, hosts):
        self.hosts, self.faults, self.requests = hosts, {}, []
        self.droplets, self.machines = {}, {}
        self.lock, self.next = threading.Lock(), 3164444

    def __enter__(self):
        clouds = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def serve(self):
                length = int(self.headers.get("content-length") or 0)
                body = json.loads(self.rfile.read(length) or "null") if length else None
                with clouds.lock:
                    status, document, headers = clouds.respond(self.command, self.path, body, self.headers.get("authorization"))
                if status is None:  # simulate a lost response
                    self.close_connection = True
                    self.connection.close()
                    return
                data = b"" if document is None else json.dumps(document).encode()
                self.send_response(status)
                for name, value in {**headers, "content-type": "application/json", "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                # The client may have been killed in the meantime.
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self.end_headers()
                    self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_DELETE = serve

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request, client_address):
                # Tests kill clients, so connection errors are not reported.
                if not isinstance(sys.exc_info()[1], ConnectionError):
                    super().handle_error(request, client_address)

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def take_fault(self, name):
        """Whether a fault occurs now. Each occurrence decrements its count."""
        remaining = self.faults.get(name, 0)
        if remaining:
            self.faults[name] = remaining - 1
        return bool(remaining)

    def respond(self, method, path, body, authorization):
        url = urllib.parse.urlsplit(path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.requests.append(f"{method} {url.path}")
        limits = {"ratelimit-limit": "5000", "ratelimit-remaining": "4999", "ratelimit-reset": str(int(time.time()) + 60)}
        is_digitalocean = url.path.startswith("/v2/")
        if authorization != f"Bearer {TOKEN}":
            error = {"id": "unauthorized", "message": "Unable to authenticate you"} if is_digitalocean else {"code": "UNAUTHORIZED", "message": "Invalid API key"}
            return 401, error, limits
        if self.take_fault("limited"):
            error = {"id": "too_many_requests", "message": "API Rate limit exceeded."} if is_digitalocean else {"code": "TOO_MANY_REQUESTS", "message": "Too many requests"}
            return 429, error, {**limits, "retry-after": "1"}
        if self.take_fault("broken"):
            return 503, {"id": "service_unavailable", "message": "Service Unavailable"} if is_digitalocean else {"code": "INTERNAL_SERVER_ERROR", "message": "try again"}, limits
        status, document = (self.digitalocean if is_digitalocean else self.paperspace)(method, url.path, query, body)
        if method == "POST" and status in (200, 202) and self.take_fault("lost"):
            return None, None, {}
        return status, document, limits

    def create(self, machines, name, size, body, identifier):
        machine = machines[identifier] = Machine(self, identifier, name, size, body)
        machine.boot()
        return machine

    def visible(self, machines):
        """The machines that lists show already."""
        return [m for m in machines.values() if m.visible_at <= time.monotonic()]

    def digitalocean(self, method, path, query, body):
        missing = 404, {"id": "not_found", "message": "The resource you requested could not be found."}
        page, size = int(query.get("page", 1)), min(int(query.get("per_page", 20)), self.faults.get("page", 200))

        def paged(field, items):
            items, total = items[(page - 1) * size:page * size], len(items)
            pages = {"next": f"{self.url}{path}?page={page + 1}&per_page={size}"} if page * size < total else {}
            return 200, {field: items, "links": {"pages": pages}, "meta": {"total": total}}

        if path == "/v2/sizes":
            return paged("sizes", [{"slug": slug, "price_hourly": hour, "price_monthly": month, "available": True, "regions": ["nyc2"], "vcpus": 4, "memory": 8192,
                                    "disk": 160, "transfer": 5.0, "description": "Basic", **({"gpu_info": GPUS[slug]} if slug in GPUS else {})} for slug, (hour, month) in SIZES.items()])
        if path == "/v2/droplets" and method == "GET":
            return paged("droplets", [m.droplet() for m in self.visible(self.droplets)])
        if path == "/v2/droplets" and method == "POST":
            for field in ("name", "size", "image", "region"):
                if not body.get(field):
                    return 422, {"id": "unprocessable_entity", "message": f"{field} is required"}
            if body["size"] not in SIZES or body["size"] == "gpu-gone":
                return 422, {"id": "unprocessable_entity", "message": "Size is not available in this region."}
            if not re.fullmatch(r"[A-Za-z0-9.-]+", body["name"]):
                return 422, {"id": "unprocessable_entity", "message": "Only valid hostname characters are allowed. (a-z, A-Z, 0-9, . and -)"}
            self.next += 1
            return 202, {"droplet": self.create(self.droplets, body["name"], body["size"], body, str(self.next)).droplet(), "links": {"actions": []}}
        found = re.fullmatch(r"/v2/droplets/(\d+)(/actions)?", path)
        machine = self.droplets.get(found[1]) if found else None
        if machine is None:
            return missing
        if found[2]:
            kind = body["type"]
            if kind == "power_on":
                machine.boot()
            else:
                machine.power_off(False)
            return 201, {"action": {"id": 36804636, "status": "in-progress", "type": kind, "resource_id": int(machine.id), "resource_type": "droplet"}}
        if method == "DELETE":
            if machine.state not in ("on", "off"):
                return 422, {"id": "unprocessable_entity", "message": "Droplet already has a pending event."}
            del self.droplets[machine.id]
            machine.remove()
            return 204, None
        return 200, {"droplet": machine.droplet()}

    def paperspace(self, method, path, query, body):
        if path == "/v1/machines" and method == "GET":
            items = [m.machine() for m in self.visible(self.machines)]
            after = next((n + 1 for n, m in enumerate(items) if m["id"] == query.get("after")), 0)
            size = min(int(query.get("limit", 10)), self.faults.get("page", 120))
            shown, more = items[after:after + size], len(items) > after + size
            return 200, {"items": shown, "hasMore": more, "nextPage": shown[-1]["id"] if more else None}
        if path == "/v1/machines" and method == "POST":
            if body.get("machineType") not in RATES:
                return 400, {"code": "BAD_REQUEST", "message": f"Machine type {body.get('machineType')} is not available in region {body.get('region')}"}
            self.next += 1
            machine = self.create(self.machines, body["name"], body["machineType"], body, f"ps{self.next:x}")
            return 200, {"event": {"id": "ev1", "name": "create", "state": "new", "machineId": machine.id}, "data": machine.machine()}
        found = re.fullmatch(r"/v1/machines/(ps[0-9a-f]+)(/start|/stop)?", path)
        machine = self.machines.get(found[1]) if found else None
        if machine is None:
            return 404, {"code": "NOT_FOUND", "message": "Machine not found"}
        if found[2] == "/start":
            machine.boot()
        elif found[2] == "/stop":
            machine.power_off(True)
        elif method == "DELETE" and machine.state not in ("on", "off"):
            return 409, {"code": "CONFLICT", "message": f"Machine is {machine.machine()['state']}"}
        elif method == "DELETE":
            del self.machines[machine.id]
            machine.remove()
            return 200, {"event": {"id": "ev2", "name": "delete", "state": "new"}, "data": machine.machine()}
        else:
            return 200, machine.machine()
        return 200, {"event": {"id": "ev3", "name": found[2][1:], "state": "new"}, "data": machine.machine()}
