"""Training epochs, evaluation, and the fit loop with its run folder.

The protocol: the best epoch is chosen on VALIDATION (train items masked); TEST is scored once, at the end, by the
restored best model (train items masked; validation items stay candidates unless --mask_valid_at_test 1).
"""

import contextlib
import json
import time

import torch
from tensorboardX import SummaryWriter
from tqdm import tqdm

from dataloader import Sampler, held_out
from utils import atomic_write, peak_memory_mb, ranking_metrics
from world import provenance, write_json


# ---------------------------------------------------------------- one epoch, one evaluation

def train_epoch(model, optimizer, sampler):
    """One pass over a Sampler's batches. Returns mean loss terms and the last step's gradient norm, as floats."""
    model.train()
    sums, steps = {}, len(sampler)
    for users, pos, neg in tqdm(sampler.epoch(), total=steps, desc="steps", leave=False, delay=2):
        terms = model.loss(users, pos, neg)
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()
        for name, value in terms.items():      # summed on the device: no host synchronisation a step
            sums[name] = sums.get(name, 0) + value.detach()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    sums["grad_norm"] = steps * torch.nn.utils.get_total_norm(gradients)
    return {name: float(value) / steps for name, value in sums.items()}


def expand_rows(crow, values, start, stop):
    """Rows start..stop of a CSR -> (row numbers from 0, values), one an entry."""
    counts = crow[start + 1:stop + 1] - crow[start:stop]
    rows = torch.repeat_interleave(torch.arange(stop - start, device=crow.device), counts)
    return rows, values[crow[start]:crow[stop]]


@torch.inference_mode()
def rank_items(user, item, split, k, chunk):
    """Best k items of every user of a HeldOut split. Yields (start, stop, [rows, k] item ids) chunk by chunk.

    user: [U, d], item: [I, d]. Masked items score -inf; with fewer than k candidates they fill the end.
    """
    for start in tqdm(range(0, len(split.users), chunk), desc="ranking", unit="chunk", leave=False, delay=2):
        stop = min(start + chunk, len(split.users))
        scores = user[split.users[start:stop]] @ item.T                   # [rows, I]
        scores[expand_rows(*split.masked, start, stop)] = -torch.inf
        yield start, stop, scores.topk(k, dim=1).indices


@torch.inference_mode()
def evaluate(user, item, split, ks, chunk):
    """Full-ranking metrics: {"recall@10": mean over the users of the split, ...}.

    user: [U, d], item: [I, d] final vectors; split: HeldOut; ks: cut-offs; chunk: users scored at a time.
    """
    sums = {}
    for start, stop, top in rank_items(user, item, split, max(ks), chunk):
        relevant = torch.zeros(stop - start, len(item), dtype=torch.bool, device=item.device)
        relevant[expand_rows(*split.relevant, start, stop)] = True
        n_relevant = split.relevant[0][start + 1:stop + 1] - split.relevant[0][start:stop]
        for name, values in ranking_metrics(relevant.gather(1, top), n_relevant, ks).items():
            sums[name] = sums.get(name, 0) + values.sum()
    return {name: float(value) / len(split.users) for name, value in sums.items()}


def score(model, split, config):
    """Evaluate a model on a split in eval mode (with --eval_dropout 1, dropout alone stays on), restoring its mode.

    Leaves the random state of training as it was.
    """
    was_training = model.training
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train(bool(config.eval_dropout))
    with torch.inference_mode(), torch.random.fork_rng(enabled=bool(config.eval_dropout)):
        user, item = model.embeddings()
        metrics = evaluate(user, item, split, config.topks, config.eval_chunk)
    model.train(was_training)
    return metrics


def splits_of(interactions, config, device):
    """(selection split, test split) as HeldOut, each with its masks."""
    train, valid, test = interactions.train, interactions.valid, interactions.test
    test_split = held_out(test, [train, valid] if config.mask_valid_at_test else [train], device)
    return (test_split if config.select_on == "test" else held_out(valid, [train], device)), test_split


# ---------------------------------------------------------------- the log of a run

class RunLog:
    """Writes what a run has to say: console and train.log, metrics.jsonl, TensorBoard events."""

    def __init__(self, folder, config):
        self.folder = folder
        self.board = SummaryWriter(str(folder), flush_secs=30) if config.tensorboard else None
        self.text = open(folder / "train.log", "a", encoding="utf-8")
        self.lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")

    def say(self, line):
        """A line for the reader, on the console (above any progress bar) and in train.log."""
        tqdm.write(line)
        print(line, file=self.text, flush=True)

    def record(self, entry):
        """One evaluation as a line of metrics.jsonl."""
        print(json.dumps(entry), file=self.lines, flush=True)

    def scalars(self, group, values, epoch):
        """Numbers as TensorBoard scalars group/name."""
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(f"{group}/{name}", float(value), epoch)

    def plans(self, model, epoch):
        """Each transport plan as a TensorBoard image, scaled to its largest entry."""
        if not self.board:
            return
        for m, transport in getattr(getattr(model, "fusion", None), "transports", {}).items():
            self.board.add_image(f"plan/{m}", (transport.plan / transport.plan.max().clamp_min(1e-30)).cpu().numpy(), epoch, dataformats="HW")

    def settings(self, config, metrics):
        """The settings and final metrics as a TensorBoard hparams entry."""
        if self.board:
            flat = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in config.as_dict().items()}
            self.board.add_hparams(flat, {f"hparam/{name}": value for name, value in metrics.items()}, name="hparams")

    def close(self):
        """Flush and close all files."""
        for file in filter(None, (self.board, self.text, self.lines)):
            file.close()


