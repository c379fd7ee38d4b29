"""Full ranking and its metrics against loops in Python: chunks, masks, ties, and the prefilter."""

import numpy as np
import pytest
import torch
from model_helpers import choose_gpu_branches
from naive_ranking import items_of, naive_metrics, naive_ranks, naive_top
from small_runs import CPU

from dataloader import held_out
from models.base import ItemWeights
from training import ranking
from training.prefilter import certain_misses
from training.ranking import evaluate, rank_items, ranks_of
from training.scoring import GROUP, Scorer, row_numbers


def small_case():
    """Vectors, train and test pairs. User 0 has two test items, user 3 none; item 11 is in test only."""
    torch.manual_seed(5)
    train = np.array([(0, 1), (0, 2), (1, 0), (1, 5), (2, 3), (3, 4), (4, 4), (4, 6), (4, 7)])
    test = np.array([(0, 11), (0, 3), (1, 11), (2, 4), (2, 5), (2, 6), (2, 7), (4, 9)])
    return Scorer(torch.randn(6, 4), torch.randn(12, 4)), train, test


def large_case(seed=0, users=90, items=2100):
    """Vectors with popular items, and pairs, of a catalogue large enough for the prefilter.

    Every user's best item is held out unless it is a train item, so that there are hits.
    """
    generator = torch.Generator().manual_seed(seed)
    user, item = torch.randn(users, 6, generator=generator), torch.randn(items, 6, generator=generator)
    user[:, 0] += 1.5
    drawn = torch.randint(items, (9 * users,), generator=generator)
    pairs = torch.stack([torch.arange(users).repeat(9), drawn], 1).unique(dim=0).numpy()
    train, held = pairs[::2], pairs[1::2]
    best = np.stack([np.arange(users), (user @ item.T).argmax(1).numpy()], 1)
    taken = {tuple(pair) for pair in train.tolist()}
    best = [pair for pair in best.tolist() if tuple(pair) not in taken]
    return Scorer(user, item), train, np.unique(np.concatenate([held, best]), axis=0)


def lists_of(scorer, split, k, chunk=0):
    """The best k items of every user of a split: [n, k]."""
    return torch.cat([top for _, _, top, _ in rank_items(scorer, split, k, chunk)])


# ---------------------------------------------------------------- metrics and lists


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_evaluate_equals_a_loop_for_every_chunk_size(chunk):
    scorer, train, test = small_case()
    split = held_out(test, [train], CPU)
    expected = naive_metrics(scorer.user, scorer.item, test, train, (1, 3, 8))
    assert evaluate(scorer, [split], (1, 3, 8), chunk) == [pytest.approx(expected, rel=1e-12)]
    assert 0 < expected["recall@3"] < 1


def test_rank_items_equals_a_loop_and_omits_masked_items():
    scorer, train, test = small_case()
    ranked = {}
    for start, stop, top, scores in rank_items(scorer, held_out(test, [train], CPU), 9, 3):
        for u, items, values in zip([0, 1, 2, 4][start:stop], top.tolist(), scores, strict=True):
            ranked[u] = items
            torch.testing.assert_close(values, (scorer.user[u] @ scorer.item.T)[items])
    assert list(ranked) == [0, 1, 2, 4]
    for u, items in ranked.items():
        assert items == naive_top((scorer.user[u] @ scorer.item.T).tolist(), items_of(train, u), 9)


