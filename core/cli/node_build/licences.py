"""Licences of what a build is made of: their texts, and what each distribution says its licence is."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

_TEXTS = re.compile(r"(licen[cs]e|copying|notice|authors)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Distribution:
    """An installed distribution; ``licence`` is an SPDX expression where it gives one."""

    name: str
    version: str
    licence: str
    is_expression: bool
    requires: tuple[str, ...]
    texts: dict[str, bytes]


def distributions(packages: Path) -> Iterator[Distribution]:
    """Read the metadata of all that is installed in a directory, by name."""
    for info in sorted(packages.glob("*.dist-info")):
        metadata = HeaderParser().parsestr((info / "METADATA").read_text("utf-8", "replace"))
        texts = {
            str(path.relative_to(info)).removeprefix("licenses/"): path.read_bytes()
            for path in sorted(info.rglob("*"))
            if path.is_file() and (path.relative_to(info).parts[0] == "licenses" or _TEXTS.match(path.name))
        }
        expression = metadata.get("License-Expression", "")
        yield Distribution(
            re.sub(r"[-_.]+", "-", str(metadata["Name"])).lower(),
            str(metadata["Version"]),
            expression or _say(metadata.get("License", ""), metadata.get_all("Classifier", [])),
            bool(expression),
            tuple(metadata.get_all("Requires-Dist", [])),
            texts,
        )


def collect(packages: Path) -> dict[str, bytes]:
    """Return the texts of all licences by name, with a list of who has which."""
    files: dict[str, bytes] = {}
    lines = []
    for one in distributions(packages):
        files |= {f"{one.name}/{name}": content for name, content in one.texts.items()}
        lines.append(f"{one.name} {one.version}: {one.licence}" + ("" if one.texts else " (no text in its wheel)"))
    return {**files, "INDEX": ("\n".join(lines) + "\n").encode()}


def _say(licence: str, classifiers: list[str]) -> str:
    """Older metadata: a name, the whole text, or classifiers."""
    if licence.strip() and "\n" not in licence.strip() and len(licence) < 100:
        return licence.strip()
    named = [line.rpartition(" :: ")[2] for line in classifiers if line.startswith("License ::")]
    return " and ".join(named) or "not said"
