"""Tables and figures of a report."""

import collections
import csv
import warnings
from pathlib import Path

import numpy as np
from scipy import stats

from reporting.figures import draw_bars, draw_lines, draw_triangle
from reporting.rankings import ITEM_BINS, history_bins, user_means
from reporting.render import Figure, Number, Table, Text
from reporting.runs import label, metrics_of
from utils import UserError

PUBLISHED = Path(__file__).parents[1] / "docs" / "published.csv"
SPLITS = {"valid": "validation", "test": "TEST"}
MOST_ROWS = 12  # beyond which bars, learning curves and breakdowns tell nothing


def describe(run):
    """How the runs of a table were selected and scored, in words."""
    protocol = run.result.get("protocol", {})
    return (
        f"{run.dataset}: epoch chosen by {protocol.get('selection_metric', run.config.selection_metric)} on {SPLITS[run.config.select_on]}, "
        f"{' and '.join(protocol.get('masked_at_test', ['train']))} items masked at test"
        + (", dropout on while scoring" if run.config.eval_dropout else "")
        + f" (interactions {run.interactions[:8]})"
    )


def surroundings(run):
    """What may differ among compared runs but deserves a word, {"git commit": ...}."""
    versions = run.result.get("versions", {})
    commit = str(versions.get("git_commit"))[:8] + (" with changes" if versions.get("git_dirty") else "")
    return {
        "git commit": commit,
        **{name: versions.get(name) for name in ("torch", "numpy", "python", "platform")},
        "device": run.result.get("device"),
        "threads": run.config.threads,
    }


def surrounding_notes(section):
    """A Text for each part of the surroundings in which the runs of a table differ."""
    seen = collections.defaultdict(lambda: collections.defaultdict(dict))
    for group in section:
        for run in group.runs:
            for part, value in surroundings(run).items():
                seen[part][value][group.name] = True
    return [
        Text(
            f"The runs differ in {part}: "
            + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            + "."
        )
        for part, values in seen.items()
        if len(values) > 1
    ]


def spread(values, form=".4f", mark=""):
    """Values over seeds -> Number with mean and sample standard deviation (none of a single value)."""
    return Number(
        float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, form, mark
    )


def marked(means):
    """ "best" and "second" for the largest and second largest of these means, "" for the others and for a lone one."""
    ranks = dict(zip(sorted(set(means), reverse=True), ("best", "second")))
    return [ranks.get(mean, "") if len(means) > 1 else "" for mean in means]


def results_table(section, slug):
    """The main table: a row a Group."""
    metrics, columns = metrics_of(section[0].first), []
    for metric in metrics:
        values = [group.values(metric) for group in section]
        columns.append(
            [spread(row, mark=mark) for row, mark in zip(values, marked([np.mean(row) for row in values]))]
        )
    leaks = " (leaks)" if section[0].first.config.select_on == "test" else ""
    rows = [
        [group.name + leaks, group.first.config.recdim, len(group.runs), *cells]
        for group, *cells in zip(section, *columns)
    ]
    return Table(
        f"Test, {section[0].first.dataset}",
        f"{slug}_results",
        ["method", "recdim", "seeds", *metrics],
        rows,
        "Mean ± sample standard deviation over the seeds; best bold, second underlined.",
    )


def published_table(section, published, metrics, slug, what):
    """Published figures on a dataset in these metrics, or None if there are none."""
    found, dataset = collections.defaultdict(dict), section[0].first.dataset
    for entry in published:
        if entry["dataset"] == dataset and entry["metric"] in metrics:
            found[entry["method"], entry["setting"], entry["source"]][entry["metric"]] = float(entry["value"])
    metrics = [metric for metric in metrics if any(metric in values for values in found.values())]
    rows = [
        [
            method,
            *(Number(values.get(metric), form=".2f" if "seconds" in metric else ".4f") for metric in metrics),
            setting,
            source,
        ]
        for (method, setting, source), values in found.items()
    ]
    return rows and Table(
        f"Published {what}, {dataset}",
        slug,
        ["method", *metrics, "setting", "source"],
        rows,
        "Copied from the papers, not run here: with other features, machines and tuning than the table above.",
    )


