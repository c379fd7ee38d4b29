"""What a run writes while it goes on: console, train.log, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
import typing
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tqdm import tqdm

from layers.columns import rank
from models.base import Recommender
from utils import atomic_write
from world import Config

Numbers = Mapping[str, typing.Any]  # {name: number or 0-dim tensor}


class EventFile:
    """The TensorBoard event file of one process of a run.

    tensorboardX's SummaryWriter writes from a thread, which dies with a traceback on a full disk while the
    run waits for it forever. Here events are written by the caller, who gets the error.

    epoch: the epoch at which the process starts; TensorBoard drops what an earlier process wrote beyond it.
    """

    def __init__(self, folder: Path, epoch: int):
        # The time in nanoseconds keeps two files of the same second apart.
        self.file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self.write(epoch + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, **content: typing.Any) -> None:
        """Write one event; content: summary= or session_log=."""
        self.file.write_event(Event(wall_time=time.time(), step=step, **content))

    def add(self, summaries: Iterable[typing.Any], step: int = 0) -> None:
        """Write summaries of tensorboardX.summary at a step."""
        for part in summaries:
            self.write(step, summary=part)

    def flush(self) -> None:
        """Write buffered events to disk."""
        self.file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        self.file.close()


class RunLog:
    """The log files of a run folder.

    epoch: the epoch at which a resumed run starts; what an earlier process wrote beyond it is dropped.
    echo: False keeps lines off the console. Of several processes, process 0 alone writes.
    """

    def __init__(self, folder: Path, config: Config, epoch: int = 0, echo: bool = True):
        writes = rank() == 0
        self.folder, self.echo = folder, echo and writes
        if writes:
            drop_lines(folder / "metrics.jsonl", epoch)
        self.events = EventFile(folder, epoch) if config.tensorboard and writes else None
        text, lines = (folder / name if writes else os.devnull for name in ("train.log", "metrics.jsonl"))
        # Open until close(): a line has to be on disk as soon as it is written.
        self.text = open(text, "a", encoding="utf-8")  # noqa: SIM115
        self.lines = open(lines, "a", encoding="utf-8")  # noqa: SIM115

    def say(self, line: str) -> None:
        """Write a line to the console, above any progress bar, and to train.log."""
        if self.echo:
            tqdm.write(line)
            sys.stdout.flush()  # a redirected log is read while the run goes on
        print(line, file=self.text, flush=True)

    def record(self, entry: Mapping[str, typing.Any]) -> None:
        """Write one evaluation as a line of metrics.jsonl."""
        print(json.dumps(entry), file=self.lines, flush=True)

    def scalars(self, group: str, values: Numbers, epoch: int) -> None:
        """Write numbers as TensorBoard scalars group/name."""
        if self.events:
            scalars = (summary.scalar(f"{group}/{name}", float(value)) for name, value in values.items())
            self.events.add(scalars, epoch)

    def images(self, model: Recommender, epoch: int) -> None:
        """Write the model's images to TensorBoard."""
        if self.events:
            images = model.images().items()
            self.events.add(
                (summary.image(name, x.cpu().numpy(), dataformats="HW") for name, x in images), epoch
            )

    def finish(self, config: Config, epoch: int, **groups: Numbers) -> None:
        """Write the metrics of the best epoch: as scalars, and the main ones beside the settings (HParams).

        TensorBoard shows the first five: the selection metric of the first group, recall and NDCG of the
        last.
        """
        for group, metrics in groups.items():
            self.scalars(group, metrics, epoch)
        if not self.events:
            return
        first, *_, last = [*groups, *groups]
        tags = [f"{first}/{config.selection_metric}"]
        tags += [f"{last}/{name}" for name in groups[last] if name.startswith(("recall", "ndcg"))]
        flat = {
            key: value if isinstance(value, (int, float, str)) else str(value)
            for key, value in config.as_dict().items()
        }
        # tensorboardX replaces "@" by "_" in the names of scalars.
        experiment, *session = summary.hparams(flat, dict.fromkeys(tag.replace("@", "_") for tag in tags))
        mark_differing(experiment.value[0].metadata.plugin_data, config.non_defaults())
        self.events.add([experiment, *session])

    def flush(self) -> None:
        """Write TensorBoard events to disk; the other files are up to date after every line."""
        if self.events:
            self.events.flush()

    def close(self) -> None:
        """Flush and close all files, each of them even if another fails."""
        with contextlib.ExitStack() as files:
            files.callback(self.lines.close)
            files.callback(self.text.close)
            if self.events:
                files.callback(self.events.close)


def mark_differing(plugin_data: typing.Any, names: Collection[str]) -> None:
    """Mark settings as differing: TensorBoard shows these first, and no more than a few."""
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        info.differs = info.name in names
    plugin_data.content = content.SerializeToString()


def drop_lines(path: Path, epoch: int) -> None:
    """Remove the lines of a metrics.jsonl that are incomplete or later than an epoch."""
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
