"""Stopping a run in an orderly way: signals and a time limit."""

from __future__ import annotations

import os
import signal
import time
import typing

from layers.agreement import largest
from layers.columns import rank, ranks

GRACE, GRACE_OF_SEVERAL = 1, 5  # seconds: of one process, and of several


class Stop:
    """A condition that becomes true on SIGINT or SIGTERM, or when the time is up.

    Call it to ask. A second signal ends the process at once, unless it follows within GRACE seconds (of
    several processes, GRACE_OF_SEVERAL): a terminal sends the first to a script and its runs, and the script
    passes it on; so do a batch queue and torchrun. Use it as a context manager: the signal handlers are
    restored on exit. minutes: time limit, 0 for none.
    """

    def __init__(self, minutes: float = 0.0):
        self.signal: int | None = None
        self.handled: float | None = None  # when this process got a signal; another one may have told it
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def __call__(self) -> bool:
        """Whether to stop. Of several processes, all do if one has to."""
        number = largest(self.signal or int(time.monotonic() >= self.deadline))
        if number > 1:
            self.signal = number
        return number > 0

    @property
    def reason(self) -> str:
        """'SIGTERM', 'SIGINT' or 'max_minutes'."""
        return signal.Signals(self.signal).name if self.signal else "max_minutes"

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM, 0 when the time was up."""
        return 128 + self.signal if self.signal else 0

    def handle(self, number: int, frame: object) -> None:
        """Signal handler."""
        if self.handled is not None:
            if time.monotonic() - self.handled > (GRACE if ranks() == 1 else GRACE_OF_SEVERAL):
                os._exit(128 + number)
            return
        self.signal, self.handled = number, time.monotonic()
        name = signal.Signals(number).name
        if rank() == 0:
            os.write(2, f"\n{name}: finishing the step and saving; send it again to quit at once\n".encode())

    def __enter__(self) -> Stop:
        handled = (signal.SIGINT, signal.SIGTERM)
        self.before: dict[int, typing.Any] = {
            number: signal.signal(number, self.handle) for number in handled
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
