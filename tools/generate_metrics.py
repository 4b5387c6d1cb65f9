"""Writes the table of docs/metrics.md, below a marker line, from core/daemon/metric_families.py: `make docs`."""

from pathlib import Path

from crinoid.core.daemon.metric_families import METRICS

DOCUMENT = Path(__file__).parents[1] / "docs" / "metrics.md"
MARKER = "<!-- Below this line `make docs` writes what core/daemon/metric_families.py says; change that. -->\n"


def render() -> str:
    """Return the table, a metric a row."""
    rows = ["", "| metric | kind | labels | what it tells |", "|---|---|---|---|"]
    for metric in METRICS:
        name = metric.samples[0] if metric.kind == "counter" else metric.name
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{name}` | {metric.kind} | {labels} | {metric.about} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Replace what is below the marker."""
    written, marker, _ = DOCUMENT.read_text().partition(MARKER)
    DOCUMENT.write_text(written + marker + render())


if __name__ == "__main__":
    main()