def read_published():
    """Rows of docs/published.csv as dicts."""
    try:
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(
            f"{PUBLISHED}: cannot be read ({error.strerror}); restore it from the repository"
        ) from None


def paired_tests(ours, other):
    """p values, two-sided, of the paired t-test and the Wilcoxon signed-rank test on two arrays [n]; NaN for n < 2."""
    difference = np.asarray(ours) - np.asarray(other)
    if len(difference) < 2:
        return float("nan"), float("nan")
    if not difference.any():
        return 1.0, 1.0
    with warnings.catch_warnings(action="ignore"):  # of differences that are all the same
        return float(stats.ttest_rel(ours, other).pvalue), float(stats.wilcoxon(difference).pvalue)


def significance(section, ours, rankings, slug):
    """Blocks that compare the row called `ours` with the best other row, metric by metric, over seeds and over users."""
    mine = next((group for group in section if group.name == ours), None)
    if mine is None or len(section) == 1:
        return [
            Text(
                f"No significance: it takes a row called {ours} (--ours names another) and one to compare it with."
            )
        ]
    others = [group for group in section if group is not mine]
    rows = [
        comparison(mine, max(others, key=lambda group: np.mean(group.values(metric))), metric, rankings)
        for metric in metrics_of(mine.first)
    ]
    header = [
        "metric",
        "best other",
        "gain",
        "gain in %",
        "seeds",
        "p t-test, seeds",
        "p Wilcoxon, seeds",
        "users",
        "p t-test, users",
        "p Wilcoxon, users",
    ]
    note = significance_note(min(row[header.index("seeds")] for row in rows))
    return [Table(f"Is {ours} better? {mine.first.dataset}", f"{slug}_significance", header, rows, note)]


def comparison(mine, other, metric, rankings):
    """A row of the table of significance: one Group against another in a metric."""
    gain, base = np.mean(mine.values(metric)) - np.mean(other.values(metric)), np.mean(other.values(metric))
    theirs = {run.config.seed: run.result["test"][metric] for run in other.runs}
    pairs = [
        (run.result["test"][metric], theirs[run.config.seed])
        for run in mine.runs
        if run.config.seed in theirs
    ]
    ranked = {mine.name, other.name} <= rankings.keys()
    users = [user_means(rankings[group.name], metric) for group in (mine, other)] if ranked else ([], [])
    return [
        metric,
        other.name,
        Number(gain, form="+.4f"),
        Number(100 * gain / base if base else None, form="+.1f"),
        len(pairs),
        *p_values(*zip(*pairs) if pairs else ([], [])),
        len(users[0]),
        *p_values(*users),
    ]


def p_values(ours, other):
    """Two cells: p of the t-test and of the Wilcoxon test."""
    return [Number(p, form=".2g") for p in paired_tests(ours, other)]


def significance_note(seeds):
    """The small print under a table of p values over so many seeds."""
    note = (
        "Two-sided paired tests, not corrected for the number of comparisons. Over seeds: runs of the same seed are a pair; it asks "
        "whether another training would say the same. Over users: a user's values, averaged over the seeds, are a pair; it asks whether "
        "other users would say the same, and knows nothing of the training's randomness."
    )
    if seeds < 2:
        return f"{note} Too few seeds for a test over seeds: it takes two or more that both rows have."
    return (
        note
        if seeds >= 6
        else (
            f"{note} With {seeds} seeds a Wilcoxon p cannot be below {2.0 ** (1 - seeds):.3g}: too few to "
            "reach .05, for which it takes 6."
        )
    )


def users_table(section, rankings, slug):
    """Recall and NDCG by the length of a user's train history, as mean and deviation over seeds."""
    named = [group for group in section if group.name in rankings]
    bins, names = history_bins(rankings[named[0].name][0].history)
    counts, rows = np.bincount(bins), []
    for metric in metrics_of(section[0].first):
        for group in named:
            shares = [np.bincount(bins, ranking.values[metric]) / counts for ranking in rankings[group.name]]
            rows.append([metric, group.name, *map(spread, zip(*shares))])
    header = ["metric", "method", *(f"{name} items ({count:,} users)" for name, count in zip(names, counts))]
    return Table(
        f"By length of the user's train history, {section[0].first.dataset}",
        f"{slug}_users",
        header,
        rows,
        "Users in bins at the quartiles of their number of train items.",
    )


