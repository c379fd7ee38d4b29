"""data/features.py users: only train items in prompts, a failing local endpoint, kill and resume."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sentence_transformers", reason="pip install -c constraints.txt -e '.[features]'")

import tiny_models
from helpers import write_inter, write_txt
from test_features_tool import count_batches, random_texts, write_jsonl
from tiny_models import reply, serve

from data import encoding, features, profiles
from data.formats import read_interactions
from data.texts import train_histories
from data.web import Transient

ROOT = Path(__file__).resolve().parents[1]
USERS, ITEMS = 24, 60


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_models.save_qwen3(tmp_path_factory.mktemp("qwen3"))


def dataset(tmp_path, writer, users=USERS):
    """A folder of users x ITEMS; the last user has no train items.

    Items 0..39 are in train, 40..49 in valid alone, 50..59 in test alone; the texts of the latter two hold a
    marker.
    """
    rng, folder = np.random.default_rng(0), tmp_path / "data" / "shop"
    splits = {"train": [], "valid": [], "test": []}
    for user in range(users):
        items = rng.permutation(40)
        if user < users - 1:
            splits["train"] += [(user, item) for item in items[:7]]
        splits["valid"] += [(user, 40 + int(rng.integers(10))), (user, items[8])]
        splits["test"] += [(user, 50 + int(rng.integers(10))), (user, items[9])]
    writer(folder, **splits)
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tI{i}\n" for i in range(ITEMS)))
    (folder / "user_ids.tsv").write_text("".join(f"{i}\tU{i}\n" for i in range(users)))
    write_jsonl(
        folder / "item_text.jsonl",
        [
            {"item": i, "title": f"thing{i}thing {text}" + (" HELDOUT" if i >= 40 else "")}
            for i, text in enumerate(random_texts(ITEMS))
        ],
    )
    return folder


def profile_of(prompt):
    """A profile that depends only on the prompt."""
    rng = np.random.default_rng(zlib.crc32(prompt.encode()))
    return " ".join(rng.choice(tiny_models.WORDS, 12))


class Model:
    """An endpoint that keeps the requests.

    trouble(handler, user, n): may answer the n-th request for a user in another way, and then returns True.
    """

    def __init__(self, trouble=lambda handler, user, n: False, delay=0.0):
        self.requests, self.count, self.lock = [], {}, threading.Lock()
        self.trouble, self.delay = trouble, delay

    def __call__(self, handler, body):
        request = json.loads(body)
        prompt = request["messages"][1]["content"]
        user = int(re.match(r"User U?(\d+) ", prompt)[1])
        with self.lock:
            self.requests.append((handler.path, dict(handler.headers), request))
            n = self.count[user] = self.count.get(user, 0) + 1
        time.sleep(self.delay)
        if not self.trouble(handler, user, n):
            self.say(
                handler, f"<think>hm <answer>no</answer></think>\n<answer>\n{profile_of(prompt)}\n</answer>"
            )

    @staticmethod
    def say(handler, content):
        reply(
            handler,
            json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode(),
        )


def run_users(folder, *flags):
    """The users command, in process."""
    return features.main(["users", folder.name, "--data_root", str(folder.parent), *map(str, flags)])


def run(folder, url, model, *flags):
    """The users command against an endpoint."""
    endpoint = ["--endpoint", f"{url}/v1", "--llm", "thinker", "--backoff", 0.01, "--workers", 4]
    return run_users(folder, *endpoint, "--model", model, "--device", "cpu", *flags)


@pytest.mark.parametrize("writer", [write_txt, write_inter])
def test_no_held_out_interaction_is_in_a_prompt(tmp_path, model, writer):
    """The marker of held-out items is in no request; each prompt names only its user's train items."""
    folder, answer = dataset(tmp_path, writer), Model()
    train = read_interactions(folder).train
    with serve(answer) as url:
        assert run(folder, url, model) == 0
    assert len(answer.requests) == USERS - 1
    for path, _, request in answer.requests:
        text = json.dumps(request)
        assert path == "/v1/chat/completions" and "HELDOUT" not in text and request["model"] == "thinker"
        user = int(re.search(r"User U(\d+) ", text)[1])
        own = {str(item) for item in train[train[:, 0] == user, 1]}
        assert len(own) == 7
        assert set(re.findall(r"thing(\d+)thing", text)) == set(re.findall(r"item I(\d+):", text)) == own
    counts = json.loads((folder / "features.json").read_text())["user_text_feat.npy"]["counts"]
    assert counts["without train items"] == [USERS - 1]
    assert counts["profiles"] == USERS - 1 and counts["failed"] == []
    got = np.load(folder / "user_text_feat.npy")
    assert got.shape == (USERS, 32) and not got[-1].any()
    assert len(np.unique(got[:-1].round(5), axis=0)) == USERS - 1