# ---------------------------------------------------------------- fit

def save_checkpoint(path, model, optimizer, config, epoch, metrics):
    """Write weights, optimiser state, settings, epoch and metrics, atomically."""
    with atomic_write(path) as file:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": config.as_dict(),
                    "epoch": epoch, "metrics": metrics}, file)


def format_metrics(metrics, ks):
    """'recall@10 0.0501  ndcg@10 0.0271  ...'"""
    return "  ".join(f"{name}@{k} {metrics[f'{name}@{k}']:.4f}" for k in ks for name in ("recall", "ndcg"))


def fit(model, dataset, config, folder, device):
    """Train with early stopping, restore the best epoch, score the test split once. Returns the content of result.json."""
    log = RunLog(folder, config)
    try:
        with contextlib.closing(tqdm(total=config.epochs, unit="epoch", dynamic_ncols=True)) as bar:
            best = train(model, dataset, config, folder, device, log, bar)
        result = finish(model, dataset, config, folder, device, log, best)
        log.settings(config, result["test"])
        return result
    finally:
        log.close()


def train(model, dataset, config, folder, device, log, bar):
    """The epochs. Leaves best.pt and last.pt in folder; returns {"epoch", "metrics", "seconds"} of the best epoch."""
    interactions = dataset.interactions
    sampler = Sampler(interactions.train, interactions.n_items, config.bpr_batch, config.seed, device, bool(config.neg_reject))
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.lr, fused=True)
    selection, _ = splits_of(interactions, config, device)
    best, waited, began = None, 0, time.perf_counter()
    for epoch in range(1, config.epochs + 1):
        start = time.perf_counter()
        means = train_epoch(model, optimizer, sampler)
        seconds = time.perf_counter() - start
        log.scalars("train", means, epoch)
        log.scalars("speed", {"epoch_seconds": seconds, "samples_per_second": len(interactions.train) / seconds,
                              "peak_memory_mb": peak_memory_mb(device)}, epoch)
        if config.plan_image_every and (epoch == 1 or epoch % config.plan_image_every == 0):
            log.plans(model, epoch)
        bar.set_postfix(loss=f"{means['loss']:.4f}", **({config.selection_metric: f"{best['last']:.4f}"} if best else {}), refresh=False)
        bar.update()
        if epoch % config.eval_every and epoch != config.epochs:
            continue
        metrics = score(model, selection, config)
        elapsed = time.perf_counter() - began
        better = best is None or metrics[config.selection_metric] > best["metrics"][config.selection_metric]
        waited = 0 if better else waited + 1
        if better:
            best = {"epoch": epoch, "metrics": metrics, "seconds": elapsed}
            save_checkpoint(folder / "best.pt", model, optimizer, config, epoch, metrics)
        best["last"] = metrics[config.selection_metric]
        report_evaluation(model, config, log, epoch, epoch * len(sampler), elapsed, seconds, means, metrics, better)
        if config.patience and waited >= config.patience:
            log.say(f"stopped: {waited} evaluations without a better {config.selection_metric}")
            break
    save_checkpoint(folder / "last.pt", model, optimizer, config, epoch, metrics)
    return best


def report_evaluation(model, config, log, epoch, step, elapsed, epoch_seconds, means, metrics, better):
    """One evaluation to the console, metrics.jsonl and TensorBoard."""
    log.say(f"epoch {epoch:4d}  loss {means['loss']:.4f}  {config.select_on} {format_metrics(metrics, config.topks)}  "
            f"{epoch_seconds:.2f} s/epoch{'  *' if better else ''}")
    model.eval()
    with torch.inference_mode():
        inside = {name: float(value) for name, value in model.diagnostics().items()}
    log.scalars("model", inside, epoch)
    log.scalars(config.select_on, metrics, epoch)
    log.record({"epoch": epoch, "step": step, "seconds": elapsed, "train": means, config.select_on: metrics, "model": inside})


def finish(model, dataset, config, folder, device, log, best):
    """Restore best.pt, score the test split once, write result.json and the final table."""
    model.load_state_dict(torch.load(folder / "best.pt", map_location=device, weights_only=True)["model"])
    start = time.perf_counter()
    test = score(model, splits_of(dataset.interactions, config, device)[1], config)
    result = {
        "status": "finished", "best_epoch": best["epoch"], config.select_on: best["metrics"], "test": test,
        "protocol": {"selected_on": config.select_on, "selection_metric": config.selection_metric, "masked_at_test":
                     ["train", "valid"] if config.mask_valid_at_test else ["train"], "eval_dropout": config.eval_dropout},
        "seconds_to_best": best["seconds"], "test_seconds": time.perf_counter() - start, "peak_memory_mb": peak_memory_mb(device),
        "device": str(device), "versions": provenance()}
    write_json(folder / "result.json", result)
    log.scalars("test", test, best["epoch"])
    log.say(final_table(result, config))
    return result


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