def items_table(section, rankings, slug):
    """Share of the relevant pairs of an item bin that were recommended, as mean and deviation over seeds."""
    named = [group for group in section if group.name in rankings]
    first, rows = rankings[named[0].name][0], []
    kept = [number for number in range(4) if first.relevant[number]]
    for k in sorted(section[0].first.config.topks):
        for group in named:
            shares = [ranking.found[k][kept] / ranking.relevant[kept] for ranking in rankings[group.name]]
            rows.append([f"recall@{k}", group.name, *map(spread, zip(*shares))])
    header = [
        "metric",
        "method",
        *(f"{ITEM_BINS[n]} ({first.items[n]:,} items, {first.relevant[n]:,} relevant)" for n in kept),
    ]
    return Table(
        f"By popularity of the relevant item, {section[0].first.dataset}",
        f"{slug}_items",
        header,
        rows,
        "Share of the (user, relevant item) pairs of a bin that are among the first K. Items in falling order of train interactions: "
        "head until half of all interactions are reached, middle until four fifths, tail the rest; cold: no train interaction.",
    )


def breakdown(section, rankings, slug):
    """The two tables by history and popularity, and a Text on rows that have no ranked lists."""
    without = [group.name for group in section if group.name not in rankings]
    note = (
        [Text(f"Not in the breakdown, because a run has no test_ranking.npz: {', '.join(without)}.")]
        if without
        else []
    )
    return (
        note
        if len(without) == len(section)
        else [users_table(section, rankings, slug), items_table(section, rankings, slug), *note]
    )


def seconds_table(section, slug):
    """Seconds an epoch and an evaluation, of the whole run, and peak memory."""
    rows = []
    for group in section:
        columns = [
            [line[key] for run in group.runs for line in run.lines if isinstance(line.get(key), float)]
            for key in ("epoch_seconds", "evaluation_seconds")
        ]
        whole, memory = (
            [run.result.get(key) for run in group.runs if run.result.get(key) is not None]
            for key in ("seconds", "peak_memory_mb")
        )
        rows.append(
            [
                group.name,
                *(Number(float(np.median(values)) if values else None, form=".3f") for values in columns),
                spread(whole, ".1f") if whole else Number(None),
                Number(max(memory, default=None), form=",.0f"),
                ", ".join(sorted({str(run.result.get("device")) for run in group.runs})),
            ]
        )
    header = [
        "method",
        "epoch_seconds",
        "evaluation_seconds",
        "seconds of the run",
        "peak memory in MB",
        "device",
    ]
    return Table(
        f"Seconds, {section[0].first.dataset}",
        f"{slug}_seconds",
        header,
        rows,
        "Medians over the evaluated epochs of all seeds; the whole run as mean ± standard deviation; the largest peak memory.",
    )


def curve_of(group, metric):
    """Validation metric against epoch, over the epochs that every seed of a Group has: (epochs, mean, least, most)."""
    split = group.first.config.select_on
    scores = [
        {line["epoch"]: line[split][metric] for line in run.lines if metric in line.get(split, {})}
        for run in group.runs
    ]
    epochs = sorted(set.intersection(*map(set, scores)))
    values = np.array([[score[epoch] for epoch in epochs] for score in scores])
    return epochs, values.mean(0), values.min(0), values.max(0)


def learning_curves(section, slug):
    """Figure of the selection metric against the epoch, a line a row of the table."""
    config = section[0].first.config
    metric = config.selection_metric
    lines = {group.name: curve_of(group, metric) for group in section}
    lines = {name: line for name, line in lines.items() if len(line[0])}
    return lines and Figure(
        draw_lines({f"{metric}, {SPLITS[config.select_on]}": lines}, "epoch"),
        f"{slug}_learning",
        f"{section[0].first.dataset}: {metric} on {SPLITS[config.select_on]} against the epoch, mean over the seeds, band from the "
        "least to the most; a line ends where its first seed stopped.",
    )


