"""What a run writes while it goes on: console, train.log, metrics.jsonl and TensorBoard events."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import shlex
import sys
import time
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData
from tensorboardX.proto.summary_pb2 import Summary
from tqdm import tqdm

from incoming import parse_json
from layers.columns import rank
from models.base import Recommender
from outgoing import json_text
from training.heatmap import heatmap
from utils import atomic_write
from world import Config

Numbers = Mapping[str, typing.Any]  # {name: number or 0-dim tensor}

# TensorBoard sorts groups by name: first what one looks at first. Metrics have the group 1_metrics.
GROUPS = {
    "train": "2_training",
    "speed": "3_speed",
    "model": "4_model",
    "beyond_accuracy": "6_beyond_accuracy",
}
# HParamInfo.differs = true (field 7 of TensorBoard's api.proto), which tensorboardX's copy of it lacks.
DIFFERS = b"\x38\x01"


def tag_of(group: str, name: str, config: Config) -> str:
    """The tag of a number: its loss, speed or model figure by GROUPS, else a metric of the split `group`."""
    if group in GROUPS:
        return f"{GROUPS[group]}/{name}"
    is_main = name == config.selection_metric or name.startswith(("recall", "ndcg"))
    return f"{'1_metrics' if is_main else '5_more_metrics'}/{group} {name}"


@contextlib.contextmanager
def naming(path: object) -> Iterator[None]:
    """Name the file that a block writes to in an OSError: that of a full disk does not tell which it is."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def scalar(tag: str, value: typing.Any) -> Summary:
    """A TensorBoard scalar. tensorboardX's own function replaces "@" and spaces in tags."""
    return Summary(value=[Summary.Value(tag=tag, simple_value=float(value))])


class EventFile:
    """The TensorBoard event file of one process of a run.

    tensorboardX's SummaryWriter writes from a thread, which dies with a traceback on a full disk while the
    run waits for it forever. Here events are written by the caller, who gets the error.

    epoch: the epoch at which the process starts; TensorBoard drops what an earlier process wrote beyond it.
    """

    def __init__(self, folder: Path, epoch: int):
        self.name = folder / "events.out.tfevents.*"
        # The time in nanoseconds keeps two files of the same second apart.
        self.file = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
        self.write(epoch + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, **content: typing.Any) -> None:
        """Write one event; content: summary= or session_log=."""
        with naming(self.name):
            self.file.write_event(Event(wall_time=time.time(), step=step, **content))

    def add(self, summaries: Iterable[typing.Any], step: int = 0) -> None:
        """Write summaries of tensorboardX.summary at a step."""
        for part in summaries:
            self.write(step, summary=part)

    def flush(self) -> None:
        """Write buffered events to disk."""
        with naming(self.name):
            self.file.flush()

    def close(self) -> None:
        """Flush and close the file."""
        with naming(self.name):
            self.file.close()


