"""What a URL holds, into a file: within limits of size and time, and not from the host's own network unasked."""

import io
import ipaddress
import socket
import time
import urllib.request
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, InvalidURL
from typing import Any, BinaryIO
from urllib.parse import urlsplit

MOST_BYTES = 500 * 2**20  # of a download; an hour of 16-bit stereo at 48 kHz has 660 MiB as wav, 300 as flac
MOST_S = 300.0  # for all of it
MOST_SILENCE_S = 30.0  # between two bytes
INSTEAD = "Download it by other means and give the file."
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")  # all that the internet uses of IPv6


class DownloadError(ValueError):
    """A URL that cannot be had; the message names it, what is wrong and what would do."""


def download(url: str, file: BinaryIO, allow_private: bool = False) -> None:
    """
    Writes what an http or https URL holds to a file, all of it or an error. Redirects are followed to such URLs only.

    Args:
        url (`str`): Spaces and letters beyond ASCII written as %20 and so on.
        file: Binary, open for writing.
        allow_private (`bool`, defaults to `False`): Whether the URL, or one it redirects to, may lie in the host's own
            network: loopback, private, link-local and other addresses that are not public. They are checked after
            the names are resolved, and only those are connected to. What a proxy (`http_proxy`) is asked for is
            checked likewise, as far as this host can resolve it.

    Raises:
        DownloadError: The URL is not valid, answers with an error, is cut off, is over 500 MiB, takes over 300 s or 30
            without a byte, or lies in the own network.
    """
    deadline = time.monotonic() + MOST_S
    opener = urllib.request.OpenerDirector()  # the default one would follow a redirect to ftp
    for handler in (
        urllib.request.ProxyHandler(),
        _WithinLimits(deadline, allow_private),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        with opener.open(url) as answer:
            _copy(answer, file, url)
    except DownloadError:
        raise
    except (InvalidURL, ValueError) as error:  # ValueError: brackets, a host name or letters that no URL can have
        raise DownloadError(
            f"{url} is no valid URL ({error}); check it, and write spaces and letters beyond ASCII as %20 and so on."
        ) from error
    except (OSError, HTTPException) as error:
        cause = error if isinstance(error, urllib.request.HTTPError) else getattr(error, "reason", error)
        if isinstance(cause, TimeoutError):
            raise DownloadError(
                f"{url} did not come in time: at most {MOST_S:g} s in all and {MOST_SILENCE_S:g} s without a byte. "
                f"{INSTEAD}"
            ) from error
        reason = str(getattr(cause, "strerror", None) or cause).rstrip(".")
        raise DownloadError(f"{url} cannot be read: {reason}.") from error


def _copy(answer: HTTPResponse, file: BinaryIO, url: str) -> None:
    too_large = DownloadError(f"{url} is larger than {MOST_BYTES / 2**20:,.0f} MiB. {INSTEAD}")
    announced, size = answer.length, 0
    if announced is not None and announced > MOST_BYTES:
        raise too_large
    while piece := answer.read1(0x10000):
        size += len(piece)
        if size > MOST_BYTES:
            raise too_large
        file.write(piece)
    if announced is not None and size < announced:
        raise DownloadError(
            f"{url} is cut off: {announced - size} bytes that the server announced did not come. Try again."
        )


class _WithinLimits(urllib.request.AbstractHTTPHandler):
    """Opens http and https, each redirect again, on connections that know the deadline and where they may lead."""

    def __init__(self, deadline: float, allow_private: bool):
        super().__init__()
        self.deadline, self.allow_private = deadline, allow_private

    def http_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self._open(HTTPConnection, request)

    def https_open(self, request: urllib.request.Request) -> HTTPResponse:
        return self._open(HTTPSConnection, request)

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def _open(self, kind: type[HTTPConnection], request: urllib.request.Request) -> HTTPResponse:
        asked = urlsplit(request.full_url)
        through_proxy = asked.netloc != request.host
        if through_proxy and not self.allow_private:
            _public_addresses(asked.hostname or "", asked.port or 0)
        return self.do_open(partial(self._connection, kind, self.allow_private or through_proxy), request)

    def _connection(self, kind: type[HTTPConnection], allow_private: bool, host: str, **kwargs: Any) -> HTTPConnection:
        connection: Any = kind(host, **kwargs)  # what is replaced is private to it
        connection._create_connection = partial(_connect, deadline=self.deadline, allow_private=allow_private)
        connection.response_class = partial(_TimedResponse, deadline=self.deadline)
        return connection


def _connect(address: tuple[str, int], *_: Any, deadline: float, allow_private: bool) -> socket.socket:
    """A socket to the first address that answers, of those that are allowed."""
    host, port = address
    addresses = [host] if allow_private else _public_addresses(host, port)
    for place, numeric in enumerate(addresses):
        try:
            return socket.create_connection((numeric, port), _time_left(deadline))
        except OSError:
            if place == len(addresses) - 1:
                raise
    raise AssertionError("a name is resolved to one address at least")


def _public_addresses(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = list(dict.fromkeys(str(place[0]) for *_, place in found))
    public = [address for address in addresses if _is_public(address)]
    if not public:
        raise PermissionError(
            f"{host} is {addresses[0]}, which lies in this machine's own network; allow_private_urls permits that"
        )
    return public


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address) and (ip not in GLOBAL_UNICAST or ip.sixtofour):
        return False  # forms of IPv4 in IPv6 among them
    return ip.is_global and not ip.is_multicast


class _TimedResponse(HTTPResponse):
    """An answer whose headers and body are not waited for beyond the deadline, however slowly they drip."""

    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **kwargs: Any):
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_TimedSocket(sock, deadline))


class _TimedSocket(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float):
        self.sock, self.deadline, self.bytes = sock, deadline, sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self.sock.settimeout(_time_left(self.deadline))
        return self.bytes.readinto(buffer)

    def close(self) -> None:
        self.bytes.close()
        super().close()


def _time_left(deadline: float) -> float:
    left = min(MOST_SILENCE_S, deadline - time.monotonic())
    if left <= 0:
        raise TimeoutError
    return left
