"""Nothing but data/web.py opens a connection, and what each tool sends, byte for byte."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="pip install -c constraints.txt -e '.[features]'")
from raw_server import message, ok, raw_server, redirect
from small_runs import command_line
from test_pictures import jpeg

import main
import recommend
import report
from data import check, download, features, prepare
from data.encoders import hub_token
from data.sources import SOURCES, Remote, Source
from utils import UserError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
FOLDERS = [ROOT / name.replace(".", "/") for name in [*PACKAGES, "scripts"]]
SOURCE_FILES = sorted({*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in folder.glob("*.py"))})
# Modules that open connections, and libraries that do so on request.
NETWORK = {
    *("aiohttp", "asyncio", "boto3", "datasets", "fsspec", "ftplib", "http.client", "http.server", "httpx"),
    *("httpx2", "imaplib", "multiprocessing.connection.Client", "multiprocessing.connection.Listener"),
    *("multiprocessing.managers", "paramiko", "poplib", "pycurl", "requests", "smtplib", "socket"),
    *("socketserver", "ssl", "telnetlib", "torch.hub", "urllib.request", "urllib3", "wandb", "webbrowser"),
    *("websocket", "websockets", "wget", "xmlrpc"),
}
HUB = {"huggingface_hub", "sentence_transformers", "transformers"}
HUB_CALLS = {"from_pretrained", "SentenceTransformer", "hf_hub_download", "snapshot_download", "pipeline"}


# ---------------------------------------------------------------- the source


def called(node):
    """Last part of the name of a function that is called."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def imported(node):
    """Names of the modules that a statement or call imports."""
    if isinstance(node, ast.Import):
        return [name.name for name in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{name.name}" for name in node.names]
    if isinstance(node, ast.Call) and called(node) in ("import_module", "__import__", "require"):
        return [text.value for text in node.args if isinstance(text, ast.Constant)]
    return []


def belongs(name, modules):
    """Whether a dotted name is one of these modules or something in it."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def fetching_call(node):
    """What a call may fetch: a model of the hub, or what pandas is asked to read by name."""
    name = called(node)
    if name in HUB_CALLS:
        return f"hub: {name}"
    # pandas fetches whatever looks like a URL, so it is given open files.
    is_pandas = name.startswith("read_") and ast.unparse(node.func).startswith(("pd.", "pandas."))
    if is_pandas and ast.unparse(node.args[0]) != "file":
        return f"pandas: {ast.unparse(node)}"
    return ""


def network_uses(source):
    """What a file has that may open a connection."""
    uses = set()
    for node in ast.walk(ast.parse(source)):
        names = imported(node)
        uses |= {name for name in names if belongs(name, NETWORK)}
        uses |= {f"hub: {name}" for name in names if belongs(name, HUB)}
        if isinstance(node, ast.Call):
            uses.add(fetching_call(node))
        if isinstance(node, ast.Constant) and re.match(r"(curl|wget)\b", str(node.value)):
            uses.add(node.value)
    return uses - {""}


def test_one_module_opens_connections():
    """The Hugging Face hub is asked by its own library, in data/encoders.py."""
    uses = {str(path.relative_to(ROOT)): network_uses(path.read_text()) for path in SOURCE_FILES}
    assert uses.pop("data/web.py") == {"http.client", "socket", "ssl"}
    # Asks the system for a free port of this machine.
    assert uses.pop("benchmarks/parallel_faults.py") == {"socket"}
    hub = uses.pop("data/encoders.py")
    assert hub and all(use.startswith("hub: ") for use in hub)
    assert {path: found for path, found in uses.items() if found} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import requests",
        "from urllib import request",
        "from urllib.request import urlopen as u",
        "import http.client as h",
        "from torch import hub",
        "importlib.import_module('httpx')",
        "require('transformers').AutoModel",
        "model.from_pretrained(name)",
        "pd.read_csv(path)",
        "subprocess.run(['curl', url])",
    ],
)
def test_the_walk_finds(line):
    assert network_uses(f"def f():\n    {line}\n")


def test_scripts_fetch_nothing_by_themselves():
    for path in ROOT.glob("scripts/*.sh"):
        code = [line.split("#")[0] for line in path.read_text().splitlines()]
        assert not [line for line in code if re.search(r"\b(curl|wget|git clone|nc|ssh|scp)\b", line)], path


# ---------------------------------------------------------------- at run time

EVENTS = (
    "socket.connect",
    "socket.bind",
    "socket.getaddrinfo",
    "socket.gethostby",
    "socket.sendto",
    "urllib",
)
watched = []


@pytest.fixture
def events(monkeypatch):
    """Everything of the network that this process does during a test."""
    seen = []
    if not watched:
        sys.addaudithook(lambda event, _: event.startswith(EVENTS) and watched[-1].append(event))
    watched.append(seen)
    yield seen
    watched.append([])


def test_training_and_reports_use_no_network(small_dataset, events, capsys):
    runs = small_dataset.parent.parent / "runs"
    flags = ["--model", "lgn_mm", "--epochs", "1", "--tensorboard", "1"]
    assert main.main([*command_line(small_dataset, runs, topks="5,10"), *flags]) == 0
    (run,) = (path for path in runs.iterdir() if path.is_dir())
    assert recommend.main(["--checkpoint", str(run), "--output", str(runs / "lists.tsv")]) == 0
    assert report.main([str(runs)]) == 0
    assert check.main([small_dataset.name, "--data_root", str(small_dataset.parent)]) in (0, 1)
    assert events == []


def test_a_url_in_place_of_a_file_is_not_fetched(events, tmp_path, capsys):
    """Neither by pandas, nor by pyarrow, nor by NumPy."""
    with raw_server(ok(b"u,i\n1,2\n")) as server:
        events.clear()
        for name in ("x.csv", "x.jsonl", "x.csv.gz", "x.parquet"):
            words = ["shop", "--data_root", str(tmp_path), "--interactions", f"{server.url}/{name}"]
            assert prepare.main(words) == 2
        assert check.main(["shop", "--data_root", server.url]) == 2
        assert main.main(["--dataset", "shop", "--data_root", server.url, "--path", str(tmp_path)]) == 2
        assert server.received == [] and events == []


# ---------------------------------------------------------------- what leaves the machine


@pytest.fixture
def proxy(monkeypatch, tmp_path):
    """A proxy that every usual variable names, and credentials for every host in ~/.netrc."""
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    (tmp_path / ".netrc").write_text(
        "machine 127.0.0.1 login me password sesame\ndefault login me password sesame\n"
    )
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with raw_server(message("502 Bad Gateway", "Content-Length: 0")) as server:
        for name in ("http", "https", "all"):
            monkeypatch.setenv(f"{name}_proxy", server.url)
            monkeypatch.setenv(f"{name}_proxy".upper(), server.url)
        yield server


def shop(tmp_path):
    """A dataset of one user and four items with texts."""
    folder = tmp_path / "data" / "shop"
    folder.mkdir(parents=True)
    for split, line in (("train", "0 0 1\n"), ("valid", "0 2\n"), ("test", "0 3\n")):
        (folder / f"{split}.txt").write_text(line)
    (folder / "item_ids.tsv").write_text("0\tA\n1\tB\n2\tC\n3\tD\n")
    lines = [json.dumps({"item": item, "title": f"title {item}"}) for item in range(4)]
    (folder / "item_text.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def head(method, path, port, *fields):
    """The head of a request, as this project sends it."""
    common = "User-Agent: RecGOAT\r\nAccept: */*\r\nAccept-Encoding: identity\r\nConnection: close"
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", common, *fields, "", ""]
    return "\r\n".join(lines).encode()


def test_what_pictures_send(proxy, tmp_path, capsys):
    """One bare GET for each hop, to the listed host and to the one that it redirects to."""
    folder = shop(tmp_path)
    with raw_server(ok(jpeg(), "Set-Cookie: id=1")) as second, raw_server(b"") as first:
        first.answer = lambda connection, request: connection.sendall(
            redirect(f"{second.url}/b.jpg", "Set-Cookie: id=1", 'WWW-Authenticate: Basic realm="x"')
        )
        (tmp_path / "urls.tsv").write_text(f"0\t{first.url}/a.jpg?q=1\n")
        words = ["image", "shop", "--data_root", str(tmp_path / "data"), "--urls", str(tmp_path / "urls.tsv")]
        # There is no such model; the pictures are fetched before.
        assert features.main([*words, "--model", "./none", "--allow_private", "1"]) == 2
        assert "no such folder" in capsys.readouterr().err
        assert first.received == [head("GET", "/a.jpg?q=1", first.port)]
        assert second.received == [head("GET", "/b.jpg", second.port)]
    assert proxy.received == [] and len(list((folder / "pictures").iterdir())) == 2


def test_pictures_from_private_addresses_need_the_flag(tmp_path, capsys):
    """The refusal is not kept: the same command with the flag fetches the picture."""
    folder = shop(tmp_path)
    with raw_server(ok(jpeg())) as server:
        (tmp_path / "urls.tsv").write_text(f"0\t{server.url}/a.jpg\n")
        words = ["image", "shop", "--data_root", str(tmp_path / "data"), "--urls", str(tmp_path / "urls.tsv")]
        assert features.main([*words, "--model", "./none"]) == 1
        assert "private address 127.0.0.1; --allow_private 1 allows" in capsys.readouterr().err
        assert server.received == []
        assert features.main([*words, "--model", "./none", "--allow_private", "1"]) == 2
        assert len(server.received) == 1 and len(list((folder / "pictures").iterdir())) == 2


def users_command(tmp_path):
    """The words of a command that asks an endpoint with the key in $SHOP_KEY."""
    words = ["users", "shop", "--data_root", str(tmp_path / "data")]
    return [*words, "--llm", "thinker", "--api_key_env", "SHOP_KEY"]


def test_what_an_endpoint_gets(proxy, tmp_path, monkeypatch, capsys):
    """The key goes to the endpoint alone, although a proxy and ~/.netrc want to take part."""
    folder = shop(tmp_path)
    monkeypatch.setenv("SHOP_KEY", "key-123")
    reply = json.dumps({"choices": [{"message": {"content": "<answer>likes red</answer>"}}]}).encode()
    words = users_command(tmp_path)
    with raw_server(ok(reply)) as server:
        assert features.main([*words, "--endpoint", f"{server.url}/v1", "--until", "profiles"]) == 0
        assert features.main([*words, "--until", "prompts"]) == 0
        prompt = json.loads((folder / "user_prompts.jsonl").read_text())["messages"]
        settings = {"temperature": 0.6, "max_tokens": 8192, "seed": 2025}
        body = json.dumps({"model": "thinker", "messages": prompt, **settings}).encode()
        fields = ["Content-Type: application/json", "Authorization: Bearer key-123"]
        fields += [f"Content-Length: {len(body)}"]
        (request,) = server.received
        sent, _, content = request.partition(b"\r\n\r\n")
        expected = head("POST", "/v1/chat/completions", server.port, *fields).partition(b"\r\n\r\n")[0]
        assert sorted(sent.split(b"\r\n")) == sorted(expected.split(b"\r\n")) and content == body
    assert proxy.received == []


def test_an_endpoint_that_redirects_does_not_pass_the_key_on(proxy, tmp_path, monkeypatch, capsys):
    shop(tmp_path)
    monkeypatch.setenv("SHOP_KEY", "key-123")
    with raw_server(ok(b"")) as other, raw_server(redirect(other.url, status="307 x")) as server:
        words = users_command(tmp_path)
        assert features.main([*words, "--endpoint", f"{server.url}/v1"]) == 2
        assert len(server.received) == 1 and other.received == proxy.received == []
    assert "status 307" in capsys.readouterr().err


def test_a_malformed_key_is_not_shown(tmp_path, monkeypatch, capsys):
    shop(tmp_path)
    monkeypatch.setenv("SHOP_KEY", "key-123\n")
    words = users_command(tmp_path)
    with raw_server(ok(b"")) as server:
        assert features.main([*words, "--endpoint", f"{server.url}/v1"]) == 2
    said = "".join(capsys.readouterr())
    assert server.received == [] and "the API key holds" in said and "key-123" not in said


def test_what_a_download_sends(proxy, tmp_path, monkeypatch, capsys):
    """Of a resumed download: two bare GETs, the second with the range and the version of the file."""
    body, answers = b"u,i,5,1\n" * 40_000, []

    def answer(connection, request):
        connection.sendall(answers.pop(0))

    version = 'ETag: "v1"'
    answers += [
        ok(body, version)[:200_000],
        message(
            "206 Partial Content",
            version,
            f"Content-Length: {len(body) - 150_000}",
            f"Content-Range: bytes 150000-{len(body) - 1}/{len(body)}",
            body=body[150_000:],
        ),
    ]
    answers[0] = answers[0][: answers[0].index(b"\r\n\r\n") + 4 + 150_000]
    monkeypatch.setitem(SOURCES, "toy", Source("toy", (Remote("rows", "some/rows.csv"),), "http://x", "R"))
    with raw_server(answer) as server:
        words = ["toy", "--data_root", str(tmp_path), "--base_url", server.url]
        assert download.main(words) == 0
        fields = ["Range: bytes=150000-", 'If-Range: "v1"']
        assert server.received == [
            head("GET", "/some/rows.csv", server.port),
            head("GET", "/some/rows.csv", server.port, *fields),
        ]
    assert (tmp_path / "toy" / "rows.csv").read_bytes() == body and proxy.received == []


def test_a_mirror_of_ones_own_may_not_redirect_into_the_network(tmp_path, monkeypatch, capsys):
    """--base_url allows the address of its own host, and no other private one."""
    monkeypatch.setitem(SOURCES, "toy", Source("toy", (Remote("rows", "rows.csv"),), "http://x", "REMEDY"))
    with raw_server(ok(b"1,2\n")) as inside, raw_server(redirect(f"{inside.url}/rows.csv")) as mirror:
        words = ["toy", "--data_root", str(tmp_path), "--base_url", mirror.url]
        assert download.main(words) == 2 and inside.received == []
        assert "private address 127.0.0.1; --allow_private 1" in capsys.readouterr().err
        assert download.main([*words, "--allow_private", "1"]) == 0 and len(inside.received) == 1


def test_each_tool_uses_the_proxy_that_its_flag_names(tmp_path, monkeypatch, capsys):
    """For what is not on this machine: pictures, downloads, endpoints and, by its own library, the hub."""
    shop(tmp_path)
    data = ["--data_root", str(tmp_path / "data")]
    (tmp_path / "urls.tsv").write_text("0\thttp://pictures.invalid/a.jpg\n")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, ""), monkeypatch.setenv(name.upper(), "")
    monkeypatch.setitem(SOURCES, "toy", Source("toy", (Remote("rows", "rows.csv"),), "http://x", "R"))
    with raw_server(message("403 Forbidden", "Content-Length: 0")) as proxy:
        way = ["--proxy", proxy.url]
        urls = ["--urls", str(tmp_path / "urls.tsv"), "--model", "colours"]
        assert features.main(["image", "shop", *data, *way, *urls]) == 1
        assert download.main(["toy", *data, *way, "--base_url", "http://files.invalid"]) == 2
        llm = ["--llm", "x", "--api_key_env", "", "--attempts", "1"]
        assert (
            features.main(["users", "shop", *data, *way, *llm, "--endpoint", "https://llm.invalid/v1"]) == 2
        )
        first = [request.split(b"\r\n")[0] for request in proxy.received]
        assert first == [
            b"GET http://pictures.invalid/a.jpg HTTP/1.1",
            b"GET http://files.invalid/rows.csv HTTP/1.1",
            b"CONNECT llm.invalid:443 HTTP/1.1",
        ]
        assert os.environ["HTTPS_PROXY"] == os.environ["https_proxy"] == proxy.url


def test_a_hub_token_is_named_and_goes_over_https_alone(monkeypatch):
    assert hub_token("") is False
    monkeypatch.setenv("MY_TOKEN", "hf_sesame")
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "ENDPOINT", "https://mirror.example")
    assert hub_token("MY_TOKEN") == "hf_sesame"
    monkeypatch.setattr(constants, "ENDPOINT", "http://mirror.example")
    with pytest.raises(UserError, match="unencrypted"):
        hub_token("MY_TOKEN")
    for value in ("", "hf_sesame\n"):
        monkeypatch.setenv("MY_TOKEN", value)
        with pytest.raises(UserError, match="--hub_token_env MY_TOKEN") as error:
            hub_token("MY_TOKEN")
        assert "sesame" not in str(error.value)


@pytest.mark.slow
def test_what_the_hub_gets(tmp_path):
    """No token that the user did not name, nothing of ~/.netrc, and no question but for the model."""
    shop(tmp_path)
    with raw_server(message("404 Not Found", "Content-Length: 0")) as hub:
        (tmp_path / ".netrc").write_text("default login me password sesame\n")
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "HF_HOME": str(tmp_path / "hub"),
            "HF_TOKEN": "hf_sesame",
            "HF_ENDPOINT": hub.url,
        }
        words = ["text", "shop", "--data_root", str(tmp_path / "data"), "--model", "own/model"]
        command = [sys.executable, "-m", "data.features", *words, "--device", "cpu"]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "own/model: cannot be loaded" in done.stderr
    assert "needs --hub_token_env HF_TOKEN; HF_TOKEN is set" in done.stderr and "sesame" not in done.stderr
    assert hub.received and all(b"/own/model" in request.split(b"\r\n")[0] for request in hub.received)
    for word in (b"sesame", b"uthorization", b"ookie"):
        assert not any(word in request for request in hub.received)
