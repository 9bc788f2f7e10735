"""An S3 server for the tests, and a proxy in front of it that injects faults of networks and busy stores.

The server is moto, an in-memory emulator with multipart uploads, conditional puts and ranges.
"""

import http.client
import os
import random
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import botocore.session

from ports import free_ports

Fault = str
"""The kind of an injected fault.

- one of ANSWERS: the proxy sends this answer and does not forward the request;
- refused: the connection closes before the request is read;
- broken: the connection closes in the middle of the request's body;
- lost: the store processes the request, but the connection closes before the answer;
- cut: the connection closes in the middle of the answer's body;
- drip: the answer arrives slowly in small pieces.
"""

_REMOVAL = "<DeleteResult><Error><Key>x</Key><Code>{}</Code><Message>Not removed.</Message></Error></DeleteResult>"
ANSWERS = {
    "slow_down": (503, "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"),
    "error": (500, "<Error><Code>InternalError</Code><Message>Please try again.</Message></Error>"),
    "conflict": (409, "<Error><Code>ConditionalRequestConflict</Code><Message>A conflict.</Message></Error>"),
    "gone": (404, "<Error><Code>NoSuchUpload</Code><Message>No such upload.</Message></Error>"),
    "half_removed": (200, _REMOVAL.format("InternalError")),
    "kept": (200, _REMOVAL.format("AccessDenied")),
    "expired": (400, "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"),
    "denied": (403, "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"),
    "skewed": (403, "<Error><Code>RequestTimeTooSkewed</Code><Message>The clocks differ.</Message></Error>"),
    "too_long": (400, "<Error><Code>KeyTooLongError</Code><Message>Your key is too long</Message></Error>"),
}


@contextmanager
def running_server() -> Iterator[str]:
    """Runs an S3 server within the block; yields its endpoint."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _await(port, server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def _await(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        assert server.poll() is None, "the S3 server ended by itself"
        time.sleep(0.1)
    raise TimeoutError("the S3 server does not answer")


def environment(endpoint: str) -> dict[str, str]:
    """Environment variables of AWS tools for that server, which accepts any key."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "key-of-the-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def client(endpoint: str) -> Any:
    """A plain synchronous botocore client."""
    session = botocore.session.get_session()
    return session.create_client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="another",
        aws_secret_access_key="another",
    )


def seeded(seed: int, shares: Mapping[Fault, float], most: int = 4) -> Callable[[str, str, int], Fault | None]:
    """Chooses faults at random for a share of all requests, independently of their order.

    At most `most - 1` consecutive attempts of a request fail.
    """

    def choose(method: str, path: str, attempt: int) -> Fault | None:
        if attempt % most == most - 1:
            return None
        # Names of buckets and uploads differ in each run.
        request = re.sub(r"^/[^/?]*|uploadId=[^&]*", "", path)
        draw = random.Random(f"{seed} {method} {request} {attempt}").random()
        for fault, share in shares.items():
            draw -= share
            if draw < 0:
                return fault
        return None

    return choose


@dataclass
class ChaosProxy:
    """Forwards requests to a store and injects faults."""

    target: str
    choose: Callable[[str, str, int], Fault | None] = lambda method, path, attempt: None
    """The fault for a request, given its method, its path with query, and the number of earlier equal requests."""
    spoilt: list[tuple[str, str, Fault]] = field(default_factory=list)
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self.conditional = threading.Lock()
        self.connections: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self  # type: ignore[attr-defined]
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def running(self) -> Iterator["ChaosProxy"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()
            for connection in list(self.connections):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def fault(self, method: str, path: str, key: str) -> Fault | None:
        with self._lock:
            fault = self.choose(method, path, self.requests[method, key])
            self.requests[method, key] += 1
            if fault:
                self.spoilt.append((method, path, fault))
            return fault


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores closed connections, which the faults cause."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.proxy: ChaosProxy = self.server.proxy  # type: ignore[attr-defined]
        self.proxy.connections.add(self.connection)

    def finish(self) -> None:
        self.proxy.connections.discard(self.connection)
        super().finish()

    def log_message(self, *arguments: object) -> None:
        pass

    def _pass(self) -> None:
        # Attempts are counted per byte range of an object.
        key = f"{self.path} {self.headers.get('Range', '')}"
        fault = self.proxy.fault(self.command, self.path, key)
        if fault == "refused":
            return self._hang_up()
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "broken":
            self.rfile.read(length // 2)
            return self._hang_up()
        body = self.rfile.read(length)
        if fault in ANSWERS:
            return self._answer(fault)
        # S3 processes conditional puts atomically; moto checks and writes in two steps.
        with self.proxy.conditional if "If-None-Match" in self.headers else nullcontext():
            answer, content = self._ask(body)
        if fault == "lost":
            return self._hang_up()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.wfile.write(content[: len(content) // 2])
            return self._hang_up()
        if fault == "drip":
            step = max(1, len(content) // 8)
            for at in range(0, len(content), step):
                self.wfile.write(content[at : at + step])
                time.sleep(0.01)
            return None
        self.wfile.write(content)
        return None

    def _ask(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        target = urlsplit(self.proxy.target)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
        with closing(http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)) as connection:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer, answer.read()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _answer(self, fault: Fault) -> None:
        status, text = ANSWERS[fault]
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text.encode())