@pytest.mark.parametrize("entries", [0, 1, 7, 2**24])
def test_item_weights_add_the_rows_of_the_history(monkeypatch, entries):
    """Scorer(user, item, weights, history) against dense matrices; entries: on a GPU at a time."""
    if entries:
        choose_gpu_branches(monkeypatch)
        monkeypatch.setattr("training.scoring.ENTRIES", entries)
    scorer, train, test = small_case()
    weights = torch.randn(12, 12) * (torch.rand(12, 12) < 0.4)
    history = held_out(train, [train], CPU).relevant
    seen = torch.zeros(6, 12)
    seen[tuple(torch.from_numpy(train.T))] = 1
    # User 5 has no train item; the row pointers must have an entry for it.
    history = torch.cat([history[0], history[0][-1:]]), history[1]
    scores = scorer.user @ scorer.item.T + seen @ weights
    weighted = Scorer(scorer.user, scorer.item, ItemWeights(weights.to_sparse_csr()), history)
    split = held_out(test, [train], CPU)
    for start, stop, top, values in rank_items(weighted, split, 6, 3):
        for u, items, row in zip(split.users[start:stop].tolist(), top.tolist(), values, strict=True):
            assert items == naive_top(scores[u].tolist(), items_of(train, u), 6)
            torch.testing.assert_close(row, scores[u][items])
    expected = naive_metrics(scores, torch.eye(12), test, train, (1, 3))
    assert evaluate(weighted, [split], (1, 3), 3) == [pytest.approx(expected, rel=1e-12)]


def test_splits_with_the_same_users_and_masks_share_their_scores(monkeypatch):
    scorer, train, test = small_case()
    valid = np.array([(0, 5), (1, 2), (2, 9), (4, 10)])
    splits = [
        held_out(valid, [train], CPU),
        held_out(test, [train], CPU),
        held_out(test, [train, valid], CPU),
    ]
    alone = [evaluate(scorer, [split], (3,))[0] for split in splits]
    passes, original = [], ranking.score_chunks
    monkeypatch.setattr(ranking, "score_chunks", lambda *arguments: passes.append(1) or original(*arguments))
    assert evaluate(scorer, [splits[0], splits[2], splits[1]], (3,)) == [alone[0], alone[2], alone[1]]
    assert len(passes) == 2


def test_masked_items_fill_the_end_of_a_list_with_too_few_candidates():
    train = np.array([(0, i) for i in range(700) if i not in (5, 600)] + [(1, 0)])
    torch.manual_seed(0)
    scorer = Scorer(torch.rand(2, 4), torch.rand(700, 4))
    top = lists_of(scorer, held_out(np.array([(0, 5), (1, 7)]), [train], CPU), 4, 10)
    assert set(top[0, :2].tolist()) == {5, 600} and top.max() < 700 and len(set(top[0].tolist())) == 4


def test_users_without_relevant_items_do_not_enter_the_mean():
    scorer = Scorer(torch.ones(4, 1), torch.tensor([[3.0], [2.0], [1.0]]))
    split = held_out(np.array([(1, 0), (2, 2)]), [np.array([(0, 1)])], CPU)
    assert evaluate(scorer, [split], (1,), 10)[0]["recall@1"] == 0.5


def test_an_item_that_occurs_in_test_only_is_a_candidate():
    scorer = Scorer(torch.ones(1, 1), torch.tensor([[1.0], [2.0], [3.0]]))
    split = held_out(np.array([(0, 2)]), [np.array([(0, 0)])], CPU)
    assert evaluate(scorer, [split], (1,), 10)[0]["ndcg@1"] == 1


def test_select_keeps_the_rows_of_some_users():
    _, train, test = small_case()
    part = held_out(test, [train], CPU).select(torch.tensor([1, 3]))
    assert part.users.tolist() == [1, 4]
    assert [tensor.tolist() for tensor in part.relevant] == [[0, 1, 2], [11, 9]]
    assert [tensor.tolist() for tensor in part.masked] == [[0, 2, 5], [0, 5, 4, 6, 7]]


# ---------------------------------------------------------------- ranks and ties


@pytest.mark.parametrize("k", [1, 5, 64, 200])
@pytest.mark.parametrize("kind", ["distinct", "ties", "constant"])
def test_ranks_of_equals_counting(kind, k):
    torch.manual_seed(k)
    n = 3 * GROUP
    scores = {
        "distinct": torch.randn(7, n),
        "ties": torch.randint(12, (7, n)).float(),
        "constant": torch.zeros(7, n),
    }[kind]
    scores[:, -5:] = -torch.inf
    row, column = torch.arange(7).repeat_interleave(40), torch.randint(n - 5, (280,))
    assert ranks_of(scores, row, column, k).tolist() == naive_ranks(scores.tolist(), row, column, k)


