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
import sys
import time
from pathlib import Path

from tqdm import tqdm

from cli import Parser, run_tool
from reporting.rankings import check_users, read_rankings
from reporting.render import Figure, Heading, Text, markdown, write_report
from reporting.runs import check_group, find_folders, make_groups, metrics_of, read_run, split_groups
from reporting.tables import (
    MOST_ROWS,
    bars,
    breakdown,
    describe,
    learning_curves,
    published_table,
    read_published,
    results_table,
    runs_table,
    seconds_table,
    setting_curve,
    significance,
    surrounding_notes,
    triangles,
)
from utils import UserError
from world import Config, provenance

# ---------------------------------------------------------------- the report


def section_blocks(section, rankings, published, args, slug):
    """Everything on one table's worth of Groups."""
    run = section[0].first
    rankings = {
        group.name: rankings[run.dataset, group.name]
        for group in section
        if (run.dataset, group.name) in rankings
    }
    check_users(section, rankings)
    blocks = [Heading(describe(run))]
    if run.config.select_on == "test":
        blocks.append(
            Text(
                "These runs chose their epoch on the test split: the figures leak and compare with no others.",
                warning=True,
            )
        )
    blocks += [
        results_table(section, slug),
        *surrounding_notes(section),
        *significance(section, args.ours, rankings, slug),
        published_table(section, published, metrics_of(run), f"{slug}_published", "test metrics"),
    ]
    blocks += [setting_curve(section, args.curve, slug)] if args.curve else []
    blocks += triangles(section, slug) if args.triangle else []
    if len(section) > MOST_ROWS:
        blocks.append(Text(f"No bars, learning curves and breakdown: more than {MOST_ROWS} rows."))
    else:
        blocks += [bars(section, slug), learning_curves(section, slug)] if args.figures else []
        blocks += breakdown(section, rankings, slug)
    blocks += [
        seconds_table(section, slug),
        published_table(
            section,
            published,
            ("epoch_seconds", "evaluation_seconds"),
            f"{slug}_published_seconds",
            "seconds",
        ),
    ]
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
    here, machines = (
        provenance(),
        sorted({str(run.result.get("versions", {}).get("platform")) for run in finished}),
    )
    return Text(
        f"Made {time.strftime('%Y-%m-%d %H:%M %Z')} by report.py at commit {str(here['git_commit'])[:12]}"
        f"{' with changes' if here['git_dirty'] else ''}, from {len(finished)} finished of {len(runs)} runs. "
        f"They ran on {'; '.join(machines)}."
    )


def make_report(runs, args):
    """Runs -> (title, blocks). Raises UserError where runs must not stand together."""
    finished = [run for run in runs if run.status == "finished"]
    if not finished:
        raise UserError(f"none of the {len(runs)} runs is finished; --list shows how they ended")
    groups = make_groups(
        finished, [*([args.curve] if args.curve else []), *(("beta", "alpha") if args.triangle else ())]
    )
    for group in groups:
        check_group(group)
    check_wishes(groups, args)
    sections, rankings, published = split_groups(groups), read_rankings(groups), read_published()
    blocks = [opening(runs, finished)]
    for section, slug in zip(sections, slugs(sections)):
        blocks += section_blocks(section, rankings, published, args, slug)
    if len(finished) < len(runs):
        blocks += [
            Heading("Left out"),
            runs_table(
                [run for run in runs if run.status != "finished"], "Runs that did not finish", "left_out"
            ),
        ]
    return f"RecGOAT: runs on {', '.join(sorted({run.dataset for run in finished}))}", blocks


def check_wishes(groups, args):
    """Raise UserError for flags that these Groups cannot fulfil."""
    names = sorted({group.name for group in groups})
    if args.ours != "RecGOAT" and args.ours not in names:
        raise UserError(f"--ours {args.ours}: no row has this name; there are {', '.join(names)}")
    if args.curve and not any(args.curve in group.varied for group in groups):
        raise UserError(
            f"--curve {args.curve}: no name has runs with two values of it; name a setting that varies, or train such runs"
        )
    if args.triangle and not any({"alpha", "beta"} & set(group.varied) for group in groups):
        raise UserError("--triangle: no name has runs with two values of alpha or beta; train such runs")


def make_parser():
    """The command line."""
    parser = Parser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUNS", help="run folders, or folders with run folders below them"
    )
    parser.add_argument(
        "--output",
        default="report",
        metavar="FOLDER",
        help="where report.html, report.md, tables.tex, .csv and figures go (default report)",
    )
    parser.add_argument(
        "--ours",
        default="RecGOAT",
        metavar="NAME",
        help="the row that is tested against the best other one (default RecGOAT)",
    )
    parser.add_argument(
        "--list", action="store_true", help="show every run and how it ended, check and write nothing"
    )
    parser.add_argument(
        "--curve",
        default="",
        metavar="SETTING",
        help="a row for every value of this setting, and metrics drawn against it, as item_knn_k",
    )
    parser.add_argument(
        "--triangle",
        action="store_true",
        help="a row for every pair of alpha and beta, and metrics drawn over the triangle of fusion weights",
    )
    parser.add_argument(
        "--figures",
        type=int,
        default=1,
        choices=(0, 1),
        help="0 draws none and needs no matplotlib (default 1)",
    )
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
    print(
        f"{args.output}: {len(files)} files, begin with {Path(args.output) / 'report.html'}", file=sys.stderr
    )


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
