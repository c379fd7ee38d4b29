"""Report finished runs: tables, significance tests, breakdowns and figures in Markdown, LaTeX, CSV and HTML.

    python report.py runs/paper                    # all runs below this folder, into report/
    python report.py runs/paper --list             # list the runs and their status, write nothing
    python report.py runs/paper --ours RecGOAT --output report/paper
    python report.py runs/knn --curve item_knn_k   # metrics against a setting
    python report.py runs/weights --triangle       # metrics over the fusion weights alpha and beta

Each table row is a name (main.py --name, by default the model's) with mean and standard deviation over its
seeds. Runs of the same name must have the same data, protocol and settings, apart from the seed and settings
without effect on the result; otherwise the report is refused. --epochs has no effect where --patience ended
the training before. Runs on different data or with different evaluation protocols get separate tables.
Unfinished runs are listed and left out. Results published in papers are added from reporting/published.csv.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from cli import Parser, run_tool
from reporting.runs import find_run_folders, read_run
from utils import UserError


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="report.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS", help="run folders, or folders that contain them")
    parser.add_argument(
        "--output",
        default="report",
        metavar="FOLDER",
        help="folder for all files of the report (default: report)",
    )
    parser.add_argument(
        "--ours",
        default="RecGOAT",
        metavar="NAME",
        help="row to test against the best of the other rows (default: RecGOAT)",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list all runs and their status, without checking them; write nothing",
    )
    parser.add_argument(
        "--curve",
        default="",
        metavar="SETTING",
        help="one row per value of this setting, such as item_knn_k, and a figure of the metrics against it",
    )
    parser.add_argument(
        "--triangle",
        action="store_true",
        help="one row per pair of alpha and beta, and a figure of the metrics over the fusion weights",
    )
    parser.add_argument(
        "--figures",
        type=int,
        default=1,
        choices=(0, 1),
        help="0: draw no figures, which does not need matplotlib (default: 1)",
    )
    return parser


def command(args: argparse.Namespace) -> None:
    """Read the runs and write the report."""
    if not args.figures and (args.curve or args.triangle):
        raise UserError(
            "--figures 0 contradicts --curve and --triangle, which draw figures: drop one of them"
        )
    folders = find_run_folders(args.runs)
    runs = [read_run(folder) for folder in tqdm(folders, desc="runs", leave=False, delay=1, disable=None)]
    # Importing torch and scipy takes seconds: what is wrong with a command line has been said by now.
    from reporting.blocks import Figure
    from reporting.document import make_report, varied_settings
    from reporting.render import markdown, write_report
    from reporting.tables import every_run_table, runs_table

    if args.list:
        print(markdown([runs_table(runs)]))
        return
    title, blocks = make_report(runs, args)
    print(f"# {title}\n\n{markdown([block for block in blocks if not isinstance(block, Figure)])}")
    finished = [run for run in runs if run.status == "finished"]
    files = write_report(args.output, title, blocks, [every_run_table(finished, varied_settings(args))])
    page = Path(args.output) / "report.html"
    print(f"wrote {len(files)} files to {args.output}; start with {page}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
