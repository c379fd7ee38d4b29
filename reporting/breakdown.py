"""Breakdowns of a report: results by the length of the user's history, and by properties of the item."""

from collections.abc import Sequence

import numpy as np

from reporting.blocks import Block, Cell, Table, Text, mean_with_sd
from reporting.groups import Group, Section
from reporting.rankings import QUALITY_BINS, Rankings, history_bins, quality_bins
from training.beyond import ITEM_BINS, item_bins
from world import MODALITIES


def breakdown(section: Section, rankings: Rankings) -> list[Block]:
    """Results by history length, item popularity and quality of features; a note on rows without lists."""
    ranked = [group for group in section.groups if group.name in rankings]
    missing = [group.name for group in section.groups if group.name not in rankings]
    blocks: list[Block] = []
    if ranked:
        blocks += [users_table(section, ranked, rankings), items_table(section, ranked, rankings)]
        blocks += quality_blocks(section, ranked, rankings)
    if missing:
        reason = "at least one of their runs has no test_ranking.npz"
        blocks.append(Text(f"Not in the breakdowns, because {reason}: {', '.join(missing)}."))
    return blocks


def users_table(section: Section, groups: Sequence[Group], rankings: Rankings) -> Table:
    """Recall and NDCG by number of training items of the user."""
    bins, names = history_bins(rankings[groups[0].name][0].history_lengths)
    counts = np.bincount(bins)
    rows: list[list[Cell]] = []
    for metric in section.metrics:
        for group in groups:
            means = [np.bincount(bins, ranking.metrics[metric]) / counts for ranking in rankings[group.name]]
            rows.append([metric, group.name, *map(mean_with_sd, zip(*means))])
    columns = [f"{name} items ({count:,} users)" for name, count in zip(names, counts)]
    return Table(
        f"Results by length of the user's history, {section.dataset}",
        f"{section.slug}_users",
        ["metric", "method", *columns],
        rows,
        "Users are split at the quartiles of their number of training items.",
        grouped=True,
    )


# ---------------------------------------------------------------- properties of the item


def items_table(section: Section, groups: Sequence[Group], rankings: Rankings) -> Table:
    """Share of the relevant (user, item) pairs that were recommended, by popularity of the item."""
    first = rankings[groups[0].name][0]
    bins = item_bins(first.popularity)
    items, relevant = np.bincount(bins), np.bincount(bins, first.relevant)
    used = np.flatnonzero(relevant)
    columns = [
        f"{ITEM_BINS[index]} ({items[index]:,} items, {relevant[index]:,.0f} relevant)" for index in used
    ]
    return Table(
        f"Results by popularity of the relevant item, {section.dataset}",
        f"{section.slug}_items",
        ["metric", "method", *columns],
        recall_rows(section, groups, rankings, bins),
        "Share of the relevant (user, item) pairs that are ranked in the top K. Items are sorted by their "
        "number of training interactions: head items account for the first half of all interactions, middle "
        "items for the next 30%, tail items for the rest; cold items have none.",
        grouped=True,
    )


def recall_rows(
    section: Section, groups: Sequence[Group], rankings: Rankings, bins: np.ndarray
) -> list[list[Cell]]:
    """Rows of a table: share of the relevant pairs in the top K, for every bin of items [I] that has some."""
    used = np.flatnonzero(np.bincount(bins, rankings[groups[0].name][0].relevant))
    rows: list[list[Cell]] = []
    for k in sorted(section.first.config.topks):
        for group in groups:
            shares = [
                np.bincount(bins, ranking.hits[k])[used] / np.bincount(bins, ranking.relevant)[used]
                for ranking in rankings[group.name]
            ]
            rows.append([f"recall@{k}", group.name, *map(mean_with_sd, zip(*shares))])
    return rows


def quality_blocks(section: Section, groups: Sequence[Group], rankings: Rankings) -> list[Block]:
    """A table by quality of the features for every modality of which a run has stored it.

    The quality belongs to the features, not to the model, so one row lends it to the others; where the rows
    have different features, a note takes the place of the table.
    """
    blocks: list[Block] = []
    for modality in MODALITIES:
        sources = [group for group in groups if modality in rankings[group.name][0].lifts]
        hashes = {(group.first.features or {}).get(modality) for group in groups} - {None}
        graphs = {(group.first.features or {}).get(f"{modality} neighbours") for group in sources}
        if len(hashes) > 1 or len(graphs) > 1:
            reason = f"the rows were trained on different {modality} features or neighbours"
            blocks.append(Text(f"No results by quality of the {modality} features: {reason}."))
        elif sources:
            blocks.append(quality_table(section, groups, rankings, modality, sources[0]))
    return blocks


def quality_table(
    section: Section, groups: Sequence[Group], rankings: Rankings, modality: str, source: Group
) -> Table:
    """Share of the relevant pairs that were recommended, by quality of the item's features.

    source: the row whose runs have stored the quality.
    """
    lender = rankings[source.name][0]
    bins = quality_bins(lender.lifts[modality], lender.popularity)
    items, relevant = np.bincount(bins), np.bincount(bins, lender.relevant)
    interactions = np.bincount(bins, lender.relevant * lender.popularity)
    columns = [
        f"{QUALITY_BINS[index]} ({items[index]:,} items, {relevant[index]:,.0f} relevant, "
        f"mean popularity {interactions[index] / relevant[index]:.1f})"
        for index in np.flatnonzero(relevant)
    ]
    return Table(
        f"Results by quality of the relevant item's {modality} features, {section.dataset}",
        f"{section.slug}_quality_{modality}",
        ["metric", "method", *columns],
        recall_rows(section, groups, rankings, bins),
        "Share of the relevant (user, item) pairs that are ranked in the top K. low, middle, high: thirds of "
        "the items among those of similar popularity, by how much more their training users have in common "
        f"with those of their nearest items by {modality} features than with those of other items; items "
        "with the same value share a third. none: items without such a value. popularity: training "
        f"interactions. The values are those that the runs of {source.name} stored. docs/report.md has the "
        "definition and its limits.",
        grouped=True,
    )