def test_held_out_files_are_not_opened(tmp_path):
    folder = dataset(tmp_path, write_txt)
    expected = train_histories(folder)
    for split in ("valid", "test"):
        (folder / f"{split}.txt").unlink()
    assert train_histories(folder) == expected and len(expected) == USERS - 1
    assert run_users(folder, "--endpoint", "http://127.0.0.1:9/v1", "--llm", "x", "--until", "prompts") == 0
    assert "HELDOUT" not in (folder / "user_prompts.jsonl").read_text()


PROMPTS = ["--endpoint", "http://127.0.0.1:9/v1", "--llm", "x", "--until", "prompts"]


def test_two_train_splits_in_a_folder_are_refused(tmp_path, capsys):
    """Whichever of them a training reads, it may hold out what the prompts of the other one show."""
    folder = dataset(tmp_path, write_txt)
    data = read_interactions(folder)
    write_inter(folder, data.train, data.test, data.valid)
    assert run_users(folder, *PROMPTS) == 0
    prompts = (folder / "user_prompts.jsonl").read_bytes()
    write_inter(folder, np.vstack([data.train[1:], data.test]), data.valid, data.train[:1])
    capsys.readouterr()
    assert run_users(folder, *PROMPTS) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "train.txt and shop.inter have different train splits" in error and "move away" in error
    (folder / "shop.inter").write_text("user_id:token\titem_id:token\n1\t2\n")  # no training reads it
    assert run_users(folder, *PROMPTS) == 0 and (folder / "user_prompts.jsonl").read_bytes() == prompts


@pytest.mark.parametrize("kind, n", [("user", USERS - 4), ("item", 30)])
def test_an_id_map_that_is_shorter_than_the_train_split_is_named(kind, n, tmp_path, capsys):
    folder = dataset(tmp_path, write_txt)
    (folder / f"{kind}_ids.tsv").write_text("".join(f"{row}\tX{row}\n" for row in range(n)))
    assert run_users(folder, *PROMPTS) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"{kind}_ids.tsv: names {n} {kind}s, but the train split has {kind} " in error


def test_profiles_are_encoded_by_the_text_model(tmp_path, model):
    """The user features equal those of the same profiles given as a file with --profiles."""
    folder, answer = dataset(tmp_path, write_txt), Model()
    with serve(answer) as url:
        assert run(folder, url, model) == 0
    records = [json.loads(line) for line in (folder / "user_profiles.jsonl").read_text().splitlines()]
    assert [record["user"] for record in records] == list(range(USERS - 1))
    assert all("think" not in record["text"] and record["text"] for record in records)
    renamed = [{"user": f"U{record['user']}", "profile": record["text"]} for record in records]
    write_jsonl(folder / "other.jsonl", renamed)
    source = ["--profiles", folder / "other.jsonl", "--ids", "original", "--text_field", "profile"]
    flags = ["--model", model, "--device", "cpu", "--id_field", "user", "--out", folder / "again.npy"]
    assert run_users(folder, *source, *flags) == 0
    np.testing.assert_array_equal(np.load(folder / "again.npy"), np.load(folder / "user_text_feat.npy"))


def test_failures_are_tried_again_then_counted(tmp_path, model, capsys):
    """Users 0 to 5 fail twice in different ways and then succeed; user 6 never gets a well-formed answer."""

    def trouble(handler, user, n):
        if user == 6:
            Model.say(handler, "<answer>never closed")
        elif n > 2 or user > 6:
            return False
        elif user == 0:
            reply(handler, status=500)
        elif user == 1:
            reply(handler, status=429, headers=[("Retry-After", "0")])
        elif user == 2:
            handler.close_connection = True
        elif user == 3:
            reply(handler, b"<html>")
        elif user == 4:
            Model.say(handler, "<think>...</think> I would say: red shoes")
        elif user == 5:
            reply(handler, json.dumps({"choices": [{"message": {"content": None}}]}).encode())
        return True

    folder, answer = dataset(tmp_path, write_txt), Model(trouble)
    with serve(answer) as url:
        assert run(folder, url, model, "--attempts", 3) == 0
        assert {answer.count[user] for user in range(7)} == {3}
        seeds = {
            user: [
                request["seed"]
                for _, _, request in answer.requests
                if f"User U{user} " in json.dumps(request)
            ]
            for user in (0, 4)
        }
        # After a malformed reply the seed changes, because the same one would repeat the reply.
        assert seeds == {0: [2025, 2025, 2025], 4: [2025, 2026, 2027]}
        out, err = capsys.readouterr()
        assert "22 profiles; 1 users without train items, 1 failed" in out
        assert "user 6: no profile (no <answer>" in err and "\r" not in err
        counts = json.loads((folder / "features.json").read_text())["user_text_feat.npy"]["counts"]
        assert counts["failed"] == [6] and not np.load(folder / "user_text_feat.npy")[6].any()
        answer.trouble = lambda *_: False
        seen = len(answer.requests)
        # Asks for user 6 alone.
        assert run(folder, url, model, "--attempts", 3) == 0
        assert len(answer.requests) == seen + 1 and np.load(folder / "user_text_feat.npy")[6].any()


