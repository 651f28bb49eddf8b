"""Real services for the tests of remotes: sshd, nginx with WebDAV, and a proxy that breaks connections.

sshd and nginx are Debian's packages, extracted into the cache instead of installed, so that nothing on the machine changes. They listen on
loopback and end with their contexts.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "conformance"), str(ROOT / "testkit")]
from services import Bucket, extracted, free_port, stop_process, wait_for
from suite import Skip, protected

HERE = "127.0.0.1"
PACKAGES = {
    "openssh": ["openssh-server", "openssh-sftp-server", "libwrap0"],
    "nginx": ["nginx", "nginx-common", "libnginx-mod-http-dav-ext", "libexpat1"],
}
# The unprivileged user of the services, when the tests run as root.
USER = "nobody" if os.geteuid() == 0 else None


def libraries(folder):
    return os.environ | {"LD_LIBRARY_PATH": ":".join(str(path) for path in [*folder.glob("lib/*-linux-gnu*"), *folder.glob("usr/lib/*-linux-gnu*")])}


@contextlib.contextmanager
def workplace(name):
    """A folder, a folder in it that the services' user may write to, and the extracted packages. It is removed afterwards."""
    packages = extracted(name, PACKAGES[name])
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"slipway-{name}-"))
    folder.chmod(0o755)
    # The user may not be permitted to read the cache.
    shutil.copytree(packages, folder / "packages", symlinks=True)
    data = folder / "data"
    data.mkdir()
    if USER:
        shutil.chown(data, USER)
    try:
        yield folder, data, folder / "packages"
    finally:
        with protected():
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def running(command, port, folder, environment, user=USER):
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen([str(part) for part in command], stdout=out, stderr=out, env=environment, user=user, cwd="/")
    try:
        wait_for(HERE, port, process, log)
        yield process
    finally:
        with protected():
            stop_process(process)


class Sshd:
    """The URL, the folder, the key and the known hosts of a running sshd."""

    def __init__(self, url, data, key, known_hosts):
        self.url, self.data, self.key, self.known_hosts = url, data, key, known_hosts


@contextlib.contextmanager
def sshd():
    with workplace("openssh") as (folder, data, packages):
        port = free_port(HERE)
        for name in ["host", "user"]:
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
        if USER:
            shutil.chown(folder / "host", USER)
        config = folder / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress {HERE}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\nStrictModes no\n"
            f"PidFile none\nPasswordAuthentication no\nUsePAM yes\nSubsystem sftp internal-sftp\n")
        known = folder / "known_hosts"
        known.write_text(f"[{HERE}]:{port} {(folder / 'host.pub').read_text()}")
        program = packages / "usr/sbin/sshd"
        with running([program, "-D", "-e", "-f", config], port, folder, libraries(packages)):
            name = USER or os.environ["USER"]
            yield Sshd(f"ssh://{name}@{HERE}:{port}{data}", data, folder / "user", known)


class Nginx:
    def __init__(self, port, data):
        self.address, self.data = f"{HERE}:{port}", data


@contextlib.contextmanager
def nginx():
    """nginx with WebDAV below `/dav`, behind basic authentication (user `me`, password `secret`), and for reading below `/plain`."""
    with workplace("nginx") as (folder, data, packages):
        port = free_port(HERE)
        (data / "dav").mkdir()
        (folder / "passwords").write_text("me:{PLAIN}secret\n")
        if USER:
            shutil.chown(data / "dav", USER)
        config = folder / "nginx.conf"
        config.write_text(f"""
load_module {packages}/usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
daemon off;
pid {data}/pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {data}/body; proxy_temp_path {data}/proxy; fastcgi_temp_path {data}/fastcgi;
    uwsgi_temp_path {data}/uwsgi; scgi_temp_path {data}/scgi;
    server {{
        listen {port};
        location /dav/ {{
            root {data};
            auth_basic "data"; auth_basic_user_file {folder}/passwords;
            dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS;
        }}
        location /plain/ {{ alias {data}/dav/; }}
    }}
}}
""")
        program = packages / "usr/sbin/nginx"
        with running([program, "-e", "stderr", "-p", data, "-c", config], port, folder, libraries(packages)):
            yield Nginx(port, data / "dav")


class WsgiDav:
    def __init__(self, url, data):
        self.url, self.data = url, data


@contextlib.contextmanager
def wsgidav(dvc):
    """A WebDAV server with tags of files, which is a package beside DVC's."""
    program = pathlib.Path(dvc).parent / "wsgidav"
    if not program.exists():
        raise Skip(f"{program} does not exist; it is in requirements.txt")
    port = free_port(HERE)
    with tempfile.TemporaryDirectory(prefix="slipway-wsgidav-") as folder:
        folder = pathlib.Path(folder)
        data = folder / "data"
        data.mkdir()
        command = [program, "--host", HERE, "--port", port, "--root", data, "--auth", "anonymous"]
        with running(command, port, folder, os.environ, user=None):
            yield WsgiDav(f"webdav://{HERE}:{port}", data)


class Breaking(socketserver.ThreadingTCPServer):
    """A TCP proxy that closes a connection after some bytes of the response, and responds with 503 at once where `refuse` says so."""

    allow_reuse_address = daemon_threads = True

    def __init__(self, target, after):
        self.target, self.after, self.broken, self.refuse = target, after, 0, 0
        self.lock = threading.Lock()
        super().__init__((HERE, 0), Connection)

    @property
    def address(self):
        return f"{HERE}:{self.server_address[1]}"


class Connection(socketserver.BaseRequestHandler):
    def handle(self):
        with self.server.lock:
            refused = self.server.refuse > 0
            self.server.refuse -= refused
        if refused:
            self.request.recv(65536)
            self.request.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            return
        host, port = self.server.target.split(":")
        with socket.create_connection((host, int(port))) as upstream:
            threading.Thread(target=self.forward, args=(upstream,), daemon=True).start()
            sent = 0
            with contextlib.suppress(OSError):
                while chunk := upstream.recv(65536):
                    self.request.sendall(chunk)
                    sent += len(chunk)
                    if sent > self.server.after:
                        self.server.broken += 1
                        break

    def forward(self, upstream):
        with contextlib.suppress(OSError):
            while chunk := self.request.recv(65536):
                upstream.sendall(chunk)
            upstream.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def breaking(target, after):
    with Breaking(target, after) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()


@contextlib.contextmanager
def bucket(versions=False):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="slipway-s3-"))
    service = Bucket(folder / "s3", HERE, versions)
    try:
        yield service
    finally:
        with protected():
            service.stop()
            shutil.rmtree(folder, ignore_errors=True)
