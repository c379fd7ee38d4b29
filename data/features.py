"""Features of items and users by frozen large models: text_feat.npy, image_feat.npy, user_text_feat.npy of a dataset folder.

    python -m data.features text  NAME                                     # item_text.jsonl through Qwen3-Embedding-8B
    python -m data.features image NAME --pictures FOLDER                   # pictures through LLaVA-1.5-7B
    python -m data.features users NAME --endpoint http://localhost:8000/v1 --llm Qwen/QwQ-32B

Row r of a file belongs to the internal id r. What a file was made of and with stands in features.json beside it. Every step
can be stopped, also by kill -9, and goes on where it was when the same command is given again; the files are the same then,
byte for byte, as those of one pass.
"""

import argparse
import hashlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from cli import Parser, run_tool
from data.encoders import POOLING, image_encoder, text_encoder
from data.texts import catalogue_size, dataset_path, parse_object, read_texts, train_histories
from utils import UserError, atomic_write, content_hash, lock_file, write_text

RECORD = "features.json"
BLOCK = 4096  # rows that are handled at a time outside the model


# ---------------------------------------------------------------- rows, one batch after another


def open_partial(path, n, dim):
    """The side file of an unfinished pass, [n, dim] float32, memory-mapped; made anew if there is none, or a damaged one.

    A row of NaN is still to come, a row of Inf is known to have no vector: the file itself says where to go on.
    """
    try:
        found = np.load(path, mmap_mode="r+", allow_pickle=False)
        if found.shape == (n, dim) and found.dtype == np.float32:
            return found
    except Exception:  # no file, or whatever a damaged one makes NumPy raise
        pass
    with atomic_write(
        path
    ) as file:  # written in full, so that a full disk shows here and not as a fault of the mapping
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
        )
        for start in range(0, n, BLOCK):
            file.write(np.full((min(BLOCK, n - start), dim), np.nan, "<f4").data)
    return np.load(path, mmap_mode="r+", allow_pickle=False)


def encode_rows(partial, batches, encode, desc):
    """Fill the rows of `partial` [n, dim], batch by batch, leaving out batches that an earlier pass finished.

    batches: lists of row ids, the same in every pass. encode(rows) -> (ids of those that have a vector, their vectors).
    Raises UserError if the model gives NaN or Inf, or memory runs out.
    """
    todo = [rows for rows in batches if np.isnan(partial[rows]).any()]
    total = sum(map(len, batches))
    with tqdm(total=total, initial=total - sum(map(len, todo)), desc=desc, unit="row") as bar:
        for rows in todo:
            kept, vectors = encode_batch(encode, rows)
            partial[[row for row in rows if row not in kept]] = np.inf
            partial[kept] = vectors
            bar.update(len(rows))


def encode_batch(encode, rows):
    """encode(rows), with its failures told in one line."""
    try:
        kept, vectors = encode(rows)
    except torch.OutOfMemoryError:
        raise UserError(
            "the device is out of memory: give a smaller --batch_size, --max_length or --dtype bfloat16; what is done is "
            "kept only with the same settings"
        ) from None
    if not np.isfinite(vectors).all():
        raise UserError(
            f"row {kept[np.isfinite(vectors).all(axis=1).argmin()]}: the model gave NaN or Inf; take --dtype float32"
        )
    return kept, vectors


def mean_row(partial):
    """Mean [dim] float64 of the rows that have a vector."""
    total, count = np.zeros(partial.shape[1]), 0
    for start in range(0, len(partial), BLOCK):
        block = partial[start : start + BLOCK]
        block = block[np.isfinite(block[:, 0])]
        total += block.sum(axis=0, dtype=np.float64)
        count += len(block)
    return total / max(count, 1)


def finished(partial, missing, dtype):
    """[n, dim] of dtype, rows without a vector filled with zeros or the mean of the others; and how many these are."""
    fill = mean_row(partial) if missing == "mean" else 0.0
    features, without = np.empty(partial.shape, dtype), 0
    for start in range(0, len(partial), BLOCK):
        block = np.array(partial[start : start + BLOCK])
        empty = ~np.isfinite(block[:, 0])
        block[empty] = fill
        without += int(empty.sum())
        with np.errstate(over="ignore"):
            features[start : start + BLOCK] = block
        if not np.isfinite(features[start : start + BLOCK]).all():
            raise UserError(
                f"--save_dtype {dtype}: numbers are too large for it; take float32, or --normalize 1"
            )
    return features, without


