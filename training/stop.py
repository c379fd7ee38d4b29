"""Stopping."""

import os
import signal
import time


class Stop:
    """True once SIGINT or SIGTERM has come or the time is up; a second signal leaves at once.

    minutes: 0 for no limit. Use as a context manager: the handlers are put back on leaving.
    """

    def __init__(self, minutes=0.0):
        self.signal = None
        self.deadline = time.monotonic() + 60 * minutes if minutes else float("inf")

    def __call__(self):
        return self.signal is not None or time.monotonic() >= self.deadline

    @property
    def reason(self):
        """'SIGTERM', 'SIGINT' or 'max_minutes'."""
        return signal.Signals(self.signal).name if self.signal else "max_minutes"

    @property
    def exit_code(self):
        """130 after SIGINT, 143 after SIGTERM, 0 when the time was up."""
        return 128 + self.signal if self.signal else 0

    def _handle(self, number, frame):
        if self.signal is not None:
            os._exit(128 + number)
        self.signal = number
        os.write(
            2,
            f"\n{signal.Signals(number).name}: finishing the step and saving; once more to leave at once\n".encode(),
        )

    def __enter__(self):
        self.before = {
            number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)
