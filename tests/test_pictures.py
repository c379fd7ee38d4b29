"""data/pictures.py and data/web.py: a local server that fails, redirects, truncates or stalls; the cache."""

import io
import json
import threading
import time
import zlib

import pytest

pytest.importorskip("PIL", reason="pip install -c constraints.txt -e '.[features]'")
from PIL import Image
from test_features_tool import bomb
from tiny_models import reply, serve

from data import pictures, web
from utils import UserError

# The server of the tests has a private address.
LOCAL = web.Access(allow_private=True)
FAST = {"workers": 3, "attempts": 3, "timeout": 5.0, "backoff": 0.01, "access": LOCAL}


def jpeg(colour=0):
    buffer = io.BytesIO()
    Image.new("RGB", (12, 8), (colour, 90, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


class Shop:
    """Answers by the first word of the path, and counts the requests of each path."""

    def __init__(self):
        self.hits, self.lock = {}, threading.Lock()

    def __call__(self, handler, _):
        with self.lock:
            seen = self.hits[handler.path] = self.hits.get(handler.path, 0) + 1
        kind = handler.path.strip("/").split("-")[0]
        if kind == "ok" or (kind in ("flaky", "busy", "drops") and seen > 2):
            reply(handler, jpeg(len(handler.path)))
        elif kind == "flaky":
            reply(handler, status=500)
        elif kind == "busy":
            reply(handler, status=429, headers=[("Retry-After", "0")])
        elif kind == "drops":
            handler.close_connection = True
        # Announces more than it sends.
        elif kind == "short":
            handler.send_response(200)
            handler.send_header("Content-Length", "99999")
            handler.end_headers()
            handler.wfile.write(jpeg())
            handler.close_connection = True
        elif kind == "moved":
            reply(handler, status=302, headers=[("Location", "/ok-moved")])
        elif kind == "local":
            reply(handler, status=302, headers=[("Location", "file:///etc/hostname")])
        elif kind == "page":
            reply(handler, b"<html>not here</html>")
        elif kind == "bomb":
            reply(handler, bomb(10_000, 10_000))
        # Decompresses to more than the limit.
        elif kind == "gzip":
            reply(handler, zlib.compress(b"\0" * 3 * 10**7), headers=[("Content-Encoding", "deflate")])
        elif kind == "long":
            handler.send_response(200)
            handler.end_headers()
            for _ in range(30):
                handler.wfile.write(b"0" * 10**5)
            handler.close_connection = True
        elif kind == "drip":
            handler.send_response(200)
            handler.end_headers()
            for _ in range(100):
                handler.wfile.write(b"x")
                time.sleep(0.05)
            handler.close_connection = True
        else:
            reply(handler, status=404)


@pytest.fixture
def shop():
    answer = Shop()
    with serve(answer) as url:
        yield answer, url


def test_pictures_are_fetched_once_and_failures_have_reasons(shop, tmp_path):
    """Good and recovering URLs end in the cache; permanent failures are not requested again."""
    answer, url = shop
    names = [
        "ok-1",
        "flaky-1",
        "busy-1",
        "drops-1",
        "moved-1",
        "gone-1",
        "page-1",
        "bomb-1",
        "local-1",
        "short-1",
        "ok-1",
    ]
    urls = {row: f"{url}/{name}" for row, name in enumerate(names)}
    found, failed = pictures.download(urls, tmp_path, **FAST)
    assert sorted(found) == [0, 1, 2, 3, 4, 10] and found[0] == found[10]
    assert found[1].read_bytes() == jpeg(len("/flaky-1")) and found[4].read_bytes() == jpeg(len("/ok-moved"))
    assert (
        "404" in failed[5] and "not a picture" in failed[6] and "pixels" in failed[7] and "file:" in failed[8]
    )
    assert answer.hits["/ok-1"] == answer.hits["/gone-1"] == 1
    assert answer.hits["/flaky-1"] == answer.hits["/short-1"] == 3
    before = dict(answer.hits)
    again = pictures.download(urls, tmp_path, **FAST)
    assert again[0] == found and sorted(again[1]) == [5, 6, 7, 8, 9]
    changed = {path for path in answer.hits if answer.hits[path] != before[path]}
    # The first of these failures may pass; the second is a rule of this machine, not of the server.
    assert changed == {"/short-1", "/local-1"}
    cached = {path.name for path in found.values()}
    assert {path.name for path in tmp_path.iterdir()} == cached | {"refused.json"}


def test_a_redirected_log_gets_no_progress_bar(shop, tmp_path, capsys):
    pictures.download({0: f"{shop[1]}/ok-1"}, tmp_path, **FAST)
    assert capsys.readouterr().err == ""


def test_slow_and_oversized_bodies_are_cut_off(shop):
    _, url = shop
    started = time.monotonic()
    with pytest.raises(web.Transient, match="timed out"):
        web.fetch("GET", f"{url}/drip", LOCAL, max_bytes=10**6, timeout=0.3)
    assert time.monotonic() - started < 3
    with pytest.raises(web.Refused, match="longer than 1000000 bytes"):
        web.fetch("GET", f"{url}/long", LOCAL, max_bytes=10**6, timeout=5)
    with pytest.raises(web.Refused, match="Content-Encoding deflate"):
        web.fetch("GET", f"{url}/gzip", LOCAL, max_bytes=10**6, timeout=5)


def test_no_server(tmp_path):
    _, failed = pictures.download({0: "http://127.0.0.1:9/x.jpg"}, tmp_path, **FAST)
    assert "refused" in failed[0].lower()


def test_pauses_double_and_retry_after_counts():
    """Pauses of 1, 2, 4, ... seconds; a longer Retry-After wins, up to two minutes."""
    waits, retry_after = [], iter([0, 0, 30, 9999])

    class Clock:
        def wait(self, seconds):
            waits.append(seconds)

    def call():
        raise web.Transient("no", next(retry_after, 0))

    with pytest.raises(web.Transient):
        web.with_retries(call, 5, 1.0, Clock())
    assert waits == [1, 2, 30, 120]


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "urls.tsv",
            "B1\thttps://a.example/1.jpg\n\nB0\thttp://a.example/0.jpg\r\nB7\thttp://a.example/7.jpg\n",
        ),
        (
            "urls.jsonl",
            (
                '{"asin": "B1", "image": "https://a.example/1.jpg"}\n'
                '{"asin": "B0", "image": "http://a.example/0.jpg"}\n{"asin": "B2"}\n'
            ),
        ),
    ],
)
def test_url_lists(tmp_path, name, text):
    # The byte order mark is that of a Windows editor.
    (tmp_path / name).write_text(text, "utf-8-sig" if name.endswith("tsv") else "utf-8")
    urls = pictures.read_urls(tmp_path / name, 3, ["B0", "B1", "B2"], "original", "asin", "image")
    assert urls == {1: "https://a.example/1.jpg", 0: "http://a.example/0.jpg"}