# ---------------------------------------------------------------- the files


def read_record(path):
    """features.json as a dict of file name -> entry; empty if it is not there. Raises UserError if it is something else."""
    try:
        if path.stat().st_size > 2**26:
            raise UserError(f"{path}: is larger than {2**26} bytes; move it away")
        return parse_object(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}


def file_sha256(path):
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_made(path, key):
    """Whether the file is there as an earlier pass with the same inputs and settings wrote it."""
    entry = read_record(path.with_name(RECORD)).get(path.name)
    return (
        isinstance(entry, dict)
        and entry.get("key") == key
        and path.exists()
        and file_sha256(path) == entry.get("sha256")
    )


def make_features(path, n, batches, encode, encoder, source, args, counts):
    """Encode, fill what is missing, and write path and its entry in features.json; print what was made.

    batches, encode: see encode_rows. source: hash of all inputs. counts: dict for the record.
    """
    key = content_hash(n, encoder.about, batches, source, args.missing, args.save_dtype)
    side = path.with_name(f".{path.name}.{key[:16]}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_name(f".{path.name}.lock")):
        if is_made(path, key):
            print(f"{path}: is there already, made of the same inputs with the same settings")
            return
        partial = open_partial(side, n, encoder.dim)
        encode_rows(partial, batches, encode, path.name)
        features, without = finished(partial, args.missing, args.save_dtype)
        with atomic_write(path) as file:
            np.save(file, features)
        entry = {
            **encoder.about,
            "batch_size": args.batch_size,
            "shape": list(features.shape),
            "stored_as": args.save_dtype,
            "rows_without_input": without,
            "filled_with": args.missing,
            "counts": counts,
            "input_sha256": source,
            "sha256": file_sha256(path),
            "key": key,
        }
        write_text(
            path.with_name(RECORD),
            json.dumps({**read_record(path.with_name(RECORD)), path.name: entry}, indent=1) + "\n",
        )
        for leftover in path.parent.glob(f".{path.name}.*.partial"):
            leftover.unlink()
    told = ", ".join(
        f"{name} {len(value) if isinstance(value, list) else value}" for name, value in counts.items()
    )
    print(
        f"{path}: {features.shape[0]} x {features.shape[1]} {args.save_dtype}; {without} rows filled with {args.missing} ({told})"
    )


def batched(rows, size):
    """Lists of `size` consecutive rows, the last one shorter."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def output_path(args, folder, name):
    """--out, or the file of this name in the dataset folder."""
    path = Path(args.out) if args.out else folder / name
    if path.suffix != ".npy":
        raise UserError(f"--out {path}: must end in .npy")
    return path


# ---------------------------------------------------------------- text


def encode_texts(path, texts, args, counts):
    """Texts ("" for none) through the model of args into the file `path`."""
    if not any(texts):
        raise UserError(f"{path}: there is no text to encode")
    encoder = text_encoder(
        args.model,
        revision=args.revision or None,
        device=args.device,
        dtype=args.dtype,
        pooling=args.pooling,
        instruction=args.instruction,
        dimension=args.dimension,
        max_length=args.max_length,
        normalize=args.normalize,
        trust_remote_code=args.trust_remote_code,
    )
    # Longest first: little padding, and a batch that does not fit into memory shows at once.
    order = sorted((row for row, text in enumerate(texts) if text), key=lambda row: (-len(texts[row]), row))
    make_features(
        path,
        len(texts),
        batched(order, args.batch_size),
        lambda rows: (rows, encoder.encode([texts[row] for row in rows])),
        encoder,
        content_hash(texts),
        args,
        counts,
    )


def text_command(args):
    """Item texts -> text_feat.npy."""
    folder = dataset_path(args.data_root, args.name)
    n, ids = catalogue_size(folder, "item")
    texts, counts = read_texts(
        args.texts or folder / "item_text.jsonl", n, ids, args.ids, args.id_field, args.text_field
    )
    encode_texts(output_path(args, folder, "text_feat.npy"), texts, args, counts)


# ---------------------------------------------------------------- image


def image_command(args):
    """Item pictures -> image_feat.npy."""
    from data import pictures

    folder = dataset_path(args.data_root, args.name)
    n, ids = catalogue_size(folder, "item")
    paths, counts = item_pictures(args, folder, n, ids, pictures)
    encoder = image_encoder(
        args.model,
        revision=args.revision or None,
        device=args.device,
        dtype=args.dtype,
        normalize=args.normalize,
        trust_remote_code=args.trust_remote_code,
    )
    hashes = [
        (row, file_sha256(path))
        for row, path in tqdm(sorted(paths.items()), desc="reading", unit="picture", leave=False, delay=2)
    ]
    broken = {}

    def opened(row):
        try:
            return pictures.open_picture(paths[row])
        except pictures.Broken as error:
            broken[row] = str(error)

    with ThreadPoolExecutor(args.workers) as pool:

        def encode(rows):
            found = {row: picture for row, picture in zip(rows, pool.map(opened, rows)) if picture}
            return list(found), encoder.encode(list(found.values())) if found else np.zeros(
                (0, encoder.dim), np.float32
            )

        make_features(
            output_path(args, folder, "image_feat.npy"),
            n,
            batched(sorted(paths), args.batch_size),
            encode,
            encoder,
            content_hash(hashes),
            args,
            counts,
        )
    for row, reason in sorted(broken.items())[:20]:
        print(f"note: {paths[row]}: {reason}", file=sys.stderr)


def item_pictures(args, folder, n, ids, pictures):
    """{internal id: path} of the pictures that args name, and counts."""
    matching = ids if args.ids == "original" else None
    if args.ids == "original" and ids is None:
        raise UserError(f"{folder}: has no item_ids.tsv for --ids original; make it, or take --ids internal")
    if bool(args.pictures) == bool(args.urls):
        raise UserError("give either --pictures FOLDER or --urls FILE")
    if args.pictures:
        if not Path(args.pictures).is_dir():
            raise UserError(f"--pictures {args.pictures}: no such folder")
        paths, unknown = pictures.find_pictures(args.pictures, n, matching)
        return paths, {"pictures": len(paths), "absent": n - len(paths), "unknown": unknown}
    urls = pictures.read_urls(args.urls, n, ids, args.ids, args.id_field, args.url_field)
    paths, failed = pictures.download(
        urls,
        Path(args.cache or folder / "pictures"),
        workers=args.workers,
        attempts=args.attempts,
        timeout=args.timeout,
        backoff=args.backoff,
    )
    for row, reason in sorted(failed.items())[:20]:
        print(f"note: {urls[row][:200]}: {reason}", file=sys.stderr)
    if not paths:
        raise ConnectionError(f"{args.urls}: none of {len(urls)} pictures could be fetched")
    return paths, {"pictures": len(paths), "absent": n - len(urls), "not fetched": sorted(failed)}


# ---------------------------------------------------------------- users


def users_command(args):
    """User profiles -> user_text_feat.npy."""
    folder = dataset_path(args.data_root, args.name)
    n, ids = catalogue_size(folder, "user")
    if args.profiles and args.endpoint:
        raise UserError("give either --profiles FILE or --endpoint URL")
    if args.profiles:
        texts, counts = read_texts(args.profiles, n, ids, args.ids, args.id_field or "user", args.text_field)
    else:
        texts, counts = ask_for_profiles(args, folder, n, ids)
    if texts:
        encode_texts(output_path(args, folder, "user_text_feat.npy"), texts, args, counts)


def ask_for_profiles(args, folder, n, user_ids):
    """(texts, counts) of n users from the endpoint; (None, None) where --until ends earlier."""
    from data import profiles

    histories = train_histories(folder)
    n_items, item_ids = catalogue_size(folder, "item")
    texts, _ = read_texts(
        args.texts or folder / "item_text.jsonl",
        n_items,
        item_ids,
        args.ids,
        args.id_field or "item",
        args.text_field,
    )
    prompts = profiles.make_prompts(histories, texts, user_ids, item_ids, args.max_history, args.max_chars)
    if args.until == "prompts":
        profiles.write_prompts(folder / "user_prompts.jsonl", prompts)
        print(f"{folder / 'user_prompts.jsonl'}: {len(prompts)} prompts")
        return None, None
    with lock_file(folder / ".user_profiles.jsonl.lock"):
        found, failed = profiles.ask_all(prompts, endpoint_of(args, profiles), folder / "user_profiles.jsonl")
    for user, reason in sorted(failed.items())[:20]:
        print(f"note: user {user}: no profile ({reason}); run this again to ask again", file=sys.stderr)
    counts = {
        "profiles": len(found),
        "without train items": sorted(set(range(n)) - set(prompts)),
        "failed": sorted(failed),
        "history cut": sum(len(items) > args.max_history for items in histories.values()),
    }
    print(
        f"{folder / 'user_profiles.jsonl'}: {len(found)} profiles; {len(counts['without train items'])} users without train items, "
        f"{len(failed)} failed"
    )
    return None if args.until == "profiles" else [found.get(user, "") for user in range(n)], {
        **counts,
        "llm": args.llm,
    }


def endpoint_of(args, profiles):
    """The endpoint that args name."""
    if not args.endpoint or not args.llm:
        raise UserError(
            "users needs --endpoint URL and --llm NAME, or --profiles FILE with texts of users made elsewhere"
        )
    return profiles.Endpoint(
        args.endpoint,
        args.llm,
        os.environ.get(args.api_key_env, "") if args.api_key_env else "",
        args.temperature,
        args.max_tokens,
        args.llm_seed,
        args.timeout,
        args.attempts,
        args.backoff,
        args.workers,
    )


# ---------------------------------------------------------------- command line


def at_least(low, kind=int):
    """A converter of flags: a number of this kind, not below low."""

    def convert(text):
        value = kind(text)
        if not low <= value <= 2**31:  # also catches NaN
            raise argparse.ArgumentTypeError(f"{text} is not between {low} and {2**31}")
        return value

    convert.__name__ = kind.__name__
    return convert


def add_common(parser, model, missing, batch):
    """Flags of all three commands."""
    parser.add_argument("name", metavar="NAME", help="dataset folder below --data_root")
    parser.add_argument(
        "--data_root", default="data", metavar="DIR", help="folder that holds the dataset folders"
    )
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="the .npy to write; empty: in the dataset folder, by its usual name",
    )
    parser.add_argument(
        "--model", default=model, metavar="NAME", help="model of the Hugging Face hub, or a folder"
    )
    parser.add_argument("--revision", default="", metavar="REV", help="commit, tag or branch of a hub model")
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ...; auto: a GPU where there is one"
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="of the model; auto: bfloat16 on a GPU, else float32",
    )
    parser.add_argument(
        "--batch_size",
        type=at_least(1),
        default=batch,
        metavar="N",
        help="inputs at a time; has a part in the last bits",
    )
    parser.add_argument(
        "--normalize", type=int, choices=(0, 1), default=1, help="1 scales every vector to length 1"
    )
    parser.add_argument(
        "--missing",
        default=missing,
        choices=("zeros", "mean"),
        help="row of an id without input: zeros (it has no neighbours in the kNN graph) or the mean of the others",
    )
    parser.add_argument("--save_dtype", default="float32", choices=("float16", "float32"), help="of the .npy")
    parser.add_argument(
        "--trust_remote_code",
        type=int,
        choices=(0, 1),
        default=0,
        help="1 runs Python code that comes with the model: only for authors whom you trust",
    )
    parser.add_argument(
        "--ids",
        default="internal",
        choices=("internal", "original"),
        help="which ids the inputs bear; original ones are looked up in item_ids.tsv (user_ids.tsv)",
    )


def add_text_model(parser):
    """Flags of the text model."""
    parser.add_argument(
        "--pooling",
        default="auto",
        choices=("auto", *POOLING),
        help="how token vectors become one; auto: as the model's folder says, else the last token of a causal language "
        "model and the mean of others",
    )
    parser.add_argument(
        "--instruction",
        default="",
        metavar="TEXT",
        help="put before every text as it stands; Qwen3 wants one before queries only, and none before documents",
    )
    parser.add_argument(
        "--dimension",
        type=at_least(0),
        default=0,
        metavar="N",
        help="keep the leading N dimensions (models of Matryoshka representation learning); 0: all",
    )
    parser.add_argument(
        "--max_length",
        type=at_least(0),
        default=1024,
        metavar="N",
        help="tokens of a text, the rest is cut; 0: the model's own limit, which also holds if it is less",
    )


def add_network(parser, workers, timeout):
    """Flags of requests."""
    parser.add_argument(
        "--workers", type=at_least(1), default=workers, metavar="N", help="requests (or pictures) at a time"
    )
    parser.add_argument(
        "--attempts",
        type=at_least(1),
        default=5,
        metavar="N",
        help="attempts at each before it counts as failed",
    )
    parser.add_argument(
        "--timeout", type=at_least(0.01, float), default=timeout, metavar="S", help="seconds for one attempt"
    )
    parser.add_argument(
        "--backoff",
        type=at_least(0.0, float),
        default=1.0,
        metavar="S",
        help="seconds before the second attempt, doubled for each further one",
    )


def add_fields(parser, id_field, what):
    """Flags that say where id and text stand in JSON lines."""
    parser.add_argument("--id_field", default=id_field, metavar="FIELD", help=f"field of the id in {what}")
    parser.add_argument(
        "--text_field",
        default="",
        metavar="FIELD",
        help="field of the text; empty: text, or title, brand, categories and description together",
    )


def make_parser():
    """The three commands and their flags."""
    shape = dict(allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser = Parser(
        prog="python -m data.features",
        description="Features by frozen large models. Stopped anywhere, the same command "
        "goes on where it was.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="text|image|users")

    text = commands.add_parser(
        "text", help="item texts through a text embedding model", description=text_command.__doc__, **shape
    )
    add_common(text, "Qwen/Qwen3-Embedding-8B", "zeros", 16)
    add_text_model(text)
    text.add_argument(
        "--texts",
        default="",
        metavar="FILE",
        help="JSON lines of item texts; empty: item_text.jsonl of the dataset folder",
    )
    add_fields(text, "item", "--texts")
    text.set_defaults(run=text_command)

    image = commands.add_parser(
        "image",
        help="item pictures through LLaVA, CLIP or SigLIP",
        description=image_command.__doc__,
        **shape,
    )
    add_common(image, "llava-hf/llava-1.5-7b-hf", "mean", 16)
    image.add_argument("--pictures", default="", metavar="DIR", help="folder of pictures named by item id")
    image.add_argument(
        "--urls", default="", metavar="FILE", help="instead: JSON lines, or lines of id, tab, address"
    )
    image.add_argument(
        "--cache",
        default="",
        metavar="DIR",
        help="folder of fetched pictures; empty: pictures/ of the dataset folder",
    )
    image.add_argument(
        "--id_field", default="item", metavar="FIELD", help="field of the id in JSON lines of --urls"
    )
    image.add_argument(
        "--url_field", default="url", metavar="FIELD", help="field of the address in JSON lines of --urls"
    )
    add_network(image, 8, 60.0)
    image.set_defaults(run=image_command)

    users = commands.add_parser(
        "users",
        help="user profiles by a chat model, through a text embedding model",
        description=users_command.__doc__,
        **shape,
    )
    add_common(users, "Qwen/Qwen3-Embedding-8B", "zeros", 16)
    add_text_model(users)
    add_users(users)
    users.set_defaults(run=users_command)
    return parser


def add_users(users):
    """Flags of the users command alone."""
    users.add_argument(
        "--endpoint", default="", metavar="URL", help="an OpenAI-compatible server, up to and with /v1"
    )
    users.add_argument("--llm", default="", metavar="NAME", help="the chat model's name there")
    users.add_argument(
        "--api_key_env",
        default="OPENAI_API_KEY",
        metavar="VAR",
        help="environment variable that holds the API key, if any",
    )
    users.add_argument(
        "--temperature", type=at_least(0.0, float), default=0.6, metavar="X", help="of the sampling"
    )
    users.add_argument(
        "--max_tokens", type=at_least(1), default=8192, metavar="N", help="of a reply, reasoning included"
    )
    users.add_argument(
        "--llm_seed", type=at_least(0), default=2025, metavar="N", help="seed sent with every request"
    )
    users.add_argument(
        "--max_history",
        type=at_least(1),
        default=50,
        metavar="N",
        help="most train items in a prompt: the last ones of the user's line or rows",
    )
    users.add_argument(
        "--max_chars",
        type=at_least(1),
        default=400,
        metavar="N",
        help="characters of an item's text in a prompt",
    )
    users.add_argument(
        "--until",
        default="features",
        choices=("prompts", "profiles", "features"),
        help="stop after writing user_prompts.jsonl, or user_profiles.jsonl",
    )
    users.add_argument(
        "--texts",
        default="",
        metavar="FILE",
        help="JSON lines of item texts; empty: item_text.jsonl of the dataset folder",
    )
    users.add_argument(
        "--profiles",
        default="",
        metavar="FILE",
        help="JSON lines of user texts made elsewhere: nothing is asked for then",
    )
    add_fields(users, "", "--texts (empty: item) or --profiles (empty: user)")
    add_network(users, 16, 600.0)


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(lambda args: args.run(args), make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
