"""Tables, significance, breakdowns and figures out of run folders, as Markdown, LaTeX, CSV and one HTML page.

    python report.py runs/paper                                  # all runs below, into report/
    python report.py runs/paper --list                           # only says which runs there are and how they ended
    python report.py runs/paper --ours RecGOAT --output report/paper
    python report.py runs/knn --curve item_knn_k                 # metrics against a setting
    python report.py runs/weights --triangle                     # metrics over the fusion weights alpha and beta

A row is a name (main.py --name, else the model's), with mean and standard deviation over its seeds. Runs of one name that
differ in anything but the seed are refused; runs on other data or by another protocol get a table of their own; runs that
did not finish are listed and left out. docs/published.csv holds the published figures that stand beside.
"""

import argparse
import collections
import csv
import dataclasses
import sys
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from tqdm import tqdm

from training.ranking import row_numbers
from reporting.render import Figure, Heading, Number, Table, Text, markdown, write_report
from reporting.figures import draw_bars, draw_lines, draw_triangle
from reporting.runs import check_group, find_folders, label, make_groups, metrics_of, read_run, split_groups
from utils import UserError
from cli import Parser, run_tool
from training.metrics import ranking_metrics
from world import Config, provenance

PUBLISHED = Path(__file__).parent / "docs" / "published.csv"
SPLITS = {"valid": "validation", "test": "TEST"}
MOST_ROWS = 12              # beyond which bars, learning curves and breakdowns tell nothing
ITEM_BINS = ("head", "middle", "tail", "cold")


# ---------------------------------------------------------------- a table's runs, in words

def describe(run):
    """How the runs of a table were selected and scored, in words."""
    protocol = run.result.get("protocol", {})
    return (f"{run.dataset}: epoch chosen by {protocol.get('selection_metric', run.config.selection_metric)} on {SPLITS[run.config.select_on]}, "
            f"{' and '.join(protocol.get('masked_at_test', ['train']))} items masked at test"
            + (", dropout on while scoring" if run.config.eval_dropout else "") + f" (interactions {run.interactions[:8]})")


def surroundings(run):
    """What may differ among compared runs but deserves a word, {"git commit": ...}."""
    versions = run.result.get("versions", {})
    commit = str(versions.get("git_commit"))[:8] + (" with changes" if versions.get("git_dirty") else "")
    return {"git commit": commit, **{name: versions.get(name) for name in ("torch", "numpy", "python", "platform")},
            "device": run.result.get("device"), "threads": run.config.threads}


