"""Top-K lists, similar items and vectors out of a trained run, on the original ids.

    python recommend.py --checkpoint runs/baby_raw_lgn_20260131-120000_2025 --output lists.tsv
    python recommend.py --checkpoint RUN --users A1HK2FQW6KXQB2,A19K65VY14D13R --topk 10 --exclude train,valid
    python recommend.py --checkpoint RUN --new_users histories.tsv          # users that were not there in training
    python recommend.py --checkpoint RUN --similar_items B000YDDF6O
    python recommend.py --checkpoint RUN --export_embeddings vectors.npz    # for faiss and the like
    python recommend.py --checkpoint RUN --cold_items data/new_items        # items that were not there in training

The lists are those that the evaluation ranks: with the run's own --exclude (its default here) the metrics of result.json
can be computed from them. Original ids come from user_ids.tsv and item_ids.tsv of the dataset folder, titles from
item_text.jsonl; without these files ids are the numbers of the interaction files.

New users are known by a list of items. With LightGCN beneath (lgn, freedom, lgn_mm) their vector is what one propagation over
these items gives: the user's row of (E^0 + ... + E^L) / (L + 1), E^{l+1} = A E^l, with a user vector of zero at layer 0
and the items as they were trained. With mf and vbpr it is the mean of the items' vectors.

Cold items are known by their features (lgn_mm). They attend to their nearest catalogue items by cosine, as in eq. 2-3,
without being attended to; for the ID vector that they lack stands the mean direction of those neighbours' ID vectors at
their mean length; then they are fused like any item (eq. 12-14).
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import io
import itertools
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from cli import Parser, run_tool
from data.feature_files import load_features, open_features
from data.formats import dataset_folder, names_of, read_lines, read_titles
from dataloader import HeldOut, load_dataset
from layers.attention import with_heads
from layers.sparse import csr_tensor, mean_of_powers
from model import make_model
from parse import make_config
from training.checkpoint import read_checkpoint
from training.ranking import rank_items
from utils import UserError, atomic_write
from world import Config, choose_device, settings_of

SPLITS = ("train", "valid", "test")
# Settings of the run that may differ here, because they say where things are and what to compute with.
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


def checkpoint_path(run):
    """The checkpoint that a run folder or a path names: best.pt, whose figures stand in result.json; else last.pt."""
    path = Path(run)
    if not path.is_dir():
        return path
    for name in ("best.pt", "last.pt"):
        if (path / name).exists():
            return path / name
    raise UserError(f"{path}: holds neither best.pt nor last.pt; name a run folder or a checkpoint")


def load_run(path, given):
    """Model in eval mode, Dataset and Config of a checkpoint. given: settings that replace stored ones (see FREE).

    Raises UserError if the checkpoint, its data or the two together cannot be used.
    """
    state = read_checkpoint(path)
    config = make_config(
        {**settings_of(state["config"], path), "resume": "", "evaluate_only": 0, "checkpoint": "", **given}
    )
    device = choose_device(config)
    if config.threads:
        torch.set_num_threads(config.threads)
    dataset = load_dataset(config, device)
    model = make_model(config, dataset, device)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"{path}: does not fit {dataset.interactions.source} ({str(error).splitlines()[-1].strip()[:120]}); "
            "name the data it was trained on with --data_root"
        ) from None
    for note in dataset.notes:
        tell(note)
    if state["data"] != dataset.fingerprint:
        tell(
            f"note: {dataset.interactions.source}, its features or graphs are not what this run was trained on"
        )
    if config.eval_dropout:
        tell(
            "note: this run was evaluated with dropout; lists are made without, so its result.json says something else"
        )
    return model.eval(), dataset, config


def tell(line):
    """A line beside the output, which may be stdout."""
    print(line, file=sys.stderr)


# ---------------------------------------------------------------- ids


def numbers_of(asked, index, flag):
    """Internal numbers of the ids that a flag names: a file with an id a line, or ID,ID,... Raises UserError for unknown ids."""
    ids = read_lines(asked) if os.path.isfile(asked) else asked.split(",")
    ids = list(dict.fromkeys(filter(None, ids)))
    if not ids:
        raise UserError(f"{flag} {asked[:60]}: names no id; give ID,ID,... or a file with one a line")
    unknown = [name for name in ids if name not in index]
    if unknown:
        raise UserError(
            f"{flag}: {len(unknown)} of {len(ids)} ids are not in the data, the first is '{unknown[0][:40]}'; give "
            "original ids"
        )
    return [index[name] for name in ids]


def read_histories(path, index):
    """'user item item ...' lines of original ids -> (names, [n, I] sparse 0/1). Separated by tabs, or by blanks without any tab.

    Raises UserError for an unknown item, a user without items, or one that stands twice.
    """
    histories = {}
    for number, line in enumerate(read_lines(path), 1):
        name, *items = list(filter(None, line.split("\t") if "\t" in line else line.split())) or [""]
        unknown = next((item for item in items if item not in index), None)
        if unknown is not None or name in histories or name and not items:
            reason = (
                f"item '{unknown[:40]}' is not in the data"
                if unknown
                else f"user '{name[:40]}' stands twice or has no item"
            )
            raise UserError(
                f"{path}, line {number}: {reason}; write 'user item item ...' with original ids, a user a line"
            )
        if name:
            histories[name] = sorted({index[item] for item in items})
    if not histories:
        raise UserError(f"{path}: holds no user; write 'user item item ...' with original ids, a user a line")
    ends = np.cumsum([0, *map(len, histories.values())])
    columns = np.concatenate(list(histories.values()))
    return list(histories), sp.csr_matrix(
        (np.ones(len(columns), np.float32), columns, ends), (len(histories), len(index))
    )


# ---------------------------------------------------------------- vectors of what was not there in training


def extend_graph(graph, neighbours):
    """An AttentionGraph with n more nodes, each attending to its neighbours and itself and attended to by none.

    neighbours: [n, k] int64 ids of old nodes. For inference only: `back` serves gradients and is left empty.
    """
    n, k = neighbours.shape
    new = torch.arange(graph.n, graph.n + n, device=neighbours.device)
    nodes = torch.cat([neighbours.sort(1).values, new[:, None]], 1)  # [n, k + 1]
    ends = len(graph.source) + (k + 1) * torch.arange(1, n + 1, device=neighbours.device)
    return with_heads(
        graph.heads,
        graph.n + n,
        torch.cat([graph.crow[: graph.n + 1].long(), ends]),
        torch.cat([graph.target, new.repeat_interleave(k + 1)]),
        torch.cat([graph.source, nodes.flatten()]),
        graph.back[:0],
    )


def nearest(queries, features, k, block=1024):
    """[n, k] int64: the rows of features [I, dim] with the highest cosine to each row of queries [n, dim] (eq. 2)."""
    target = torch.nn.functional.normalize(features.float(), dim=1).T  # features may be bf16
    parts = torch.nn.functional.normalize(queries, dim=1).split(block)
    return torch.cat([(part @ target).topk(min(k, len(features)), dim=1).indices for part in parts])


def attend(branch, graph, features, queries, k):
    """(vectors [n, d] of rows `queries` that attend to their k nearest rows of `features`, those neighbours [n, k])."""
    neighbours = nearest(queries, features, k)
    return branch(extend_graph(graph, neighbours), torch.cat([features, queries.to(features.dtype)]))[
        len(features) :
    ], neighbours


def cold_item_vectors(model, features, k):
    """Unified vectors [n, d] of items known by their features alone. features: {modality: [n, d_m]}, those of the model."""
    _, z_id, _ = model.represent()
    z, neighbours = {}, []
    for m in model.modalities:
        z[m], near = attend(
            model.branches[m], model.graphs[m], getattr(model, f"{m}_features"), features[m], k
        )
        neighbours.append(near)
    near = z_id[torch.cat(neighbours, 1)]  # [n, modalities * k, d]
    length = near.norm(dim=2).mean(
        1, keepdim=True
    )  # a mean is shorter than what it averages, and would rank last
    return model.fusion(torch.nn.functional.normalize(near.mean(1), dim=1) * length, z)


def new_user_vectors(model, item, histories, dataset, config):
    """Vectors [n, d] of users known by their items alone, see the head of this file.

    item: [I, d] final item vectors; histories: [n, I] sparse 0/1. Where ratings weigh the edges, theirs count as 1.
    """
    count, backbone = np.asarray(histories.sum(1)).ravel(), getattr(model, "backbone", model)
    if not getattr(backbone, "layers", 0):  # mf, vbpr, or LightGCN without layers
        user = to_tensor(sp.diags(1 / count) @ histories, item) @ item
        if config.model == "vbpr":  # the item's bias counts as it is
            user[:, -1] = 1
        return user
    degree = (
        np.bincount(dataset.interactions.train[:, 1], minlength=histories.shape[1]) + 1
    )  # the new user's edge counts too
    layers = backbone.layers  # layer l of a user comes from layer l - 1 of its items
    _, below = mean_of_powers(backbone.adjacency, (backbone.user, backbone.item), layers - 1)
    user = (
        to_tensor(sp.diags(count**-0.5) @ histories @ sp.diags(degree**-0.5), item)
        @ below
        * (layers / (layers + 1))
    )
    if getattr(model, "user_graph", None) is None:
        return user
    if (
        config.user_text_feat != "mean"
    ):  # their texts are not known; the factor 1 - eta does not change a ranking
        tell("note: new users have no text features; their vectors are without the user-user branch")
        return user
    text = to_tensor(sp.diags(1 / count) @ histories, item) @ model.text_features
    z, _ = attend(model.user_branch, model.user_graph, model.user_features, text, config.user_knn_k)
    return (1 - config.eta) * user + config.eta * z


def to_tensor(matrix, like):
    """A scipy matrix as a sparse CSR tensor with the type and device of another tensor."""
    matrix = matrix.tocsr()
    return csr_tensor(
        *(torch.from_numpy(part) for part in (matrix.indptr, matrix.indices, matrix.data)), matrix.shape
    ).to(like)


def cold_items(folder, model, k):
    """(vectors [n, d], original ids, titles or None) of the items in a folder: <modality>_feat.npy, item_ids.tsv, item_text.jsonl.

    Raises UserError if the model has no features or theirs do not fit.
    """
    folder, features = Path(folder), {}
    if not hasattr(model, "modalities"):
        raise UserError(
            "--cold_items needs a run of --model lgn_mm: without features nothing is known of a new item"
        )
    for m in model.modalities:
        path, width = folder / f"{m}_feat.npy", getattr(model, f"{m}_features").shape[1]
        array = open_features(path)
        if array.shape[1] != width or not len(array):
            raise UserError(
                f"{path}: is {array.shape[0]} x {array.shape[1]}; it must have {width} dimensions, as the run's {m} "
                "features"
            )
        matrix = load_features(array, path, len(next(iter(features.values()), array)))
        if not matrix.any(1).all():
            raise UserError(
                f"{path}, row {matrix.any(1).argmin()}: is all zeros and has no neighbours; leave that item out"
            )
        features[m] = matrix
    like = model.backbone.item
    vectors = cold_item_vectors(
        model, {m: torch.from_numpy(matrix).to(like) for m, matrix in features.items()}, k
    )
    ids = names_of(folder / "item_ids.tsv", len(vectors), "items")
    return vectors, ids, read_titles(folder / "item_text.jsonl", len(vectors))


# ---------------------------------------------------------------- ranking


def top_lists(queries, items, seen, k, chunk):
    """Best k rows of items [I, d] for each query [n, d], without the seen ones. Yields (start, [(ids, scores), ...]) by chunks.

    seen: [n, I] sparse; a query with fewer than k other items gets those. Scores are inner products.
    """
    masked = tuple(
        torch.as_tensor(part, dtype=torch.int64, device=items.device) for part in (seen.indptr, seen.indices)
    )
    split = HeldOut(torch.arange(len(queries), device=items.device), None, masked)
    for start, stop, top in rank_items(queries, items, split, k, chunk):
        scores = torch.einsum("qd,qkd->qk", queries[start:stop], items[top])
        lengths = np.minimum(len(items) - np.diff(seen.indptr)[start:stop], k)
        yield start, [(ids[:n], values[:n]) for ids, values, n in zip(top.tolist(), scores.tolist(), lengths)]


def seen_items(interactions, splits, shape):
    """[U, I] sparse 0/1: what stands in these splits. shape: at least that of the interactions."""
    pairs = np.concatenate([np.zeros((0, 2), np.int64), *(getattr(interactions, split) for split in splits)])
    return sp.csr_matrix((np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape)


def parse_splits(text, config):
    """The splits that --exclude names; by default those that were masked when the run was tested."""
    if not text:
        return SPLITS[:2] if config.mask_valid_at_test else SPLITS[:1]
    splits = () if text == "none" else tuple(text.split(","))
    if not set(splits) <= set(SPLITS):
        raise UserError(
            f"--exclude {text[:60]}: give some of {', '.join(SPLITS)}, separated by commas, or none"
        )
    return splits


# ---------------------------------------------------------------- output


@dataclasses.dataclass(frozen=True)
class Lists:
    """What is to be written: for each query its best items. `chunks` as from top_lists; columns: names of the two ids."""

    columns: tuple
    names: list  # of the queries
    item_ids: list
    titles: list | None
    chunks: object

    def rows(self):
        """(query id, [item id, ...], [score, ...], [title, ...] or None) of each query. Scores have six digits."""
        for start, lists in self.chunks:
            for number, (items, scores) in enumerate(lists, start):
                titles = None if self.titles is None else [self.titles[item] for item in items]
                scores = [float(f"{score:.6g}") for score in scores]
                yield self.names[number], [self.item_ids[item] for item in items], scores, titles


def write_tsv(lists, file):
    """A line an item with a header: query, rank from 1, item, score, title where titles are known."""
    header = (
        lists.columns[0],
        "rank",
        lists.columns[1],
        "score",
        *([] if lists.titles is None else ["title"]),
    )
    file.write("\t".join(header) + "\n")
    for name, items, scores, titles in lists.rows():
        for rank, row in enumerate(
            zip(items, map(repr, scores), *([titles] if titles is not None else [])), 1
        ):
            file.write("\t".join((name, str(rank), *row)) + "\n")


def write_jsonl(lists, file):
    """A line a query: {"user": id, "item": [ids, best first], "score": [...], "title": [...]}."""
    for name, items, scores, titles in lists.rows():
        record = {
            lists.columns[0]: name,
            lists.columns[1]: items,
            "score": scores,
            **({} if titles is None else {"title": titles}),
        }
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_parquet(lists, file):
    """Columns query, rank, item, score[, title], a row an item; a row group every 4096 queries."""
    import pyarrow as pa  # an optional extra; check_flags has made sure that it is there
    import pyarrow.parquet

    fields = [
        (lists.columns[0], pa.string()),
        ("rank", pa.int32()),
        (lists.columns[1], pa.string()),
        ("score", pa.float32()),
    ]
    schema = pa.schema(fields + ([("title", pa.string())] if lists.titles is not None else []))
    rows = lists.rows()
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while block := list(itertools.islice(rows, 4096)):
            names = [name for name, items, *_ in block for _ in items]
            ranks = [rank for _, items, *_ in block for rank in range(1, len(items) + 1)]
            columns = [
                names,
                ranks,
                *([value for row in block for value in row[part]] for part in range(1, len(schema) - 1)),
            ]
            writer.write_table(
                pa.table(
                    [pa.array(column, field.type) for column, field in zip(columns, schema)], schema=schema
                )
            )


WRITERS = {"tsv": write_tsv, "jsonl": write_jsonl, "parquet": write_parquet}


@contextlib.contextmanager
def opened(path, binary):
    """A file to write, atomically, or stdout where path is empty."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_write(path)) if path else sys.stdout.buffer
        if binary:
            yield file
            return
        text = io.TextIOWrapper(file, encoding="utf-8", newline="\n")
        yield text
        text.flush()
        text.detach()


