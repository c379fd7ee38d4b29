"""Top-K lists, similar items and vectors of a trained run, on original ids.

    python recommend.py --checkpoint runs/baby_raw_lgn_20260131-120000_2025 --output lists.tsv
    python recommend.py --checkpoint RUN --users A1HK2FQW6KXQB2,A19K65VY14D13R --topk 10 --exclude train,valid
    python recommend.py --checkpoint RUN --new_users histories.tsv          # users that were not in training
    python recommend.py --checkpoint RUN --similar_items B000YDDF6O
    python recommend.py --checkpoint RUN --export_embeddings vectors.npz    # for faiss and the like
    python recommend.py --checkpoint RUN --cold_items data/new_items        # items that were not in training

The lists are those that the evaluation ranks: with the run's own --exclude (the default) the metrics of
result.json can be computed from them. Original ids are read from user_ids.tsv and item_ids.tsv of the dataset
folder, titles from item_text.jsonl; without these files ids are the numbers of the interaction files. How a
model builds the vectors of new users and cold items is documented with the model:
Recommender.new_user_vectors and cold_item_vectors.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
import time
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from cli import Parser, run_tool
from data.feature_files import load_features, open_features
from data.folders import dataset_folder
from data.formats import Interactions, names_of, read_lines, read_titles
from dataloader import Dataset, HeldOut, Rows, load_dataset
from models.base import ItemWeights, Recommender
from models.registry import find_model
from parse import restored_config
from reporting.lists import WRITERS, Lists, TopList, open_output
from session import make_model
from training.checkpoint import read_checkpoint
from training.parallel import one_process
from training.ranking import rank_items
from training.scoring import Scorer
from utils import UserError, atomic_write
from world import Config, choose_device

SPLITS = ("train", "valid", "test")
# Settings of the run that may differ here: where things are, and what computes.
FREE = (
    "data_root",
    "text_feat",
    "image_feat",
    "audio_feat",
    "user_text_feat",
    "item_text_graph",
    "item_image_graph",
    "item_audio_graph",
    "user_text_graph",
    "cache_dir",
    "cuda",
    "gpu_id",
    "threads",
    "eval_chunk",
)


# ---------------------------------------------------------------- the run


def checkpoint_path(run: str) -> Path:
    """The checkpoint of a run folder: best.pt, to which result.json belongs, else last.pt. Or a file."""
    path = Path(run)
    if not path.is_dir():
        return path
    for name in ("best.pt", "last.pt"):
        if (path / name).exists():
            return path / name
    raise UserError(f"{path}: contains neither best.pt nor last.pt; name a run folder or a checkpoint")


def load_run(
    path: Path, given: dict[str, typing.Any], model_name: str = ""
) -> tuple[Recommender, Dataset, Config]:
    """Model in eval mode, dataset and config of a checkpoint.

    given: settings that replace stored ones (see FREE); model_name: --model, which a run of a user's own
    class needs. Raises UserError if the checkpoint, its data or the two together cannot be used.
    """
    state = read_checkpoint(path)
    config = restored_config(state["config"], path, model_name, **given)
    device = choose_device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = load_dataset(config, find_model(config.model).data_needs(config), device)
    model, source = make_model(config, dataset, device), dataset.interactions.source
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise UserError(
            f"{path}: does not fit {source} ({reason}); name the data it was trained on with --data_root"
        ) from None
    for note in dataset.notes:
        tell(note)
    if state["data"] != dataset.fingerprint:
        tell(f"note: {source}, its features or its graphs differ from those this run was trained on")
    if config.eval_dropout:
        tell(
            "note: this run was evaluated with dropout, and lists are made without: they differ from "
            "result.json"
        )
    return model.eval(), dataset, config


def tell(line: str) -> None:
    """Print a line on stderr, beside the output, which may be stdout."""
    print(line, file=sys.stderr)


# ---------------------------------------------------------------- ids and histories


def indices_of(asked: str, index: dict[str, int], flag: str) -> list[int]:
    """Indices of the ids that a flag names: ID,ID,... or a file with one a line. UserError for unknown."""
    ids = read_lines(asked) if os.path.isfile(asked) else asked.split(",")
    ids = list(dict.fromkeys(filter(None, ids)))
    if not ids:
        raise UserError(f"{flag} {asked[:60]}: names no id; give ID,ID,... or a file with one a line")
    unknown = [name for name in ids if name not in index]
    if unknown:
        raise UserError(
            f"{flag}: {len(unknown)} of {len(ids)} ids are not in the data, the first is "
            f"'{unknown[0][:40]}'; give "
            "original ids"
        )
    return [index[name] for name in ids]


def read_histories(path: str, index: dict[str, int]) -> tuple[list[str], sp.csr_matrix]:
    """User names and their items [n, I] sparse 0/1 from lines 'user item item ...' of original ids.

    Words are separated by tabs or, in a line without tabs, by spaces. Raises UserError for an unknown item, a
    user without items, or a repeated user.
    """
    histories: dict[str, list[int]] = {}
    for number, line in enumerate(read_lines(path), 1):
        name, *items = list(filter(None, line.split("\t") if "\t" in line else line.split())) or [""]
        unknown = next((item for item in items if item not in index), None)
        reason = ""
        if unknown is not None:
            reason = f"item '{unknown[:40]}' is not in the data"
        elif name in histories or (name and not items):
            reason = f"user '{name[:40]}' occurs twice or has no item"
        if reason:
            raise UserError(
                f"{path}, line {number}: {reason}; write 'user item item ...' with original ids, a user a "
                "line"
            )
        if name:
            histories[name] = sorted({index[item] for item in items})
    if not histories:
        raise UserError(f"{path}: has no user; write 'user item item ...' with original ids, a user a line")
    ends = np.cumsum([0, *map(len, histories.values())])
    columns = np.concatenate(list(histories.values()))
    values = np.ones(len(columns), np.float32)
    return list(histories), sp.csr_matrix((values, columns, ends), (len(histories), len(index)))


def items_of_splits(data: Interactions, splits: Sequence[str], shape: tuple[int, int]) -> sp.csr_matrix:
    """The interactions of some splits as a sparse 0/1 matrix; shape: at least [U, I]."""
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(getattr(data, split) for split in splits)])
    return sp.csr_matrix((np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape)


def parse_splits(text: str, config: Config) -> tuple[str, ...]:
    """The splits that --exclude names; by default those that were masked when the run was tested."""
    if not text:
        return SPLITS[:2] if config.mask_valid_at_test else SPLITS[:1]
    splits = () if text == "none" else tuple(text.split(","))
    if not set(splits) <= set(SPLITS):
        raise UserError(
            f"--exclude {text[:60]}: give some of {', '.join(SPLITS)}, separated by commas, or none"
        )
    return splits


# ---------------------------------------------------------------- vectors


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Final vectors and names of users and items. Cold items follow the n_known items of the catalogue."""

    user: torch.Tensor  # [U, d]
    item: torch.Tensor  # [I + cold, d]
    weights: ItemWeights | None  # see Recommender.item_weights
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str] | None
    n_known: int  # I


