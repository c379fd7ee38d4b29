"""Evaluation, the protocol (no leaks, one look at test), determinism, and what a run folder holds."""

import dataclasses
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import dataset_of, random_pairs, write_inter, write_txt

import procedure
from dataloader import Sampler, held_out
from model import make_model
from models.mf import MF
from procedure import fit, make_splits, score, train_epoch
from training import projector, ranking
from training.ranking import evaluate, rank_items, ranks_of
from training.run import Progress, start_run
from utils import UserError
from world import Config, make_run_folder, seed_everything

CPU = torch.device("cpu")
NAMES = ("recall", "ndcg", "precision", "map", "hitrate")


def settings(folder, **changes):
    return Config(
        **{
            "dataset": folder.name,
            "data_root": str(folder.parent),
            "path": str(folder.parent.parent / "runs"),
            "model": "lgn_mm",
            "recdim": 8,
            "attn_heads": 2,
            "item_knn_k": 4,
            "user_knn_k": 4,
            "topks": (3, 5),
            "epochs": 4,
            "eval_every": 1,
            "patience": 0,
            "bpr_batch": 64,
            "lr": 0.02,
            "tensorboard": 0,
            **changes,
        }
    )


def run(folder, **changes):
    """Train by these settings. Returns (run folder, result, lines of metrics.jsonl)."""
    config = settings(folder, **changes)
    seed_everything(config.seed)
    dataset = dataset_of(config)
    out = make_run_folder(config)
    result = fit(start_run(make_model(config, dataset, CPU), dataset, config, out, CPU))
    return out, result, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def checkpoint(path):
    return torch.load(path, weights_only=True)


def same_weights(a, b):
    a, b = checkpoint(a)["model"], checkpoint(b)["model"]
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def restored(folder, config, run_folder):
    """A fresh model with the weights of best.pt, in eval mode."""
    model = make_model(config, dataset_of(config), CPU)
    model.load_state_dict(checkpoint(run_folder / "best.pt")["model"])
    return model.eval()


# ---------------------------------------------------------------- the oracle


def naive_top(scores, masked, k):
    order = sorted((i for i in range(len(scores)) if i not in masked), key=lambda i: -scores[i])
    return order[:k]


def items_of(pairs, user):
    return {int(i) for u, i in pairs if u == user}


def naive_metrics(user, item, relevant, masked, ks):
    """User by user and rank by rank in Python floats: {"recall@3": mean over users with relevant items, ...}."""
    user, item, sums = user.double().tolist(), item.double().tolist(), {}
    users = sorted({int(u) for u, _ in relevant})
    for u in users:
        wanted, hidden = items_of(relevant, u), items_of(masked, u)
        scores = [sum(x * y for x, y in zip(user[u], row)) for row in item]
        for k in ks:
            hits = [int(i in wanted) for i in naive_top(scores, hidden, k)]
            best = min(len(wanted), k)
            values = (
                sum(hits) / len(wanted),
                sum(h / math.log2(r + 2) for r, h in enumerate(hits))
                / sum(1 / math.log2(r + 2) for r in range(best)),
                sum(hits) / k,
                sum(sum(hits[: r + 1]) / (r + 1) for r, h in enumerate(hits) if h) / best,
                float(any(hits)),
            )
            for name, value in zip(NAMES, values):
                sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0) + value / len(users)
    return sums


def evaluation_case():
    """Vectors, train and test pairs: user 0 has two test items, user 3 none, item 11 stands in test alone."""
    torch.manual_seed(5)
    train = np.array([(0, 1), (0, 2), (1, 0), (1, 5), (2, 3), (3, 4), (4, 4), (4, 6), (4, 7)])
    test = np.array([(0, 11), (0, 3), (1, 11), (2, 4), (2, 5), (2, 6), (2, 7), (4, 9)])
    return torch.randn(6, 4), torch.randn(12, 4), train, test


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_evaluate_equals_a_loop_for_every_chunk_size(chunk):
    user, item, train, test = evaluation_case()
    split = held_out(test, [train], CPU)
    expected = naive_metrics(user, item, test, train, (1, 3, 8))
    assert evaluate(user, item, [split], (1, 3, 8), chunk) == [pytest.approx(expected, rel=1e-12)]
    assert 0 < expected["recall@3"] < 1


def test_rank_items_equals_a_loop_and_never_recommends_a_masked_item():
    user, item, train, test = evaluation_case()
    for start, stop, top in rank_items(user, item, held_out(test, [train], CPU), 9, 3):
        for u, row in zip([0, 1, 2, 4][start:stop], top.tolist(), strict=True):
            assert row == naive_top((user[u] @ item.T).tolist(), items_of(train, u), 9)


