"""Servers on the loopback interface that run during a test."""

import http.server
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(handler: Callable) -> Iterator[str]:
    """Runs a server with this request handler; yields its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False  # a handler may still be stalling
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def serve_page(log: Path, *arguments: str) -> None:
    """Runs app.py in a process of `tests.helpers.processes`, with its output in the file `log`. gradio is imported
    only here, since it reads its environment variables on import."""
    with open(log, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
            stream.reconfigure(line_buffering=True)
    from ser.commands import app

    sys.argv = ["app.py", *arguments]
    sys.exit(app.command())


class Quiet(http.server.BaseHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


class Folder(http.server.SimpleHTTPRequestHandler):
    """Serves the files of `directory`."""

    log_message = Quiet.log_message