def make_vectors(model: Recommender, dataset: Dataset, config: Config, cold: str) -> Vectors:
    """Vectors of a run and of the cold items in a folder ("": none). Raises UserError if ids do not fit."""
    data, (folder, _) = dataset.interactions, dataset_folder(config)
    user, item = model.embeddings()
    user_ids = names_of(folder / "user_ids.tsv", len(user), "users")
    item_ids = names_of(folder / "item_ids.tsv", len(item), "items")
    titles = read_titles(folder / "item_text.jsonl", len(item))
    if cold:
        vectors, ids, cold_titles = cold_items(Path(cold), model)
        known = set(item_ids).intersection(ids)
        if known:
            raise UserError(
                f"{cold}: item '{min(known)[:40]}' is in the data already; {cold}/item_ids.tsv must name new "
                "ids"
            )
        if titles is not None or cold_titles is not None:
            titles = (titles or [""] * len(item)) + (cold_titles or [""] * len(ids))
        item, item_ids = torch.cat([item, vectors]), item_ids + ids
    return Vectors(user, item, model.item_weights(), user_ids, item_ids, titles, data.n_items)


def cold_items(folder: Path, model: Recommender) -> tuple[torch.Tensor, list[str], list[str] | None]:
    """Vectors [n, d], original ids and titles of the items in a folder.

    The folder contains <modality>_feat.npy, and optionally item_ids.tsv and item_text.jsonl.

    Raises UserError if the model has no vectors for such items, or their features do not fit it.
    """
    features: dict[str, np.ndarray] = {}
    sizes = model.feature_sizes()
    if not sizes:
        raise UserError(
            f"--cold_items: {model.config.model} has no vectors for items that were not in training"
        )
    for m, size in sizes.items():
        path = folder / f"{m}_feat.npy"
        array = open_features(path)
        if array.shape[1] != size or not len(array):
            raise UserError(
                f"{path}: is {array.shape[0]} x {array.shape[1]}; it must have {size} dimensions, as the "
                f"run's {m} "
                "features"
            )
        matrix = load_features(array, path, len(next(iter(features.values()), array)))
        if not matrix.any(1).all():
            raise UserError(
                f"{path}, row {matrix.any(1).argmin()}: is all zeros and has no neighbours; leave that item "
                "out"
            )
        features[m] = matrix
    parameter = next(model.parameters())
    vectors = model.cold_item_vectors({m: torch.from_numpy(x).to(parameter) for m, x in features.items()})
    ids = names_of(folder / "item_ids.tsv", len(vectors), "items")
    return vectors, ids, read_titles(folder / "item_text.jsonl", len(vectors))


