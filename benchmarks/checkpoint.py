"""What saving last.pt after every epoch costs, as a share of the epoch: one run of RecGOAT on Baby at recdim 64.

    python benchmarks/checkpoint.py                            # data/baby_raw
    python benchmarks/checkpoint.py --data_root FOLDER --dataset baby

Saving and training alternate in the same process, so a busy machine slows both. An epoch is everything between two
epochs but the saving: training, its log, and evaluation where it is due. Exits 1 if the share is over --bar.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from main import main as run_command_line
from training.run import Run
from world import MODALITIES


class Watch:
    """Seconds of every epoch and of every save of last.pt within it."""

    def __init__(self):
        self.saves, self.epochs, self.since = [], [], None

    def save(self, original):
        """Run.save with a clock."""

        def timed(run, name):
            started = time.perf_counter()
            original(run, name)
            if name != "last.pt":
                return  # best.pt is part of the evaluation, and of the epoch
            now = time.perf_counter()
            if self.since is not None:  # the first epoch warms up
                self.epochs.append(started - self.since)
                self.saves.append(now - started)
            self.since = now

        return timed


def feature_flags(folder):
    """Flags for the text and image features of a dataset folder, full or reduced to 128 dimensions."""
    flags = []
    for modality in MODALITIES[:2]:
        found = [
            path
            for path in (folder / f"{modality}_feat.npy", folder / f"{modality}_feat_recon_d128.npy")
            if path.exists()
        ]
        if not found:
            sys.exit(
                f"error: {folder}: has no {modality} features; name another folder with --data_root and --dataset"
            )
        flags += [f"--{modality}_feat", str(found[0])]
    return flags


def main():
    """Train, measure, print. Returns 1 if saving takes more than the bar, else 0."""
    parser = argparse.ArgumentParser(
        description="Seconds of saving last.pt over seconds of an epoch, from one run."
    )
    parser.add_argument("--data_root", default="data", help="folder of the dataset folder")
    parser.add_argument("--dataset", default="baby_raw", help="name of the dataset folder")
    parser.add_argument(
        "--epochs", type=int, default=8, help="epochs to train, the first of which is not counted"
    )
    parser.add_argument("--cuda", type=int, default=0, choices=(0, 1), help="1 uses a GPU")
    parser.add_argument("--bar", type=float, default=0.02, help="largest share allowed")
    args = parser.parse_args()
    if args.epochs < 2:
        parser.error("--epochs: at least 2, since the first is not counted")
    watch = Watch()
    Run.save = watch.save(Run.save)
    with tempfile.TemporaryDirectory() as work:
        code = run_command_line(
            [
                "--dataset",
                args.dataset,
                "--data_root",
                args.data_root,
                *feature_flags(Path(args.data_root) / args.dataset),
                "--model",
                "lgn_mm",
                "--recdim",
                "64",
                "--epochs",
                str(args.epochs),
                "--eval_every",
                "5",
                "--save_every",
                "1",
                "--path",
                f"{work}/runs",
                "--cache_dir",
                work,
                "--cuda",
                str(args.cuda),
            ]
        )
        if code:
            return code
        (last,) = Path(work).glob("runs/*/last.pt")
        size = last.stat().st_size / 1e6
    watch.saves, watch.epochs = (
        watch.saves[: args.epochs - 1],
        watch.epochs[: args.epochs - 1],
    )  # without the save at the very end
    save, epoch = statistics.median(watch.saves), statistics.median(watch.epochs)
    print(
        f"\nlast.pt {size:.1f} MB; median over {len(watch.saves)} epochs: saving {save:.3f} s, epoch {epoch:.2f} s; "
        f"share {100 * save / epoch:.2f} % (bar {100 * args.bar:g} %)"
    )
    return int(save / epoch > args.bar)


if __name__ == "__main__":
    sys.exit(main())
