"""data/download.py against a local server that breaks off, truncates, redirects, stalls or misleads."""

import contextlib
import dataclasses
import gzip
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data import download, transfer
from data.download import RECORDS
from data.sources import SOURCES, Remote, Source
from data.transfer import Part
from data.verify import IMAGE
from utils import lock_file

ROOT = Path(__file__).resolve().parents[1]
RNG = np.random.default_rng(0)
BODY = b"\n".join(RNG.integers(10**6, size=400_000).astype("S")) + b"\n"  # 2.7 MB of text
SHA = hashlib.sha256(BODY).hexdigest()
ETAG = '"v1"'


class Server:
    """Serve one file at every path.

    script: functions of the handler that answer the first requests; later ones are answered correctly.
    requests, paths: headers and path of each request so far.
    """

    def __init__(self):
        self.body, self.etag, self.date, self.script, self.requests, self.paths = BODY, ETAG, None, [], [], []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.requests.append(dict(self.headers))
                server.paths.append(self.path)
                with contextlib.suppress(OSError):
                    (server.script.pop(0) if server.script else Server.serve)(self)

            def log_message(self, *_):
                pass

        Handler.server_of_test = server
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @staticmethod
    def serve(handler, send=None, promise=0, ranges=True):
        """Answer correctly, except as told.

        send: bytes of the body after which the connection ends; promise: added to the true Content-Length;
        ranges: False ignores the Range header.
        """
        server = handler.server_of_test
        start, asked = 0, handler.headers.get("Range")
        if asked and ranges and handler.headers.get("If-Range") in (server.etag, server.date):
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        body = server.body[start:]
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        handler.send_header("Content-Length", str(len(body) + promise))
        for name, value in (("ETag", server.etag), ("Last-Modified", server.date)):
            if value:
                handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[:send])
        handler.wfile.flush()


def breaks(count):
    return lambda handler: Server.serve(handler, send=count)


def answers(status, *headers, body=b""):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers:
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(transfer, "FIRST_WAIT", 0.01)
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def run(server, monkeypatch, tmp_path, capsys):
    """Function that downloads a one-file dataset from the server and returns (exit code, stdout + stderr)."""

    def run(*flags, name="rows.csv", sha256=SHA):
        monkeypatch.setitem(
            SOURCES, "toy", Source("toy", (Remote("rows", f"some/{name}", sha256),), server.url, "REMEDY")
        )
        code = download.main(["toy", "--data_root", str(tmp_path), "--allow_private", "1", *flags])
        return code, "".join(capsys.readouterr())

    return run


def names(tmp_path):
    return sorted(path.name for path in (tmp_path / "toy").iterdir())


def whole(tmp_path, body=BODY):
    """Whether the folder holds the file, its record with the record's lock, and nothing else."""
    expected = [f".{RECORDS}.lock", RECORDS, "rows.csv"]
    return names(tmp_path) == expected and (tmp_path / "toy" / "rows.csv").read_bytes() == body


def errors(text):
    """The error lines of stderr."""
    return [line for line in text.splitlines() if line.startswith("error:")]


# ---------------------------------------------------------------- without failures


def test_fetches_and_records(server, run, tmp_path):
    code, said = run()
    assert code == 0 and "rows.csv:" in said and whole(tmp_path) and server.paths == ["/some/rows.csv"]
    record = json.loads((tmp_path / "toy" / RECORDS).read_text())
    assert record == {
        "rows.csv": {
            "url": f"{server.url}/some/rows.csv",
            "bytes": len(BODY),
            "sha256": SHA,
            "verified": True,
        }
    }


def test_a_second_run_fetches_nothing(server, run, tmp_path):
    run()
    before = {path: path.read_bytes() for path in (tmp_path / "toy").iterdir()}
    assert run()[0] == 0 and len(server.requests) == 1
    assert {path: path.read_bytes() for path in (tmp_path / "toy").iterdir()} == before


def test_without_published_sha256_it_says_so_and_notices_changes(run, tmp_path, capsys):
    assert run(sha256="")[0] == 0 and whole(tmp_path)
    record = json.loads((tmp_path / "toy" / RECORDS).read_text())["rows.csv"]
    assert record["sha256"] == SHA and record["verified"] is False
    assert download.main(["toy", "--data_root", str(tmp_path), "--verify_only"]) == 0
    assert f"not verified (no sha256 is published; this file has {SHA})" in capsys.readouterr().out
    (tmp_path / "toy" / "rows.csv").write_bytes(BODY[:-3] + b"1\n")
    code, said = run("--verify_only", sha256="")
    assert code == 2 and "but download.json says" in said


