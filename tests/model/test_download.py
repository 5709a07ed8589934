import io
import socket
import time
from urllib.parse import quote, unquote, urlsplit

import pytest

import audio_maxmvit
from audio_maxmvit import AudioError, read_audio
from tests.helpers.servers import Quiet, serving

CONTENT = bytes(range(256)) * 40


class Responses(Quiet):
    """Sends valid and invalid responses, chosen by the path."""

    protocol_version = "HTTP/1.1"
    drip_s = 0.05

    def do_GET(self):
        self.close_connection = True
        kind, _, rest = self.path[1:].partition("/")
        if kind == "drip-headers":
            self.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Slow: 1\r\n" * 50)
            return
        if kind == "silence":
            time.sleep(5)
            return
        self.send_response(302 if kind == "redirect" else 200)
        if kind == "redirect":
            self.send_header("Location", unquote(rest))
        elif kind in ("chunked", "broken-chunks", "endless"):
            self.send_header("Transfer-Encoding", "chunked")
        elif kind != "no-length":
            extra = {"cut-off": 100, "huge": 2**40}.get(kind, 0)
            self.send_header("Content-Length", str(len(CONTENT) + extra))
        self.end_headers()
        chunk = b"%x\r\n%b\r\n" % (len(CONTENT), CONTENT)
        if kind == "drip":
            self.drip(CONTENT)
        elif kind == "chunked":
            self.wfile.write(chunk + b"0\r\n\r\n")
        elif kind == "broken-chunks":
            self.wfile.write(chunk + b"5\r\nab")
        elif kind == "endless":
            try:
                while True:
                    self.wfile.write(chunk)
            except OSError:  # the client has closed the connection
                pass
        elif kind != "redirect":
            self.wfile.write(CONTENT)

    def drip(self, content: bytes) -> None:
        try:
            for index in range(len(content)):
                self.wfile.write(content[index : index + 1])
                self.wfile.flush()
                time.sleep(self.drip_s)
        except OSError:  # the client has closed the connection
            pass


@pytest.fixture(scope="module")
def base():
    with serving(Responses) as address:
        yield address


def fetched(url: str, allow_private: bool = True) -> bytes:
    file = io.BytesIO()
    audio_maxmvit._download(url, file, allow_private)
    return file.getvalue()


def test_a_download_is_written_completely(base):
    for path in ("plain", "no-length", "chunked", f"redirect/{quote(base, '')}%2Fchunked"):
        assert fetched(f"{base}/{path}") == CONTENT
    assert fetched(f"HTTP{base[4:]}/plain") == CONTENT


def test_a_download_that_ends_early_is_refused(base):
    with pytest.raises(AudioError, match="/cut-off is cut off: 100 of the bytes that the server announced"):
        fetched(f"{base}/cut-off")
    with pytest.raises(AudioError, match="/broken-chunks cannot be read: IncompleteRead"):
        fetched(f"{base}/broken-chunks")
    with pytest.raises(AudioError, match="/cut-off is cut off"):
        read_audio(f"{base}/cut-off", 16_000, allow_private_urls=True)


def test_downloads_over_the_size_limit_are_refused(base, monkeypatch):
    with pytest.raises(AudioError, match="/huge is larger than 500 MiB. Download it by other means"):
        fetched(f"{base}/huge")
    monkeypatch.setattr(audio_maxmvit, "MAX_DOWNLOAD_BYTES", 2**20)
    file = io.BytesIO()
    with pytest.raises(AudioError, match="/endless is larger than 1 MiB"):
        audio_maxmvit._download(f"{base}/endless", file, allow_private=True)
    assert len(file.getvalue()) <= 2**20


@pytest.mark.slow
@pytest.mark.parametrize("path", ["drip-headers", "drip", "silence"])
def test_a_stalled_or_slow_download_ends_in_time(base, monkeypatch, path):
    monkeypatch.setattr(audio_maxmvit, "MAX_DOWNLOAD_S", 0.6)
    monkeypatch.setattr(audio_maxmvit, "MAX_SILENCE_S", 0.4)
    start = time.monotonic()
    with pytest.raises(AudioError, match=f"/{path} took too long: the limits are 0.6 s in all and 0.4 s without"):
        fetched(f"{base}/{path}")
    assert time.monotonic() - start < 2


def test_redirects_to_other_schemes_and_redirect_loops_are_refused(base, tmp_path):
    (tmp_path / "secret").write_text("of this machine")
    for address in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "data:text/plain,x", "gopher://127.0.0.1/x"):
        with pytest.raises(AudioError, match="cannot be read"):
            fetched(f"{base}/redirect/{quote(address, '')}")
    with pytest.raises(AudioError, match="infinite loop"):
        fetched(f"{base}/redirect/.")  # to /redirect/, which redirects to itself


PRIVATE = (
    "127.0.0.1", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
    "::1", "::", "fe80::1", "fc00::1", "fec0::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "ff02::1",
)  # fmt: skip


@pytest.mark.parametrize("address", [*PRIVATE, "localhost", "2130706433", "127.1"])
def test_addresses_in_the_own_network_are_refused_by_default(address, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", None)  # no connection may be opened
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(AudioError, match="own network; allow_private_urls permits that"):
        fetched(f"http://{host}/latest/meta-data", allow_private=False)


def test_host_names_are_checked_by_address_and_only_that_address_is_connected_to(base, monkeypatch):
    """Covers a public name with a private address, directly and after a redirect, and a name with two addresses."""
    port = urlsplit(base).port
    resolved = {"inside.example": ["10.0.0.1"], "mixed.example": ["10.0.0.1", "93.184.215.14"]}
    looked_up, connected = [], []
    resolve, connect = socket.getaddrinfo, socket.create_connection

    def look_up(host, *args, **kwargs):
        looked_up.append(host)
        if host not in resolved:
            return resolve(host, *args, **kwargs)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in resolved[host]]

    def to_loopback(address, *args, **kwargs):
        connected.append(address[0])
        return connect(("127.0.0.1", port), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", to_loopback)
    with pytest.raises(AudioError, match="inside.example is 10.0.0.1, an address in this machine's own network"):
        fetched(f"http://inside.example:{port}/plain", allow_private=False)
    assert connected == []
    assert fetched(f"http://mixed.example:{port}/plain", allow_private=False) == CONTENT
    inside = quote(f"http://inside.example:{port}/plain", "")
    with pytest.raises(AudioError, match="inside.example is 10.0.0.1"):
        fetched(f"http://mixed.example:{port}/redirect/{inside}", allow_private=False)
    assert set(connected) == {"93.184.215.14"}
    assert looked_up.count("mixed.example") == 2  # once per connection, so the address cannot change after the check


def test_a_proxy_is_used_but_not_to_reach_the_own_network(base, monkeypatch):
    monkeypatch.setenv("http_proxy", base)
    monkeypatch.delenv("no_proxy", raising=False)
    with pytest.raises(AudioError, match="own network"):
        fetched("http://10.1.2.3/plain", allow_private=False)


@pytest.mark.parametrize("url", ["http://[bad/x", "http://127.0.0.1/a b", "http://127.0.0.1/\u00e9", "http://a..b/x"])
def test_an_invalid_url_is_refused(url):
    with pytest.raises(AudioError, match="is not a valid URL .*percent-encode spaces"):
        fetched(url)
