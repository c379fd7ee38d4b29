"""The log of a run."""

import contextlib
import json
import sys
import time

from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from utils import atomic_write


class Board:
    """A TensorBoard event file of one process of a run.

    tensorboardX's SummaryWriter writes from a thread: on a full disk the thread dies with a traceback and the run waits
    for it for ever. Here every event is written where it is made, and the error reaches the caller.

    epoch: the epoch the process starts from; TensorBoard drops what an earlier process wrote beyond it.
    """

    def __init__(self, folder, epoch):
        self.file = EventsWriter(
            str(folder / "events"), f".{time.time_ns()}"
        )  # two of one second have two names
        self.write(epoch + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step, **content):
        """One event: summary= or session_log=."""
        self.file.write_event(Event(wall_time=time.time(), step=step, **content))

    def add(self, summaries, step=0):
        """Summaries of tensorboardX.summary, at a step."""
        for part in summaries:
            self.write(step, summary=part)

    def flush(self):
        """Bring the events to disk."""
        self.file.flush()

    def close(self):
        """Flush and close the file."""
        self.file.close()


class RunLog:
    """Writes what a run has to say: console and train.log, metrics.jsonl, TensorBoard events.

    epoch: the epoch that a resumed run starts from; what an earlier process wrote beyond it is dropped.
    """

    def __init__(self, folder, config, epoch=0):
        self.folder = folder
        keep_lines(folder / "metrics.jsonl", epoch)
        self.board = Board(folder, epoch) if config.tensorboard else None
        self.text = open(folder / "train.log", "a", encoding="utf-8")
        self.lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")

    def say(self, line):
        """A line for the reader, on the console (above any progress bar) and in train.log."""
        tqdm.write(line)
        sys.stdout.flush()  # a redirected log is read while the run goes on
        print(line, file=self.text, flush=True)

    def record(self, entry):
        """One evaluation as a line of metrics.jsonl."""
        print(json.dumps(entry), file=self.lines, flush=True)

    def scalars(self, group, values, epoch):
        """Numbers as TensorBoard scalars group/name."""
        if self.board:
            self.board.add(
                [summary.scalar(f"{group}/{name}", float(value)) for name, value in values.items()], epoch
            )

    def plans(self, model, epoch):
        """Each transport plan as a TensorBoard image, scaled to its largest entry."""
        if not self.board:
            return
        for m, transport in getattr(getattr(model, "fusion", None), "transports", {}).items():
            plan = transport.plan / transport.plan.max().clamp_min(1e-30)
            self.board.add([summary.image(f"plan/{m}", plan.cpu().numpy(), dataformats="HW")], epoch)

    def conclude(self, config, epoch, **groups):
        """Final metrics, of the best epoch: as scalars group/name, and the main ones beside the settings as a TensorBoard hparams entry.

        TensorBoard shows the first five: the selection metric in the first group, recall and NDCG in the last.
        """
        for group, metrics in groups.items():
            self.scalars(group, metrics, epoch)
        if self.board:
            first, *_, last = [*groups, *groups]
            tags = [
                f"{first}/{config.selection_metric}",
                *(f"{last}/{name}" for name in groups[last] if name.startswith(("recall", "ndcg"))),
            ]
            flat = {
                key: value if isinstance(value, (int, float, str)) else str(value)
                for key, value in config.as_dict().items()
            }
            experiment, *session = summary.hparams(
                flat, dict.fromkeys(tag.replace("@", "_") for tag in tags)
            )  # as scalars have it
            mark_changed(experiment.value[0].metadata.plugin_data, config.chosen())
            self.board.add([experiment, *session])

    def flush(self):
        """Bring the TensorBoard events to disk; the other files are there after every line."""
        if self.board:
            self.board.flush()

    def close(self):
        """Flush and close all files, each of them even if another fails."""
        with contextlib.ExitStack() as files:
            for file in filter(None, (self.board, self.text, self.lines)):
                files.callback(file.close)


def mark_changed(plugin_data, names):
    """Let TensorBoard show these settings before the others, of which it shows but the first few."""
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin_data.content = content.SerializeToString()


def keep_lines(path, epoch):
    """Drop the lines of a metrics.jsonl that are half-written or later than epoch."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["epoch"] <= epoch:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path, "w") as file:
        file.writelines(kept)