def test_a_record_written_during_the_transfer_is_kept(server, run, tmp_path):
    """An entry that another process adds to download.json while this file arrives is not lost."""

    def serve_while_another_download_ends(handler):
        (tmp_path / "toy" / RECORDS).write_text(json.dumps({"other.csv": {"bytes": 3}}))
        Server.serve(handler)

    server.script = [serve_while_another_download_ends]
    assert run()[0] == 0
    records = json.loads((tmp_path / "toy" / RECORDS).read_text())
    assert list(records) == ["other.csv", "rows.csv"] and records["other.csv"] == {"bytes": 3}


def test_parallel_downloads_keep_all_records(server, tmp_path, monkeypatch):
    """Eight processes, each with one file of the same dataset, all arriving at the same time."""
    kinds = [f"k{number}" for number in range(8)]
    files = tuple(Remote(kind, f"some/{kind}.csv", SHA) for kind in kinds)
    monkeypatch.setitem(SOURCES, "toy", Source("toy", files, server.url, "REMEDY"))
    arrived = threading.Barrier(len(kinds))

    def serve_together(handler):
        arrived.wait(30)
        Server.serve(handler)

    server.script = [serve_together] * len(kinds)
    context = multiprocessing.get_context("fork")
    flags = ["toy", "--data_root", str(tmp_path), "--allow_private", "1", "--files"]
    processes = [context.Process(target=download.main, args=([*flags, kind],)) for kind in kinds]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert sorted(json.loads((tmp_path / "toy" / RECORDS).read_text())) == [f"{kind}.csv" for kind in kinds]


def test_the_record_waits_for_its_lock(server, run, tmp_path):
    (tmp_path / "toy").mkdir()
    finished, part = threading.Thread(target=run), tmp_path / "toy" / "rows.csv.part"
    with lock_file(tmp_path / "toy" / f".{RECORDS}.lock"):
        finished.start()
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size == len(BODY)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        finished.join(0.5)
        assert finished.is_alive() and not (tmp_path / "toy" / RECORDS).exists()
    finished.join(20)
    assert whole(tmp_path)


def test_a_redirected_log_gets_no_progress_bar(run):
    code, said = run()
    assert code == 0 and "\r" not in said and "%" not in said


# ---------------------------------------------------------------- breaks and resuming


def test_resumes_after_breaks_where_it_stopped(server, run, tmp_path):
    server.script = [breaks(1_000_000), breaks(700_000)]
    assert run()[0] == 0 and whole(tmp_path)
    assert [request.get("Range") for request in server.requests] == [None, "bytes=1000000-", "bytes=1700000-"]
    assert server.requests[1]["If-Range"] == ETAG


def test_resumes_in_another_process_run(server, run, tmp_path):
    server.script = [breaks(1_500_000)]
    code, said = run("--retries", "0")
    assert code == 1 and len(errors(said)) == 1 and "ended after 1,500,000 of" in said
    assert names(tmp_path) == ["rows.csv.part", "rows.csv.part.json"]
    assert run()[0] == 0 and whole(tmp_path) and server.requests[1]["Range"] == "bytes=1500000-"


def test_resumes_by_date_without_a_strong_etag(server, run, tmp_path):
    server.etag, server.date = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    server.script = [breaks(1_000_000)]
    assert run()[0] == 0 and whole(tmp_path) and server.requests[1]["If-Range"] == server.date


def test_without_a_validator_it_starts_again(server, run, tmp_path):
    server.etag, server.script = None, [breaks(1_000_000)]
    assert run()[0] == 0 and whole(tmp_path) and "Range" not in server.requests[1]


def test_a_changed_file_restarts(server, run, tmp_path):
    server.script = [breaks(1_000_000)]
    assert run("--retries", "0", sha256="")[0] == 1
    server.body, server.etag = BODY[::-1].lstrip(b"\n") + b"\n", '"v2"'
    assert run(sha256="")[0] == 0 and whole(tmp_path, server.body) and server.requests[1]["If-Range"] == ETAG