# ---------------------------------------------------------------- ranking


def top_lists(scorer: Scorer, seen: sp.csr_matrix, k: int, chunk: int) -> Iterator[tuple[int, list[TopList]]]:
    """The best k items of every user without those seen [n, I], by chunks: (first user, a list for each).

    A user with fewer than k other items gets those.
    """
    device, n_items = scorer.item.device, len(scorer.item)
    nothing = torch.zeros(len(scorer.user) + 1, dtype=torch.int64, device=device)
    split = HeldOut(
        torch.arange(len(scorer.user), device=device), (nothing, nothing[:0]), to_rows(seen, device)
    )
    for start, stop, top, scores in rank_items(scorer, split, k, chunk):
        lengths = np.minimum(n_items - np.diff(seen.indptr)[start:stop], k)
        rows = zip(top.tolist(), scores.tolist(), lengths, strict=True)
        yield start, [(items[:n], values[:n]) for items, values, n in rows]


def to_rows(matrix: sp.csr_matrix, device: torch.device) -> Rows:
    """The non-zero columns of each row of a sparse matrix."""
    crow, columns = (torch.as_tensor(part, dtype=torch.int64) for part in (matrix.indptr, matrix.indices))
    return crow.to(device), columns.to(device)


def make_lists(
    args: argparse.Namespace, vectors: Vectors, model: Recommender, dataset: Dataset, config: Config
) -> Lists:
    """The lists that parsed arguments ask for."""
    n_items, index = len(vectors.item), {name: number for number, name in enumerate(vectors.item_ids)}
    user, item, columns, data = vectors.user, vectors.item, ("user", "item"), dataset.interactions
    if args.topk > n_items:
        raise UserError(f"--topk {args.topk}: there are only {n_items} items; give a smaller K")
    if args.similar_items:
        chosen = indices_of(args.similar_items, index, "--similar_items")
        item, columns = torch.nn.functional.normalize(item, dim=1), ("item", "similar_item")
        user, names = item[chosen], [vectors.item_ids[number] for number in chosen]
        ones = np.ones(len(chosen), np.float32)
        seen = sp.csr_matrix((ones, (range(len(chosen)), chosen)), (len(chosen), n_items))
        history = seen[:, : vectors.n_known]
    elif args.new_users:
        known = {name: index[name] for name in vectors.item_ids[: vectors.n_known]}
        names, history = read_histories(args.new_users, known)
        user, notes = model.new_user_vectors(history, item[: vectors.n_known])
        for note in notes:
            tell(note)
        seen = history.copy()
        seen.resize(len(names), n_items)
    else:
        names = vectors.user_ids
        history = items_of_splits(data, ("train",), (len(user), vectors.n_known))
        seen = items_of_splits(data, parse_splits(args.exclude, config), (len(user), n_items))
        if args.users:
            chosen = indices_of(args.users, {name: number for number, name in enumerate(names)}, "--users")
            user, seen, history = user[chosen], seen[chosen], history[chosen]
            names = [names[number] for number in chosen]
    weights = vectors.weights
    if args.similar_items and item.shape[1]:
        weights = None  # the cosine of vectors, where there are vectors, is not on the scale of the weights
    scorer = Scorer(user, item, weights, to_rows(history.tocsr(), item.device))
    return Lists(
        columns,
        names,
        vectors.item_ids,
        vectors.titles,
        top_lists(scorer, seen, args.topk, config.eval_chunk),
    )