def test_splits_with_the_same_masks_share_a_ranking_and_others_do_not(monkeypatch):
    user, item, train, test = evaluation_case()
    valid = np.array([(0, 5), (1, 2), (2, 9), (4, 10)])
    splits = [
        held_out(valid, [train], CPU),
        held_out(test, [train], CPU),
        held_out(test, [train, valid], CPU),
    ]
    alone = [evaluate(user, item, [split], (3,))[0] for split in splits]
    together, original = [], ranking.relevant_ranks
    monkeypatch.setattr(
        ranking,
        "relevant_ranks",
        lambda user, item, alike, *rest: together.append(alike) or original(user, item, alike, *rest),
    )
    assert evaluate(user, item, [splits[0], splits[2], splits[1]], (3,)) == [alone[0], alone[2], alone[1]]
    assert together == [[splits[0], splits[1]], [splits[2]]]


def test_with_too_few_candidates_masked_items_fill_the_end():
    train = np.array([(0, i) for i in range(700) if i not in (5, 600)] + [(1, 0)])
    torch.manual_seed(0)
    [(_, _, top)] = rank_items(
        torch.rand(2, 4), torch.rand(700, 4), held_out(np.array([(0, 5), (1, 7)]), [train], CPU), 4, 10
    )
    assert set(top[0, :2].tolist()) == {5, 600} and top.max() < 700 and len(set(top[0].tolist())) == 4


def naive_ranks(scores, row, column, k):
    """For each entry how many of its row come before it: a larger score, or the same one in a lower column; at most k."""
    return [
        min(sum(s > scores[r][c] or (s == scores[r][c] and j < c) for j, s in enumerate(scores[r])), k)
        for r, c in zip(row.tolist(), column.tolist())
    ]


@pytest.mark.parametrize("k", [1, 5, 64, 200])
@pytest.mark.parametrize("kind", ["distinct", "ties", "constant"])
def test_ranks_of_equals_counting_with_ties_in_the_order_of_columns(kind, k):
    torch.manual_seed(k)
    n = 3 * ranking.GROUP
    scores = {
        "distinct": torch.randn(7, n),
        "ties": torch.randint(12, (7, n)).float(),
        "constant": torch.zeros(7, n),
    }[kind]
    scores[:, -5:] = -torch.inf
    row, column = torch.arange(7).repeat_interleave(40), torch.randint(n - 5, (280,))
    assert ranks_of(scores, row, column, k).tolist() == naive_ranks(scores.tolist(), row, column, k)


def test_a_score_that_is_nan_is_never_among_the_first_nor_is_what_lies_behind_many():
    scores = torch.arange(2.0 * ranking.GROUP)[None].repeat(2, 1)
    scores[0, 3], scores[1, ::2] = torch.nan, torch.nan
    assert ranks_of(scores, torch.tensor([0, 1]), torch.tensor([3, 2 * ranking.GROUP - 1]), 9).tolist() == [
        9,
        9,
    ]


def large_case(seed=0, users=90, items=2100):
    """Vectors with popular items, and pairs of a catalogue large enough for certain_misses to take part."""
    generator = torch.Generator().manual_seed(seed)
    user, item = torch.randn(users, 6, generator=generator), torch.randn(items, 6, generator=generator)
    user[:, 0] += 1.5
    pairs = (
        torch.stack(
            [torch.arange(users).repeat(9), torch.randint(items, (9 * users,), generator=generator)], 1
        )
        .unique(dim=0)
        .numpy()
    )
    train, held = pairs[::2], pairs[1::2]
    best = [
        (u, int(i))
        for u, i in enumerate((user @ item.T).argmax(1))
        if (u, int(i)) not in set(map(tuple, train.tolist()))
    ]
    return (
        user,
        item,
        train,
        np.unique(np.concatenate([held, best]), axis=0),
    )  # every user likes their best item, so there are hits


@pytest.mark.parametrize("chunk", [0, 7])
def test_evaluate_of_a_large_catalogue_equals_the_ranked_lists_and_the_loop(chunk):
    user, item, train, held = large_case()
    split = held_out(held, [train], CPU)
    row = ranking.row_numbers(split.relevant[0], 0, len(split.users))
    missed = ranking.certain_misses(user, item, split, row, split.relevant[1], 5, chunk)
    assert 0.5 < missed.float().mean() < 1  # most are settled early, and none wrongly
    lists = torch.cat([top for _, _, top in rank_items(user, item, split, 5, chunk)])
    assert not (lists[row] == split.relevant[1][:, None]).any(1)[missed].any()
    expected = naive_metrics(user, item, held, train, (1, 5))
    assert evaluate(user, item, [split], (1, 5), chunk) == [pytest.approx(expected, rel=1e-12)]
    assert 0.1 < expected["recall@5"] < 0.9


