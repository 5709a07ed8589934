"""A server on the loopback interface that misbehaves in many ways."""

import functools
import itertools
import random
import socket
import threading

BEHAVIOURS = (
    "well", "well", "chunked", "no length", "private", "stall", "stall in headers", "stall in body", "drip",
    "drip headers", "endless", "endless headers", "long line", "more announced", "less announced", "huge announced",
    "negative", "wrong length", "bad chunks", "nothing", "noise", "status", "redirect", "redirect to itself",
    "redirect elsewhere", "broken headers", "reset",
)  # fmt: skip
_contents: dict[str, tuple[str, int, bytes]] = {}
_numbers = itertools.count()


def address_of(behaviour: str, seed: int, name: str, content: bytes) -> str:
    """Returns a URL at which the server shows this behaviour."""
    number = str(next(_numbers))
    _contents.clear()
    _contents[number] = (behaviour, seed, content)
    return f"http://127.0.0.1:{_port()}/{number}/{name}"


@functools.cache
def _port() -> int:
    listening = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=_respond, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return listening.getsockname()[1]


def _respond(connection: socket.socket) -> None:
    with connection:
        connection.settimeout(2)
        try:
            request = connection.recv(65_536)
            number = request.split(b" ")[1].split(b"/")[1].decode()
            for pause, part in _parts(*_contents[number], path=request.split(b" ")[1].decode()):
                threading.Event().wait(pause)
                connection.sendall(part)
        except (OSError, IndexError, KeyError):  # the client has closed the connection
            pass


def _parts(behaviour: str, seed: int, content: bytes, path: str):
    """Yields seconds to wait, and the bytes to send then."""
    rng = random.Random(seed)
    ok, length = b"HTTP/1.1 200 OK\r\n", b"Content-Length: %d\r\n\r\n"
    chunk = b"%x\r\n%b\r\n" % (len(content), content)
    announced = {"more announced": len(content) + 1_000, "less announced": len(content) // 2, "huge announced": 2**62}
    if behaviour in ("well", "private"):
        yield 0, ok + length % len(content) + content
    elif behaviour in announced:
        yield 0, ok + length % announced[behaviour] + content
    elif behaviour == "chunked":
        yield 0, ok + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n"
    elif behaviour == "bad chunks":
        bad = rng.choice(
            (b"zz\r\n", b"-5\r\nab", b"ffffffffffffffffff\r\n", b"5\r\nab", b"\r\n", b"5;x" + b"y" * 70_000)
        )
        yield 0, ok + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + bad
    elif behaviour == "no length":
        yield 0, ok + b"\r\n" + content
    elif behaviour in ("negative", "wrong length"):
        text = b"-5" if behaviour == "negative" else rng.choice((b"many", b"1e9", b"", b"5, 6", b"\xff", b"9" * 5_000))
        yield 0, ok + b"Content-Length: " + text + b"\r\n\r\n" + content
    elif behaviour.startswith("stall"):
        before = {"stall": b"", "stall in headers": ok, "stall in body": ok + length % 9_999 + content[:50]}
        yield 0, before[behaviour]
        yield 1, b""
    elif behaviour.startswith("drip"):
        for byte in (ok + b"\r\n" + content) if behaviour == "drip" else ok + b"X: 1\r\n" * 90:
            yield 0.02, bytes([byte])
    elif behaviour == "endless":
        yield 0, ok + b"\r\n"
        while True:
            yield 0, content or b"x"
    elif behaviour == "endless headers":
        yield 0, ok
        while True:
            yield 0, b"X-Header: 1\r\n" * 10
    elif behaviour == "long line":
        yield 0, ok + b"X: " + b"y" * 200_000
    elif behaviour == "noise":
        yield 0, rng.randbytes(3_000)
    elif behaviour == "status":
        yield 0, b"HTTP/1.1 %d x\r\n\r\n" % rng.choice((99, 204, 206, 300, 304, 401, 404, 407, 418, 500, 503, 999))
    elif behaviour.startswith("redirect"):
        elsewhere = (
            "file:///etc/passwd", "ftp://127.0.0.1/x", "//", "http://", "http://[::1", "data:,x", "\x00", "http://a..b/",
            "http://127.0.0.1:1/", "javascript:x", "http://127.0.0.1:99999/", "h" * 9_000, "http://\u00e9/",
        )  # fmt: skip
        target = {"redirect": path + "/..", "redirect to itself": path}.get(behaviour) or rng.choice(elsewhere)
        yield 0, b"HTTP/1.1 302 x\r\nLocation: " + target.encode() + b"\r\n" + length % 0
    elif behaviour == "broken headers":
        yield (
            0,
            ok + rng.choice((b"\x00: \xff\r\n", b"no colon\r\n", b": x\r\n", b" folded\r\n")) + length % 1 + content,
        )