def export(vectors: Vectors, path: str) -> None:
    """Write all vectors and ids to a .npz (arrays of numbers and text, no pickle), atomically."""
    arrays = {name: getattr(vectors, name).float().cpu().numpy() for name in ("user", "item")}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    with atomic_write(path) as file:
        np.savez(file, **arrays, user_ids=np.array(vectors.user_ids), item_ids=np.array(vectors.item_ids))
    tell(f"{path}: user {arrays['user'].shape}, item {arrays['item'].shape}, float32, and their ids")


# ---------------------------------------------------------------- command line


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python recommend.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        description=__doc__,
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="run folder (its best.pt) or checkpoint"
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="FILE.py:CLASS",
        help="for a run of a class of your own: the file to run",
    )
    group = parser.add_argument_group("what to make (default: lists for all users)")
    what = group.add_mutually_exclusive_group()
    for flag, metavar, text in (
        (
            "--users",
            "FILE|ID,...",
            "lists for these users: ids separated by commas, or a file with one a line",
        ),
        ("--new_users", "FILE", "lists for users that were not in training: lines 'user item item ...'"),
        ("--similar_items", "FILE|ID,...", "the items nearest to these by the cosine of their vectors"),
        (
            "--export_embeddings",
            "FILE.npz",
            "all vectors, float32: user [U, d], item [I, d], user_ids, item_ids; the score of a pair is "
            "their inner "
            "product",
        ),
    ):
        what.add_argument(flag, default="", metavar=metavar, help=text)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--cold_items",
        default="",
        metavar="DIR",
        help="further candidates that were not in training: DIR contains their text_feat.npy, ... (as the "
        "run has), "
        "item_ids.tsv and optionally item_text.jsonl; only for models that learn from features of items",
    )
    how.add_argument("--topk", type=int, default=20, metavar="K", help="length of a list (default 20)")
    how.add_argument(
        "--exclude",
        default="",
        metavar="SPLIT,...",
        help="leave out a user's items of these splits: train, valid, test, or none (default: those masked "
        "in the "
        "run's test, usually train)",
    )
    how.add_argument(
        "--format",
        default="tsv",
        choices=WRITERS,
        help="tsv and parquet: a row for each item; jsonl: a line for each user (default tsv)",
    )
    how.add_argument("--output", default="", metavar="FILE", help="where to write (default: stdout)")
    add_run_flags(parser)
    return parser


def add_run_flags(parser: Parser) -> None:
    """Add the flags of FREE, which are those of Config."""
    run = parser.add_argument_group("where things are and what computes, if different from training")
    for field in dataclasses.fields(Config):
        if field.name in FREE:
            kind, choices = type(field.default), field.metadata["choices"]
            run.add_argument(
                f"--{field.name}",
                type=kind,
                choices=choices,
                help=field.metadata["help"].replace("%", "%%"),
                metavar=None if choices else kind.__name__.upper(),
            )


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that cannot be followed, before anything is loaded."""
    if args.topk < 1:
        raise UserError(f"--topk {args.topk}: must be at least 1")
    if args.export_embeddings and args.output:
        raise UserError("--output is for lists; --export_embeddings names its own file")
    if args.format == "parquet" and not args.export_embeddings:
        if not args.output:
            raise UserError("--format parquet needs --output FILE")
        if importlib.util.find_spec("pyarrow") is None:
            raise UserError(
                "--format parquet needs pyarrow: pip install -c constraints.txt -e '.[features]', "
                "or take tsv or jsonl"
            )
    target = args.export_embeddings or args.output
    if target and (Path(target).is_dir() or not Path(target).parent.is_dir()):
        raise UserError(
            f"{target}: is a folder, or its folder does not exist; name a file in an existing folder"
        )


@torch.inference_mode()
def command(args: argparse.Namespace) -> None:
    """Make what parsed arguments ask for."""
    one_process("recommend.py")
    check_flags(args)
    started = time.perf_counter()
    given = {name: value for name, value in vars(args).items() if name in FREE}
    model, dataset, config = load_run(checkpoint_path(args.checkpoint), given, args.model)
    vectors = make_vectors(model, dataset, config, args.cold_items)
    if args.export_embeddings:
        if vectors.weights is not None:
            tell("note: this model's scores have a part that is no inner product, which is not exported")
        export(vectors, args.export_embeddings)
        return
    lists = make_lists(args, vectors, model, dataset, config)
    with open_output(args.output, args.format == "parquet") as file:
        WRITERS[args.format](lists, file)
    tell(
        f"{args.output or 'stdout'}: {len(lists.names)} lists of up to {args.topk} from {len(vectors.item)} "
        "items, "
        f"{time.perf_counter() - started:.1f} s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