@pytest.mark.parametrize("users, items, k", [(40, 70, 7), (30, 2100, 4)])
def test_metrics_and_lists_agree_where_many_scores_are_equal(users, items, k):
    torch.manual_seed(items)
    user, item = torch.randint(3, (users, 2)).float(), torch.randint(3, (items, 2)).float()
    _, _, train, held = large_case(1, users, items)
    third = [
        (u, naive_top((user[u] @ item.T).tolist(), items_of(train, u), 3)[2]) for u in range(0, users, 2)
    ]
    held = np.unique(np.concatenate([held, third]), axis=0)
    split = held_out(held, [train], CPU)
    lists = torch.cat([top for _, _, top in rank_items(user, item, split, k)])
    for u, ranked in zip(split.users.tolist(), lists.tolist(), strict=True):
        assert ranked == naive_top((user[u] @ item.T).tolist(), items_of(train, u), k)
    hits = sum(
        len(items_of(held, u) & set(ranked)) / len(items_of(held, u))
        for u, ranked in zip(split.users.tolist(), lists.tolist())
    )
    assert evaluate(user, item, [split], (k,))[0][f"recall@{k}"] == pytest.approx(
        hits / len(split.users), rel=1e-12
    )
    assert hits > 1


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e18])
def test_no_relevant_item_is_a_certain_miss_among_equals_at_any_scale(scale):
    user, item, train, held = large_case()
    split = held_out(held, [train], CPU)
    row = ranking.row_numbers(split.relevant[0], 0, len(split.users))
    same = scale * item[:1].repeat(len(item), 1)
    assert not ranking.certain_misses(scale * user, same, split, row, split.relevant[1], 5).any()


def test_items_that_a_model_cannot_tell_apart_are_ranked_by_number_not_at_the_top():
    test = np.array([(0, 4), (1, 900), (2, 0)])
    [metrics] = evaluate(
        torch.ones(3, 2), torch.ones(2100, 2), [held_out(test, [np.array([(0, 1), (1, 2)])], CPU)], (3, 4)
    )
    assert metrics["recall@3"] == pytest.approx(1 / 3) and metrics["recall@4"] == pytest.approx(
        2 / 3
    )  # item 1 of user 0 is masked


def test_rows_of_a_split_are_those_of_their_users():
    _, _, train, test = evaluation_case()
    split = held_out(test, [train], CPU)
    part = split.take(torch.tensor([1, 3]))
    assert part.users.tolist() == [1, 4] and [p.tolist() for p in part.relevant] == [[0, 1, 2], [11, 9]]
    assert [p.tolist() for p in part.masked] == [[0, 2, 5], [0, 5, 4, 6, 7]]


def test_users_without_held_out_items_are_left_out_of_the_mean():
    user, item = torch.ones(4, 1), torch.tensor([[3.0], [2.0], [1.0]])
    test = np.array([(1, 0), (2, 2)])
    assert evaluate(user, item, [held_out(test, [np.array([(0, 1)])], CPU)], (1,), 10)[0]["recall@1"] == 0.5


def test_an_item_that_occurs_only_in_test_can_be_recommended():
    user, item = torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    assert (
        evaluate(user, item, [held_out(np.array([(0, 2)]), [np.array([(0, 0)])], CPU)], (1,), 10)[0]["ndcg@1"]
        == 1
    )


@pytest.mark.parametrize("mask, hits", [(0, 0.0), (1, 1.0)])
def test_validation_items_are_candidates_at_test_unless_masked(small_dataset, mask, hits):
    pairs = SimpleNamespace(train=np.array([(0, 0)]), valid=np.array([(0, 1)]), test=np.array([(0, 2)]))
    user, item = torch.ones(1, 1), torch.tensor([[9.0], [8.0], [7.0], [1.0]])
    valid, test = make_splits(pairs, settings(small_dataset, mask_valid_at_test=mask), CPU)
    assert evaluate(user, item, [test], (1,), 10)[0]["recall@1"] == hits
    assert evaluate(user, item, [valid], (1,), 10)[0]["recall@1"] == 1


@pytest.mark.parametrize("select_on, relevant", [("valid", 1), ("test", 2)])
def test_select_on_names_the_selection_split(small_dataset, select_on, relevant):
    pairs = SimpleNamespace(train=np.array([(0, 0)]), valid=np.array([(0, 1)]), test=np.array([(0, 2)]))
    selection, test = make_splits(pairs, settings(small_dataset, select_on=select_on), CPU)
    assert selection.relevant[1].tolist() == [relevant] and test.relevant[1].tolist() == [2]


# ---------------------------------------------------------------- score and one epoch


def trained(folder, **changes):
    """(model after one epoch in training mode, its dataset and config)."""
    config = settings(folder, **changes)
    seed_everything(0)
    dataset = dataset_of(config)
    model = make_model(config, dataset, CPU)
    train_epoch(
        model,
        torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 0.01),
        Sampler(dataset.interactions.train, 30, 64, 0, CPU),
        Progress(),
    )
    return model, dataset, config


@pytest.mark.parametrize("mode", [True, False])
def test_score_is_deterministic_restores_the_mode_and_changes_no_state(small_dataset, mode):
    model, dataset, config = trained(small_dataset, attn_dropout=0.5, fuse_drop=0.5)
    model.train(mode)
    split = make_splits(dataset.interactions, config, CPU)[0]
    state, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert score(model, [split], config) == score(model, [split], config)
    assert all(module.training == mode for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items()) and torch.equal(
        torch.get_rng_state(), random
    )


