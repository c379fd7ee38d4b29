"""Whole runs on a GPU: every model, stopping and resuming, precision, peak memory, and no waits in a step."""

import os
import signal

import pytest
import torch
from gpu_helpers import GPU, NEEDS_GPU, on_gpu, pair_of_models
from helpers import dataset_of, stop_after
from model_helpers import NO_DROPOUT, TRAINED, build, repeating_batch, settings
from small_runs import command_line, only, read_json, read_metrics, read_state

import recommend
from benchmarks import bench, step
from dataloader import Batch
from main import main
from models.registry import MODELS, find_model
from procedure import float32_products, train_epoch
from session import make_model
from training.evaluation import make_splits, score
from training.run import Progress
from training.step import GraphedStep

pytestmark = NEEDS_GPU
BABY = bench.SHAPES["baby"]


def command(folder, runs, **changes):
    """Command line of a run of three epochs of 8 steps on the GPU."""
    return command_line(folder, runs, **{"cuda": 1, "epochs": 3, "bpr_batch": 32, **changes})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The kNN graphs of the benchmarks' datasets, which the tests of this file share."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("model", MODELS)
def test_every_model_runs(small_dataset, tmp_path, model):
    shown = {"projector": 1, "tensorboard": 1, "plan_image_every": 1}
    assert main(command(small_dataset, tmp_path / "runs", model=model, **shown)) == 0
    folder = only(tmp_path / "runs")
    result = read_json(folder)
    assert result["status"] == "finished" and result["device"] == "cuda:0" and result["peak_memory_mb"] > 0
    assert read_state(folder / "last.pt")["device"] == "cuda"
    assert main(["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]) == 0
    lists = tmp_path / "lists.tsv"
    assert recommend.main(["--checkpoint", str(folder), "--topk", "3", "--output", str(lists)]) == 0
    assert len(lists.read_text().splitlines()) > 100


@pytest.mark.parametrize("model", ["mf", "lgn", "vbpr", "freedom", "lgn_mm"])
def test_a_resumed_run_is_the_one_that_was_not_interrupted(small_dataset, tmp_path, monkeypatch, model):
    """Except for rounding: some sums of a GPU have no fixed order."""
    changes = {"model": model, "lr": 1e-3}
    assert main(command(small_dataset, tmp_path / "whole", **changes)) == 0
    with monkeypatch.context() as patch:
        stop_after(patch, 11, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert main(command(small_dataset, tmp_path / "cut", **changes)) == 143
    whole, cut = only(tmp_path / "whole"), only(tmp_path / "cut")
    assert main(["--resume", str(cut)]) == 0
    for line, expected in zip(read_metrics(cut), read_metrics(whole), strict=True):
        assert line["train"] == pytest.approx(expected["train"], rel=1e-4)
    states = [read_state(folder / "last.pt") for folder in (cut, whole)]
    for name in ("cuda", "torch"):
        assert torch.equal(*(state["random"][name] for state in states))
    assert torch.equal(*(state["sampler"] for state in states))


def test_a_run_of_a_gpu_is_refused_on_a_cpu(small_dataset, tmp_path, capsys):
    assert main(command(small_dataset, tmp_path / "runs", model="mf")) == 0
    folder = only(tmp_path / "runs")
    assert main(["--resume", str(folder), "--cuda", "0"]) == 2
    assert "was trained on cuda, and this process uses cpu" in capsys.readouterr().err


@pytest.mark.parametrize("eval_dropout", [0, 1])
def test_scoring_leaves_the_random_numbers_of_training(small_dataset, eval_dropout):
    _, model = pair_of_models(small_dataset, eval_dropout=eval_dropout)
    data, before = dataset_of(model.config).interactions, torch.cuda.get_rng_state()
    score(model, data, [make_splits(data, model.config, GPU)[0]], model.config)
    assert torch.equal(torch.cuda.get_rng_state(), before)


# ---------------------------------------------------------------- precision


def first_step(model, batch, precision="highest"):
    """Loss and all gradients of a step, in one vector."""
    model.zero_grad()
    with float32_products(precision):
        loss = model.loss(batch)["loss"]
        loss.backward()
    return float(loss), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_narrow_products_change_loss_and_direction_slightly(precision):
    if precision == "tf32" and torch.cuda.get_device_capability(GPU) < (8, 0):
        pytest.skip("tf32 needs a GPU of the Ampere generation or later")
    ours = step.Ours(BABY, bench.baby_config(recdim=128, **NO_DROPOUT), "", GPU)
    ours.model.begin_step(0)
    loss, gradient = first_step(ours.model, ours.batches[0])
    model = ours.model
    if precision == "bf16":
        model = make_model(settings(**{**vars(ours.config), "precision": "bf16"}), ours.dataset, GPU)
        model.load_state_dict(ours.model.state_dict())
    narrow, narrow_gradient = first_step(model, ours.batches[0], "high" if precision == "tf32" else "highest")
    # The order of sums differs between two steps on a GPU, too.
    spread = (first_step(ours.model, ours.batches[0])[1] - gradient).norm()
    assert narrow == pytest.approx(loss, rel=1e-2)
    assert (narrow_gradient - gradient).norm() > 10 * spread
    assert torch.nn.functional.cosine_similarity(gradient, narrow_gradient, dim=0) > 0.99
    assert torch.get_float32_matmul_precision() == "highest"


# ---------------------------------------------------------------- CUDA graphs


def can_be_replayed(config):
    return not find_model(config.model).varying(config)


EXACT = {name: changes for name, changes in TRAINED.items() if "precision" not in changes}
REPLAYED = {name: changes for name, changes in EXACT.items() if can_be_replayed(settings(**changes))}


@pytest.mark.parametrize("changes", REPLAYED.values(), ids=REPLAYED)
def test_a_run_replayed_from_a_cuda_graph_equals_the_usual_one(small_dataset, tmp_path, changes):
    """Except for rounding. Plans are refreshed between replays; the last batch of an epoch is smaller."""
    changes = {"plan_every": 3, "lr": 1e-3, **NO_DROPOUT, **changes}
    for flag in ("0", "1"):
        assert main(command(small_dataset, tmp_path / flag, cuda_graph=flag, **changes)) == 0
    usual, graphed = only(tmp_path / "0"), only(tmp_path / "1")
    assert "cuda_graph: off" not in (graphed / "train.log").read_text()
    for line, expected in zip(read_metrics(graphed), read_metrics(usual), strict=True):
        assert line["train"] == pytest.approx(expected["train"], rel=1e-3)


def test_a_replayed_step_draws_new_dropout_masks(small_dataset):
    gpu = build(small_dataset, cuda_graph="1", attn_dropout=0.5, fuse_drop=0.5).to(GPU).train()
    optimizer = torch.optim.Adam([p for p in gpu.parameters() if p.requires_grad], lr=0.0, fused=True)
    batch = on_gpu(repeating_batch())
    graphed = GraphedStep(gpu, optimizer, Batch(6, 6, 6, 9, 6, 14, 6, 6, 11, 10))
    losses = [float(graphed(batch)["loss"]) for _ in range(8)]
    assert graphed.replay and len({*losses}) == 8


# ---------------------------------------------------------------- memory and waits


@pytest.mark.usefixtures("cache")
def test_a_step_of_baby_takes_less_memory_than_the_cost_tensor_alone():
    """The [I, d, d] tensor of eq. 9, which the textbook makes, has 1.85 GB at d = 256."""
    ours = step.Ours(BABY, bench.baby_config(recdim=256), "", GPU)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        ours.step()
    assert torch.cuda.max_memory_allocated() < 4 * BABY.items * 256**2


class ThreeSteps:
    """A sampler whose epoch is one batch, three times."""

    def __init__(self):
        self.batch = on_gpu(repeating_batch())
        self.pairs = self.batch.users

    def __len__(self):
        return 3

    def epoch(self, skip=0):
        yield from [self.batch] * 3


@pytest.mark.parametrize("changes", TRAINED.values(), ids=TRAINED)
def test_a_step_does_not_wait(small_dataset, changes):
    _, model = pair_of_models(small_dataset, plan_every=1, **changes)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], fused=True)
    sampler, progress = ThreeSteps(), Progress()

    def watch():
        """From the end of the first step, which loads kernels, to the end of the last."""
        torch.cuda.set_sync_debug_mode("error" if progress.step < 3 else "default")
        return False

    try:
        assert train_epoch(model, optimizer, sampler, progress, watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert progress.step == 3


def test_a_wait_is_noticed():
    x = torch.ones(3, device=GPU)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            x.sum().item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