@pytest.mark.parametrize(
    "line, message",
    [
        ("0\tfile:///etc/passwd", "is not an http"),
        ("0\tftp://a/b", "is not an http"),
        ("0 http://a/b", "no tab"),
        ("0\thttp://a b", "is not an http"),
        ("0\thttp://a/b\n0\thttp://a/c", "line 2: 'item' 0 appears twice"),
        ("9\thttp://a/b", "holds no URL for any of the 3 items"),
    ],
)
def test_bad_url_lists(tmp_path, line, message):
    (tmp_path / "urls.tsv").write_text(line + "\n")
    with pytest.raises(UserError, match=message):
        pictures.read_urls(tmp_path / "urls.tsv", 3, None, "internal", "item", "url")


def test_no_url_escapes_the_cache(tmp_path):
    path = pictures.cache_path(tmp_path, "http://a/../../../etc/cron.d/x")
    assert path.parent == tmp_path and path.name.isalnum()


def test_a_damaged_list_of_refusals_is_ignored(tmp_path):
    for content in ("{", "[1]", '{"http://a/b": 3}'):
        (tmp_path / "refused.json").write_text(content)
        assert pictures.read_refused(tmp_path / "refused.json") == {}


def test_a_folder_without_pictures_of_the_items_is_refused_with_the_callers_remedy(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "z.png")
    with pytest.raises(
        UserError, match=r"\(1 of other items\); name the files by original item ids, or wait$"
    ):
        pictures.find_pictures(tmp_path, 1, ["x"], "or wait")
    with pytest.raises(UserError, match=r"by internal item ids, or change --ids$"):
        pictures.find_pictures(tmp_path, 1)


def test_percent_encoded_file_names(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "a%2Fb.png")
    assert pictures.find_pictures(tmp_path, 2, ["x", "a/b"]) == ({1: tmp_path / "a%2Fb.png"}, 0)


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", b"%PDF-1.4", bomb(40_000, 40_000), bomb(9_000, 9_000), jpeg()[:-200]]
)
def test_broken_pictures(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    for source in (tmp_path / "x.png", io.BytesIO(content)):
        with pytest.raises(pictures.BrokenPicture):
            pictures.open_picture(source)


def test_a_lack_of_memory_makes_no_picture_broken(monkeypatch):
    def no_memory(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image, "open", no_memory)
    with pytest.raises(MemoryError):
        pictures.open_picture(io.BytesIO(jpeg()))


def test_refusals_are_kept_as_json(shop, tmp_path):
    _, url = shop
    pictures.download({0: f"{url}/gone-2"}, tmp_path, **FAST)
    assert json.loads((tmp_path / "refused.json").read_text()) == {f"{url}/gone-2": "status 404 Not Found"}
