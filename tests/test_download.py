"""Downloading on loopback: whole, resumed, from a host that cannot resume, broken off, and with a wrong checksum."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cosquant_lite.datasets.download import download

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """/file can resume, /plain cannot, /broken stops in the middle, so does /chunked, and /odd speaks no HTTP."""

    def do_GET(self):
        start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.server.starts.append(start)
        if self.path == "/odd":
            return self.wfile.write(b"hello\r\n\r\n")
        if self.path == "/chunked":
            self.protocol_version = "HTTP/1.1"
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.close_connection = True
            return self.wfile.write(b"ffff\r\nhello")
        if self.path == "/missing" or start >= len(CONTENT):
            return self.send_error(404 if self.path == "/missing" else 416)
        body = CONTENT if self.path == "/plain" else CONTENT[start:]
        self.send_response(200 if self.path == "/plain" else 206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if self.path == "/broken" else body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.starts, server.url = [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("page", "already", "asked"), [
    ("/file", 0, 0), ("/file", 1000, 1000), ("/plain", 1000, 1000), ("/file", len(CONTENT), len(CONTENT)),
])  # fmt: skip
def test_whole_or_resumed(server, tmp_path, page, already, asked):
    if already:
        (tmp_path / "file.tar.part").write_bytes(CONTENT[:already])
    download(server.url + page, tmp_path / "file.tar", MD5)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
    assert server.starts == [asked]
    assert [file.name for file in tmp_path.iterdir()] == ["file.tar"]


def test_a_broken_connection_keeps_what_arrived_and_the_next_call_goes_on(server, tmp_path):
    with pytest.raises(OSError, match="the connection broke after 512,000 of 1,024,000 bytes"):
        download(server.url + "/broken", tmp_path / "file.tar", MD5)
    download(server.url + "/file", tmp_path / "file.tar", MD5)
    assert server.starts == [0, 512_000]
    assert (tmp_path / "file.tar").read_bytes() == CONTENT


def test_a_wrong_checksum_and_a_missing_page_are_named(server, tmp_path):
    with pytest.raises(ValueError, match="expected 0000"):
        download(server.url + "/file", tmp_path / "file.tar", "0000")
    with pytest.raises(OSError, match="404"):
        download(server.url + "/missing", tmp_path / "file.tar", MD5)
    with pytest.raises(OSError, match=r"127\.0\.0\.1:1/file: .*refused"):
        download("http://127.0.0.1:1/file", tmp_path / "file.tar", MD5)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("page", ["/odd", "/chunked"])
def test_an_answer_that_is_none_is_an_error_with_the_address(server, tmp_path, page):
    with pytest.raises(OSError, match=f"{page}: .*; the same command goes on"):
        download(server.url + page, tmp_path / "file.tar", MD5)


def test_a_host_that_falls_silent_is_an_error_with_the_address(monkeypatch, tmp_path):
    def silent(*_, **__):
        raise TimeoutError("timed out")

    monkeypatch.setattr("cosquant_lite.datasets.download.urlopen", silent)
    with pytest.raises(OSError, match="http://host/file: timed out; the same command goes on"):
        download("http://host/file", tmp_path / "file.tar", MD5)


def test_a_connection_that_breaks_again_is_no_whole_file(server, tmp_path):
    (tmp_path / "file.tar.part").write_bytes(CONTENT[:600_000])
    with pytest.raises(OSError, match="the connection broke after 812,000 of 1,024,000 bytes"):
        download(server.url + "/broken", tmp_path / "file.tar", MD5)
    download(server.url + "/file", tmp_path / "file.tar", MD5)
    assert (tmp_path / "file.tar").read_bytes() == CONTENT