# ---------------------------------------------------------------- command line


def make_parser():
    """The flags, with their defaults; those of FREE come from Config."""
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
    what = parser.add_argument_group(
        "what to make (default: lists for all users)"
    ).add_mutually_exclusive_group()
    for flag, metavar, text in (
        (
            "--users",
            "FILE|ID,...",
            "lists for these users: ids separated by commas, or a file with one a line",
        ),
        (
            "--new_users",
            "FILE",
            "lists for users that were not there in training: 'user item item ...' a line",
        ),
        ("--similar_items", "FILE|ID,...", "the items nearest to these by the cosine of their vectors"),
        (
            "--export_embeddings",
            "FILE.npz",
            "all vectors, float32: user [U, d], item [I, d], user_ids, item_ids; the score of a "
            "pair is their inner product",
        ),
    ):
        what.add_argument(flag, default="", metavar=metavar, help=text)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--cold_items",
        default="",
        metavar="DIR",
        help="further candidates that were not there in training: DIR holds their text_feat.npy, ... (as the run has), "
        "item_ids.tsv and, if wanted, item_text.jsonl; lgn_mm only",
    )
    how.add_argument("--topk", type=int, default=20, metavar="K", help="length of a list (default 20)")
    how.add_argument(
        "--exclude",
        default="",
        metavar="SPLIT,...",
        help="leave out a user's items of these splits: train, valid, test, or none (default: what the run's test "
        "masks, which is train unless it says otherwise)",
    )
    how.add_argument(
        "--format",
        default="tsv",
        choices=WRITERS,
        help="tsv and parquet: a row an item; jsonl: a line a user (default tsv)",
    )
    how.add_argument("--output", default="", metavar="FILE", help="where to write (default: stdout)")
    run = parser.add_argument_group("where things are and what computes, if other than in training")
    for field in dataclasses.fields(Config):
        if field.name in FREE:
            choices = field.metadata["choices"]
            run.add_argument(
                f"--{field.name}",
                type=field.type,
                choices=choices,
                help=field.metadata["help"].replace("%", "%%"),
                metavar=None if choices else field.type.__name__.upper(),
            )
    return parser