def test_eval_dropout_scores_with_dropout_on(small_dataset):
    model, dataset, config = trained(small_dataset, attn_dropout=0.5, fuse_drop=0.5, eval_dropout=1)
    split = make_splits(dataset.interactions, config, CPU)[0]
    state = torch.get_rng_state()
    noisy = score(model, [split], config)
    assert torch.equal(torch.get_rng_state(), state)
    assert noisy != score(model, [split], dataclasses.replace(config, eval_dropout=0))
    assert model.training


def test_eval_dropout_scoring_leaves_the_plan_and_its_age_alone(small_dataset):
    model, dataset, config = trained(small_dataset, eval_dropout=1, plan_every=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    score(model, make_splits(dataset.interactions, config, CPU)[:1], config)
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])] == []


def test_train_epoch_averages_terms_and_reports_the_last_gradient_norm(small_dataset):
    config = settings(small_dataset, model="mf")
    seed_everything(0)
    dataset = dataset_of(config)
    model, twin = MF(config, dataset), MF(config, dataset)
    twin.load_state_dict(model.state_dict())
    batches = list(Sampler(dataset.interactions.train, 30, 100, 0, CPU).epoch())
    progress = Progress()
    train_epoch(
        model,
        torch.optim.SGD(model.parameters(), 0.5),
        Sampler(dataset.interactions.train, 30, 100, 0, CPU),
        progress,
    )
    losses = []
    for batch in batches:
        loss = twin.loss(batch)["loss"]
        grads = torch.autograd.grad(loss, (twin.user, twin.item))
        losses.append(loss.item())
        with torch.no_grad():
            for p, g in zip((twin.user, twin.item), grads):
                p -= 0.5 * g
    assert (
        len(losses) > 1
        and progress.step == len(losses)
        and float(progress.sums["loss"]) == pytest.approx(sum(losses), rel=1e-5)
    )
    assert float(progress.grad_norm) == pytest.approx(
        math.sqrt(sum(float((g**2).sum()) for g in grads)), rel=1e-5
    )
    torch.testing.assert_close(model.user, twin.user)


# ---------------------------------------------------------------- leaks


def changed_copy(folder, *splits):
    """A copy of the data, in which these splits hold other items of the same users (never a pair of another split)."""
    copy = folder.parent.parent / ("changed_" + "_".join(splits)) / folder.name
    copy.mkdir(parents=True)
    for name in ("text_feat.npy", "image_feat.npy"):
        shutil.copy(folder / name, copy)
    pairs, rng = random_pairs(0, 40, 30, 6), np.random.default_rng(8)
    for split in splits:
        taken = {tuple(pair) for other in pairs.values() for pair in other.tolist()}
        pairs[split] = np.array(
            [(u, rng.choice([i for i in range(29) if (u, i) not in taken])) for u, _ in pairs[split]]
        )
    write_txt(copy, **pairs)
    return copy


def training_inputs(folder):
    """All tensors that training reads, and the batches of two epochs."""
    config = settings(folder, user_text_feat="mean")
    data = dataset_of(config)
    sampler = Sampler(data.interactions.train, data.interactions.n_items, 64, config.seed, CPU)
    graphs = [t for graph in (*data.graphs.values(), data.user_graph) for t in (graph.crow, graph.col)]
    return [
        data.adjacency.crow_indices(),
        data.adjacency.col_indices(),
        data.adjacency.values(),
        *graphs,
        *data.features.values(),
        data.user_features,
        *(t for _ in range(2) for batch in sampler.epoch() for t in batch),
    ]


@pytest.mark.parametrize("splits", [("valid",), ("test",), ("valid", "test")])
def test_held_out_splits_touch_nothing_in_training(small_dataset, splits):
    other = changed_copy(small_dataset, *splits)
    a, b = training_inputs(small_dataset), training_inputs(other)
    assert len(a) == len(b) > 20 and all(torch.equal(x, y) for x, y in zip(a, b))
    (run_a, result_a, lines_a), (run_b, result_b, lines_b) = (
        run(small_dataset, user_text_feat="mean"),
        run(other, user_text_feat="mean"),
    )
    assert [line["train"] for line in lines_a] == [line["train"] for line in lines_b]
    assert same_weights(run_a / "last.pt", run_b / "last.pt")
    assert (
        result_a["test"] != result_b["test"]
        if splits == ("test",)
        else lines_a[0]["valid"] != lines_b[0]["valid"]
    )


