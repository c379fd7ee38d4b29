"""Make feature files with frozen large models: text_feat.npy, image_feat.npy and user_text_feat.npy.

    python -m data.features text  NAME                         # item_text.jsonl through Qwen3-Embedding-8B
    python -m data.features image NAME --pictures FOLDER       # pictures through LLaVA-1.5-7B
    python -m data.features users NAME --endpoint http://localhost:8000/v1 --llm Qwen/QwQ-32B

Row r of a file belongs to internal id r. features.json records what each file was made from and how. A run
that was stopped, even by kill -9, continues when the same command is given again, and then writes the same
bytes as a run without interruption.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from cli import Parser, run_tool
from data import colours, pictures, profiles
from data.encoders import Encoder, hub_token, image_encoder, text_encoder, use_hub_proxy
from data.encoding import Output, batched, make_features
from data.feature_flags import (
    add_address_flag,
    add_common_flags,
    add_field_flags,
    add_image_flags,
    add_request_flags,
    add_text_model_flags,
    add_texts_flag,
    add_user_flags,
)
from data.folders import dataset_folder
from data.progress import progress_bar
from data.texts import catalogue_size, check_catalogue, read_texts, train_histories
from data.verify import file_sha256
from data.web import Access
from utils import UserError, content_hash, lock_file

# Failures printed one by one; all of them are counted in features.json.
MAX_NOTES = 20


def find_folder(args: argparse.Namespace) -> Path:
    """The dataset folder NAME, or NAME_raw with a note, as for main.py."""
    folder, note = dataset_folder(argparse.Namespace(dataset=args.name, data_root=args.data_root))
    if note:
        print(note, file=sys.stderr)
    return folder


def output_path(args: argparse.Namespace, folder: Path, name: str) -> Path:
    """--out, or the file of this name in the dataset folder."""
    path = Path(args.out) if args.out else folder / name
    if path.suffix != ".npy":
        raise UserError(f"--out {path}: must end in .npy")
    return path


def output_settings(args: argparse.Namespace) -> Output:
    """How the feature file is made and stored."""
    return Output(args.batch_size, args.missing, args.save_dtype)


def print_notes(notes: Sequence[str]) -> None:
    """Print the first notes to stderr."""
    for note in notes[:MAX_NOTES]:
        print(f"note: {note}", file=sys.stderr)


# ---------------------------------------------------------------- text


def encode_texts(path: Path, texts: list[str], args: argparse.Namespace, counts: dict[str, Any]) -> None:
    """Write the features of texts ("" for none) with the text model of the flags."""
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
        token=hub_token(args.hub_token_env),
    )
    # Longest first: little padding, and a batch that does not fit into memory fails at once.
    order = sorted((row for row, text in enumerate(texts) if text), key=lambda row: (-len(texts[row]), row))

    def encode(rows: list[int]) -> tuple[list[int], np.ndarray]:
        return rows, encoder.encode([texts[row] for row in rows])

    batches = batched(order, args.batch_size)
    inputs = content_hash(texts)
    make_features(path, len(texts), batches, encode, encoder, inputs, output_settings(args), counts)


def item_texts(
    args: argparse.Namespace, folder: Path, n: int, ids: list[str] | None
) -> tuple[list[str], dict[str, Any]]:
    """(text of each of n items, counts) from --texts, or from item_text.jsonl, which has internal ids."""
    if args.ids == "original" and not args.texts:
        raise UserError(
            f"--ids original: {folder / 'item_text.jsonl'} has internal ids; leave --ids out, or name a file "
            "with original ids with --texts"
        )
    path = args.texts or folder / "item_text.jsonl"
    return read_texts(path, n, ids, args.ids, args.id_field or "item", args.text_field)


def text_command(args: argparse.Namespace) -> None:
    """Item texts -> text_feat.npy."""
    folder = find_folder(args)
    path = output_path(args, folder, "text_feat.npy")
    texts, counts = item_texts(args, folder, *catalogue_size(folder, "item"))
    encode_texts(path, texts, args, counts)


# ---------------------------------------------------------------- image


def image_command(args: argparse.Namespace) -> None:
    """Item pictures -> image_feat.npy."""
    folder = find_folder(args)
    n, ids = catalogue_size(folder, "item")
    path = output_path(args, folder, "image_feat.npy")
    paths, counts = item_pictures(args, folder, n, ids)
    encoder = picture_encoder(args)
    bar = progress_bar(sorted(paths.items()), desc="reading", unit="picture", leave=False, delay=2)
    inputs = content_hash([(row, file_sha256(path)) for row, path in bar])
    broken = {}

    def opened(row: int) -> Any:
        try:
            return pictures.open_picture(paths[row])
        except pictures.BrokenPicture as error:
            broken[row] = str(error)
            return None

    with ThreadPoolExecutor(args.workers) as pool:

        def encode(rows: list[int]) -> tuple[list[int], np.ndarray]:
            found = {row: picture for row, picture in zip(rows, pool.map(opened, rows)) if picture}
            if not found:
                return [], np.zeros((0, encoder.dim), np.float32)
            return list(found), encoder.encode(list(found.values()))

        batches = batched(sorted(paths), args.batch_size)
        make_features(path, n, batches, encode, encoder, inputs, output_settings(args), counts)
    print_notes([f"{paths[row]}: {reason}" for row, reason in sorted(broken.items())])


def picture_encoder(args: argparse.Namespace) -> Encoder:
    """The encoder that --model names: the built-in one or a model of the hub or a folder."""
    if args.model == colours.NAME:
        return colours.colour_encoder(args.normalize)
    return image_encoder(
        args.model,
        revision=args.revision or None,
        device=args.device,
        dtype=args.dtype,
        normalize=args.normalize,
        trust_remote_code=args.trust_remote_code,
        token=hub_token(args.hub_token_env),
    )


def item_pictures(
    args: argparse.Namespace, folder: Path, n: int, ids: list[str] | None
) -> tuple[dict[int, Path], dict[str, Any]]:
    """({internal id: path} of the pictures named by the flags, counts)."""
    if args.ids == "original" and ids is None:
        raise UserError(f"{folder}: has no item_ids.tsv, which --ids original needs; use --ids internal")
    if bool(args.pictures) == bool(args.urls):
        raise UserError("give either --pictures FOLDER or --urls FILE")
    if args.pictures:
        if not Path(args.pictures).is_dir():
            raise UserError(f"--pictures {args.pictures}: no such folder")
        names = ids if args.ids == "original" else None
        paths, n_unknown = pictures.find_pictures(args.pictures, n, names)
        return paths, {"pictures": len(paths), "absent": n - len(paths), "unknown": n_unknown}
    urls = pictures.read_urls(args.urls, n, ids, args.ids, args.id_field, args.url_field)
    paths, failed = pictures.download(
        urls,
        Path(args.cache or folder / "pictures"),
        workers=args.workers,
        attempts=args.attempts,
        timeout=args.timeout,
        backoff=args.backoff,
        access=Access(allow_private=bool(args.allow_private), proxy=args.proxy),
    )
    print_notes([f"{urls[row][:200]}: {reason}" for row, reason in sorted(failed.items())])
    if not paths:
        raise ConnectionError(f"{args.urls}: none of {len(urls)} pictures could be fetched")
    return paths, {"pictures": len(paths), "absent": n - len(urls), "not fetched": sorted(failed)}


# ---------------------------------------------------------------- users


def users_command(args: argparse.Namespace) -> None:
    """User profiles -> user_text_feat.npy."""
    folder = find_folder(args)
    n, ids = catalogue_size(folder, "user")
    path = output_path(args, folder, "user_text_feat.npy")
    if args.profiles and args.endpoint:
        raise UserError("give either --profiles FILE or --endpoint URL")
    if args.profiles and args.until != "features":
        raise UserError(f"--until {args.until}: --profiles FILE has finished texts; leave one of them out")
    if args.profiles:
        texts, counts = read_texts(args.profiles, n, ids, args.ids, args.id_field or "user", args.text_field)
    else:
        asked = ask_for_profiles(args, folder, n, ids)
        if asked is None:
            return
        texts, counts = asked
    encode_texts(path, texts, args, counts)


def ask_for_profiles(
    args: argparse.Namespace, folder: Path, n: int, user_ids: list[str] | None
) -> tuple[list[str], dict[str, Any]] | None:
    """(profiles, counts) of n users from the chat model; None if --until ends earlier."""
    histories = train_histories(folder)
    n_items, item_ids = catalogue_size(folder, "item")
    check_catalogue(histories, folder, n, n_items)
    texts, _ = item_texts(args, folder, n_items, item_ids)
    prompts = profiles.make_prompts(histories, texts, user_ids, item_ids, args.max_history, args.max_chars)
    if args.until == "prompts":
        profiles.write_prompts(folder / "user_prompts.jsonl", prompts)
        print(f"{folder / 'user_prompts.jsonl'}: {len(prompts)} prompts")
        return None
    answers_path = folder / "user_profiles.jsonl"
    with lock_file(folder / ".user_profiles.jsonl.lock"):
        answers, failed = profiles.ask_all(prompts, make_endpoint(args), answers_path)
    print_notes(
        [f"user {user}: no profile ({why}); run this again to retry" for user, why in sorted(failed.items())]
    )
    without_history = sorted(set(range(n)) - set(prompts))
    counts = {
        "profiles": len(answers),
        "without train items": without_history,
        "failed": sorted(failed),
        "history cut": sum(len(items) > args.max_history for items in histories.values()),
    }
    print(
        f"{answers_path}: {len(answers)} profiles; {len(without_history)} users without train items, "
        f"{len(failed)} failed"
    )
    if args.until == "profiles":
        return None
    return [answers.get(user, "") for user in range(n)], {**counts, "llm": args.llm}


def make_endpoint(args: argparse.Namespace) -> profiles.Endpoint:
    """The chat model of the flags."""
    if not args.endpoint or not args.llm:
        raise UserError(
            "users needs --endpoint URL and --llm NAME, or --profiles FILE of finished user texts"
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
        args.proxy,
    )


# ---------------------------------------------------------------- command line


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m data.features",
        description="Features by frozen large models. Repeat the command to continue a stopped run.",
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="text|image|users")

    def add_command(name: str, run: Callable[[argparse.Namespace], None], help: str) -> Any:
        command = commands.add_parser(
            name,
            help=help,
            description=run.__doc__,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        command.set_defaults(run=run)
        return command

    text = add_command("text", text_command, "item texts through a text embedding model")
    add_common_flags(text, "Qwen/Qwen3-Embedding-8B", "zeros")
    add_text_model_flags(text)
    add_texts_flag(text)
    add_field_flags(text, "item", "--texts")

    image = add_command("image", image_command, "item pictures through LLaVA, CLIP or SigLIP, or as colours")
    add_common_flags(image, "llava-hf/llava-1.5-7b-hf", "mean")
    add_image_flags(image)
    add_address_flag(image)
    add_request_flags(image, 8, 60.0)

    users = add_command(
        "users", users_command, "user profiles of a chat model through a text embedding model"
    )
    add_common_flags(users, "Qwen/Qwen3-Embedding-8B", "zeros")
    add_text_model_flags(users)
    add_user_flags(users)
    add_texts_flag(users)
    add_field_flags(users, "", "--texts (empty: item) or --profiles (empty: user)")
    add_request_flags(users, 16, 600.0)
    return parser


def command(args: argparse.Namespace) -> None:
    """Make the features that the flags ask for."""
    use_hub_proxy(args.proxy)
    args.run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