def check_flags(args):
    """Raise UserError for flags that cannot be followed, before anything is loaded."""
    if args.topk < 1:
        raise UserError(f"--topk {args.topk}: must be at least 1")
    if args.export_embeddings and args.output:
        raise UserError("--output is for lists; --export_embeddings names its own file")
    if args.format == "parquet" and not args.export_embeddings:
        if not args.output:
            raise UserError("--format parquet needs --output FILE")
        if importlib.util.find_spec("pyarrow") is None:
            raise UserError("--format parquet needs pyarrow: pip install pyarrow, or take tsv or jsonl")
    target = args.export_embeddings or args.output
    if target and not (Path(target).parent.is_dir() and not Path(target).is_dir()):
        raise UserError(
            f"{target}: cannot be written, its folder is not there or it is one; name a file in a folder that is there"
        )


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Final vectors and names of users and items; cold items stand behind the `known` ones."""

    user: torch.Tensor  # [U, d]
    item: torch.Tensor  # [I + cold, d]
    user_ids: list
    item_ids: list
    titles: list | None
    known: int  # I


def make_vectors(model, dataset, config, cold):
    """Vectors of a run, and of the cold items in a folder ("" for none). Raises UserError if ids or cold items are not in order."""
    data, (folder, _) = dataset.interactions, dataset_folder(config)
    user, item = model.embeddings()
    user_ids, item_ids = (
        names_of(folder / "user_ids.tsv", len(user), "users"),
        names_of(folder / "item_ids.tsv", len(item), "items"),
    )
    titles = read_titles(folder / "item_text.jsonl", len(item))
    if cold:
        vectors, ids, more = cold_items(cold, model, config.item_knn_k)
        both = set(item_ids).intersection(ids)
        if both:
            raise UserError(
                f"{cold}: item '{min(both)[:40]}' is in the data already; {cold}/item_ids.tsv must name new ids"
            )
        if titles is not None or more is not None:
            titles = (titles or [""] * len(item)) + (more or [""] * len(ids))
        item, item_ids = torch.cat([item, vectors]), item_ids + ids
    return Vectors(user, item, user_ids, item_ids, titles, data.n_items)


def make_lists(args, vectors, model, dataset, config):
    """The Lists that parsed arguments ask for."""
    n_items, index = len(vectors.item), {name: number for number, name in enumerate(vectors.item_ids)}
    items, columns = vectors.item, ("user", "item")
    if args.topk > n_items:
        raise UserError(f"--topk {args.topk}: there are only {n_items} items; give a smaller K")
    if args.similar_items:
        asked = numbers_of(args.similar_items, index, "--similar_items")
        items, columns = torch.nn.functional.normalize(items, dim=1), ("item", "similar_item")
        queries, names = items[asked], [vectors.item_ids[number] for number in asked]
        seen = sp.csr_matrix(
            (np.ones(len(asked), np.float32), (range(len(asked)), asked)), (len(asked), n_items)
        )
    elif args.new_users:
        names, seen = read_histories(
            args.new_users, {name: index[name] for name in vectors.item_ids[: vectors.known]}
        )
        queries = new_user_vectors(model, items[: vectors.known], seen, dataset, config)
        seen.resize(len(names), n_items)
    else:
        seen = seen_items(
            dataset.interactions, parse_splits(args.exclude, config), (len(vectors.user), n_items)
        )
        queries, names = vectors.user, vectors.user_ids
        if args.users:
            asked = numbers_of(args.users, {name: number for number, name in enumerate(names)}, "--users")
            queries, seen, names = queries[asked], seen[asked], [names[number] for number in asked]
    return Lists(
        columns,
        names,
        vectors.item_ids,
        vectors.titles,
        top_lists(queries, items, seen, args.topk, config.eval_chunk),
    )


def export(vectors, path):
    """Write all vectors and ids as .npz (arrays of numbers and of text, no pickle), atomically."""
    arrays = {
        name: np.ascontiguousarray(getattr(vectors, name).float().cpu().numpy()) for name in ("user", "item")
    }
    with atomic_write(path) as file:
        np.savez(file, **arrays, user_ids=np.array(vectors.user_ids), item_ids=np.array(vectors.item_ids))
    tell(f"{path}: user {arrays['user'].shape}, item {arrays['item'].shape}, float32, and their ids")


@torch.inference_mode()
def command(args):
    """Make what parsed arguments ask for."""
    check_flags(args)
    started = time.perf_counter()
    given = {name: value for name, value in vars(args).items() if name in FREE}
    model, dataset, config = load_run(checkpoint_path(args.checkpoint), given)
    vectors = make_vectors(model, dataset, config, args.cold_items)
    if args.export_embeddings:
        export(vectors, args.export_embeddings)
        return
    lists = make_lists(args, vectors, model, dataset, config)
    with opened(args.output, args.format == "parquet") as file:
        WRITERS[args.format](lists, file)
    tell(
        f"{args.output or 'stdout'}: {len(lists.names)} lists of up to {args.topk} from {len(vectors.item)} items, "
        f"{time.perf_counter() - started:.1f} s"
    )


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
