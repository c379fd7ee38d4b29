"""What a report consists of: one section for each dataset and protocol, and a list of what was left out."""

import argparse
import time
from collections.abc import Sequence

from reporting.blocks import Block, Heading, Text
from reporting.breakdown import breakdown
from reporting.figures import bars, learning_curves, setting_curve, triangles
from reporting.groups import Group, Section, check_group, make_groups, make_sections
from reporting.rankings import read_rankings
from reporting.runs import Run
from reporting.significance import significance
from reporting.tables import (
    SECONDS,
    beyond_table,
    cold_table,
    describe_protocol,
    environment_notes,
    features_notes,
    published_table,
    read_published,
    results_table,
    runs_table,
    seconds_table,
)
from training.folder import provenance
from utils import UserError

# With more rows, bars, learning curves and breakdowns are too crowded to read.
MAX_ROWS = 12


def section_blocks(
    section: Section, published: Sequence[dict[str, str]], args: argparse.Namespace
) -> list[Block]:
    """All blocks of one section."""
    rankings = read_rankings(section)
    blocks: list[Block | None] = [Heading(section.title), describe_protocol(section)]
    if section.first.config.select_on == "test":
        warning = "The best epoch was selected on the test split: these results leak and are not comparable."
        blocks.append(Text(warning, warning=True))
    blocks += [
        results_table(section),
        *features_notes(section),
        *environment_notes(section),
        significance(section, args.ours, rankings),
        published_table(section, published, section.metrics, "Published test results", "published"),
        cold_table(section),
        beyond_table(section),
    ]
    if args.curve:
        blocks.append(setting_curve(section, args.curve))
    if args.triangle:
        blocks += triangles(section)
    if len(section.groups) > MAX_ROWS:
        blocks.append(
            Text(f"No bars, learning curves or breakdowns: the table has more than {MAX_ROWS} rows.")
        )
    else:
        if args.figures:
            blocks += [bars(section), learning_curves(section)]
        blocks += breakdown(section, rankings)
    blocks += [
        seconds_table(section),
        published_table(section, published, SECONDS, "Published seconds", "published_seconds"),
    ]
    return [block for block in blocks if block is not None]


def opening(runs: Sequence[Run], finished: Sequence[Run]) -> Text:
    """First paragraph: when and by which code the report was made, and how many runs it covers."""
    code = provenance()
    commit = str(code["git_commit"])[:12] + (" with uncommitted changes" if code["git_dirty"] else "")
    return Text(
        f"Generated {time.strftime('%Y-%m-%d %H:%M %Z')} by report.py (commit {commit}). "
        f"{len(finished)} of {len(runs)} runs have finished."
    )


def varied_settings(args: argparse.Namespace) -> list[str]:
    """The settings in which runs of the same name may differ, by --curve and --triangle."""
    return ([args.curve] if args.curve else []) + (["beta", "alpha"] if args.triangle else [])


def make_report(runs: Sequence[Run], args: argparse.Namespace) -> tuple[str, list[Block]]:
    """Title and blocks of a report. Raises UserError for runs or options that do not fit together."""
    finished = [run for run in runs if run.status == "finished"]
    unfinished = [run for run in runs if run.status != "finished"]
    if not finished:
        raise UserError(f"none of the {len(runs)} runs has finished; --list shows their status")
    groups = make_groups(finished, varied_settings(args))
    for group in groups:
        check_group(group)
    check_options(groups, args)
    blocks: list[Block] = [opening(runs, finished)]
    published = read_published()
    for section in make_sections(groups):
        blocks += section_blocks(section, published, args)
    if unfinished:
        blocks += [Heading("Left out"), runs_table(unfinished, "Runs that did not finish", "left_out")]
    datasets = sorted({run.dataset for run in finished})
    return f"RecGOAT: results on {', '.join(datasets)}", blocks


def check_options(groups: Sequence[Group], args: argparse.Namespace) -> None:
    """Raise UserError for options that do not fit these groups."""
    names = sorted({group.name for group in groups})
    if args.ours != "RecGOAT" and args.ours not in names:
        raise UserError(f"--ours {args.ours}: no row has this name; the rows are {', '.join(names)}")
    if args.curve and not any(args.curve in run.settings for group in groups for run in group.runs):
        raise UserError(f"--curve {args.curve}: no run has such a setting; main.py --help lists all settings")
    if args.curve and not any(args.curve in group.varied for group in groups):
        raise UserError(
            f"--curve {args.curve}: all runs of a name have the same value; name a setting that varies, "
            "or train runs with two values of it"
        )
    if args.triangle and not any({"alpha", "beta"} & set(group.varied) for group in groups):
        raise UserError(
            "--triangle: all runs of a name have the same fusion weights; "
            "train runs with two values of alpha or beta"
        )
