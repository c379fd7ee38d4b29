"""--cuda_graph without a GPU: padded batches, a pretended capture, and where a step is not replayed."""

import pytest
import torch
from helpers import dataset_of
from model_helpers import CPU, NO_DROPOUT, TRAINED, build, gradients, repeating_batch, settings
from small_runs import command_line

import training.step
from dataloader import Batch, Sampler
from main import main
from procedure import train_epoch
from training.run import Progress
from training.step import GraphedStep, Step, pad_batch, padded_sizes, usable_graph
from utils import UserError

CUDA = torch.device("cuda")
EXACT = {name: changes for name, changes in TRAINED.items() if "precision" not in changes}
VARYING = ("freedom", "mgcn", "smore", "w1")
REPLAYED = {name: changes for name, changes in EXACT.items() if name not in VARYING}
REPLAYED |= {
    "users and items": {"modality_consistency_weight": 0.4, "contrastive_items": "pos_neg"},
    "no distinct items": {"contrastive_dedup": 0},
    "plan of a forward pass": {"plan_from": "forward"},
}


def pair(folder, **changes):
    """Two models with the same weights in float64: one for usual batches, one for padded ones."""
    models = [build(folder, **NO_DROPOUT, cuda_graph=flag, **changes).double().train() for flag in ("0", "1")]
    return models


# ---------------------------------------------------------------- padded batches


@pytest.mark.parametrize("changes", REPLAYED.values(), ids=REPLAYED)
def test_a_padded_batch_has_the_loss_and_gradients_of_the_batch(small_dataset, changes):
    batch, results = repeating_batch(), []
    padded = pad_batch(batch, Batch(6, 6, 6, 9, 6, 14, 6, 6, 11, 10))
    assert [len(part) for part in padded] == [6, 6, 6, 9, 6, 14, 6, 6, 11, 10]
    for model, own_batch in zip(pair(small_dataset, **changes), (batch, padded)):
        model.begin_step(0)
        terms = model.loss(own_batch)
        terms["loss"].backward()
        results.append(({name: value.detach() for name, value in terms.items()}, gradients(model)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=1e-12)


def test_sizes_hold_every_batch_of_an_epoch(small_dataset):
    data = dataset_of(settings(dataset=small_dataset.name, data_root=str(small_dataset.parent))).interactions
    sampler = Sampler(data.train, data.n_items, 40, 3, CPU)
    *full, last = sampler.epoch()
    assert len(last.users) < 40 and {len(batch.users) for batch in full} == {40}
    for batch in full:
        padded = pad_batch(batch, padded_sizes(sampler))
        assert [len(part) for part in padded] == list(padded_sizes(sampler))
        assert torch.equal(padded.unique_users[padded.user_index], batch.users)
        assert torch.equal(padded.unique_items[padded.neg_index], batch.neg)


# ---------------------------------------------------------------- the pretended capture


class Recorder:
    """A capture that makes nothing and whose replay makes the step."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, work):
        self.captured += 1

        def replay():
            self.replayed += 1
            work()

        return replay


def train(model, graphed, capture=None):
    """Three epochs: (weights, sums of losses, gradient norms, the step)."""
    data = dataset_of(model.config).interactions
    sampler = Sampler(data.train, data.n_items, 40, 3, CPU)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    step = Step(model, optimizer)
    if graphed:
        step = GraphedStep(model, optimizer, padded_sizes(sampler), capture)
    progress, norms = Progress(), []
    for _ in range(3):
        assert train_epoch(model, optimizer, sampler, progress, step=step)
        norms.append(float(progress.grad_norm))
        progress.epoch, progress.step = progress.epoch + 1, 0
    assert not any(group["capturable"] for group in optimizer.param_groups)
    return dict(model.named_parameters()), progress.sums, norms, step


@pytest.mark.parametrize("name", ["mf", "lgn", "oat"])
def test_replayed_steps_train_what_usual_steps_train(small_dataset, name):
    """Plans are refreshed between replays, and the last, smaller batch of an epoch is not replayed."""
    usual, graphed = pair(small_dataset, plan_every=3, **REPLAYED[name])
    recorder = Recorder()
    expected, found = train(usual, False), train(graphed, True, recorder)
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-8, atol=1e-10)
    assert recorder.captured == 1 and recorder.replayed > 3


def test_where_the_capture_fails_the_run_goes_on_with_one_line(small_dataset):
    def fail(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    usual, graphed = pair(small_dataset, model="lgn")
    expected, found = train(usual, False), train(graphed, True, fail)
    torch.testing.assert_close(found[:3], expected[:3], rtol=1e-8, atol=1e-10)
    [note] = found[3].notes
    assert "cannot be captured (operation not permitted" in note and "more" not in note


# ---------------------------------------------------------------- the decision


def test_on_a_cpu_auto_is_off_and_1_is_one_line(small_dataset, tmp_path, capsys):
    assert usable_graph(settings(cuda_graph="auto"), CPU) == (settings(cuda_graph="0"), [])
    with pytest.raises(UserError, match="needs a GPU"):
        usable_graph(settings(cuda_graph="1"), CPU)
    assert main(command_line(small_dataset, tmp_path, model="mf", cuda_graph="1")) == 2
    assert "error: --cuda_graph 1: needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize("choice", ["auto", "1"])
@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"model": "freedom"}, "another one in each epoch"),
        ({"model": "mgcn"}, "their number varies"),
        ({"model": "smore"}, "their number varies"),
        ({"w1_weight": 0.1}, "--w1_weight averages"),
        ({"plan_from": "batch"}, "--plan_from batch averages"),
    ],
)
def test_a_step_that_depends_on_the_batch_is_not_replayed(choice, changes, reason):
    config, [note] = usable_graph(settings(cuda_graph=choice, **changes), CUDA)
    assert config.cuda_graph == "0" and reason in note


def test_several_processes_and_classes_of_the_users_own_are_not_replayed(monkeypatch):
    assert usable_graph(settings(cuda_graph="auto"), CUDA) == (settings(cuda_graph="auto"), [])
    monkeypatch.setattr(training.step, "is_external", lambda model: True)
    assert "class of your own" in usable_graph(settings(cuda_graph="auto"), CUDA)[1][0]
    monkeypatch.setattr(training.step, "ranks", lambda: 2)
    assert "several processes" in usable_graph(settings(cuda_graph="auto"), CUDA)[1][0]
