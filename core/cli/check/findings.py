"""What an examination finds: a thing, a verdict, the facts, and what to do where it is not fit."""

import enum
from dataclasses import dataclass


class Verdict(enum.Enum):
    """``FAILURE``: pods can't run. ``WARNING``: some can't, or not well."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the result. ``advice`` is empty for ``OK``."""

    area: str
    name: str
    verdict: Verdict
    detail: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """The finding for programs."""
        return {
            "area": self.area,
            "name": self.name,
            "verdict": self.verdict.value,
            "detail": self.detail,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True)
class Area:
    """Makes the findings of one area."""

    name: str

    def ok(self, name: str, detail: str) -> Finding:
        """The thing is fit."""
        return Finding(self.name, name, Verdict.OK, detail)

    def warning(self, name: str, detail: str, advice: str) -> Finding:
        """Some pods can't run, or not well."""
        return Finding(self.name, name, Verdict.WARNING, detail, advice)

    def failure(self, name: str, detail: str, advice: str) -> Finding:
        """No pod can run."""
        return Finding(self.name, name, Verdict.FAILURE, detail, advice)
