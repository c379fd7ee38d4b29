"""Cost of saving last.pt after every epoch, as a share of the epoch: one run of RecGOAT at recdim 64.

    python benchmarks/checkpoint.py                            # data/baby_raw
    python benchmarks/checkpoint.py --data_root $RECGOAT_TEST_DATA --dataset baby

An epoch is everything between two saves of last.pt: training, its log, and an evaluation where one is due.
Saves and epochs alternate in one process, so that a slow minute of the machine affects both. Exits with 1 if
the share is above --bar.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from main import main as run_command_line
from training.run import Run
from world import MODALITIES


class SaveTimer:
    """Seconds of each save of last.pt, and of each epoch between two saves."""

    def __init__(self) -> None:
        self.saves: list[float] = []
        self.epochs: list[float] = []
        self.last_save: float | None = None

    def wrap(self, save: Callable[[Run, str], None]) -> Callable[[Run, str], None]:
        """Run.save with a clock."""

        def timed(run: Run, name: str) -> None:
            started = time.perf_counter()
            save(run, name)
            # best.pt is part of the evaluation, and so of the epoch.
            if name != "last.pt":
                return
            finished = time.perf_counter()
            # The first epoch is the warm-up.
            if self.last_save is not None:
                self.epochs.append(started - self.last_save)
                self.saves.append(finished - started)
            self.last_save = finished

        return timed


def feature_flags(folder: Path) -> list[str]:
    """Flags for the text and image features of a dataset folder, full or reduced to 128 dimensions."""
    flags = []
    for modality in MODALITIES[:2]:
        candidates = [folder / f"{modality}_feat.npy", folder / f"{modality}_feat_recon_d128.npy"]
        found = [path for path in candidates if path.exists()]
        if not found:
            sys.exit(
                f"error: {folder}: no {modality} features; give another folder with --data_root and --dataset"
            )
        flags += [f"--{modality}_feat", str(found[0])]
    return flags


def run_arguments(args: argparse.Namespace, work: str) -> list[str]:
    """Command line of main.py for the run that is measured, which writes to the folder `work`."""
    settings = {
        "dataset": args.dataset,
        "data_root": args.data_root,
        "model": "lgn_mm",
        "recdim": 64,
        "epochs": args.epochs,
        "eval_every": 5,
        "save_every": 1,
        "path": f"{work}/runs",
        "cache_dir": work,
        "cuda": args.cuda,
    }
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    return flags + feature_flags(Path(args.data_root) / args.dataset)


def parse_arguments() -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description="Time of saving last.pt over the time of an epoch, from one run.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data_root", default="data", help="folder that contains the dataset folder")
    parser.add_argument("--dataset", default="baby_raw", help="name of the dataset folder")
    parser.add_argument("--epochs", type=int, default=8, help="epochs to train; the first is the warm-up")
    parser.add_argument("--cuda", type=int, default=0, choices=(0, 1), help="1 uses a GPU if there is one")
    parser.add_argument("--bar", type=float, default=0.02, help="largest share allowed")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs: give at least 2, since the first is the warm-up")
    return args


def main() -> int:
    """Train, measure, print. Returns 1 if saving takes more than the bar, else 0."""
    args, timer = parse_arguments(), SaveTimer()
    Run.save = timer.wrap(Run.save)  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as work:
        code = run_command_line(run_arguments(args, work))
        if code:
            return code
        [last] = Path(work).glob("runs/*/last.pt")
        size = last.stat().st_size / 1e6
    # One more save follows the last epoch, without an epoch before it.
    saves, epochs = timer.saves[: args.epochs - 1], timer.epochs[: args.epochs - 1]
    save, epoch = statistics.median(saves), statistics.median(epochs)
    print(
        f"\nlast.pt {size:.1f} MB; median of {len(saves)} epochs: saving {save:.3f} s, epoch {epoch:.2f} s; "
        f"share {100 * save / epoch:.2f} % (bar {100 * args.bar:g} %)"
    )
    return int(save / epoch > args.bar)


if __name__ == "__main__":
    sys.exit(main())
