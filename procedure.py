"""How a model is trained: one epoch, selection on validation, the fit loop, and the final test.

The protocol: the best epoch is selected on VALIDATION (train items masked). TEST is scored once, at the end,
by the restored best model (train items masked; validation items stay candidates unless --mask_valid_at_test
1).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from data.formats import interactions_hash
from dataloader import HeldOut, Sampler
from layers.agreement import from_all, together
from layers.columns import all_parts, rank
from models.base import Recommender
from models.registry import is_external
from outgoing import shell_command
from training import projector
from training.checkpoint import read_checkpoint
from training.console import epoch_line, heading
from training.divergence import remedy, sizes
from training.evaluation import (
    Metrics,
    Result,
    beyond,
    cold_results,
    make_splits,
    ranked_lists,
    score,
    score_parts,
    scoring_mode,
)
from training.final import final_table, protocol, write_ranking
from training.folder import provenance
from training.memory import peak_memory_mb
from training.parallel import gradient_norm
from training.run import Progress, Run, load_weights, set_random_state
from training.runlog import RunLog
from training.step import Step
from training.stop import Stop
from utils import Diverged, TrainingError, write_json

# ---------------------------------------------------------------- one epoch


def train_epoch(
    model: Recommender,
    optimizer: torch.optim.Optimizer,
    sampler: Sampler,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
    step: Step | None = None,
) -> bool:
    """Make the remaining steps of an epoch; count them and sum the loss terms in `progress`.

    step: how a step is made (default: Step(model, optimizer)).

    Ends early, after a whole step, once stop() is true. Returns whether the epoch is complete. Raises
    Diverged, with the step and the term, if a loss, a gradient or a weight is not finite.
    """
    model.train()
    step = step or Step(model, optimizer)
    # Finiteness is recorded on the device and read once an epoch: a GPU never waits within it.
    first_bad, at_first_bad = torch.tensor(-1, device=sampler.pairs.device), torch.empty(0)
    batches = tqdm(
        sampler.epoch(progress.step),
        total=len(sampler),
        initial=progress.step,
        desc="steps",
        leave=False,
        delay=2,
        disable=None,
    )
    for batch in batches:
        model.begin_step(progress.epoch * len(sampler) + progress.step)
        terms = step(batch)
        progress.step += 1
        for name, value in terms.items():
            progress.sums[name] = progress.sums.get(name, 0) + value
        values = torch.stack([*terms.values()])
        first_bad = torch.where((first_bad < 0) & ~values.isfinite().all(), progress.step, first_bad)
        if not len(at_first_bad):
            at_first_bad = values
        at_first_bad = torch.where(first_bad == progress.step, values, at_first_bad)
        if stop():
            break
    batches.close()
    progress.grad_norm = gradient_norm(model.parameters())
    if first_bad > 0:
        found = dict(zip(terms, at_first_bad.tolist(), strict=True))
        bad = {name: value for name, value in found.items() if not math.isfinite(value)}
        named = sizes({name: value for name, value in bad.items() if name != "loss"} or bad)
        raise Diverged(f"epoch {progress.epoch + 1}, step {int(first_bad)}: the loss is not finite ({named})")
    check_finite(model, progress, terms)
    return progress.step == len(sampler)


def check_finite(model: Recommender, progress: Progress, terms: Mapping[str, torch.Tensor]) -> None:
    """Raise Diverged, with the terms of the last loss, if its gradient, a weight or buffer is NaN or Inf."""
    where = f"epoch {progress.epoch + 1}, step {progress.step}"
    if progress.grad_norm is not None and not progress.grad_norm.isfinite():
        raise Diverged(f"{where}: the gradient is not finite ({sizes(terms)})")
    bad = [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]
    bad = list(dict.fromkeys(name for names in from_all(bad) for name in names))
    if bad:
        raise Diverged(f"{where}: weights are not finite ({', '.join(bad)[:80]}; {sizes(terms)})")


# ---------------------------------------------------------------- fit


def fit(
    run: Run,
    stop: Callable[[], bool] = lambda: False,
    watch: Callable[[int, Metrics], bool] = lambda epoch, metrics: False,
    end: Callable[[Run, RunLog], Result] | None = None,
    echo: bool = True,
    said: Sequence[str] = (),
) -> Result:
    """Train with early stopping, then call end(run, log), by default `finish`. Returns the result.

    run: from start_run, new or restored. Once stop() is true, the state is saved and the result is
    "interrupted". watch: called after each evaluation with its epoch and metrics; training ends when it
    returns true. echo: False keeps the log lines off the console. said: lines that the console has had
    already, for train.log.
    """
    with together():
        if run.config.projector and rank() == 0:
            projector.write_labels(run.folder, run.config, run.dataset.interactions)
        if rank() == 0 and not run.is_complete:
            remove_result(run.folder)
    log = RunLog(run.folder, run.config, run.progress.epoch, echo)
    log.begin(said)
    # leave=None keeps the bar on the screen unless it is below another one.
    bar = tqdm(
        total=run.epochs,
        initial=run.progress.epoch,
        unit="epoch",
        leave=None,
        disable=None,
        dynamic_ncols=True,
    )
    try:
        with contextlib.closing(bar):
            complete = train(run, log, bar, stop, watch)
        result = (end or finish)(run, log) if complete else interrupted(run, log, stop)
        write_result(run.folder, result)
        return result
    except TrainingError as error:
        with contextlib.suppress(OSError):
            failure = {"status": "failed", "error": str(error), "epoch": run.progress.epoch}
            write_result(run.folder, failure)
            log.keep(f"error: {error}")
        raise
    finally:
        log.close()


def remove_result(folder: Path) -> None:
    """Remove what a run wrote at its end: if it trains on, this does not belong to its coming best.pt."""
    for name in ("result.json", "test_ranking.npz"):
        (folder / name).unlink(missing_ok=True)


def write_result(folder: Path, result: Result) -> None:
    """Write result.json; of several processes, process 0 does."""
    if rank() == 0:
        write_json(folder / "result.json", result)


def train(
    run: Run, log: RunLog, bar: tqdm, stop: Callable[[], bool], watch: Callable[[int, Metrics], bool]
) -> bool:
    """Train epoch after epoch, keeping best.pt and last.pt. Returns whether training has come to its end."""
    over, config, progress = False, run.config, run.progress
    began = time.perf_counter() - progress.seconds  # of a run that was never interrupted
    log.say(*heading(config))
    selection, _ = make_splits(run.dataset.interactions, config, run.device)
    while not run.is_complete:
        started = time.perf_counter() - progress.epoch_seconds
        complete = train_one(run, stop)
        progress.epoch_seconds = seconds = time.perf_counter() - started
        if run.step and run.step.notes:
            log.say(*run.step.notes)
            run.step.notes.clear()
        if not complete:
            progress.seconds = time.perf_counter() - began
            run.save("last.pt")
            return False
        means = end_epoch(run, log, seconds)
        bar.set_postfix(refresh=False, **postfix(means, progress.latest, config.selection_metric))
        bar.update()
        if progress.epoch % config.eval_every == 0 or progress.epoch == run.epochs:
            metrics = select(run, log, selection, means, seconds, began)
            over = watch(progress.epoch, metrics)
        log.flush()
        progress.seconds = time.perf_counter() - began
        if progress.epoch % config.save_every == 0:
            run.save("last.pt")
        if over or stop():
            break
    progress.seconds = time.perf_counter() - began
    run.save("last.pt")
    if progress.out_of_patience(config):
        log.say(f"stopped: {progress.waited} evaluations without a better {config.selection_metric}")
    return over or run.is_complete


def train_one(run: Run, stop: Callable[[], bool]) -> bool:
    """Train the rest of the current epoch. Returns whether it is complete."""
    if run.optimizer is None or run.step is None:
        return True
    try:
        with float32_products("high" if run.config.precision == "tf32" else "highest"):
            return train_epoch(run.model, run.optimizer, run.sampler, run.progress, stop, run.step)
    except Diverged as error:
        hint = remedy(run.config, run.dataset, str(error).startswith("epoch 1, step 1:"))
        raise Diverged(f"{error}; {last_good(run.folder)}; {hint}") from None


def postfix(means: Metrics, metrics: Metrics | None, name: str) -> dict[str, str]:
    """What the progress bar shows: the loss of the epoch and the selection metric of the last evaluation."""
    shown = {"loss": f"{means['loss']:.4f}"} if "loss" in means else {}
    return {**shown, **({name: f"{metrics[name]:.4f}"} if metrics else {})}


@contextlib.contextmanager
def float32_products(precision: str) -> Iterator[None]:
    """torch.set_float32_matmul_precision for a block: scoring, outside it, is always exact."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def last_good(folder: Path) -> str:
    """The last good checkpoint of a run folder, in words."""
    found = [folder / name for name in ("last.pt", "best.pt") if (folder / name).exists()]
    return f"the last good checkpoint is {found[0]}" if found else "there is no checkpoint yet"