def surrounding_notes(section):
    """A Text for each part of the surroundings in which the runs of a table differ."""
    seen = collections.defaultdict(lambda: collections.defaultdict(dict))
    for group in section:
        for run in group.runs:
            for part, value in surroundings(run).items():
                seen[part][value][group.name] = True
    return [Text(f"The runs differ in {part}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items()) + ".")
            for part, values in seen.items() if len(values) > 1]


# ---------------------------------------------------------------- tables of test metrics

def spread(values, form=".4f", mark=""):
    """Values over seeds -> Number with mean and sample standard deviation (none of a single value)."""
    return Number(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None, form, mark)


def marked(means):
    """"best" and "second" for the largest and second largest of these means, "" for the others and for a lone one."""
    ranks = dict(zip(sorted(set(means), reverse=True), ("best", "second")))
    return [ranks.get(mean, "") if len(means) > 1 else "" for mean in means]


def results_table(section, slug):
    """The main table: a row a Group."""
    metrics, columns = metrics_of(section[0].first), []
    for metric in metrics:
        values = [group.values(metric) for group in section]
        columns.append([spread(row, mark=mark) for row, mark in zip(values, marked([np.mean(row) for row in values]))])
    leaks = " (leaks)" if section[0].first.config.select_on == "test" else ""
    rows = [[group.name + leaks, group.first.config.recdim, len(group.runs), *cells] for group, *cells in zip(section, *columns)]
    return Table(f"Test, {section[0].first.dataset}", f"{slug}_results", ["method", "recdim", "seeds", *metrics], rows,
                 "Mean ± sample standard deviation over the seeds; best bold, second underlined.")


def published_table(section, published, metrics, slug, what):
    """Published figures on a dataset in these metrics, or None if there are none."""
    found, dataset = collections.defaultdict(dict), section[0].first.dataset
    for entry in published:
        if entry["dataset"] == dataset and entry["metric"] in metrics:
            found[entry["method"], entry["setting"], entry["source"]][entry["metric"]] = float(entry["value"])
    metrics = [metric for metric in metrics if any(metric in values for values in found.values())]
    rows = [[method, *(Number(values.get(metric), form=".2f" if "seconds" in metric else ".4f") for metric in metrics), setting, source]
            for (method, setting, source), values in found.items()]
    return rows and Table(f"Published {what}, {dataset}", slug, ["method", *metrics, "setting", "source"], rows,
                          "Copied from the papers, not run here: with other features, machines and tuning than the table above.")


def read_published():
    """Rows of docs/published.csv as dicts."""
    try:
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise UserError(f"{PUBLISHED}: cannot be read ({error.strerror}); restore it from the repository") from None


def paired_tests(ours, other):
    """p values, two-sided, of the paired t-test and the Wilcoxon signed-rank test on two arrays [n]; NaN for n < 2."""
    difference = np.asarray(ours) - np.asarray(other)
    if len(difference) < 2:
        return float("nan"), float("nan")
    if not difference.any():
        return 1.0, 1.0
    with warnings.catch_warnings(action="ignore"):      # of differences that are all the same
        return float(stats.ttest_rel(ours, other).pvalue), float(stats.wilcoxon(difference).pvalue)


def significance(section, ours, rankings, slug):
    """Blocks that compare the row called `ours` with the best other row, metric by metric, over seeds and over users."""
    mine = next((group for group in section if group.name == ours), None)
    if mine is None or len(section) == 1:
        return [Text(f"No significance: it takes a row called {ours} (--ours names another) and one to compare it with.")]
    others = [group for group in section if group is not mine]
    rows = [comparison(mine, max(others, key=lambda group: np.mean(group.values(metric))), metric, rankings)
            for metric in metrics_of(mine.first)]
    header = ["metric", "best other", "gain", "gain in %", "seeds", "p t-test, seeds", "p Wilcoxon, seeds", "users", "p t-test, users",
              "p Wilcoxon, users"]
    note = significance_note(min(row[header.index("seeds")] for row in rows))
    return [Table(f"Is {ours} better? {mine.first.dataset}", f"{slug}_significance", header, rows, note)]


def comparison(mine, other, metric, rankings):
    """A row of the table of significance: one Group against another in a metric."""
    gain, base = np.mean(mine.values(metric)) - np.mean(other.values(metric)), np.mean(other.values(metric))
    theirs = {run.config.seed: run.result["test"][metric] for run in other.runs}
    pairs = [(run.result["test"][metric], theirs[run.config.seed]) for run in mine.runs if run.config.seed in theirs]
    ranked = {mine.name, other.name} <= rankings.keys()
    users = [user_means(rankings[group.name], metric) for group in (mine, other)] if ranked else ([], [])
    return [metric, other.name, Number(gain, form="+.4f"), Number(100 * gain / base if base else None, form="+.1f"),
            len(pairs), *p_values(*zip(*pairs) if pairs else ([], [])), len(users[0]), *p_values(*users)]


def p_values(ours, other):
    """Two cells: p of the t-test and of the Wilcoxon test."""
    return [Number(p, form=".2g") for p in paired_tests(ours, other)]


def significance_note(seeds):
    """The small print under a table of p values over so many seeds."""
    note = ("Two-sided paired tests, not corrected for the number of comparisons. Over seeds: runs of the same seed are a pair; it asks "
            "whether another training would say the same. Over users: a user's values, averaged over the seeds, are a pair; it asks whether "
            "other users would say the same, and knows nothing of the training's randomness.")
    if seeds < 2:
        return f"{note} Too few seeds for a test over seeds: it takes two or more that both rows have."
    return note if seeds >= 6 else (f"{note} With {seeds} seeds a Wilcoxon p cannot be below {2.0 ** (1 - seeds):.3g}: too few to "
                                    "reach .05, for which it takes 6.")


# ---------------------------------------------------------------- per user and per item

@dataclasses.dataclass(frozen=True)
class Ranking:
    """What the ranked test lists of a run say, for n users.

    users, history (train items): [n]; values: {"recall@10": [n] float64, ...}; found: {K: [4] recommended relevant pairs by
    item bin}; relevant, items: [4] relevant pairs and items by item bin.
    """
    users: np.ndarray
    history: np.ndarray
    values: dict
    found: dict
    relevant: np.ndarray
    items: np.ndarray


def item_bins(popularity):
    """Train interactions of every item [I] -> 0 head, 1 middle, 2 tail, 3 cold.

    Items in falling order of popularity: head until half of all interactions are reached, middle until four fifths, tail
    the rest; cold: no train interaction.
    """
    order = np.argsort(-popularity, kind="stable")
    before = (np.cumsum(popularity[order]) - popularity[order]) / max(popularity.sum(), 1)
    bins = np.empty(len(popularity), dtype=np.int64)
    bins[order] = (before >= 0.5).astype(int) + (before >= 0.8)
    bins[popularity == 0] = 3
    return bins


def history_bins(history):
    """Lengths [n] -> bin of each [n] at the quartiles, and the bins' names; equal lengths share a bin, so there may be fewer."""
    edges = np.unique(np.quantile(history, [0.25, 0.5, 0.75]))
    _, bins = np.unique(np.searchsorted(edges, history), return_inverse=True)
    ends = [(history[bins == number].min(), history[bins == number].max()) for number in range(bins.max() + 1)]
    return bins, [f"{low}" if low == high else f"{low}–{high}" for low, high in ends]


def read_ranking(run):
    """test_ranking.npz of a run -> Ranking, None where there is none. Raises UserError if it does not fit result.json."""
    path, ks = run.folder / "test_ranking.npz", sorted(run.config.topks)
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            ranking = summarise(*(file[name] for name in ("users", "items", "relevant_crow", "relevant_items", "history", "popularity")), ks)
    except (OSError, ValueError, KeyError, IndexError, RuntimeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: is damaged ({str(error).splitlines()[0][:80]}); remove it or leave this run out") from None
    for metric, values in ranking.values.items():
        if metric in run.result["test"] and not np.isclose(values.mean(), run.result["test"][metric], atol=1e-6):
            raise UserError(f"{path}: gives {metric} {values.mean():.6f} where result.json says {run.result['test'][metric]:.6f}; "
                            "they are not of one run: leave it out")
    return ranking


def find_hits(top, relevant, n_items):
    """Which of the items [n, k] of each row are relevant: [n, k] bool. relevant: CSR (crow [n + 1], items)."""
    crow, items = relevant
    keys = row_numbers(crow, 0, len(top)) * n_items + items             # ascending
    wanted = torch.arange(len(top), device=top.device)[:, None] * n_items + top
    return keys[torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)] == wanted


def summarise(users, items, crow, relevant, history, popularity, ks):
    """The arrays of test_ranking.npz -> Ranking."""
    bins, crow = item_bins(popularity), torch.from_numpy(crow.astype(np.int64))
    hits = find_hits(torch.from_numpy(items.astype(np.int64)), (crow, torch.from_numpy(relevant.astype(np.int64))), len(popularity))
    values = {metric: value.numpy() for metric, value in ranking_metrics(hits, crow.diff(), ks).items()}
    found = {k: np.bincount(bins[items[:, :k][hits[:, :k].numpy()]], minlength=4) for k in ks}
    return Ranking(users, history, values, found, np.bincount(bins[relevant], minlength=4), np.bincount(bins, minlength=4))


def read_rankings(groups):
    """{(dataset, name): [Ranking, one a run]} of the Groups whose runs all have ranked lists."""
    rankings = {}
    for group in tqdm(groups, desc="ranked lists", unit="row", leave=False, delay=1):
        found = [read_ranking(run) for run in group.runs]
        if all(found):
            rankings[group.first.dataset, group.name] = found
    return rankings


def check_users(section, rankings):
    """Raise UserError if the ranked lists of a table are not of the same users."""
    lists = [(run.folder, ranking) for group in section if group.name in rankings for run, ranking in zip(group.runs, rankings[group.name])]
    for folder, ranking in lists[1:]:
        if not (np.array_equal(ranking.users, lists[0][1].users) and np.array_equal(ranking.history, lists[0][1].history)):
            raise UserError(f"{folder}: its test users are not those of {lists[0][0]}; leave one of them out")


def user_means(rankings, metric):
    """A metric of every user, averaged over the runs: [n]."""
    return np.mean([ranking.values[metric] for ranking in rankings], axis=0)


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
    return Table(f"By length of the user's train history, {section[0].first.dataset}", f"{slug}_users", header, rows,
                 "Users in bins at the quartiles of their number of train items.")


def items_table(section, rankings, slug):
    """Share of the relevant pairs of an item bin that were recommended, as mean and deviation over seeds."""
    named = [group for group in section if group.name in rankings]
    first, rows = rankings[named[0].name][0], []
    kept = [number for number in range(4) if first.relevant[number]]
    for k in sorted(section[0].first.config.topks):
        for group in named:
            shares = [ranking.found[k][kept] / ranking.relevant[kept] for ranking in rankings[group.name]]
            rows.append([f"recall@{k}", group.name, *map(spread, zip(*shares))])
    header = ["metric", "method", *(f"{ITEM_BINS[n]} ({first.items[n]:,} items, {first.relevant[n]:,} relevant)" for n in kept)]
    return Table(f"By popularity of the relevant item, {section[0].first.dataset}", f"{slug}_items", header, rows,
                 "Share of the (user, relevant item) pairs of a bin that are among the first K. Items in falling order of train interactions: "
                 "head until half of all interactions are reached, middle until four fifths, tail the rest; cold: no train interaction.")


def breakdown(section, rankings, slug):
    """The two tables by history and popularity, and a Text on rows that have no ranked lists."""
    without = [group.name for group in section if group.name not in rankings]
    note = [Text(f"Not in the breakdown, because a run has no test_ranking.npz: {', '.join(without)}.")] if without else []
    return note if len(without) == len(section) else [users_table(section, rankings, slug), items_table(section, rankings, slug), *note]


# ---------------------------------------------------------------- seconds, curves

def seconds_table(section, slug):
    """Seconds an epoch and an evaluation, of the whole run, and peak memory."""
    rows = []
    for group in section:
        columns = [[line[key] for run in group.runs for line in run.lines if isinstance(line.get(key), float)]
                   for key in ("epoch_seconds", "evaluation_seconds")]
        whole, memory = ([run.result.get(key) for run in group.runs if run.result.get(key) is not None] for key in ("seconds", "peak_memory_mb"))
        rows.append([group.name, *(Number(float(np.median(values)) if values else None, form=".3f") for values in columns),
                     spread(whole, ".1f") if whole else Number(None), Number(max(memory, default=None), form=",.0f"),
                     ", ".join(sorted({str(run.result.get("device")) for run in group.runs}))])
    header = ["method", "epoch_seconds", "evaluation_seconds", "seconds of the run", "peak memory in MB", "device"]
    return Table(f"Seconds, {section[0].first.dataset}", f"{slug}_seconds", header, rows,
                 "Medians over the evaluated epochs of all seeds; the whole run as mean ± standard deviation; the largest peak memory.")


def curve_of(group, metric):
    """Validation metric against epoch, over the epochs that every seed of a Group has: (epochs, mean, least, most)."""
    split = group.first.config.select_on
    scores = [{line["epoch"]: line[split][metric] for line in run.lines if metric in line.get(split, {})} for run in group.runs]
    epochs = sorted(set.intersection(*map(set, scores)))
    values = np.array([[score[epoch] for epoch in epochs] for score in scores])
    return epochs, values.mean(0), values.min(0), values.max(0)


def learning_curves(section, slug):
    """Figure of the selection metric against the epoch, a line a row of the table."""
    config = section[0].first.config
    metric = config.selection_metric
    lines = {group.name: curve_of(group, metric) for group in section}
    lines = {name: line for name, line in lines.items() if len(line[0])}
    return lines and Figure(draw_lines({f"{metric}, {SPLITS[config.select_on]}": lines}, "epoch"), f"{slug}_learning",
                            f"{section[0].first.dataset}: {metric} on {SPLITS[config.select_on]} against the epoch, mean over the seeds, band from the "
                            "least to the most; a line ends where its first seed stopped.")


def bars(section, slug):
    """Figure of the main table."""
    panels = {metric: [(group.name, number.mean, number.sd) for group in section for number in [spread(group.values(metric))]]
              for metric in metrics_of(section[0].first)}
    return Figure(draw_bars(panels), f"{slug}_bars",
                  f"{section[0].first.dataset}: test metrics, mean and standard deviation over the seeds.")


def series(section, settings):
    """{name without these settings: [Group, ...]}, to draw the Groups of one name against them."""
    lines = collections.defaultdict(list)
    for group in section:
        lines[label(group.first, [setting for setting in group.varied if setting not in settings])].append(group)
    return lines


def setting_curve(section, setting, slug):
    """Figure of the test metrics against a setting; rows that do not vary it are level lines. None if no row varies it."""
    panels, varied = collections.defaultdict(dict), False
    for name, groups in series(section, [setting]).items():
        groups = sorted(groups, key=lambda group: getattr(group.first.config, setting))
        varied |= len(groups) > 1
        x = [value if isinstance(value, (int, float)) else str(value) for value in (getattr(group.first.config, setting) for group in groups)]
        for metric in metrics_of(section[0].first):
            numbers = [spread(group.values(metric)) for group in groups]
            mean, sd = (np.array([getattr(number, part) or 0 for number in numbers]) for part in ("mean", "sd"))
            panels[metric][name] = (x if len(groups) > 1 else None, mean, mean - sd, mean + sd)
    return Figure(draw_lines(panels, setting), f"{slug}_by_{setting}",
                  f"{section[0].first.dataset}: test metrics against {setting}, mean over the seeds, band of one standard deviation; "
                  "level lines: rows with one value of it.") if varied else None


def triangles(section, slug):
    """Figures of the test metrics over the fusion weights, one a name that has two or more pairs of them."""
    figures = []
    for name, groups in series(section, ["alpha", "beta"]).items():
        inside = [group for group in groups if group.first.config.alpha + group.first.config.beta <= 1 + 1e-9]
        if len(inside) < 2:
            continue
        text, image = (np.array([getattr(group.first.config, key) for group in inside]) for key in ("beta", "alpha"))
        panels = {metric: (text, image, [np.mean(group.values(metric)) for group in inside]) for metric in metrics_of(section[0].first)}
        outside = f" {len(groups) - len(inside)} pairs with a sum above 1 are not shown." if len(inside) < len(groups) else ""
        figures.append(Figure(draw_triangle(panels), f"{slug}_triangle" + (f"_{len(figures) + 1}" if figures else ""),
                              f"{section[0].first.dataset}, {name}: test metrics over the fusion weights of text (beta), image (alpha) and ID "
                              f"(the rest); a dot is a pair that was trained, colours between dots are interpolated.{outside}"))
    return figures


# ---------------------------------------------------------------- the report

def runs_table(runs, title="Runs", slug="runs"):
    """Every run and how it ended."""
    rows = []
    for run in runs:
        metric = metrics_of(run)[0]
        epoch = run.result.get("epochs", run.result.get("epoch", run.lines[-1]["epoch"] if run.lines else 0))
        leaks = "leaks: epoch chosen on test" if run.config.select_on == "test" else ""
        why = {"finished": leaks, "unfinished": "no result.json: under way, or killed"}.get(
            run.status, str(run.result.get("reason") or run.result.get("error") or ""))
        rows.append([str(run.folder), run.name, run.dataset, run.config.recdim, run.config.seed, run.status, epoch,
                     metric, Number(run.result.get("test", {}).get(metric)), why])
    return Table(title, slug, ["folder", "method", "dataset", "recdim", "seed", "status", "epoch", "metric", "test", "note"], rows)


def section_blocks(section, rankings, published, args, slug):
    """Everything on one table's worth of Groups."""
    run = section[0].first
    rankings = {group.name: rankings[run.dataset, group.name] for group in section if (run.dataset, group.name) in rankings}
    check_users(section, rankings)
    blocks = [Heading(describe(run))]
    if run.config.select_on == "test":
        blocks.append(Text("These runs chose their epoch on the test split: the figures leak and compare with no others.", warning=True))
    blocks += [results_table(section, slug), *surrounding_notes(section), *significance(section, args.ours, rankings, slug),
               published_table(section, published, metrics_of(run), f"{slug}_published", "test metrics")]
    blocks += [setting_curve(section, args.curve, slug)] if args.curve else []
    blocks += triangles(section, slug) if args.triangle else []
    if len(section) > MOST_ROWS:
        blocks.append(Text(f"No bars, learning curves and breakdown: more than {MOST_ROWS} rows."))
    else:
        blocks += [bars(section, slug), learning_curves(section, slug)] if args.figures else []
        blocks += breakdown(section, rankings, slug)
    blocks += [seconds_table(section, slug),
               published_table(section, published, ("epoch_seconds", "evaluation_seconds"), f"{slug}_published_seconds", "seconds")]
    return list(filter(None, blocks))


def slugs(sections):
    """File names of the sections: the dataset, with a number from the second on."""
    seen, names = collections.Counter(), []
    for section in sections:
        name = "".join(sign if sign.isalnum() else "_" for sign in section[0].first.dataset.lower())
        seen[name] += 1
        names.append(name + (f"_{seen[name]}" if seen[name] > 1 else ""))
    return names


def opening(runs, finished):
    """What, when, from which code, on which machines."""
    here, machines = provenance(), sorted({str(run.result.get("versions", {}).get("platform")) for run in finished})
    return Text(f"Made {time.strftime('%Y-%m-%d %H:%M %Z')} by report.py at commit {str(here['git_commit'])[:12]}"
                f"{' with changes' if here['git_dirty'] else ''}, from {len(finished)} finished of {len(runs)} runs. "
                f"They ran on {'; '.join(machines)}.")


def make_report(runs, args):
    """Runs -> (title, blocks). Raises UserError where runs must not stand together."""
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        raise UserError(f"none of the {len(runs)} runs is finished; --list shows how they ended")
    groups = make_groups(finished, [*([args.curve] if args.curve else []), *(("beta", "alpha") if args.triangle else ())])
    for group in groups:
        check_group(group)
    check_wishes(groups, args)
    sections, rankings, published = split_groups(groups), read_rankings(groups), read_published()
    blocks = [opening(runs, finished)]
    for section, slug in zip(sections, slugs(sections)):
        blocks += section_blocks(section, rankings, published, args, slug)
    if len(finished) < len(runs):
        blocks += [Heading("Left out"), runs_table([run for run in runs if run.status != "finished"], "Runs that did not finish", "left_out")]
    return f"RecGOAT: runs on {', '.join(sorted({run.dataset for run in finished}))}", blocks


def check_wishes(groups, args):
    """Raise UserError for flags that these Groups cannot fulfil."""
    names = sorted({group.name for group in groups})
    if args.ours != "RecGOAT" and args.ours not in names:
        raise UserError(f"--ours {args.ours}: no row has this name; there are {', '.join(names)}")
    if args.curve and not any(args.curve in group.varied for group in groups):
        raise UserError(f"--curve {args.curve}: no name has runs with two values of it; name a setting that varies, or train such runs")
    if args.triangle and not any({"alpha", "beta"} & set(group.varied) for group in groups):
        raise UserError("--triangle: no name has runs with two values of alpha or beta; train such runs")


def make_parser():
    """The command line."""
    parser = Parser(prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders with run folders below them")
    parser.add_argument("--output", default="report", metavar="FOLDER",
                        help="where report.html, report.md, tables.tex, .csv and figures go (default report)")
    parser.add_argument("--ours", default="RecGOAT", metavar="NAME", help="the row that is tested against the best other one (default RecGOAT)")
    parser.add_argument("--list", action="store_true", help="show every run and how it ended, check and write nothing")
    parser.add_argument("--curve", default="", metavar="SETTING",
                        help="a row for every value of this setting, and metrics drawn against it, as item_knn_k")
    parser.add_argument("--triangle", action="store_true",
                        help="a row for every pair of alpha and beta, and metrics drawn over the triangle of fusion weights")
    parser.add_argument("--figures", type=int, default=1, choices=(0, 1), help="0 draws none and needs no matplotlib (default 1)")
    return parser


def command(args):
    """Report what parsed arguments ask for."""
    if args.curve and not hasattr(Config, args.curve):
        raise UserError(f"--curve {args.curve}: there is no such setting; main.py --help lists them")
    if not args.figures and (args.curve or args.triangle):
        raise UserError("--figures 0 contradicts --curve and --triangle: drop either")
    folders = find_folders(args.runs)
    runs = [read_run(folder) for folder in tqdm(folders, desc="runs", leave=False, delay=1)]
    if args.list:
        print(markdown([runs_table(runs)]))
        return
    title, blocks = make_report(runs, args)
    print(f"# {title}\n\n{markdown([block for block in blocks if not isinstance(block, Figure)])}")
    files = write_report(args.output, title, blocks)
    print(f"{args.output}: {len(files)} files, begin with {Path(args.output) / 'report.html'}", file=sys.stderr)


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