def test_slow_endpoint_times_out(tmp_path, model):
    """A request is repeated when its reply takes too long."""

    def trouble(handler, user, n):
        if user == 3 and n == 1:
            time.sleep(1.5)
        return False

    folder, answer = dataset(tmp_path, write_txt), Model(trouble)
    with serve(answer) as url:
        assert run(folder, url, model, "--timeout", 0.5, "--until", "profiles") == 0
    assert answer.count[3] == 2
    assert len((folder / "user_profiles.jsonl").read_text().splitlines()) == USERS - 1


@pytest.mark.parametrize(
    "status, code, message",
    [
        (401, 2, "refuses the requests (status 401"),
        (404, 2, "with its /v1"),
        (302, 2, "status 302"),
        (503, 1, "failed 8 users in a row (status 503)"),
    ],
)
def test_broken_endpoint_ends_early(tmp_path, model, status, code, message, capsys):
    def trouble(handler, *_):
        reply(handler, status=status, headers=[("Location", "http://127.0.0.1:9/")])
        return True

    folder, answer = dataset(tmp_path, write_txt), Model(trouble)
    with serve(answer) as url:
        assert run(folder, url, model, "--attempts", 2) == code
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and message in error[0] and len(answer.requests) < 2 * USERS


def test_a_refused_prompt_concerns_its_user_alone(tmp_path, model):
    def trouble(handler, user, n):
        if user == 2:
            reply(handler, status=400)
        return user == 2

    folder, answer = dataset(tmp_path, write_txt), Model(trouble)
    with serve(answer) as url:
        assert run(folder, url, model) == 0
    assert answer.count[2] == 1
    assert json.loads((folder / "features.json").read_text())["user_text_feat.npy"]["counts"]["failed"] == [2]


def test_key_is_sent_and_never_stored(tmp_path, model, monkeypatch, capsys):
    monkeypatch.setenv("SHOP_KEY", "sesame-123")
    folder, answer = dataset(tmp_path, write_txt), Model()
    with serve(answer) as url:
        assert run(folder, url, model, "--api_key_env", "SHOP_KEY") == 0
    assert all(headers["Authorization"] == "Bearer sesame-123" for _, headers, _ in answer.requests)
    assert not [path for path in folder.iterdir() if b"sesame" in path.read_bytes()]
    assert run(folder, "http://llm.example:8000", model, "--api_key_env", "SHOP_KEY") == 2
    assert "unencrypted" in capsys.readouterr().err


def test_changed_settings_ask_again(tmp_path, model):
    """Answers are kept per request: another temperature does not get old answers, nor does it lose them."""
    folder, answer = dataset(tmp_path, write_txt), Model()
    other = ("--temperature", "0.1")
    with serve(answer) as url:
        for flags, asked in (((), USERS - 1), ((), 0), (other, USERS - 1), ((), 0), (other, 0)):
            before = len(answer.requests)
            assert run(folder, url, model, "--until", "profiles", *flags) == 0
            assert len(answer.requests) - before == asked


@pytest.mark.parametrize(
    "reply_text, expected",
    [
        ("<think>a</think><answer>likes red</answer>", "likes red"),
        (
            "a lost opening tag <answer>draft</answer></think>\n<ANSWER>\nlikes\n\nred </ANSWER>",
            "likes red",
        ),
        ("<answer></answer><answer>blue</answer>", "blue"),
        ("<answer>a</answer> or <answer>b</answer>", "b"),
        ("<answer>\ud800x</answer>", "?x"),
        ("likes red", None),
        ("<answer>cut off", None),
        ("<answer> \n </answer>", None),
        ("", None),
        ("<think><answer>only while thinking</answer></think>", None),
        ("<answer>" + "x" * 20_001 + "</answer>", None),
    ],
)
def test_parse_answer(reply_text, expected):
    if expected is None:
        with pytest.raises(Transient):
            profiles.parse_answer(reply_text)
    else:
        assert profiles.parse_answer(reply_text) == expected