def test_a_server_that_ignores_the_range(server, run, tmp_path):
    server.script = [breaks(1_000_000), lambda handler: Server.serve(handler, ranges=False)]
    assert run()[0] == 0 and whole(tmp_path) and len(server.requests) == 2


@pytest.mark.parametrize(
    "content_range",
    ["bytes 5-9/10", "bytes 0-2/3", "garbage", "", f"bytes 1000000-{len(BODY) - 1}/{len(BODY) + 1}"],
)
def test_an_answer_that_does_not_continue_the_part_restarts(server, run, tmp_path, content_range):
    server.script = [
        breaks(1_000_000),
        answers(206, ("Content-Range", content_range), ("ETag", ETAG), body=b"12345"),
    ]
    assert run()[0] == 0 and whole(tmp_path) and "Range" not in server.requests[2]


def test_a_part_of_a_changed_file_is_not_appended(server, run, tmp_path):
    """The server ignores If-Range and sends a file of the same length with another ETag."""

    def other(handler):
        body = b"9" * len(BODY)
        answers(
            206,
            ("Content-Range", f"bytes 1000000-{len(BODY) - 1}/{len(BODY)}"),
            ("ETag", '"v2"'),
            body=body[1_000_000:],
        )(handler)

    server.script = [breaks(1_000_000), other]
    assert run(sha256="")[0] == 0 and whole(tmp_path)


def test_416_restarts(server, run, tmp_path):
    server.script = [breaks(1_000_000), answers(416)]
    assert run()[0] == 0 and whole(tmp_path)


def test_a_damaged_part_is_fetched_again(server, run, tmp_path):
    server.script = [breaks(1_000_000)]
    run("--retries", "0")
    part = tmp_path / "toy" / "rows.csv.part"
    part.write_bytes(b"x" * 1_000_000)
    assert run()[0] == 0 and whole(tmp_path)
    assert [request.get("Range") for request in server.requests] == [None, "bytes=1000000-", None]


def test_a_whole_part_needs_no_request(server, run, tmp_path):
    server.script = [breaks(1_000_000)]
    run("--retries", "0")
    (tmp_path / "toy" / "rows.csv.part").write_bytes(BODY)
    assert run()[0] == 0 and whole(tmp_path) and len(server.requests) == 1


def test_a_part_from_elsewhere_is_not_used(server, run, tmp_path):
    server.script = [breaks(1_000_000)]
    run("--retries", "0")
    assert run("--base_url", f"{server.url}/mirror/")[0] == 0 and whole(tmp_path)
    assert server.paths[1] == "/mirror/some/rows.csv" and "Range" not in server.requests[1]


@pytest.mark.parametrize(
    "state",
    [
        "",
        '{"url": "U", "total": 9, "etag": "\\"a\\nb\\""}',
        "[]",
        "{",
        '{"total": "9"}',
        '{"url": 1, "total": null, "etag": 3}',
        "[" * 10**5,
    ],
)
def test_a_damaged_state_restarts(server, run, tmp_path, state):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "rows.csv.part").write_bytes(b"abc")
    (tmp_path / "toy" / "rows.csv.part.json").write_text(state.replace("U", f"{server.url}/some/rows.csv"))
    assert run()[0] == 0 and whole(tmp_path) and "Range" not in server.requests[0]


def test_killed_and_started_again_gives_the_same_files(server, tmp_path):
    """After kill -9 the next process resumes, and its files are those of an uninterrupted download."""
    source = f"Source('toy', (Remote('rows', 'some/rows.csv', ''),), '{server.url}', '')"
    code = (
        "import sys; from data import download; from data.sources import *; "
        f"SOURCES['toy'] = {source}; sys.exit(download.main())"
    )

    def start(root):
        return subprocess.Popen(
            [sys.executable, "-c", code, "toy", "--data_root", str(root), "--allow_private", "1"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def slowly(handler):
        Server.serve(handler, send=1_000_000)
        time.sleep(20)

    server.script = [slowly]
    process, part = start(tmp_path / "killed"), tmp_path / "killed" / "toy" / "rows.csv.part"
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (part.exists() and part.stat().st_size > 100_000):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert part.stat().st_size < len(BODY)
    assert start(tmp_path / "killed").wait(60) == 0 and "Range" in server.requests[1]
    assert start(tmp_path / "whole").wait(60) == 0
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / d / "toy").iterdir()}
        for d in ("killed", "whole")
    ]
    assert files[0] == files[1] and files[0]["rows.csv"] == BODY


