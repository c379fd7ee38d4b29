"""Training epochs, evaluation, and the fit loop with its run folder, checkpoints and resume.

The protocol: the best epoch is chosen on VALIDATION (train items masked); TEST is scored once, at the end, by the
restored best model (train items masked; validation items stay candidates unless --mask_valid_at_test 1).
"""

import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time

import numpy as np
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

import projector
from dataloader import Sampler, held_out
from data.formats import interactions_hash
from utils import Diverged, TrainingError, UserError, atomic_write
from world import peak_memory_mb
from training.metrics import ranking_metrics
from training.checkpoint import CHECKPOINT_FORMAT, read_checkpoint
from layers.topk import first_columns
from world import provenance, write_json


# ---------------------------------------------------------------- one epoch, one evaluation

def train_epoch(model, optimizer, sampler, progress, stop=lambda: False):
    """The rest of one pass over a Sampler's batches, counted in progress.step and progress.sums.

    Ends early, after a whole step, when stop() is true. Returns whether the pass is complete.
    Raises Diverged with the step and the term if the loss or a gradient is not finite.
    """
    model.train()
    first_bad, finite_then = torch.tensor(-1, device=sampler.pairs.device), None
    batches = tqdm(sampler.epoch(progress.step), total=len(sampler), initial=progress.step, desc="steps", leave=False, delay=2)
    for batch in batches:
        terms = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()
        progress.step += 1
        for name, value in terms.items():      # on the device: no host synchronisation a step
            progress.sums[name] = progress.sums.get(name, 0) + value.detach()
        finite = torch.stack([value.detach() for value in terms.values()]).isfinite()
        first_bad = torch.where((first_bad < 0) & ~finite.all(), progress.step, first_bad)
        finite_then = finite if finite_then is None else torch.where(first_bad == progress.step, finite, finite_then)
        if stop():
            break
    batches.close()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    progress.grad_norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    if first_bad > 0:
        bad = [name for name, fine in zip(terms, finite_then.tolist()) if not fine]
        raise Diverged(f"epoch {progress.epoch + 1}, step {int(first_bad)}: the loss is not finite "
                       f"({', '.join([name for name in bad if name != 'loss'] or bad)})")
    check_finite(model, progress)
    return progress.step == len(sampler)


def check_finite(model, progress):
    """Raise Diverged if the gradient norm or a weight is NaN or Inf after the steps of the epoch under way."""
    if not progress.grad_norm.isfinite():
        raise Diverged(f"epoch {progress.epoch + 1}, step {progress.step}: the gradient is not finite")
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise Diverged(f"epoch {progress.epoch + 1}, step {progress.step}: weights are not finite ({', '.join(bad)[:80]})")


def row_numbers(crow, start, stop):
    """Rows start..stop of a CSR -> the row of each of their entries, counted from 0."""
    counts = crow[start + 1:stop + 1] - crow[start:stop]
    return torch.repeat_interleave(torch.arange(stop - start, device=crow.device), counts)


GROUP = 64              # columns of a score matrix that are looked at together