def test_test_split_alone_never_changes_what_is_selected(small_dataset):
    (run_a, result_a, lines_a), (run_b, result_b, lines_b) = (
        run(folder, epochs=8, patience=2, eval_every=2)
        for folder in (small_dataset, changed_copy(small_dataset, "test"))
    )
    assert result_a["test"] != result_b["test"]
    assert (result_a["best_epoch"], result_a["valid"]) == (result_b["best_epoch"], result_b["valid"])
    assert [line["valid"] for line in lines_a] == [line["valid"] for line in lines_b]
    assert same_weights(run_a / "best.pt", run_b / "best.pt")


def test_test_split_is_scored_exactly_once_at_the_end(small_dataset, monkeypatch):
    seen, original = [], ranking.mean_metrics

    def spy(ranks, split, *rest):
        seen.append(split.relevant[1].tolist())
        return original(ranks, split, *rest)

    monkeypatch.setattr(ranking, "mean_metrics", spy)
    run(small_dataset, epochs=3)
    pairs = random_pairs(0, 40, 30, 6)
    valid, test = pairs["valid"][:, 1].tolist(), pairs["test"][:, 1].tolist()
    assert valid != test and seen == [valid, valid, valid, test]


# ---------------------------------------------------------------- determinism


def test_both_formats_give_the_same_run(small_dataset):
    other = small_dataset.parent.parent / "inter" / "small"
    write_inter(other, **random_pairs(0, 40, 30, 6))
    for name in ("text_feat.npy", "image_feat.npy"):
        shutil.copy(small_dataset / name, other)
    (run_a, result_a, lines_a), (run_b, result_b, lines_b) = run(small_dataset), run(other)
    assert [(line["train"], line["valid"]) for line in lines_a] == [
        (line["train"], line["valid"]) for line in lines_b
    ]
    assert (result_a["valid"], result_a["test"]) == (result_b["valid"], result_b["test"])
    assert same_weights(run_a / "best.pt", run_b / "best.pt")


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mf"},
        {"model": "lgn"},
        {"user_text_feat": "mean", "modality_consistency_weight": 0.5},
        {"recdim": 16, "attn_heads": 8, "fusion": "concat"},
    ],
)
def test_same_seed_same_run_bit_for_bit_and_another_seed_differs(small_dataset, changes):
    (run_a, result_a, lines_a), (run_b, result_b, lines_b), (run_c, _, lines_c) = (
        run(small_dataset, seed=seed, **changes) for seed in (1, 1, 2)
    )
    assert [(line["train"], line["valid"], line["model"]) for line in lines_a] == [
        (line["train"], line["valid"], line["model"]) for line in lines_b
    ]
    assert result_a["test"] == result_b["test"]
    assert same_weights(run_a / "best.pt", run_b / "best.pt") and same_weights(
        run_a / "last.pt", run_b / "last.pt"
    )
    assert lines_a[0]["train"]["loss"] != lines_c[0]["train"]["loss"] and not same_weights(
        run_a / "best.pt", run_c / "best.pt"
    )


def test_how_often_is_evaluated_does_not_change_training(small_dataset):
    weights = [run(small_dataset, epochs=4, eval_every=every)[0] / "last.pt" for every in (1, 4)]
    assert same_weights(*weights)


def test_tensorboard_does_not_change_training(small_dataset):
    weights = [run(small_dataset, epochs=2, tensorboard=on)[0] / "best.pt" for on in (0, 1)]
    assert same_weights(*weights)


# ---------------------------------------------------------------- the fit loop


def scripted(monkeypatch, values):
    """Let the n-th scoring of validation yield ndcg@3 = values[n], the scoring of test 0.123."""
    values, original = iter(values), ranking.mean_metrics

    def fake(*arguments):
        return {**original(*arguments), "ndcg@3": next(values, 0.123)}

    monkeypatch.setattr(ranking, "mean_metrics", fake)


def test_patience_stops_and_the_best_epoch_is_restored(small_dataset, monkeypatch):
    scripted(monkeypatch, [0.1, 0.3, 0.2, 0.3])
    out, result, lines = run(small_dataset, epochs=50, patience=2)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]  # a tie is no improvement
    assert (
        result["best_epoch"] == 2 and result["valid"]["ndcg@3"] == 0.3 and result["test"]["ndcg@3"] == 0.123
    )
    assert (
        checkpoint(out / "best.pt")["progress"]["epoch"] == 2
        and checkpoint(out / "last.pt")["progress"]["epoch"] == 4
    )
    assert "stopped" in (out / "train.log").read_text()


def test_patience_counts_evaluations_and_starts_again_after_a_better_one(small_dataset, monkeypatch):
    scripted(monkeypatch, [0.2, 0.1, 0.3, 0.1, 0.2])
    _, result, lines = run(small_dataset, epochs=50, patience=2, eval_every=3)
    assert [line["epoch"] for line in lines] == [3, 6, 9, 12, 15] and result["best_epoch"] == 9


def test_patience_zero_never_stops(small_dataset, monkeypatch):
    scripted(monkeypatch, [0.9, *[0.1] * 11])
    _, result, lines = run(small_dataset, epochs=12, patience=0)
    assert len(lines) == 12 and result["best_epoch"] == 1