def test_scores_that_are_nan_never_improve_a_rank():
    scores = torch.arange(2.0 * GROUP)[None].repeat(2, 1)
    scores[0, 3], scores[1, ::2] = torch.nan, torch.nan
    ranks = ranks_of(scores, torch.tensor([0, 1]), torch.tensor([3, 2 * GROUP - 1]), 9)
    # The first entry is NaN itself; the second is the largest number of its row, but half of the row is NaN.
    assert ranks.tolist() == [9, 9]


@pytest.mark.parametrize("users, items, k", [(40, 70, 7), (30, 2100, 4)])
def test_metrics_and_lists_agree_where_many_scores_are_equal(users, items, k):
    torch.manual_seed(items)
    user, item = torch.randint(3, (users, 2)).float(), torch.randint(3, (items, 2)).float()
    _, train, held = large_case(1, users, items)

    def top(u, length):
        return naive_top((user[u] @ item.T).tolist(), items_of(train, u), length)

    third = [(u, top(u, 3)[2]) for u in range(0, users, 2)]
    held = np.unique(np.concatenate([held, third]), axis=0)
    split = held_out(held, [train], CPU)
    recall = 0
    for u, ranked in zip(split.users.tolist(), lists_of(Scorer(user, item), split, k).tolist(), strict=True):
        assert ranked == top(u, k)
        recall += len(items_of(held, u) & set(ranked)) / len(items_of(held, u))
    [metrics] = evaluate(Scorer(user, item), [split], (k,))
    assert metrics[f"recall@{k}"] == pytest.approx(recall / len(split.users), rel=1e-12) and recall > 1


def test_items_with_equal_scores_are_ranked_by_number():
    """A model that cannot tell items apart must not get hits from the order in which they are compared."""
    test, train = np.array([(0, 4), (1, 900), (2, 0)]), np.array([(0, 1), (1, 2)])
    [metrics] = evaluate(
        Scorer(torch.ones(3, 2), torch.ones(2100, 2)), [held_out(test, [train], CPU)], (3, 4)
    )
    # Item 4 of user 0 is the fourth candidate, because item 1 is masked.
    assert metrics["recall@3"] == pytest.approx(1 / 3) and metrics["recall@4"] == pytest.approx(2 / 3)


# ---------------------------------------------------------------- the prefilter


def misses(scorer, split, k, chunk=0):
    """(row of each relevant item, whether the prefilter decides that it is a miss)."""
    row = row_numbers(split.relevant[0], 0, len(split.users))
    return row, certain_misses(scorer, split, row, split.relevant[1], k, chunk)


@pytest.mark.parametrize("chunk", [0, 7])
def test_evaluate_of_a_large_catalogue_equals_the_lists_and_the_loop(chunk):
    scorer, train, held = large_case()
    split = held_out(held, [train], CPU)
    row, missed = misses(scorer, split, 5, chunk)
    # It decides most of the items, and none of them wrongly.
    assert 0.5 < missed.float().mean() < 1
    lists = lists_of(scorer, split, 5, chunk)
    assert not (lists[row] == split.relevant[1][:, None]).any(1)[missed].any()
    expected = naive_metrics(scorer.user, scorer.item, held, train, (1, 5))
    assert evaluate(scorer, [split], (1, 5), chunk) == [pytest.approx(expected, rel=1e-12)]
    assert 0.1 < expected["recall@5"] < 0.9


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e18])
def test_the_prefilter_decides_nothing_among_equal_scores(scale):
    scorer, train, held = large_case()
    same = Scorer(scale * scorer.user, scale * scorer.item[:1].repeat(len(scorer.item), 1))
    assert not misses(same, held_out(held, [train], CPU), 5)[1].any()