def test_two_at_once(server, run, tmp_path):
    (tmp_path / "toy").mkdir()
    with Part(tmp_path / "toy" / "rows.csv").opened():
        code, said = run()
    assert code == 2 and "another process is downloading it" in said and not server.requests


# ---------------------------------------------------------------- wrong lengths and contents


def test_announces_more_than_it_sends(server, run, tmp_path):
    server.script = 9 * [lambda handler: Server.serve(handler, promise=100, ranges=False)]
    code, said = run("--retries", "2")
    assert code == 1 and len(server.requests) == 3
    assert f"ended after {len(BODY):,} of {len(BODY) + 100:,} bytes" in said
    assert not (tmp_path / "toy" / "rows.csv").exists()


def test_announces_less_than_it_sends(server, run, tmp_path):
    """Content-Length looks right to HTTP, so the checksum or the incomplete last line has to show it."""
    last_line = len(BODY) - BODY.rindex(b"\n", 0, -1) - 1
    for cut, sha256, reason in (
        (last_line, SHA, "instead of the published"),
        (last_line + 1, "", "its last line is incomplete"),
    ):
        server.script = [lambda handler, cut=cut: Server.serve(handler, promise=-cut)]
        code, said = run(sha256=sha256)
        assert code == 2 and reason in said and len(errors(said)) == 1 and names(tmp_path) == []


def test_a_rest_that_is_longer_than_its_range(server, run, tmp_path):
    rest = BODY[1_000_000:] + b"more\n"
    server.script = [
        breaks(1_000_000),
        answers(206, ("Content-Range", f"bytes 1000000-{len(BODY) - 1}/{len(BODY)}"), body=rest),
    ]
    code, said = run()
    assert code == 0 and "sent more bytes than announced" in said and whole(tmp_path)


def test_no_length_at_all(server, run, tmp_path):
    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.script = [endless]
    assert run()[0] == 0 and whole(tmp_path)


def test_a_chunked_answer_that_breaks_off(server, run, tmp_path):
    def chunked(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"4\r\n1234\r\n10\r\n12")
        handler.close_connection = True

    server.script = [chunked]
    assert run()[0] == 0 and whole(tmp_path) and len(server.requests) == 2