def chunk_size(n_items, device):
    """Users to score at a time: as many as keep the scores in the cache of a CPU, or 1 GB of them on a GPU."""
    return max((2**21 if device.type == "cpu" else 2**28) // n_items, 64)


@torch.inference_mode()
def score_chunks(user, item, split, chunk=0):
    """Scores of all items for the users of a HeldOut split. Yields (start, stop, [rows, n]), n: I rounded up to a multiple of GROUP.

    user: [U, d], item: [I, d]; chunk: users scored at a time, 0: as many as suit the device. Masked items score less than any
    other, but more than the columns that are no items. The memory of a chunk is that of the next one.
    """
    chunk, n_items = chunk or chunk_size(len(item), item.device), len(item)
    item = torch.cat([item, item.new_zeros(-n_items % GROUP, item.shape[1])]).T
    crow, masked = split.masked
    buffer = item.new_empty(min(chunk, len(split.users)), item.shape[1])
    for start in tqdm(range(0, len(split.users), chunk), desc="ranking", unit="chunk", leave=False, delay=2):
        stop = min(start + chunk, len(split.users))
        scores = torch.mm(user[split.users[start:stop]], item, out=buffer[:stop - start])
        scores[:, n_items:] = -torch.inf
        scores[row_numbers(crow, start, stop), masked[crow[start]:crow[stop]]] = torch.finfo(scores.dtype).min
        yield start, stop, scores


def rank_items(user, item, split, k, chunk=0):
    """Best k items of every user of a HeldOut split, of equal ones the lower first. Yields (start, stop, [rows, k] item ids) chunk by chunk.

    user, item, chunk: as score_chunks takes them. With fewer than k candidates, masked items fill the end.
    """
    for start, stop, scores in score_chunks(user, item, split, chunk):
        yield start, stop, first_columns(scores, k, GROUP)


def ranks_of(scores, row, column, k):
    """Ranks, from 0, of some entries of a score matrix among the columns of their rows; k for all that are not among the first k.

    scores: [rows, n], n a multiple of GROUP; row, column: [m] int64. Of equal scores the lower column comes first; a score that is
    NaN comes last, and behind a NaN. Returns [m] int64.
    A score below the maxima of k groups is not among the first k, which settles most of them; for the others it is enough
    to count in the groups with a larger maximum and in their own.
    """
    groups = scores.view(len(scores), -1, GROUP)
    score, own = scores[row, column][:, None], (column // GROUP)[:, None]
    best, number = groups.amax(2).index_select(0, row), torch.arange(groups.shape[1], device=scores.device)
    lower = torch.where(number < own, best < score, best <= score)          # groups without a column that is certain to come first
    near = (lower.sum(1) > groups.shape[1] - k).nonzero()[:, 0]
    entry, group = (~lower[near] | (number == own[near])).nonzero().unbind(1)
    at = near[entry]
    members = groups.flatten(0, 1).index_select(0, row[at] * groups.shape[1] + group)                  # [p, GROUP]
    columns = group[:, None] * GROUP + torch.arange(GROUP, device=scores.device)
    behind = torch.where(columns < column[at, None], members < score[at], members <= score[at]).sum(1)
    ranks = torch.full_like(row, k)
    ranks[near] = torch.zeros_like(near).index_add_(0, entry, GROUP - behind).clamp_(max=k)
    return ranks


def certain_misses(user, item, split, row, column, k, chunk=0, share=8):
    """Which entries (row of a HeldOut, item) have k better items for sure, from a part of the scores: [m] bool.

    row, column: [m] int64, rows ascending. One item in `share` is scored, those with the highest mean score: enough to tell
    that most relevant items are not among the first k. What this cannot tell is False. Two ways to make a score differ by
    rounding, but by less than half the margin here, so that all scores at hand decide as this does.
    """
    few = len(item) // share // GROUP * GROUP
    missed = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    if few < 4 * share * k:
        return missed
    liked = (item @ user.mean(0)).topk(few).indices
    place = torch.full_like(item[:, 0], -1, dtype=torch.int64).index_copy_(0, liked, torch.arange(few, device=item.device))
    crow, masked = split.masked[0], place[split.masked[1]]
    kept = torch.cat([crow.new_zeros(1), (masked >= 0).cumsum(0)])
    short = dataclasses.replace(split, masked=(kept[crow], masked[masked >= 0]))
    margin = 4 * item.shape[1] * torch.finfo(item.dtype).eps * item.norm(dim=1).max() * user.norm(dim=1)
    for start, stop, scores in score_chunks(user, item[liked], short, chunk):
        part = bounds(row, start, stop)
        who = split.users[row[part]]
        bar = (user[who] * item[column[part]]).sum(1) + margin[who]
        best = scores.view(len(scores), share, -1).amax(1)              # [rows, few / share]
        missed[part] = (best.index_select(0, row[part] - start) > bar[:, None]).sum(1) >= k
    return missed


def bounds(row, start, stop):
    """Slice of the entries of an ascending row [m] that lie in rows start..stop."""
    return slice(*torch.searchsorted(row, row.new_tensor([start, stop])).tolist())


def relevant_ranks(user, item, splits, k, chunk=0):
    """Ranks, as ranks_of gives them, of the relevant items of HeldOut splits that rank alike: a list of [n], in the order of relevant."""
    row, order = torch.cat([row_numbers(split.relevant[0], 0, len(split.users)) for split in splits]).sort(stable=True)
    column = torch.cat([split.relevant[1] for split in splits])[order]
    ranks = torch.full_like(row, k)
    undecided = (~certain_misses(user, item, splits[0], row, column, k, chunk)).nonzero()[:, 0]
    rows, row = row[undecided].unique_consecutive(return_inverse=True)
    column, order = column[undecided], order[undecided]
    for start, stop, scores in score_chunks(user, item, splits[0].take(rows), chunk):
        part = bounds(row, start, stop)
        ranks[order[part]] = ranks_of(scores, row[part] - start, column[part], k)
    return ranks.split([len(split.relevant[1]) for split in splits])


def mean_metrics(ranks, split, ks):
    """{"recall@10": mean over the users of a split, ...} from the ranks of its relevant items."""
    crow, k = split.relevant[0], max(ks)
    hits = torch.zeros(len(split.users), k + 1, dtype=torch.bool, device=ranks.device)       # the last column: not among the first k
    hits[row_numbers(crow, 0, len(split.users)), ranks] = True
    return {name: float(values.mean()) for name, values in ranking_metrics(hits[:, :k], crow.diff(), ks).items()}


@torch.inference_mode()
def evaluate(user, item, splits, ks, chunk=0):
    """Full-ranking metrics of each split: a list of {"recall@10": mean over its users, ...}.

    user: [U, d], item: [I, d] final vectors; splits: list of HeldOut; ks: cut-offs, at most I; chunk: as score_chunks takes it.
    No list of items is made: the ranks of the relevant items say it all. Splits with the same users and masks share the scores.
    """
    metrics = {}
    for first in splits:
        alike = [i for i, split in enumerate(splits) if i not in metrics and split.ranks_like(first)]
        if alike:
            ranks = relevant_ranks(user, item, [splits[i] for i in alike], max(ks), chunk)
            metrics.update({i: mean_metrics(found, splits[i], ks) for i, found in zip(alike, ranks)})
    return [metrics[i] for i in range(len(splits))]


@contextlib.contextmanager
def final_vectors(model, config):
    """The model's user and item vectors in eval mode (with --eval_dropout 1, dropout alone stays on), restoring its mode.

    Leaves the random state of training as it was.
    """
    was_training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train(bool(config.eval_dropout))
    with torch.inference_mode(), torch.random.fork_rng(enabled=bool(config.eval_dropout)):
        yield model.embeddings()
    model.train(was_training)


def score(model, splits, config):
    """Evaluate a model on a list of splits, as final_vectors says."""
    with final_vectors(model, config) as (user, item):
        return evaluate(user, item, splits, config.topks, config.eval_chunk)


def splits_of(interactions, config, device):
    """(selection split, test split) as HeldOut, each with its masks."""
    train, valid, test = interactions.train, interactions.valid, interactions.test
    test_split = held_out(test, [train, valid] if config.mask_valid_at_test else [train], device)
    return (test_split if config.select_on == "test" else held_out(valid, [train], device)), test_split


# ---------------------------------------------------------------- the log of a run

class Board:
    """A TensorBoard event file of one process of a run.

    tensorboardX's SummaryWriter writes from a thread: on a full disk the thread dies with a traceback and the run waits
    for it for ever. Here every event is written where it is made, and the error reaches the caller.

    epoch: the epoch the process starts from; TensorBoard drops what an earlier process wrote beyond it.
    """

    def __init__(self, folder, epoch):
        self.file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")     # two of one second have two names
        self.write(epoch + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step, **content):
        """One event: summary= or session_log=."""
        self.file.write_event(Event(wall_time=time.time(), step=step, **content))

    def add(self, summaries, step=0):
        """Summaries of tensorboardX.summary, at a step."""
        for part in summaries:
            self.write(step, summary=part)

    def flush(self):
        """Bring the events to disk."""
        self.file.flush()

    def close(self):
        """Flush and close the file."""
        self.file.close()


class RunLog:
    """Writes what a run has to say: console and train.log, metrics.jsonl, TensorBoard events.

    epoch: the epoch that a resumed run starts from; what an earlier process wrote beyond it is dropped.
    """

    def __init__(self, folder, config, epoch=0):
        self.folder = folder
        keep_lines(folder / "metrics.jsonl", epoch)
        self.board = Board(folder, epoch) if config.tensorboard else None
        self.text = open(folder / "train.log", "a", encoding="utf-8")
        self.lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")

    def say(self, line):
        """A line for the reader, on the console (above any progress bar) and in train.log."""
        tqdm.write(line)
        sys.stdout.flush()                      # a redirected log is read while the run goes on
        print(line, file=self.text, flush=True)

    def record(self, entry):
        """One evaluation as a line of metrics.jsonl."""
        print(json.dumps(entry), file=self.lines, flush=True)

    def scalars(self, group, values, epoch):
        """Numbers as TensorBoard scalars group/name."""
        if self.board:
            self.board.add([summary.scalar(f"{group}/{name}", float(value)) for name, value in values.items()], epoch)

    def plans(self, model, epoch):
        """Each transport plan as a TensorBoard image, scaled to its largest entry."""
        if not self.board:
            return
        for m, transport in getattr(getattr(model, "fusion", None), "transports", {}).items():
            plan = transport.plan / transport.plan.max().clamp_min(1e-30)
            self.board.add([summary.image(f"plan/{m}", plan.cpu().numpy(), dataformats="HW")], epoch)

    def conclude(self, config, epoch, **groups):
        """Final metrics, of the best epoch: as scalars group/name, and the main ones beside the settings as a TensorBoard hparams entry.

        TensorBoard shows the first five: the selection metric in the first group, recall and NDCG in the last.
        """
        for group, metrics in groups.items():
            self.scalars(group, metrics, epoch)
        if self.board:
            first, *_, last = [*groups, *groups]
            tags = [f"{first}/{config.selection_metric}", *(f"{last}/{name}" for name in groups[last] if name.startswith(("recall", "ndcg")))]
            flat = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in config.as_dict().items()}
            experiment, *session = summary.hparams(flat, dict.fromkeys(tag.replace("@", "_") for tag in tags))       # as scalars have it
            mark_changed(experiment.value[0].metadata.plugin_data, config.chosen())
            self.board.add([experiment, *session])

    def flush(self):
        """Bring the TensorBoard events to disk; the other files are there after every line."""
        if self.board:
            self.board.flush()

    def close(self):
        """Flush and close all files, each of them even if another fails."""
        with contextlib.ExitStack() as files:
            for file in filter(None, (self.board, self.text, self.lines)):
                files.callback(file.close)


def mark_changed(plugin_data, names):
    """Let TensorBoard show these settings before the others, of which it shows but the first few."""
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin_data.content = content.SerializeToString()


def keep_lines(path, epoch):
    """Drop the lines of a metrics.jsonl that are half-written or later than epoch."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["epoch"] <= epoch:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path, "w") as file:
        file.writelines(kept)


# ---------------------------------------------------------------- checkpoints

@dataclasses.dataclass
class Progress:
    """How far a run has come. Numbers, tensors and dicts only, so that reading a checkpoint never needs pickle."""
    epoch: int = 0                 # finished epochs
    step: int = 0                  # finished steps of the epoch under way
    sums: dict = dataclasses.field(default_factory=dict)   # loss terms summed over those steps
    grad_norm: torch.Tensor | None = None                  # of the last step
    seconds: float = 0.0           # of training and evaluation, over all processes of the run
    best: dict | None = None       # {"epoch", "metrics", "seconds"} of the best evaluation
    latest: dict | None = None     # metrics of the last evaluation
    waited: int = 0                # evaluations since the best

    def stopped_early(self, config):
        """Whether patience is used up."""
        return bool(config.patience) and self.waited >= config.patience

    def check(self, config, steps):
        """Raise ValueError if a run of these settings with so many steps an epoch cannot have come to this."""
        scores = [self.latest, self.best and self.best["metrics"]]
        if not (self.step < steps and type(self.waited) is int and isinstance(self.seconds, float)
                and all(isinstance(total, torch.Tensor) and total.shape == () for total in self.sums.values())
                and all(values is None or isinstance(values[config.selection_metric], float) for values in scores)
                and (self.best is None or type(self.best["epoch"]) is int and isinstance(self.best["seconds"], float))
                and (self.best is not None or self.epoch < config.epochs)):
            raise ValueError("its progress makes no sense")


@dataclasses.dataclass
class Run:
    """A training run: what a checkpoint saves, and where it goes."""
    config: object
    folder: object
    device: torch.device
    dataset: object
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    sampler: Sampler
    progress: Progress

    def save(self, name):
        """Write a checkpoint into the run folder, atomically. Raises TrainingError if it cannot be written."""
        state = {"format": CHECKPOINT_FORMAT, "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "progress": vars(self.progress), "random": random_state(self.device), "sampler": self.sampler.state(self.progress.step),
                 "config": self.config.as_dict(), "data": self.dataset.fingerprint}
        try:
            with atomic_write(self.folder / name) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            raise TrainingError(f"{self.folder / name}: cannot be written ({getattr(error, 'strerror', None) or str(error).splitlines()[0][:80]}); "
                                "earlier checkpoints are whole: free space or mend the folder") from None

    def restore(self, state):
        """Continue from a checkpoint of the same data and settings. Raises UserError if it is of others."""
        if state["data"] != self.dataset.fingerprint:
            raise UserError(f"{self.folder}: the data have changed since this run began; restore the interactions, features and "
                            "graphs it was started with, or start a new run")
        try:
            self._load(state)
        except Exception as error:  # state of another shape, type or name raises one of many
            reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()[:120]
            raise UserError(f"{self.folder}: its checkpoint does not fit these settings ({reason}); start a new run") from None

    def _load(self, state):
        fixed = [{**group, "params": None} for group in self.optimizer.state_dict()["param_groups"]]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if [{**group, "params": None} for group in self.optimizer.state_dict()["param_groups"]] != fixed:
            raise ValueError("the optimiser has other settings")
        for weight, moments in self.optimizer.state.items():
            if moments.keys() != {"step", "exp_avg", "exp_avg_sq"} or any(
                    moments[name].shape != shape for name, shape in (("step", ()), ("exp_avg", weight.shape), ("exp_avg_sq", weight.shape))):
                raise ValueError("the optimiser's state is of another shape")
        self.progress = Progress(**state["progress"])
        self.progress.check(self.config, len(self.sampler))
        self.sampler.generator.set_state(state["sampler"].cpu())
        set_random_state(state["random"], self.device)


def start_run(model, dataset, config, folder, device):
    """A Run at its very beginning."""
    train = dataset.interactions.train
    sampler = Sampler(train, dataset.interactions.n_items, config.bpr_batch, config.seed, device, bool(config.neg_reject))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.lr, fused=True)
    return Run(config, folder, device, dataset, model, optimizer, sampler, Progress())


def random_state(device):
    """State of the random generators of torch, NumPy, Python and the GPU, as tensors and numbers."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "python": [version, list(words), gauss], "numpy": [name, keys.tolist(), position, has_gauss, cached]}


def set_random_state(state, device):
    """Undo random_state."""
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


# ---------------------------------------------------------------- stopping

class Stop:
    """True once SIGINT or SIGTERM has come or the time is up; a second signal leaves at once.

    minutes: 0 for no limit. Use as a context manager: the handlers are put back on leaving.
    """

    def __init__(self, minutes=0.0):
        self.signal = None
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def __call__(self):
        return self.signal is not None or time.monotonic() >= self.deadline

    @property
    def reason(self):
        """'SIGTERM', 'SIGINT' or 'max_minutes'."""
        return signal.Signals(self.signal).name if self.signal else "max_minutes"

    @property
    def exit_code(self):
        """130 after SIGINT, 143 after SIGTERM, 0 when the time was up."""
        return 128 + self.signal if self.signal else 0

    def _handle(self, number, frame):
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        os.write(2, f"\n{signal.Signals(number).name}: finishing the step and saving; once more to leave at once\n".encode())

    def __enter__(self):
        self.before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- fit

def fit(run, stop=lambda: False, watch=lambda epoch, metrics: False, end=None):
    """Train with early stopping, then end(run, log), by default `finish`. Returns the content of result.json, which it gives.

    run: from start_run, fresh or restored. When stop() turns true, the state is saved and the result says "interrupted".
    watch: called after each evaluation with its epoch and metrics; when it returns true, training is over.
    """
    if run.config.projector:
        projector.write_labels(run.folder, run.config, run.dataset.interactions)
    log = RunLog(run.folder, run.config, run.progress.epoch)
    try:
        with contextlib.closing(tqdm(total=run.config.epochs, initial=run.progress.epoch, unit="epoch", dynamic_ncols=True,
                                     leave=None)) as bar:       # None: it stays unless it lies below another bar
            complete = train(run, log, bar, stop, watch)
        result = (end or finish)(run, log) if complete else interrupted(run, log, stop)
        write_json(run.folder / "result.json", result)
        return result
    except TrainingError as error:
        with contextlib.suppress(OSError):
            write_json(run.folder / "result.json", {"status": "failed", "error": str(error), "epoch": run.progress.epoch})
        raise
    finally:
        log.close()


def train(run, log, bar, stop, watch):
    """The epochs. Keeps best.pt and last.pt. Returns whether training came to its end."""
    over = False
    config, progress = run.config, run.progress
    selection, _ = splits_of(run.dataset.interactions, config, run.device)
    while progress.epoch < config.epochs and not progress.stopped_early(config):
        started = time.perf_counter()
        try:
            with float32_products("high" if config.precision == "tf32" else "highest"):
                complete = train_epoch(run.model, run.optimizer, run.sampler, progress, stop)
        except Diverged as error:
            raise Diverged(f"{error}; {last_good(run.folder)}; start a run with a lower --lr") from None
        progress.seconds += time.perf_counter() - started
        if not complete:
            run.save("last.pt")
            return False
        seconds = time.perf_counter() - started
        means = end_epoch(run, log, seconds)
        bar.set_postfix(loss=f"{means['loss']:.4f}", refresh=False,
                        **({config.selection_metric: f"{progress.latest[config.selection_metric]:.4f}"} if progress.latest else {}))
        bar.update()
        if progress.epoch % config.eval_every == 0 or progress.epoch == config.epochs:
            select(run, log, selection, means, seconds)
            over = watch(progress.epoch, progress.latest)
        log.flush()
        if progress.epoch % config.save_every == 0:
            run.save("last.pt")
        if over or stop():
            break
    run.save("last.pt")
    if progress.stopped_early(config):
        log.say(f"stopped: {progress.waited} evaluations without a better {config.selection_metric}")
    return over or progress.stopped_early(config) or progress.epoch >= config.epochs


@contextlib.contextmanager
def float32_products(precision):
    """torch.set_float32_matmul_precision for the block, and the one before after it: scores are always exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def last_good(folder):
    """Which checkpoint is the last good one, in words."""
    there = [folder / name for name in ("last.pt", "best.pt") if (folder / name).exists()]
    return f"the last good checkpoint is {there[0]}" if there else "there is no checkpoint yet"


def end_epoch(run, log, seconds):
    """Close the books of an epoch: mean loss terms as floats, to TensorBoard too; counters to the next epoch."""
    progress, epoch = run.progress, run.progress.epoch + 1
    means = {name: float(value) / progress.step for name, value in progress.sums.items()}
    means["grad_norm"] = float(progress.grad_norm)
    samples = len(run.dataset.interactions.train)
    log.scalars("train", means, epoch)
    log.scalars("speed", {"epoch_seconds": seconds, "samples_per_second": samples / seconds,
                          "peak_memory_mb": peak_memory_mb(run.device)}, epoch)
    if run.config.plan_image_every and (epoch == 1 or epoch % run.config.plan_image_every == 0):
        log.plans(run.model, epoch)
    progress.epoch, progress.step, progress.sums, progress.grad_norm = epoch, 0, {}, None
    return means


def select(run, log, selection, means, seconds):
    """Evaluate on the selection split; keep the model in best.pt if it is the best so far; report. seconds: of the epoch."""
    config, progress, started = run.config, run.progress, time.perf_counter()
    [metrics] = score(run.model, [selection], config)
    progress.latest, scoring = metrics, time.perf_counter() - started
    progress.seconds += scoring
    name = config.selection_metric
    better = progress.best is None or metrics[name] > progress.best["metrics"][name]
    progress.waited = 0 if better else progress.waited + 1
    if better:
        progress.best = {"epoch": progress.epoch, "metrics": metrics, "seconds": progress.seconds}
    log.say(f"epoch {progress.epoch:4d}  loss {means['loss']:.4f}  {config.select_on} {format_metrics(metrics, config.topks)}  "
            f"{progress.seconds:.0f} s{'  *' if better else ''}")
    run.model.eval()
    with torch.inference_mode():
        inside = {key: float(value) for key, value in run.model.diagnostics().items()}
    log.scalars("model", inside, progress.epoch)
    log.scalars(config.select_on, metrics, progress.epoch)
    log.record({"epoch": progress.epoch, "step": progress.epoch * len(run.sampler), "seconds": progress.seconds,
                "epoch_seconds": seconds, "evaluation_seconds": scoring, "train": means,
                config.select_on: metrics, "model": inside})
    if better:                                 # last: a run that goes on from here has this epoch's line already
        run.save("best.pt")


def format_metrics(metrics, ks):
    """'recall@10 0.0501  ndcg@10 0.0271  ...'"""
    return "  ".join(f"{name}@{k} {metrics[f'{name}@{k}']:.4f}" for k in ks for name in ("recall", "ndcg"))


def interrupted(run, log, stop):
    """What result.json says of a run that was stopped, and a line that says how to go on."""
    progress = run.progress
    log.say(f"{stop.reason}: stopped in epoch {progress.epoch + 1}; go on with: python main.py --resume {run.folder}")
    best = {"best_epoch": progress.best["epoch"], run.config.select_on: progress.best["metrics"]} if progress.best else {}
    return {"status": "interrupted", "reason": stop.reason, "epoch": progress.epoch, "step": progress.step, **best,
            "seconds": progress.seconds, "versions": provenance()}


def finish(run, log):
    """Restore best.pt, rank and score the test split once, write the final table. Returns the content of result.json."""
    config, best, data, started = run.config, run.progress.best, run.dataset.interactions, time.perf_counter()
    run.model.load_state_dict(read_checkpoint(run.folder / "best.pt")["model"])
    _, split = splits_of(data, config, run.device)
    with final_vectors(run.model, config) as (user, item):
        [test] = evaluate(user, item, [split], config.topks, config.eval_chunk)
        top = torch.cat([top for _, _, top in rank_items(user, item, split, max(config.topks), config.eval_chunk)])
        if config.projector:
            projector.write_vectors(run.folder, user, item)
    write_ranking(run.folder / "test_ranking.npz", top, split, data)
    result = {
        "status": "finished", "best_epoch": best["epoch"], "epochs": run.progress.epoch, config.select_on: best["metrics"], "test": test,
        "protocol": protocol(config), "data": {"interactions": interactions_hash(data), "all": run.dataset.fingerprint},
        "seconds": run.progress.seconds, "seconds_to_best": best["seconds"], "test_seconds": time.perf_counter() - started,
        "peak_memory_mb": peak_memory_mb(run.device), "device": str(run.device), "versions": provenance()}
    log.conclude(config, best["epoch"], **{f"{config.select_on}_best": best["metrics"], "test": test})
    log.say(final_table(result, config))
    return result


def write_ranking(path, top, split, data):
    """The test ranking for whoever wants another metric or a part of the users, a .npz without pickles, all int32:

    users [n], items [n, K] best first, relevant_crow [n + 1] and relevant_items (CSR), history [n] (train interactions of the
    user), popularity [I] (of the item).
    """
    users, (crow, relevant) = split.users.cpu().numpy(), split.relevant
    history, popularity = (np.bincount(ids, minlength=n) for ids, n in zip(data.train.T, (data.n_users, data.n_items)))
    arrays = {"users": users, "items": top, "relevant_crow": crow, "relevant_items": relevant, "history": history[users],
              "popularity": popularity}
    with atomic_write(path) as file:
        np.savez_compressed(file, **{name: np.asarray(array.cpu() if torch.is_tensor(array) else array, np.int32)
                                     for name, array in arrays.items()})


def score_checkpoint(model, dataset, config, device):
    """Score --checkpoint on the selection and the test split: the final table as text."""
    state = read_checkpoint(config.checkpoint)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"{config.checkpoint}: does not fit this dataset or these settings ({str(error).splitlines()[-1].strip()[:120]}); "
                        "use those it was trained with") from None
    selection, test = score(model, splits_of(dataset.interactions, config, device), config)
    result = {"best_epoch": state["progress"]["epoch"], config.select_on: selection, "test": test, "protocol": protocol(config)}
    return final_table(result, config)


def protocol(config):
    """How a run was selected and scored, for result.json."""
    return {"selected_on": config.select_on, "selection_metric": config.selection_metric, "eval_dropout": config.eval_dropout,
            "masked_at_test": ["train", "valid"] if config.mask_valid_at_test else ["train"]}


def final_table(result, config):
    """Metrics of the selection and the test split as a table, with the protocol beneath."""
    names = ("recall", "ndcg", "precision", "map", "hitrate")
    lines = [f"best epoch {result['best_epoch']}, chosen by {config.selection_metric} on {config.select_on}",
             "".join([f"{'split':<8}{'K':>5}", *(f"{name:>11}" for name in names)])]
    for split in dict.fromkeys((config.select_on, "test")):
        lines += ["".join([f"{split:<8}{k:>5}", *(f"{result[split][f'{name}@{k}']:>11.4f}" for name in names)])
                  for k in config.topks]
    masked = " and ".join(result["protocol"]["masked_at_test"])
    lines.append(f"full ranking; {masked} items masked at test" + ("" if config.mask_valid_at_test else ", validation items are candidates"))
    if config.select_on == "test":
        lines.append("WARNING: the best epoch was selected on TEST; these figures leak and are not comparable")
    return "\n".join(lines)
