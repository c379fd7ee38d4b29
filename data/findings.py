"""Print what data.check finds as soon as it is known, and count what decides the verdict."""

import dataclasses


@dataclasses.dataclass
class Findings:
    """The running result of a check.

    A problem makes the trainer refuse the folder or train on wrong data; a warning limits what can be
    trained.
    """

    problems: int = 0
    warnings: int = 0
    # Whether some feature file has too little data to compare its row order with the ids.
    undecided: bool = False

    def figure(self, text: str) -> None:
        """Print a line of statistics."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """Print something worth knowing that needs no action."""
        print(f"note: {text}", flush=True)

    def warn(self, text: str) -> None:
        """Print and count a warning."""
        self.warnings += 1
        print(f"warning: {text}", flush=True)

    def problem(self, text: str) -> None:
        """Print and count a problem."""
        self.problems += 1
        print(f"problem: {text}", flush=True)

    @property
    def verdict(self) -> str:
        """'fail' with any problem, 'unknown' if a row order could not be decided, else 'pass'."""
        if self.problems:
            return "fail"
        return "unknown" if self.undecided else "pass"

    def summary(self) -> str:
        """The last line of the output, such as 'verdict: fail, 2 problems, 1 warning'."""
        counts = ((self.problems, "problem"), (self.warnings, "warning"))
        words = [f"{count} {word}{'s' if count > 1 else ''}" for count, word in counts if count]
        return ", ".join([f"verdict: {self.verdict}", *words])
