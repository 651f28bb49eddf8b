"""Uploads of the XML API of Google's storage in front of fake-gcs-server, which has only those of the JSON API. All other requests are forwarded.

slipway's client sends objects as `PUT /BUCKET/OBJECT`, and large ones in parts, like every client of the XML API:
https://cloud.google.com/storage/docs/xml-api/overview
"""

import contextlib
import hashlib
import http.client
import http.server
import itertools
import json
import threading
import urllib.parse


class Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """A client that closed its connection is no error of the proxy."""


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.upstream = http.client.HTTPConnection(self.server.target, timeout=60)

    def finish(self):
        self.upstream.close()
        super().finish()

    def handle_request(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        is_object = not url.path.startswith(("/storage/", "/upload/", "/download/", "/batch/")) and url.path.count("/") > 1
        parts = self.server.parts
        if not is_object or self.command not in ("PUT", "POST"):
            return self.forward(self.command, self.path, body)
        if "uploads" in query:
            upload = str(next(self.server.numbers))
            parts[upload] = {}
            return self.reply(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
        if "partNumber" in query:
            parts[query["uploadId"]][int(query["partNumber"])] = body
            return self.reply(200, "", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        if self.command == "POST":
            body = b"".join(part for _, part in sorted(parts.pop(query["uploadId"]).items()))
        _, bucket, name = url.path.split("/", 2)
        name = urllib.parse.quote(urllib.parse.unquote(name), safe="")
        headers = {"content-type": "application/octet-stream", "host": self.server.target}
        self.upstream.request("POST", f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={name}", body, headers)
        response = self.upstream.getresponse()
        content = response.read()
        if response.status != 200:
            return self.reply(response.status, content.decode())
        made = json.loads(content)
        text = f"<CompleteMultipartUploadResult><ETag>{made['etag']}</ETag></CompleteMultipartUploadResult>"
        return self.reply(200, text, {"ETag": made["etag"], "x-goog-generation": made["generation"]})

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = handle_request

    def forward(self, command, path, body):
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("connection", "host")} | {"Host": self.server.target}
        self.upstream.request(command, path, body, headers)
        response = self.upstream.getresponse()
        content = response.read()
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = response.getheader("content-length") if command == "HEAD" else len(content)
        self.send_header("content-length", str(length or 0))
        self.end_headers()
        self.wfile.write(content)

    def reply(self, status, text, headers={}):
        self.send_response(status)
        for name, value in {**headers, "content-length": str(len(text.encode()))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def in_front_of(target):
    """Yields the address of the proxy for the server at `target`, HOST:PORT."""
    with Proxy((target.split(":")[0], 0), Handler) as server:
        server.target, server.parts, server.numbers = target, {}, itertools.count(1)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"{target.split(':')[0]}:{server.server_address[1]}"
        finally:
            server.shutdown()