def end_epoch(run: Run, log: RunLog, seconds: float) -> Metrics:
    """Log the mean loss terms of an epoch and its speed, and start counting the next. Returns the means."""
    progress, epoch = run.progress, run.progress.epoch + 1
    means = {name: float(value) / progress.step for name, value in progress.sums.items()}
    if progress.grad_norm is not None:
        means["grad_norm"] = float(progress.grad_norm)
    log.scalars("train", means, epoch)
    speed = {
        "epoch_seconds": seconds,
        "samples_per_second": len(run.dataset.interactions.train) / seconds,
        "peak_memory_mb": peak_memory_mb(run.device),
    }
    log.scalars("speed", speed, epoch)
    every = run.config.plan_image_every
    if every and (epoch == 1 or epoch % every == 0):
        log.images(run.model, epoch)
    progress.epoch, progress.step, progress.epoch_seconds = epoch, 0, 0.0
    progress.sums, progress.grad_norm = {}, None
    return means


def select(
    run: Run, log: RunLog, selection: HeldOut, means: Metrics, epoch_seconds: float, began: float
) -> Metrics:
    """Evaluate on the selection split, report, and keep the model in best.pt if it is the best so far.

    Returns the metrics. The seconds reported for the evaluation include the diagnostics. began: the time from
    which the seconds of the run count.
    """
    config, progress, started = run.config, run.progress, time.perf_counter()
    [metrics] = score(run.model, run.dataset.interactions, [selection], config)
    with torch.inference_mode():
        figures = {name: float(value) for name, value in run.model.diagnostics().items()}
    evaluation_seconds = time.perf_counter() - started
    progress.seconds = time.perf_counter() - began
    progress.latest, name = metrics, config.selection_metric
    better = progress.best is None or metrics[name] > progress.best["metrics"][name]
    progress.waited = 0 if better else progress.waited + 1
    if better:
        progress.best = {"epoch": progress.epoch, "metrics": metrics, "seconds": progress.seconds}
    log.say(epoch_line(config, progress.epoch, means.get("loss"), metrics, progress.seconds, better))
    log.scalars("model", figures, progress.epoch)
    log.scalars(config.select_on, metrics, progress.epoch)
    entry = {
        "epoch": progress.epoch,
        "step": progress.epoch * len(run.sampler),
        "seconds": progress.seconds,
        "epoch_seconds": epoch_seconds,
        "evaluation_seconds": evaluation_seconds,
        "train": means,
        config.select_on: metrics,
        "model": figures,
    }
    log.record(entry)
    if better:
        # Saved last, so that a run that continues from here finds the line of this epoch in its log.
        run.save("best.pt")
    return metrics