def test_valid_metric_selects(small_dataset, monkeypatch):
    scripted(monkeypatch, [0.9, 0.1, 0.1, 0.1])
    _, result, lines = run(small_dataset, valid_metric="recall@5")
    recall = [line["valid"]["recall@5"] for line in lines]
    assert len(set(recall)) > 1 and result["best_epoch"] == 1 + recall.index(max(recall))


@pytest.mark.parametrize("epochs, every, evaluated", [(5, 2, [2, 4, 5]), (4, 2, [2, 4]), (2, 5, [2])])
def test_the_last_epoch_is_always_evaluated(small_dataset, epochs, every, evaluated):
    _, _, lines = run(small_dataset, model="mf", epochs=epochs, eval_every=every)
    assert [line["epoch"] for line in lines] == evaluated
    assert [line["step"] for line in lines] == [epoch * math.ceil(39 * 6 / 64) for epoch in evaluated]


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "mf"},
        {"user_text_feat": "mean", "plan_every": 3},
        {"fusion": "sum", "mask_valid_at_test": 1},
    ],
)
def test_best_weights_reproduce_the_reported_metrics_and_a_loop_agrees(small_dataset, changes):
    out, result, lines = run(small_dataset, epochs=6, **changes)
    config = settings(small_dataset, **changes)
    model, pairs = restored(small_dataset, config, out), random_pairs(0, 40, 30, 6)
    valid, test = make_splits(dataset_of(config).interactions, config, CPU)
    assert score(model, [valid, test], config) == [result["valid"], result["test"]]
    assert result["valid"] == lines[result["best_epoch"] - 1]["valid"]
    best = max(line["valid"]["ndcg@3"] for line in lines)
    assert result["valid"]["ndcg@3"] == best and all(
        line["valid"]["ndcg@3"] < best for line in lines[: result["best_epoch"] - 1]
    )
    with torch.no_grad():
        user, item = model.embeddings()
    masked = np.concatenate([pairs["train"], pairs["valid"]]) if config.mask_valid_at_test else pairs["train"]
    assert result["valid"] == pytest.approx(
        naive_metrics(user, item, pairs["valid"], pairs["train"], (3, 5)), rel=1e-9
    )
    assert result["test"] == pytest.approx(naive_metrics(user, item, pairs["test"], masked, (3, 5)), rel=1e-9)


# ---------------------------------------------------------------- the run folder