def bars(section, slug):
    """Figure of the main table."""
    panels = {
        metric: [
            (group.name, number.mean, number.sd)
            for group in section
            for number in [spread(group.values(metric))]
        ]
        for metric in metrics_of(section[0].first)
    }
    return Figure(
        draw_bars(panels),
        f"{slug}_bars",
        f"{section[0].first.dataset}: test metrics, mean and standard deviation over the seeds.",
    )


def series(section, settings):
    """{name without these settings: [Group, ...]}, to draw the Groups of one name against them."""
    lines = collections.defaultdict(list)
    for group in section:
        lines[label(group.first, [setting for setting in group.varied if setting not in settings])].append(
            group
        )
    return lines


def setting_curve(section, setting, slug):
    """Figure of the test metrics against a setting; rows that do not vary it are level lines. None if no row varies it."""
    panels, varied = collections.defaultdict(dict), False
    for name, groups in series(section, [setting]).items():
        groups = sorted(groups, key=lambda group: getattr(group.first.config, setting))
        varied |= len(groups) > 1
        x = [
            value if isinstance(value, (int, float)) else str(value)
            for value in (getattr(group.first.config, setting) for group in groups)
        ]
        for metric in metrics_of(section[0].first):
            numbers = [spread(group.values(metric)) for group in groups]
            mean, sd = (
                np.array([getattr(number, part) or 0 for number in numbers]) for part in ("mean", "sd")
            )
            panels[metric][name] = (x if len(groups) > 1 else None, mean, mean - sd, mean + sd)
    return (
        Figure(
            draw_lines(panels, setting),
            f"{slug}_by_{setting}",
            f"{section[0].first.dataset}: test metrics against {setting}, mean over the seeds, band of one standard deviation; "
            "level lines: rows with one value of it.",
        )
        if varied
        else None
    )


def triangles(section, slug):
    """Figures of the test metrics over the fusion weights, one a name that has two or more pairs of them."""
    figures = []
    for name, groups in series(section, ["alpha", "beta"]).items():
        inside = [group for group in groups if group.first.config.alpha + group.first.config.beta <= 1 + 1e-9]
        if len(inside) < 2:
            continue
        text, image = (
            np.array([getattr(group.first.config, key) for group in inside]) for key in ("beta", "alpha")
        )
        panels = {
            metric: (text, image, [np.mean(group.values(metric)) for group in inside])
            for metric in metrics_of(section[0].first)
        }
        outside = (
            f" {len(groups) - len(inside)} pairs with a sum above 1 are not shown."
            if len(inside) < len(groups)
            else ""
        )
        figures.append(
            Figure(
                draw_triangle(panels),
                f"{slug}_triangle" + (f"_{len(figures) + 1}" if figures else ""),
                f"{section[0].first.dataset}, {name}: test metrics over the fusion weights of text (beta), image (alpha) and ID "
                f"(the rest); a dot is a pair that was trained, colours between dots are interpolated.{outside}",
            )
        )
    return figures


def runs_table(runs, title="Runs", slug="runs"):
    """Every run and how it ended."""
    rows = []
    for run in runs:
        metric = metrics_of(run)[0]
        epoch = run.result.get("epochs", run.result.get("epoch", run.lines[-1]["epoch"] if run.lines else 0))
        leaks = "leaks: epoch chosen on test" if run.config.select_on == "test" else ""
        why = {"finished": leaks, "unfinished": "no result.json: under way, or killed"}.get(
            run.status, str(run.result.get("reason") or run.result.get("error") or "")
        )
        rows.append(
            [
                str(run.folder),
                run.name,
                run.dataset,
                run.config.recdim,
                run.config.seed,
                run.status,
                epoch,
                metric,
                Number(run.result.get("test", {}).get(metric)),
                why,
            ]
        )
    return Table(
        title,
        slug,
        ["folder", "method", "dataset", "recdim", "seed", "status", "epoch", "metric", "test", "note"],
        rows,
    )