def format_metrics(metrics: Metrics, ks: tuple[int, ...]) -> str:
    """'recall@10 0.0501  ndcg@10 0.0271  ...'"""
    return "  ".join(f"{name}@{k} {metrics[f'{name}@{k}']:.4f}" for k in ks for name in ("recall", "ndcg"))


# ---------------------------------------------------------------- the end of a run


def interrupted(run: Run, log: RunLog, stop: Callable[[], bool]) -> Result:
    """Result of a run that was stopped; logs how to continue it."""
    progress, reason = run.progress, stop.reason if isinstance(stop, Stop) else "stopped"
    # A run never executes a stored file by itself: the user has to name it again.
    model = ["--model", run.config.model] if is_external(run.config.model) else []
    command = shell_command(["python", "main.py", "--resume", str(run.folder), *model])
    log.say(f"{reason}: stopped in epoch {progress.epoch + 1}; continue with: {command}")
    result: Result = {
        "status": "interrupted",
        "reason": reason,
        "epoch": progress.epoch,
        "step": progress.step,
        "seconds": progress.seconds,
        "versions": provenance(),
    }
    if progress.best:
        result |= {"best_epoch": progress.best["epoch"], run.config.select_on: progress.best["metrics"]}
    return result


def finish(run: Run, log: RunLog) -> Result:
    """Restore best.pt, rank and score the test split once, and log the final table. Returns the result."""
    config, best, data, started = run.config, run.progress.best, run.dataset.interactions, time.perf_counter()
    assert best is not None  # a complete run has evaluated its last epoch
    state = read_checkpoint(run.folder / "best.pt")
    load_weights(run.model, state)
    # Dropout in scoring (--eval_dropout 1) draws the masks with which this epoch was selected.
    set_random_state(state["random"], run.device)
    selection, split = make_splits(data, config, run.device)
    beyond_valid = {}
    if config.select_on == "valid":
        beyond_valid["valid"] = beyond(ranked_lists(run.model, data, selection, config), data, config)
    scored = {config.select_on: selection, "test": split}
    with scoring_mode(run.model, config):
        test, lists = score_parts(run.model, data, split, config, max(config.topks))
        if rank() == 0:
            write_ranking(run.folder / "test_ranking.npz", torch.cat(lists), split, run.dataset)
        if config.projector:
            projector.write_vectors(run.folder, *(all_parts(x, 1) for x in run.model.final_vectors()))
    # A best epoch that was selected on test is reported as it was selected.
    splits = {"test": test} | {config.select_on: best["metrics"]}
    result = {
        "status": "finished",
        "best_epoch": best["epoch"],
        "epochs": run.progress.epoch,
        **splits,
        "beyond_accuracy": {**beyond_valid, "test": beyond(torch.cat(lists), data, config)},
        **cold_results(run.model, data, scored, config),
        "protocol": protocol(config),
        "data": {
            "interactions": interactions_hash(data),
            "features": run.dataset.feature_hashes,
            "all": run.dataset.fingerprint,
        },
        "seconds": run.progress.seconds,
        "seconds_to_best": best["seconds"],
        "test_seconds": time.perf_counter() - started,
        "peak_memory_mb": peak_memory_mb(run.device),
        "device": str(run.device),
        "versions": provenance(),
    }
    log.images(run.model, best["epoch"], "_best")
    for name, values in result["beyond_accuracy"].items():
        log.scalars(
            "beyond_accuracy", {f"{name} {key}": value for key, value in values.items()}, best["epoch"]
        )
    log.finish(config, best["epoch"], **{f"{config.select_on}_best": best["metrics"], "test": splits["test"]})
    duration = f"{result['seconds']:.1f} s, test in {result['test_seconds']:.1f} s"
    log.say(f"trained {result['epochs']} epochs in {duration}", final_table(result, config))
    return result