def test_run_folder_holds_what_the_design_says(small_dataset):
    out, result, lines = run(small_dataset, epochs=3, seed=7)
    assert {f.name for f in out.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "best.pt",
        "last.pt",
        "result.json",
        "test_ranking.npz",
        "train.log",
    }
    assert (
        out.parent == small_dataset.parent.parent / "runs"
        and out.name.startswith("small_lgn_mm_")
        and out.name.endswith("_7")
    )
    config = json.loads((out / "config.json").read_text())
    assert {key: config[key] for key in ("seed", "recdim", "topks", "dataset")} == {
        "seed": 7,
        "recdim": 8,
        "topks": [3, 5],
        "dataset": "small",
    }
    assert config.keys() == {*Config.__dataclass_fields__, "provenance"}
    assert json.loads((out / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["status"] == "finished" and result["best_epoch"] in (1, 2, 3)
    assert (
        result["valid"].keys() == result["test"].keys() == {f"{name}@{k}" for name in NAMES for k in (3, 5)}
    )
    assert (
        result["peak_memory_mb"] > 50
        and result["versions"]["torch"] == torch.__version__
        and result["versions"]["numpy"] == np.__version__
    )
    for epoch, line in enumerate(lines, 1):
        assert {"epoch", "step", "seconds", "train", "valid"} <= line.keys() and line["epoch"] == epoch
        assert {"loss", "bpr", "norm", "contrastive"} <= line["train"].keys() and line[
            "valid"
        ].keys() == result["valid"].keys()
    assert sorted(line["seconds"] for line in lines) == [line["seconds"] for line in lines]
    log = (out / "train.log").read_text()
    assert (
        log.count("loss") == 3
        and f"best epoch {result['best_epoch']}" in log
        and f"{result['test']['recall@5']:.4f}" in log
    )


def test_checkpoint_loads_with_weights_only_and_holds_settings_and_metrics(small_dataset):
    out, result, lines = run(small_dataset, epochs=2)
    best, last = checkpoint(out / "best.pt"), checkpoint(out / "last.pt")
    assert best["progress"]["epoch"] == result["best_epoch"] and best["progress"]["latest"] == result["valid"]
    assert last["progress"]["epoch"] == 2 and last["progress"]["latest"] == lines[-1]["valid"]
    assert best["config"]["recdim"] == 8 and best["optimizer"]["param_groups"][0]["lr"] == 0.02


def test_result_names_the_protocol_and_warns_of_selection_on_test(small_dataset):
    out, result, lines = run(small_dataset, model="mf", select_on="test", mask_valid_at_test=1)
    assert result["protocol"]["selected_on"] == "test" and result["protocol"]["masked_at_test"] == [
        "train",
        "valid",
    ]
    assert "valid" not in lines[0] and "test" in lines[0] and "leak" in (out / "train.log").read_text()
    out, result, _ = run(small_dataset, model="mf")
    assert result["protocol"]["masked_at_test"] == ["train"] and "leak" not in (out / "train.log").read_text()


def test_tensorboard_events_are_readable_and_agree_with_metrics_jsonl(small_dataset):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, result, lines = run(small_dataset, epochs=3, tensorboard=1, plan_image_every=2)
    events = EventAccumulator(str(out))
    events.Reload()
    tags = events.Tags()
    expected = {
        "train/loss",
        "train/bpr",
        "train/contrastive",
        "train/grad_norm",
        "speed/epoch_seconds",
        "speed/samples_per_second",
        "speed/peak_memory_mb",
        *(
            f"{split}/{name}_{k}" for split in ("valid", "test") for name in NAMES for k in (3, 5)
        ),  # tensorboardX: _ for @
        *(f"model/plan/{m}/{name}" for m in ("text", "image") for name in ("w1", "mass", "entropy")),
    }
    assert sorted(expected - set(tags["scalars"])) == []
    for tag, values in (
        ("train/loss", [line["train"]["loss"] for line in lines]),
        ("valid/ndcg_5", [line["valid"]["ndcg@5"] for line in lines]),
        ("model/plan/text/w1", [line["model"]["plan/text/w1"] for line in lines]),
    ):
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (n, pytest.approx(value, rel=1e-5)) for n, value in enumerate(values, 1)
        ]
    assert all(event.value == pytest.approx(1, abs=1e-3) for event in events.Scalars("model/plan/image/mass"))
    assert {"plan/text", "plan/image"} <= set(tags["images"])
    images = events.Images("plan/text")
    assert [image.step for image in images] == [1, 2] and (images[0].width, images[0].height) == (8, 8)


def test_tensorboard_compares_settings_with_final_metrics(small_dataset):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    out, result, _ = run(small_dataset, epochs=2, tensorboard=1, lr=0.005)
    events = EventAccumulator(str(out))
    events.Reload()
    content = {
        tag: HParamsPluginData.FromString(data) for tag, data in events.PluginTagToContent("hparams").items()
    }
    assert content["_hparams_/session_start_info"].session_start_info.hparams["lr"].number_value == 0.005
    names = [info.name.tag for info in content["_hparams_/experiment"].experiment.metric_infos]
    expected = {
        "valid_best/ndcg_3": result["valid"]["ndcg@3"],
        **{f"test/{name}_{k}": result["test"][f"{name}@{k}"] for k in (3, 5) for name in ("recall", "ndcg")},
    }
    assert names == list(expected)
    for name in names:  # each column of the comparison has its scalar
        assert [event.value for event in events.Scalars(name)] == [pytest.approx(expected[name], rel=1e-6)]
    first = {info.name for info in content["_hparams_/experiment"].experiment.hparam_infos if info.differs}
    assert first == {"model", "recdim", "attn_heads", "bpr_batch", "lr"}


def test_tensorboard_0_writes_no_events(small_dataset):
    out, _, _ = run(small_dataset, epochs=1, tensorboard=0)
    assert not [path for path in out.rglob("*") if "events" in path.name]


def test_fusion_weights_that_are_learned_are_scalars_over_time(small_dataset):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out, _, lines = run(small_dataset, epochs=3, tensorboard=1, learn_fusion_weights=1)
    events = EventAccumulator(str(out))
    events.Reload()
    for name in ("id", "text", "image"):
        values = [event.value for event in events.Scalars(f"model/fusion/{name}")]
        assert len(set(values)) == 3 and values == pytest.approx(
            [line["model"][f"fusion/{name}"] for line in lines], rel=1e-6
        )


# ---------------------------------------------------------------- the projector


def write_names(folder):
    """Original ids, and titles of all items but item 3."""
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tSKU-{i}\n" for i in range(30)))
    (folder / "item_text.jsonl").write_text(
        "".join(json.dumps({"item": i, "title": f"a\tthing {i}"}) + "\n" for i in range(30) if i != 3)
    )


def rows(path):
    return [line.split("\t") for line in path.read_text().removesuffix("\n").split("\n")]


@pytest.mark.parametrize("changes", [{}, {"model": "mf"}])
def test_projector_shows_the_best_vectors_with_ids_and_titles(small_dataset, monkeypatch, changes):
    write_names(small_dataset)
    scripted(monkeypatch, [0.1, 0.3, 0.2])
    out, result, _ = run(small_dataset, epochs=3, tensorboard=1, projector=1, **changes)
    assert result["best_epoch"] == 2
    with torch.inference_mode():
        vectors = dict(
            zip(
                ("user", "item"),
                restored(small_dataset, settings(small_dataset, **changes), out).embeddings(),
            )
        )
    for name in ("user", "item"):
        written = np.loadtxt(out / "projector" / f"{name}_vectors.tsv", dtype=np.float32, delimiter="\t")
        assert np.array_equal(written, vectors[name].detach().numpy())
    train = random_pairs(0, 40, 30, 6)["train"]
    head, *items = rows(out / "projector" / "item.tsv")
    assert head == ["item", "title", "id", "train"] and len(items) == 30 and items[3][1] == ""
    assert items[5] == ["5", "a thing 5", "SKU-5", str((train[:, 1] == 5).sum())]
    head, *users = rows(out / "projector" / "user.tsv")
    assert head == ["user", "id", "train"] and users[39] == ["39", "39", "0"] and users[0][2] == "6"


def test_tensorboard_finds_the_projector_files(small_dataset):
    from google.protobuf import text_format
    from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

    out, _, _ = run(small_dataset, epochs=1, tensorboard=1, projector=1)
    config = text_format.Parse((out / "projector_config.pbtxt").read_text(), ProjectorConfig())
    assert [embedding.tensor_name for embedding in config.embeddings] == ["item", "user"]
    for embedding in config.embeddings:
        assert len(rows(out / embedding.tensor_path)) == len(rows(out / embedding.metadata_path)) - 1
    assert list(out.glob("events*"))  # beside them: TensorBoard looks in the folders of events


def test_many_users_stay_out_of_the_projector(small_dataset, monkeypatch):
    monkeypatch.setattr(projector, "MAX_USERS", 39)
    out, _, _ = run(small_dataset, epochs=1, tensorboard=1, projector=1)
    assert {path.name for path in (out / "projector").iterdir()} == {"item.tsv", "item_vectors.tsv"}
    assert "user" not in (out / "projector_config.pbtxt").read_text()


def test_a_damaged_id_file_ends_a_projector_run_before_training(small_dataset):
    (small_dataset / "item_ids.tsv").write_text("0\ta\n")
    with pytest.raises(UserError, match="item_ids.tsv"):
        run(small_dataset, epochs=1, tensorboard=1, projector=1)
    with pytest.raises(UserError, match="tensorboard"):
        settings(small_dataset, projector=1)


def test_released_recipe_runs_without_warnings(small_dataset, recwarn):
    from world import RECIPES

    out, result, lines = run(small_dataset, epochs=2, tensorboard=1, **RECIPES["released"])
    assert result["status"] == "finished" and all(
        math.isfinite(value) for line in lines for value in line["train"].values()
    )
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_the_image_of_a_plan_that_underflowed_to_zero_holds_no_nan(small_dataset, recwarn):
    _, _, lines = run(
        small_dataset,
        epochs=1,
        tensorboard=1,
        sinkhorn="exp",
        ot_unit="absolute",
        ot_scale=1e6,
        ot_epsilon=0.01,
    )
    assert lines[0]["model"]["plan/text/mass"] == 0
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def test_a_failing_epoch_leaves_the_log_and_no_result(small_dataset, monkeypatch):
    original = procedure.score
    calls = []

    def fail_second(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(procedure, "score", fail_second)
    with pytest.raises(KeyboardInterrupt):
        run(small_dataset)
    (out,) = (small_dataset.parent.parent / "runs").iterdir()
    assert (
        len((out / "metrics.jsonl").read_text().splitlines()) == 1
        and checkpoint(out / "best.pt")["progress"]["epoch"] == 1
    )
    assert not (out / "result.json").exists() and not list(out.glob(".*tmp"))


def test_the_ranking_file_gives_the_metrics_of_the_result(small_dataset):
    out, result, _ = run(small_dataset, epochs=3)
    pairs = random_pairs(0, 40, 30, 6)
    with np.load(out / "test_ranking.npz", allow_pickle=False) as file:
        users, items, crow, relevant, history, popularity = (
            file[name]
            for name in ("users", "items", "relevant_crow", "relevant_items", "history", "popularity")
        )
    wanted = [set(relevant[start:stop].tolist()) for start, stop in zip(crow, crow[1:])]
    assert {(int(user), item) for user, found in zip(users, wanted) for item in found} == set(
        map(tuple, pairs["test"].tolist())
    )
    for k in (3, 5):
        recalls = [len(found & set(row[:k].tolist())) / len(found) for found, row in zip(wanted, items)]
        assert result["test"][f"recall@{k}"] == pytest.approx(np.mean(recalls), rel=1e-12)
    assert history.tolist() == [sum(pairs["train"][:, 0] == user) for user in users]
    assert popularity.tolist() == [sum(pairs["train"][:, 1] == item) for item in range(30)]
    assert not any(
        {(int(user), int(item)) for item in row} & set(map(tuple, pairs["train"].tolist()))
        for user, row in zip(users, items)
    )
