"""A small server that speaks OpenAI's chat completions, for tests: what it replies is a list of what goes wrong."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Script = Callable[[int, dict[str, Any]], tuple[int, bytes]]
"""(number of the request from 0, its body) -> status, body of the reply."""


class Served(NamedTuple):
    """A server that runs."""

    url: str
    requests: list[dict[str, Any]]
    """The bodies of the requests so far."""
    headers: list[dict[str, str]]


def completion(text: str) -> bytes:
    """A reply as the API has it."""
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()


@contextmanager
def serving(script: Script, retry_after: str | None = None, location: str | None = None) -> Iterator[Served]:
    """Serves what `script` says on a free port of this machine alone."""
    requests: list[dict[str, Any]] = []
    headers: list[dict[str, str]] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(requests)
                requests.append(body)
                headers.append({**dict(self.headers), "path": self.path})
            status, reply = script(number, body)
            self.send_response(status)
            if retry_after is not None:
                self.send_header("Retry-After", retry_after)
            if location is not None:
                self.send_header("Location", location)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def do_GET(self) -> None:
            """What a redirect leads to."""
            with lock:
                headers.append({**dict(self.headers), "path": self.path})
            self.send_error(501)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield Served(f"http://127.0.0.1:{server.server_port}/v1", requests, headers)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
