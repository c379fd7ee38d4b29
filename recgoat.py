"""RecGOAT from Python: train a model, look at it, recommend from it.

    import recgoat

    run = recgoat.train(dataset="demo", model="lgn_mm", recdim=64, epochs=80)
    run.metrics["recall@20"]                    # of the test split, at the epoch selected on validation
    run.recommend(["user7", "user42"], k=10)    # a table: user, rank, item, score and, where known, title
    run.similar_items(["item19-topic3"], k=5)   # a table, likewise
    run.embeddings().item                       # an array [I, d]
    run = recgoat.load("runs/demo_lgn_mm_20260131-120000_2025")

Settings have the names, defaults and checks of main.py's flags (docs/settings.md), and the same settings give
the same numbers, bit for bit. What the user can correct is raised as UserError. Importing this module does
not import torch. Random numbers, CPU threads and signal handlers are left as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cli import one_process
from main import check_files
from models.registry import forget_classes, is_external
from parse import make_parser, parse_args
from recommending.flags import FREE, checkpoint_path
from training.records import read_evaluations, read_result
from utils import TrainingError, UserError, did_you_mean
from world import Config

if typing.TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from dataloader import Dataset
    from models.base import Recommender
    from recommending.lists import Request
    from recommending.vectors import Vectors

__all__ = ["Embeddings", "Run", "TrainingError", "UserError", "load", "train"]


class Embeddings(typing.NamedTuple):
    """Final vectors, float32, and the ids of their rows.

    The score of a pair is the inner product of its vectors, plus the neighbourhood term in runs that have it.
    """

    user: np.ndarray  # [U, d]
    item: np.ndarray  # [I, d]
    user_ids: list[str]
    item_ids: list[str]


class Loaded(typing.NamedTuple):
    """What recommending needs of a run. The model is in eval mode."""

    model: Recommender
    dataset: Dataset
    config: Config


@dataclasses.dataclass
class Run:
    """A run folder. Its model and data are loaded when they are first needed."""

    folder: Path
    model_name: str = ""  # FILE.py:CLASS of a user's own model
    settings: Mapping[str, typing.Any] = dataclasses.field(default_factory=dict)  # in place of stored ones
    _loaded: Loaded | None = dataclasses.field(default=None, repr=False)
    _vectors: Vectors | None = dataclasses.field(default=None, repr=False)

    @property
    def result(self) -> dict[str, typing.Any]:
        """The content of result.json: status, best epoch, metrics of both splits, protocol, versions."""
        return read_result(self.folder / "result.json")

    @property
    def metrics(self) -> dict[str, float]:
        """{"recall@20": ..., ...} of the test split at the selected epoch; {} if interrupted."""
        return self.result.get("test", {})

    @property
    def evaluations(self) -> list[dict[str, typing.Any]]:
        """The evaluated epochs: {"epoch": 5, "train": {"loss": ...}, "valid": {"recall@20": ...}, ...}."""
        return read_evaluations(self.folder / "metrics.jsonl")

    @property
    def model(self) -> Recommender:
        """The trained model, a torch module in eval mode, with the weights of the best epoch."""
        return self._load().model

    @property
    def dataset(self) -> Dataset:
        """The data of the run: interactions, features, graphs."""
        return self._load().dataset

    @property
    def config(self) -> Config:
        """All settings of the run."""
        return self._load().config

    def recommend(
        self,
        users: Iterable[str | int] | None = None,
        k: int = 20,
        exclude: str = "",
        explain: bool = False,
    ) -> pd.DataFrame:
        """The best k items of users: columns user, rank, item, score and, where known, title.

        users: original ids (None: all users); exclude: the splits whose items are left out of a user's list,
        as "train,valid" (by default those masked when the run was tested); explain: further columns with the
        parts of each score, see docs/recommend.md. Raises UserError for an unknown id.
        """
        from recommending.lists import Request

        return self._table(Request(topk=k, users=as_ids(users), exclude=exclude, explain=explain))

    def similar_items(self, items: Iterable[str | int], k: int = 20, by: str = "vectors") -> pd.DataFrame:
        """The k items most similar to each of some items: columns item, rank, similar_item, score, title.

        by: "vectors", the cosine of final vectors, or "weights", those of the neighbourhood term.
        """
        from recommending.lists import Request

        return self._table(Request(topk=k, similar_items=as_ids(items) or [], similar_by=by))

    def embeddings(self) -> Embeddings:
        """The final vectors of all users and items. The neighbourhood term is not part of them."""
        vectors = self._make_vectors()
        user, item = (part.float().cpu().numpy() for part in (vectors.user, vectors.item))
        return Embeddings(user, item, vectors.user_ids, vectors.item_ids)

    def _table(self, request: Request) -> pd.DataFrame:
        """The lists that a request asks for, as recommend.py writes them to a table."""
        import pandas as pd
        import torch

        from recommending.lists import make_lists

        vectors = self._make_vectors()
        with process_as_it_was(), torch.inference_mode():
            use_threads(self.config)
            lists = make_lists(request, vectors, *self._load())
            return pd.DataFrame(lists.table_rows(), columns=list(lists.table_columns()))

    def _make_vectors(self) -> Vectors:
        """Vectors, ids and titles, made once."""
        import torch

        from recommending.vectors import make_vectors

        if self._vectors is None:
            loaded = self._load()
            with process_as_it_was(), torch.inference_mode():
                use_threads(loaded.config)
                self._vectors = make_vectors(*loaded, "")
        return self._vectors

    def _load(self) -> Loaded:
        """Model, data and config, read once."""
        from recommending.trained import load_run

        if self._loaded is None:
            with process_as_it_was():
                path = checkpoint_path(str(self.folder))
                self._loaded = Loaded(*load_run(path, dict(self.settings), self.model_name))
        return self._loaded


def train(quiet: bool = False, **settings: typing.Any) -> Run:
    """Train a model, score it on the test split, and write a run folder, as main.py does.

    settings: as flags of main.py: train(dataset="demo", model="lgn", topks=(10, 20)), and preset="baby-plus",
    config="FILE" or resume="RUN_FOLDER". quiet: print nothing but progress bars.

    An interruption raises KeyboardInterrupt; the run can be resumed from its last saved epoch. Raises
    UserError for settings or data that cannot be used, and TrainingError if the training fails.
    """
    one_process("recgoat.train")
    forget_classes()
    config, notes = parse_args([f"--{name}={as_text(value)}" for name, value in settings.items()])
    if config.evaluate_only:
        raise UserError("evaluate_only: is for the command line; take recgoat.load(RUN_FOLDER).metrics")
    check_files(config)
    from session import prepare, train_prepared
    from training.stop import Stop

    with process_as_it_was():
        stop = Stop(config.max_minutes)  # the time limit alone: signals stay with the caller
        task = prepare(config, notes, echo=not quiet)
        folder, result = train_prepared(task, stop, echo=not quiet)
    run = Run(folder, config.model if is_external(config.model) else "")
    if result["status"] == "finished" and not config.eval_dropout:
        run._loaded = Loaded(task.model.eval(), task.dataset, task.config)
    return run


def load(run: str | Path, model: str = "", **settings: typing.Any) -> Run:
    """A run that was trained before.

    run: its folder; model: FILE.py:CLASS, for a model of your own; settings: where things are and what
    computes, if different from training (data_root, cuda, threads, ...). Raises UserError if there is no such
    run, or for any other setting.
    """
    forget_classes()
    folder = Path(run)
    for name in settings:
        if name not in FREE:
            raise UserError(
                f"{name}: is no setting of load; it has {', '.join(FREE)}{did_you_mean(name, FREE)}"
            )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: is no run folder; name the one that main.py or recgoat.train has written")
    flags = [f"--{name}={as_text(value)}" for name, value in settings.items()]
    return Run(folder, model, vars(make_parser().parse_args(flags)))


def as_text(value: object) -> str:
    """A setting as its flag takes it: (10, 20) -> "10,20", True -> "1"."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(int(value)) if isinstance(value, bool) else str(value)


def as_ids(ids: Iterable[str | int] | None) -> list[str] | None:
    """Ids as text."""
    return None if ids is None else [str(name) for name in ([ids] if isinstance(ids, str) else ids)]


def use_threads(config: Config) -> None:
    """Set the CPU threads of a config, on which the last bits of scores depend."""
    import torch

    if config.threads:
        torch.set_num_threads(config.threads)


@contextlib.contextmanager
def process_as_it_was() -> Iterator[None]:
    """Give random numbers and CPU threads back as they were before the block."""
    import torch

    from training.run import random_state, set_random_state

    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    state = random_state(cpu)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        set_random_state(state, cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        else:
            # The run has seeded the generators of GPUs, which have the seed of the CPU's until they are used.
            torch.cuda.manual_seed_all(torch.initial_seed())