@pytest.mark.parametrize("length", ["-5", "many", "1e9", ""])
def test_absurd_lengths(server, run, tmp_path, length):
    def absurd(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.script = [absurd]
    assert run()[0] == 0 and whole(tmp_path)


def test_too_large(server, run, tmp_path):
    code, said = run("--max_gb", "0.001")
    assert code == 2 and "larger than 0.001 GB" in said and names(tmp_path) == []

    def endless(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:
            handler.wfile.write(b"0" * 10**5)

    server.script = [endless]
    assert run("--max_gb", "0.001")[0] == 2 and (tmp_path / "toy" / "rows.csv.part").stat().st_size <= 10**6


def test_more_than_the_disk_holds(server, run, tmp_path):
    server.script = [answers(200, ("Content-Length", str(10**15)))]
    code, said = run("--max_gb", "1000000")
    assert code == 2 and "GB free; make room" in said


def test_another_file_than_published(server, run, tmp_path):
    server.body = BODY[:-2] + b"7\n" if BODY[-2:-1] != b"7" else BODY[:-2] + b"8\n"
    code, said = run()
    assert code == 2 and hashlib.sha256(server.body).hexdigest() in said and SHA in said and "REMEDY" in said
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "page",
    [
        answers(200, ("Content-Type", "text/html; charset=utf-8"), body=b"Quota exceeded\n"),
        answers(
            200,
            ("Content-Type", "application/octet-stream"),
            body=b"\xef\xbb\xbf\n <!DOCTYPE html><p>scan?\n",
        ),
    ],
)
def test_a_page_instead_of_the_file(server, run, tmp_path, page):
    server.script = [breaks(1_000_000), page]
    code, said = run(sha256="")
    assert code == 2 and "sends a web page instead of the file" in said
    assert "REMEDY" in said and len(errors(said)) == 1
    # The bytes that had arrived before the page are kept.
    assert (tmp_path / "toy" / "rows.csv.part").stat().st_size == 1_000_000
    assert run(sha256="")[0] == 0 and whole(tmp_path)


# ---------------------------------------------------------------- stalls and failures


def stall(handler):
    Server.serve(handler, send=300_000)
    time.sleep(3)


def test_a_stall_is_a_break(server, run, tmp_path):
    server.script = [stall]
    started = time.monotonic()
    code, said = run("--timeout", "0.3")
    assert code == 0 and whole(tmp_path) and "timed out" in said and time.monotonic() - started < 2.5
    assert server.requests[1]["Range"] == "bytes=300000-"


def test_a_server_that_never_answers(server, run):
    server.script = 9 * [lambda handler: time.sleep(2)]
    code, said = run("--timeout", "0.2", "--retries", "1")
    assert code == 1 and "timed out; gave up after 2 tries" in said and len(errors(said)) == 1


def test_busy_servers_are_asked_again_later(server, run, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(transfer.time, "sleep", waits.append)
    server.script = [
        answers(503, ("Retry-After", "7")),
        answers(429),
        answers(500, ("Retry-After", "9999")),
        answers(502, ("Retry-After", "soon")),
    ]
    assert run()[0] == 0 and whole(tmp_path)
    assert waits == [7, 0.02, 60, 0.08]


def test_tries_are_counted_without_progress_only(server, run, tmp_path):
    server.body = BODY * 4
    server.script = [breaks(1_500_000)] * 6
    assert run("--retries", "1", sha256="")[0] == 0
    assert whole(tmp_path, server.body) and len(server.requests) == 7


def test_no_server(server, run):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        code, said = run("--base_url", url, "--retries", "1")
    assert code == 1 and "refused" in said and len(errors(said)) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_permanent_errors_are_not_tried_again(server, run, status):
    server.script = [answers(status)] * 3
    code, said = run()
    assert code == 2 and f"HTTP {status}" in said and "REMEDY" in said and len(server.requests) == 1
    assert ("rows.csv: not found on the server" in said) == (status == 404)


def test_garbage_instead_of_http(server, run, tmp_path):
    server.script = [lambda handler: handler.wfile.write(b"SSH-2.0-hello\r\n")]
    assert run()[0] == 0 and whole(tmp_path)


# ---------------------------------------------------------------- redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_follows_a_redirect(server, run, tmp_path, status):
    server.script = [breaks(1_000_000), answers(status, ("Location", "/elsewhere"))]
    assert run()[0] == 0 and whole(tmp_path)
    assert server.paths[-1] == "/elsewhere" and server.requests[-1]["Range"] == "bytes=1000000-"


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,1", "gopher://127.0.0.1/"]
)
def test_refuses_other_schemes(server, run, tmp_path, target):
    server.script = [answers(302, ("Location", target))]
    code, said = run(sha256="")
    assert (
        code == 2
        and "which is not an http:// or https:// URL" in said
        and len(errors(said)) == 1
        and names(tmp_path) == []
    )


@pytest.mark.parametrize(
    "target, expected",
    [("http://[::", 2), ("http://127.0.0.1:port/", 2), ("http://" + "a" * 300 + ".example/", 1)],
)
def test_redirects_to_malformed_addresses(server, run, target, expected):
    server.script = [answers(302, ("Location", target))] * 3
    code, said = run("--retries", "0")
    assert code == expected and len(errors(said)) == 1


def test_endless_redirects_end(server, run):
    count = iter(range(10**6))
    server.script = [lambda handler: answers(302, ("Location", f"/{next(count)}"))(handler)] * 50
    code, said = run()
    assert code == 2 and "more than 5 redirects" in said and len(server.requests) < 10
    server.requests.clear()
    server.script = [answers(302, ("Location", "/same"))] * 50
    assert run()[0] == 2 and len(server.requests) < 10


def test_the_body_of_a_redirect_is_not_read(server, run, tmp_path):
    sent = []

    def redirect(handler):
        handler.send_response(302)
        handler.send_header("Location", "/next")
        handler.end_headers()
        for _ in range(1000):  # 100 MB
            handler.wfile.write(b"0" * 10**5)
            sent.append(1)

    server.script = [redirect]
    assert run()[0] == 0 and whole(tmp_path) and len(sent) < 500


# ---------------------------------------------------------------- formats, files placed by hand


def npy_bytes(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((50, 8), np.float32))
    return (tmp_path / "x.npy").read_bytes()


@pytest.mark.parametrize(
    "name, make",
    [
        ("m.json.gz", lambda _: gzip.compress(b'{"asin": "1"}\n' * 999)),
        ("f.b", lambda _: b"A" * IMAGE.itemsize * 3),
        ("t.npy", npy_bytes),
        ("r.csv", lambda _: b"u,i,5,1\n"),
    ],
)
def test_formats_without_a_checksum(server, run, tmp_path, name, make):
    whole_file = server.body = make(tmp_path)
    assert run(name=name, sha256="")[0] == 0
    (tmp_path / "toy" / name).unlink()
    for record in (RECORDS, f".{RECORDS}.lock"):
        (tmp_path / "toy" / record).unlink()
    # Truncated at the source, so that its length is as announced.
    server.body = whole_file[:-5]
    code, said = run(name=name, sha256="")
    assert code == 2 and "damaged or incomplete" in said and len(errors(said)) == 1 and names(tmp_path) == []
    (tmp_path / "toy" / name).write_bytes(whole_file[:-5])
    code, said = run("--verify_only", name=name, sha256="")
    assert code == 2 and f"toy/{name}" in said and "remove it and fetch it again" in said


def test_manual_dataset(tmp_path, capsys):
    """Google Drive: missing files are named with their folder, present ones verified, none fetched."""
    flags = ["mmrec_baby", "--data_root", str(tmp_path)]
    assert download.main(flags) == 2
    said = capsys.readouterr().err
    assert len(errors(said)) == 1 and "lacks baby.inter, text_feat.npy, image_feat.npy" in said
    assert "13cBy1EA_saTUuXxVllKgtfci2A09jyaG" in said and str(tmp_path / "baby_raw") in said
    (tmp_path / "baby_raw").mkdir()
    (tmp_path / "baby_raw" / "baby.inter").write_text(
        "<!doctype html><title>Google Drive - Virus scan warning</title>\n"
    )
    assert download.main(flags) == 2 and "is a web page" in capsys.readouterr().err
    (tmp_path / "baby_raw" / "baby.inter").write_text("userID\titemID\tx_label\n")
    assert download.main([*flags, "--verify_only"]) == 2
    published = "9ef5de9a05949d973928cca113aacba12067ff8f104e310ef28ea42db00c17b1"
    assert f"instead of the published {published}" in capsys.readouterr().err


def test_manual_dataset_from_a_mirror(server, tmp_path, monkeypatch):
    source = SOURCES["mmrec_baby"]
    monkeypatch.setitem(
        SOURCES,
        "mmrec_baby",
        Source(source.folder, (Remote("inter", "baby/baby.inter", SHA),), "", source.remedy),
    )
    flags = ["mmrec_baby", "--data_root", str(tmp_path)]
    assert download.main([*flags, "--base_url", server.url]) == 0 and server.paths == ["/baby/baby.inter"]
    assert download.main([*flags, "--verify_only"]) == 0


@pytest.mark.parametrize("name", ["baby", "sports", "clothing"])
def test_hugging_face_mirror(name, server, tmp_path, monkeypatch, capsys):
    """MMRec's three files from the root of the dataset, into NAME_raw; the checksums of Baby are known."""
    source = SOURCES[f"hf_{name}"]
    owner = "https://huggingface.co/datasets/MrShouxingMa"
    assert source.base_url == f"{owner}/{name.capitalize()}/resolve/main" and source.folder == f"{name}_raw"
    assert [remote.name for remote in source.files] == [f"{name}.inter", "text_feat.npy", "image_feat.npy"]
    published = {remote.kind: remote.sha256 for remote in SOURCES["mmrec_baby"].files}
    for remote in source.files:
        assert remote.sha256 == (published[remote.kind] if name == "baby" else "")
    inter = Remote("inter", f"{name}.inter", SHA)
    mirror = Source(source.folder, (inter,), server.url, source.remedy)
    monkeypatch.setitem(SOURCES, f"hf_{name}", mirror)
    flags = [f"hf_{name}", "--data_root", str(tmp_path), "--allow_private", "1"]
    server.script = [answers(404)]
    assert download.main(flags) == 2
    error = capsys.readouterr().err
    assert f"{name}.inter: not found on the server (HTTP 404" in error
    assert f"{owner}/{name.capitalize()}/tree/main" in error
    assert download.main(flags) == 0 and server.paths == [f"/{name}.inter"] * 2
    assert (tmp_path / f"{name}_raw" / f"{name}.inter").read_bytes() == BODY


@pytest.mark.parametrize(
    "name, other, kind", [("recgoat_baby", "baby.inter", "train"), ("hf_baby", "train.txt", "inter")]
)
def test_a_second_split_in_a_folder_is_refused(name, other, kind, server, tmp_path, monkeypatch, capsys):
    """hf_baby and recgoat_baby share a folder; features may be added to either."""
    text = Remote("text", "text.tsv")
    first = next(remote for remote in SOURCES[name].files if remote.kind == kind)
    files = (dataclasses.replace(first, sha256=""), text)
    monkeypatch.setitem(SOURCES, name, dataclasses.replace(SOURCES[name], files=files))
    folder = tmp_path / "baby_raw"
    folder.mkdir()
    (folder / other).write_text("0 1\n")
    flags = [name, "--data_root", str(tmp_path), "--base_url", server.url]
    assert download.main(flags) == 2 and not server.requests
    said = capsys.readouterr().err
    assert len(errors(said)) == said.count("\n") == 1
    assert f"{folder}: already holds {other}, and {first.name} would add another split" in said
    assert download.main([*flags, "--files", "text"]) == 0
    (folder / other).rename(folder / "kept")
    assert download.main(flags) == 0
    (folder / "kept").rename(folder / other)
    assert download.main(flags) == 0  # nothing is missing, so nothing is added


def test_placed_by_hand_without_checksum_is_recorded(run, server, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "rows.csv").write_bytes(BODY)
    assert run("--verify_only", sha256="")[0] == 0 and not server.requests
    assert json.loads((tmp_path / "toy" / RECORDS).read_text())["rows.csv"]["url"] == "placed by hand"


def test_verify_only_fetches_nothing(server, run):
    code, said = run("--verify_only")
    assert code == 2 and "lacks rows.csv; run this without --verify_only" in said and not server.requests


# ---------------------------------------------------------------- the table of sources, flags, safety


def test_sources_are_plain():
    """File names stay inside their folder, URLs are https, checksums are 64 hex digits."""
    for source in SOURCES.values():
        assert source.base_url.startswith("https://") or not source.base_url
        for remote in source.files:
            assert Path(remote.name).name == remote.name
            assert not remote.path.startswith("/") and ".." not in remote.path
            assert remote.sha256 == "" or len(bytes.fromhex(remote.sha256)) == 32
        assert len({remote.name for remote in source.files}) == len(source.files)


def test_files_can_be_chosen(server, tmp_path):
    server.body = b"u,i,5.0,1400000000\n"
    flags = ["--data_root", str(tmp_path), "--base_url", server.url, "--files", "ratings"]
    assert download.main(["amazon_sports", *flags]) == 0
    assert server.paths == ["/categoryFiles/ratings_Sports_and_Outdoors.csv"]


def test_a_link_in_place_of_the_part_is_not_followed(server, run, tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "precious").write_text("x\n")
    os.symlink(tmp_path / "precious", tmp_path / "toy" / "rows.csv.part")
    code, said = run()
    assert code == 1 and len(errors(said)) == 1 and (tmp_path / "precious").read_text() == "x\n"


@pytest.mark.parametrize(
    "flags, word",
    [
        (["nothing"], "invalid choice"),
        ([], "NAME"),
        (["amazon_baby", "--nope"], "--nope"),
        (["amazon_baby", "--files", "ratings,no"], "'no' is not one of"),
        (["amazon_baby", "--files", ","], "is not one of"),
        (["amazon_baby", "--base_url", "file:///etc"], "not an http:// or https:// URL"),
        (["amazon_baby", "--base_url", "http://a:b@host/"], "contains a user name"),
        (["amazon_baby", "--base_url", "http://host/?a"], "leave out '?' and '#'"),
        (["amazon_baby", "--base_url", "http://host/a b"], "not an http:// or https:// URL"),
        (["amazon_baby", "--timeout", "nan"], "--timeout"),
        (["amazon_baby", "--max_gb", "0"], "--max_gb"),
        (["amazon_baby", "--retries", "-1"], "--retries"),
    ],
)
def test_bad_flags(flags, word, tmp_path, capsys):
    assert download.main([*flags, "--data_root", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: ") and word in said[0]
    assert not list(tmp_path.iterdir())


def test_help_names_every_dataset():
    shown = subprocess.run(
        [sys.executable, "-m", "data.download", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert all(name in shown.stdout for name in SOURCES)