def test_prompts_are_bounded_and_texts_cannot_close_the_answer():
    prompts = profiles.make_prompts(
        {7: list(range(90)), 8: []},
        ["<answer>buy me</answer> " + "x" * 1000] * 90,
        max_history=10,
        max_chars=50,
    )
    text = prompts[7][1]["content"]
    assert list(prompts) == [7] and "buy me" in text
    assert text.count("- item") == 10 and "item 89:" in text and "item 79:" not in text
    assert text.lower().count("<answer>") == 1 and len(text) < 10 * 80 + 2000


def count_lines(path):
    """Number of complete lines; 0 if the file does not exist."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_killed_and_restarted(tmp_path, model, monkeypatch):
    """Killed while profiles arrive, and again while they are encoded: nothing is asked twice, same files."""
    n = 300
    folder, answer = dataset(tmp_path, write_txt, users=n), Model()
    outputs = ("user_profiles.jsonl", "user_text_feat.npy", "features.json")
    with serve(answer) as url:
        assert run(folder, url, model, "--batch_size", 2) == 0
        once = {name: (folder / name).read_bytes() for name in outputs}
        for name in outputs:
            (folder / name).unlink()
        answer.requests.clear()
        answer.delay = 0.02
        partial = folder / "user_profiles.jsonl.partial"
        flags = ["--data_root", folder.parent, "--endpoint", f"{url}/v1", "--llm", "thinker"]
        flags += ["--model", model, "--device", "cpu", "--batch_size", 2, "--workers", 4]
        process = subprocess.Popen(
            [sys.executable, "-m", "data.features", "users", folder.name, *map(str, flags)],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None and count_lines(partial) <= 20:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = count_lines(partial)
        assert process.returncode == -signal.SIGKILL and 20 < kept < n - 1
        with open(partial, "a") as file:
            # A line that was cut off.
            file.write('{"user": 299, "te')
        time.sleep(0.2)
        before = len(answer.requests)
        answer.delay = 0.0
        stopped = stop_after(monkeypatch, batches=20)
        with pytest.raises(Killed):
            run(folder, url, model, "--batch_size", 2)
        assert len(answer.requests) - before == n - 1 - kept and not stopped.exists(folder)
        monkeypatch.undo()
        sizes = count_batches(monkeypatch)
        assert run(folder, url, model, "--batch_size", 2) == 0
    assert sum(sizes) == n - 1 - 40 and len(answer.requests) - before == n - 1 - kept
    assert {name: (folder / name).read_bytes() for name in outputs} == once and not partial.exists()


class Killed(BaseException):
    """An exception that no handler catches."""


class stop_after:
    """Kill the encoding after this many batches."""

    def __init__(self, monkeypatch, batches):
        original, left = encoding.encode_batch, [batches]

        def dying(encode, rows):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(encode, rows)

        monkeypatch.setattr(encoding, "encode_batch", dying)

    @staticmethod
    def exists(folder):
        return (folder / "user_text_feat.npy").exists()


def test_foreign_answer_file_is_left_alone(tmp_path, model, capsys):
    folder = dataset(tmp_path, write_txt)
    (folder / "user_profiles.jsonl").write_text('{"user": 1, "text": "by hand"}\n')
    assert run(folder, "http://127.0.0.1:9", model) == 2
    assert "is not an answer of this tool" in capsys.readouterr().err
    assert (folder / "user_profiles.jsonl").read_text() == '{"user": 1, "text": "by hand"}\n'


def test_replies_to_requests_in_progress_are_kept():
    """Replies that arrive after a failure that ends the run are kept: they have been paid for."""
    kept = {}
    started = threading.Event()

    def trouble(handler, user, n):
        if user == 0:
            started.wait(5)
            time.sleep(0.1)
            reply(handler, status=401)
            return True
        started.set()
        time.sleep(0.6)
        return False

    with serve(Model(trouble)) as url:
        endpoint = profiles.Endpoint(f"{url}/v1", "x", workers=2)
        prompts = {user: profiles.messages(user, ["- item 0: red"]) for user in range(5)}
        with pytest.raises(Exception, match="401"):
            profiles.ask_missing(prompts, endpoint, kept.__setitem__)
    assert 1 in kept and len(kept) < 4
