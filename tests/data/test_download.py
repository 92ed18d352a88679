"""A file from the net is whole and right, or it is not there."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fedjax_rai.data import download
from fedjax_rai.data.download import check_file, fetch, is_url, parse_checksum
from fedjax_rai.errors import InputError

CONTENTS = b"[1, 2, 3]" * 1000
SHA256 = hashlib.sha256(CONTENTS).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Gives the contents whole, cut off, or not at all."""

    served: list[str] = []

    def do_GET(self) -> None:
        self.served.append(self.path)
        if self.path.startswith("/absent"):
            return self.send_error(404)
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/a.json")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENTS)))
        self.end_headers()
        self.wfile.write(CONTENTS[:4000] if self.path.startswith("/cut") else CONTENTS)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["/a.json", "/a.json?token=secret", "/moved/a.json"])
def test_a_file_is_fetched_once(server: str, path: str, tmp_path: Path) -> None:
    Handler.served.clear()
    file = fetch(server + path, SHA256, tmp_path)
    assert (file.name, file.read_bytes()) == ("a.json", CONTENTS)
    served = len(Handler.served)
    assert fetch(server + path, SHA256, tmp_path) == file and len(Handler.served) == served
    file.write_bytes(b"spoilt")
    assert fetch(server + path, SHA256, tmp_path).read_bytes() == CONTENTS


@pytest.mark.parametrize(
    ("path", "sha256", "message"),
    [
        ("/absent.json", SHA256, "cannot be fetched: Not Found"),
        ("/cut.json", SHA256, "must be sha256:" + SHA256),
        ("/a.json", "0" * 64, f"9,000 bytes with sha256:{SHA256}; must be sha256:{'0' * 64}"),
    ],
)
def test_of_what_is_wrong_nothing_is_left(server: str, path: str, sha256: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        fetch(server + path, sha256, tmp_path / "a" / "b")
    assert message in str(raised.value)
    assert not list(tmp_path.rglob("*"))


def test_of_what_is_interrupted_nothing_is_left(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(url: str, shown: str) -> Iterator[bytes]:
        yield CONTENTS[:10]
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "_blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(server + "/a.json", SHA256, tmp_path)
    assert not list(tmp_path.rglob("*"))


def test_a_server_that_is_not_there_is_said_without_the_secrets_of_the_url(tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        fetch("http://me:secret@127.0.0.1:9/a.json?key=secret", SHA256, tmp_path)
    assert str(raised.value).startswith("http://127.0.0.1:9/a.json: cannot be fetched: ")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("url", ["ftp://a/b.json", "file:///etc/hostname", "http://", "http://[a/b.json"])
def test_other_urls_are_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be fetched"):
        fetch(url, SHA256, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_a_url() -> None:
    assert is_url("https://a/b.json") and is_url("HTTP://a") and is_url("s3://a/b")
    assert not any(map(is_url, ("a/b.json", "/a//b", "C:/a.json", "tfds:square/square20k_en", "hf:a//b")))


def test_checksums_are_parsed_and_checked(tmp_path: Path) -> None:
    assert parse_checksum(f"sha256:{SHA256.upper()}") == parse_checksum(f" {SHA256}") == SHA256
    for wrong in ("", "sha256:", SHA256[:-1], f"md5:{SHA256}", f"{SHA256}0"):
        with pytest.raises(InputError, match="--checksum .*: must be sha256: and 64 hexadecimal digits"):
            parse_checksum(wrong)
    file = tmp_path / "a.json"
    file.write_bytes(CONTENTS)
    check_file(file, SHA256)
    with pytest.raises(InputError, match=f"a.json: its contents are sha256:{SHA256}; must be sha256:000"):
        check_file(file, "0" * 64)