class RunLog:
    """The log files of a run folder.

    epoch: the epoch at which a resumed run starts; what an earlier process wrote beyond it is dropped.
    echo: False keeps lines off the console. Of several processes, process 0 alone writes.
    """

    def __init__(self, folder: Path, config: Config, epoch: int = 0, echo: bool = True):
        writes = rank() == 0
        self.folder, self.config, self.echo = folder, config, echo and writes
        # Figures of the model that have had one value so far, as (value, epochs); None for those that vary.
        self.constant: dict[str, tuple[float, list[int]] | None] = {}
        if writes:
            self.remember(drop_lines(folder / "metrics.jsonl", epoch), epoch)
        self.events = EventFile(folder, epoch) if config.tensorboard and writes else None
        text, lines = (folder / name if writes else os.devnull for name in ("train.log", "metrics.jsonl"))
        # Open until close(): a line has to be on disk as soon as it is written.
        self.text = open(text, "a", encoding="utf-8")  # noqa: SIM115
        self.lines = open(lines, "a", encoding="utf-8")  # noqa: SIM115

    def say(self, *lines: str) -> None:
        """Write lines to the console, above any progress bar, and to train.log."""
        if self.echo:
            tqdm.write("\n".join(lines))
            sys.stdout.flush()  # a redirected log is read while the run goes on
        self.keep(*lines)

    def keep(self, *lines: str) -> None:
        """Write lines to train.log alone: those that the console gets from elsewhere."""
        with naming(self.text.name):
            self.text.writelines(f"{line}\n" for line in lines)
            self.text.flush()

    def record(self, entry: Mapping[str, typing.Any]) -> None:
        """Write one evaluation as a line of metrics.jsonl."""
        with naming(self.lines.name):
            print(json_text(entry), file=self.lines, flush=True)

    def begin(self, said: Iterable[str]) -> None:
        """Keep what the console has said so far, and write TensorBoard's text about the run."""
        lines = list(said)
        self.keep(*lines)
        if self.events:
            self.events.add([summary.text("0_run/about", about(self.config, lines))])

    def scalars(self, group: str, values: Numbers, epoch: int) -> None:
        """Write numbers as TensorBoard scalars, see tag_of; figures of the model once they vary."""
        if not self.events:
            return
        for name, value in values.items():
            tag, number = tag_of(group, name, self.config), float(value)
            points = self.due(tag, number, epoch) if group == "model" else [(epoch, number)]
            for step, figure in points:
                self.events.add([scalar(tag, figure)], step)

    def due(self, tag: str, number: float, epoch: int) -> list[tuple[int, float]]:
        """The points to write when a figure of the model has a value: none as long as it never varied."""
        held = self.constant.setdefault(tag, (number, []))
        if held and held[0] == number:
            held[1].append(epoch)
            return []
        self.constant[tag] = None
        past = [(before, held[0]) for before in held[1]] if held else []
        return [*past, (epoch, number)]

    def remember(self, evaluations: Iterable[Mapping[str, typing.Any]], epoch: int) -> None:
        """Know again which figures of the model have been constant in the evaluations of earlier processes.

        What varied after `epoch` counts as varying: its points up to there have been written then.
        """
        for entry in evaluations:
            figures = entry.get("model")
            for name, value in figures.items() if isinstance(figures, dict) else ():
                number = value if isinstance(value, float) else math.nan
                self.due(tag_of("model", name, self.config), number, entry["epoch"])
        for held in filter(None, self.constant.values()):
            held[1][:] = [past for past in held[1] if past <= epoch]

    def images(self, model: Recommender, epoch: int, kind: str = "") -> None:
        """Write the model's images to TensorBoard; kind: appended to their names."""
        if self.events:
            pictures = model.images().items()
            images = (summary.image(name + kind, heatmap(x), dataformats="HWC") for name, x in pictures)
            self.events.add(images, epoch)

    def finish(self, config: Config, epoch: int, **groups: Numbers) -> None:
        """Write the main metrics of the best epoch beside the settings (HParams).

        TensorBoard shows the first five: the selection metric of the first group, recall and NDCG of the
        last. Figures of the model that never varied become a text.
        """
        if not self.events:
            return
        groups = {name.replace("_", " "): metrics for name, metrics in groups.items()}
        first, *_, last = [*groups, *groups]
        chosen = {(first, config.selection_metric): groups[first][config.selection_metric]}
        chosen |= {
            (last, name): value for name, value in groups[last].items() if name.startswith(("recall", "ndcg"))
        }
        final = {
            f"9_final/{group.replace('_', ' ')} {name}": value for (group, name), value in chosen.items()
        }
        self.events.add((scalar(tag, value) for tag, value in final.items()), epoch)
        constants = [f"{tag}: {held[0]:g}" for tag, held in self.constant.items() if held]
        if constants:
            self.events.add([summary.text("0_run/constants", "\n\n".join(constants))], epoch)
        flat = {
            key: value if isinstance(value, (int, float, str)) else str(value)
            for key, value in config.as_dict().items()
        }
        experiment, *session = summary.hparams(flat, dict.fromkeys(final))
        mark_differing(experiment.value[0].metadata.plugin_data, config.non_defaults())
        self.events.add([experiment, *session])

    def flush(self) -> None:
        """Write TensorBoard events to disk; the other files are up to date after every line."""
        if self.events:
            self.events.flush()

    def close(self) -> None:
        """Flush and close all files, each of them even if another fails."""
        with contextlib.ExitStack() as files:
            for file in (self.lines, self.text):
                files.enter_context(naming(file.name))  # what could not be written is tried once more
                files.callback(file.close)
            if self.events:
                files.callback(self.events.close)


def about(config: Config, said: Iterable[str]) -> str:
    """A run in Markdown: what the console said first, its command, and the settings that are not defaults."""
    fields = ((field, getattr(config, field.name)) for field in dataclasses.fields(config))
    settings = [f"| {field.name} | {value} |" for field, value in fields if value != field.default]
    command = " ".join(map(shlex.quote, ["python", Path(sys.argv[0]).name, *sys.argv[1:]]))
    table = "\n".join(["| setting | value |", "|---|---|", *settings])
    return "\n\n".join([*said, f"`{command}`", table])


def mark_differing(plugin_data: typing.Any, names: Collection[str]) -> None:
    """Mark settings as differing: TensorBoard shows these first, and no more than a few."""
    content = HParamsPluginData.FromString(plugin_data.content)
    for info in content.experiment.hparam_infos:
        if info.name in names:
            info.MergeFromString(DIFFERS)
    plugin_data.content = content.SerializeToString()


def drop_lines(path: Path, epoch: int) -> list[dict[str, typing.Any]]:
    """Remove the lines of a metrics.jsonl that are incomplete or later than an epoch.

    Returns what the complete lines recorded, the later ones included.
    """
    if not path.exists():
        return []
    found, kept = [], []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line)
            if entry["epoch"] <= epoch:
                kept.append(line + "\n")
            found.append(entry)
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(path, "w") as file:
        file.writelines(kept)
    return found
