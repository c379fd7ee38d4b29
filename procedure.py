"""Training epochs, evaluation, and the fit loop with its run folder, checkpoints and resume.

The protocol: the best epoch is chosen on VALIDATION (train items masked); TEST is scored once, at the end, by the
restored best model (train items masked; validation items stay candidates unless --mask_valid_at_test 1).
"""

import contextlib
import time

import numpy as np
import torch
from tqdm import tqdm

from data.formats import interactions_hash
from dataloader import held_out
from training import projector
from training.checkpoint import read_checkpoint
from training.ranking import evaluate, rank_items
from training.runlog import RunLog
from utils import Diverged, TrainingError, UserError, atomic_write
from world import peak_memory_mb, provenance, write_json

# ---------------------------------------------------------------- one epoch, one evaluation


def train_epoch(model, optimizer, sampler, progress, stop=lambda: False):
    """The rest of one pass over a Sampler's batches, counted in progress.step and progress.sums.

    Ends early, after a whole step, when stop() is true. Returns whether the pass is complete.
    Raises Diverged with the step and the term if the loss or a gradient is not finite.
    """
    model.train()
    first_bad, finite_then = torch.tensor(-1, device=sampler.pairs.device), None
    batches = tqdm(
        sampler.epoch(progress.step),
        total=len(sampler),
        initial=progress.step,
        desc="steps",
        leave=False,
        delay=2,
    )
    for batch in batches:
        terms = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()
        progress.step += 1
        for name, value in terms.items():  # on the device: no host synchronisation a step
            progress.sums[name] = progress.sums.get(name, 0) + value.detach()
        finite = torch.stack([value.detach() for value in terms.values()]).isfinite()
        first_bad = torch.where((first_bad < 0) & ~finite.all(), progress.step, first_bad)
        finite_then = (
            finite if finite_then is None else torch.where(first_bad == progress.step, finite, finite_then)
        )
        if stop():
            break
    batches.close()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    progress.grad_norm = torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())
    if first_bad > 0:
        bad = [name for name, fine in zip(terms, finite_then.tolist()) if not fine]
        raise Diverged(
            f"epoch {progress.epoch + 1}, step {int(first_bad)}: the loss is not finite "
            f"({', '.join([name for name in bad if name != 'loss'] or bad)})"
        )
    check_finite(model, progress)
    return progress.step == len(sampler)


def check_finite(model, progress):
    """Raise Diverged if the gradient norm or a weight is NaN or Inf after the steps of the epoch under way."""
    if not progress.grad_norm.isfinite():
        raise Diverged(f"epoch {progress.epoch + 1}, step {progress.step}: the gradient is not finite")
    bad = [name for name, weight in model.named_parameters() if not weight.isfinite().all()]
    if bad:
        raise Diverged(
            f"epoch {progress.epoch + 1}, step {progress.step}: weights are not finite ({', '.join(bad)[:80]})"
        )


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
        with contextlib.closing(
            tqdm(
                total=run.config.epochs,
                initial=run.progress.epoch,
                unit="epoch",
                dynamic_ncols=True,
                leave=None,
            )
        ) as bar:  # None: it stays unless it lies below another bar
            complete = train(run, log, bar, stop, watch)
        result = (end or finish)(run, log) if complete else interrupted(run, log, stop)
        write_json(run.folder / "result.json", result)
        return result
    except TrainingError as error:
        with contextlib.suppress(OSError):
            write_json(
                run.folder / "result.json",
                {"status": "failed", "error": str(error), "epoch": run.progress.epoch},
            )
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
        bar.set_postfix(
            loss=f"{means['loss']:.4f}",
            refresh=False,
            **(
                {config.selection_metric: f"{progress.latest[config.selection_metric]:.4f}"}
                if progress.latest
                else {}
            ),
        )
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
    log.scalars(
        "speed",
        {
            "epoch_seconds": seconds,
            "samples_per_second": samples / seconds,
            "peak_memory_mb": peak_memory_mb(run.device),
        },
        epoch,
    )
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
    log.say(
        f"epoch {progress.epoch:4d}  loss {means['loss']:.4f}  {config.select_on} {format_metrics(metrics, config.topks)}  "
        f"{progress.seconds:.0f} s{'  *' if better else ''}"
    )
    run.model.eval()
    with torch.inference_mode():
        inside = {key: float(value) for key, value in run.model.diagnostics().items()}
    log.scalars("model", inside, progress.epoch)
    log.scalars(config.select_on, metrics, progress.epoch)
    log.record(
        {
            "epoch": progress.epoch,
            "step": progress.epoch * len(run.sampler),
            "seconds": progress.seconds,
            "epoch_seconds": seconds,
            "evaluation_seconds": scoring,
            "train": means,
            config.select_on: metrics,
            "model": inside,
        }
    )
    if better:  # last: a run that goes on from here has this epoch's line already
        run.save("best.pt")


def format_metrics(metrics, ks):
    """'recall@10 0.0501  ndcg@10 0.0271  ...'"""
    return "  ".join(f"{name}@{k} {metrics[f'{name}@{k}']:.4f}" for k in ks for name in ("recall", "ndcg"))


def interrupted(run, log, stop):
    """What result.json says of a run that was stopped, and a line that says how to go on."""
    progress = run.progress
    log.say(
        f"{stop.reason}: stopped in epoch {progress.epoch + 1}; go on with: python main.py --resume {run.folder}"
    )
    best = (
        {"best_epoch": progress.best["epoch"], run.config.select_on: progress.best["metrics"]}
        if progress.best
        else {}
    )
    return {
        "status": "interrupted",
        "reason": stop.reason,
        "epoch": progress.epoch,
        "step": progress.step,
        **best,
        "seconds": progress.seconds,
        "versions": provenance(),
    }


def finish(run, log):
    """Restore best.pt, rank and score the test split once, write the final table. Returns the content of result.json."""
    config, best, data, started = run.config, run.progress.best, run.dataset.interactions, time.perf_counter()
    run.model.load_state_dict(read_checkpoint(run.folder / "best.pt")["model"])
    _, split = splits_of(data, config, run.device)
    with final_vectors(run.model, config) as (user, item):
        [test] = evaluate(user, item, [split], config.topks, config.eval_chunk)
        top = torch.cat(
            [top for _, _, top in rank_items(user, item, split, max(config.topks), config.eval_chunk)]
        )
        if config.projector:
            projector.write_vectors(run.folder, user, item)
    write_ranking(run.folder / "test_ranking.npz", top, split, data)
    result = {
        "status": "finished",
        "best_epoch": best["epoch"],
        "epochs": run.progress.epoch,
        config.select_on: best["metrics"],
        "test": test,
        "protocol": protocol(config),
        "data": {"interactions": interactions_hash(data), "all": run.dataset.fingerprint},
        "seconds": run.progress.seconds,
        "seconds_to_best": best["seconds"],
        "test_seconds": time.perf_counter() - started,
        "peak_memory_mb": peak_memory_mb(run.device),
        "device": str(run.device),
        "versions": provenance(),
    }
    log.conclude(config, best["epoch"], **{f"{config.select_on}_best": best["metrics"], "test": test})
    log.say(final_table(result, config))
    return result


def write_ranking(path, top, split, data):
    """The test ranking for whoever wants another metric or a part of the users, a .npz without pickles, all int32:

    users [n], items [n, K] best first, relevant_crow [n + 1] and relevant_items (CSR), history [n] (train interactions of the
    user), popularity [I] (of the item).
    """
    users, (crow, relevant) = split.users.cpu().numpy(), split.relevant
    history, popularity = (
        np.bincount(ids, minlength=n) for ids, n in zip(data.train.T, (data.n_users, data.n_items))
    )
    arrays = {
        "users": users,
        "items": top,
        "relevant_crow": crow,
        "relevant_items": relevant,
        "history": history[users],
        "popularity": popularity,
    }
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            **{
                name: np.asarray(array.cpu() if torch.is_tensor(array) else array, np.int32)
                for name, array in arrays.items()
            },
        )


def score_checkpoint(model, dataset, config, device):
    """Score --checkpoint on the selection and the test split: the final table as text."""
    state = read_checkpoint(config.checkpoint)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(
            f"{config.checkpoint}: does not fit this dataset or these settings ({str(error).splitlines()[-1].strip()[:120]}); "
            "use those it was trained with"
        ) from None
    selection, test = score(model, splits_of(dataset.interactions, config, device), config)
    result = {
        "best_epoch": state["progress"]["epoch"],
        config.select_on: selection,
        "test": test,
        "protocol": protocol(config),
    }
    return final_table(result, config)


def protocol(config):
    """How a run was selected and scored, for result.json."""
    return {
        "selected_on": config.select_on,
        "selection_metric": config.selection_metric,
        "eval_dropout": config.eval_dropout,
        "masked_at_test": ["train", "valid"] if config.mask_valid_at_test else ["train"],
    }


def final_table(result, config):
    """Metrics of the selection and the test split as a table, with the protocol beneath."""
    names = ("recall", "ndcg", "precision", "map", "hitrate")
    lines = [
        f"best epoch {result['best_epoch']}, chosen by {config.selection_metric} on {config.select_on}",
        "".join([f"{'split':<8}{'K':>5}", *(f"{name:>11}" for name in names)]),
    ]
    for split in dict.fromkeys((config.select_on, "test")):
        lines += [
            "".join([f"{split:<8}{k:>5}", *(f"{result[split][f'{name}@{k}']:>11.4f}" for name in names)])
            for k in config.topks
        ]
    masked = " and ".join(result["protocol"]["masked_at_test"])
    lines.append(
        f"full ranking; {masked} items masked at test"
        + ("" if config.mask_valid_at_test else ", validation items are candidates")
    )
    if config.select_on == "test":
        lines.append(
            "WARNING: the best epoch was selected on TEST; these figures leak and are not comparable"
        )
    return "\n".join(lines)
