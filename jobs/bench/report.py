"""Tables of figures on the terminal and in Markdown, and targets for them."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from datetime import date

from jobs.bench.measure import Took
from jobs.versions import package_version

PACKAGES = ("torch", "transformers", "ray", "daft", "faster-whisper")

TABLES: list[tuple[str, list[str], list[list[str]]]] = []
TARGETS: list[list[str]] = []


def target(
    what: str, measured: float | None, wanted: float, at_most: bool = False, unit: str = "×"
) -> None:
    """Add a line to the table of targets; `measured` is None if it is unknown."""
    if measured is not None:
        met = measured <= wanted if at_most else measured >= wanted
        sign = "≤" if at_most else "≥"
        TARGETS.append(
            [what, f"{measured:.2f} {unit}", f"{sign} {wanted:g} {unit}", "yes" if met else "no"]
        )


def ratio(figures: Mapping[str, float | None], one: str, other: str) -> float | None:
    """`one` / `other`, None if either is unknown."""
    above, below = figures.get(one), figures.get(other)
    return above / below if above and below else None


COST = ["wall s", "CPU-s", "GiB"]


def cost(what: str, took: Took) -> list[str]:
    """A row of cells under COST."""
    return [what, f"{took.wall_s:.1f}", f"{took.cpu_s:.1f}", f"{took.peak_bytes / 2**30:.2f}"]


def say(text: str) -> None:
    print(text, flush=True)


def shown(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """Print a table, and keep it for `markdown`."""
    TABLES.append((title, header, rows))
    say(f"\n{title}\n")
    widths = [max(len(row[n]) for row in [header, *rows]) for n in range(len(header))]
    for row in [header, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        say("  ".join([row[0].ljust(widths[0]), *cells]))
    say("")


def markdown() -> str:
    """All tables, below the machine and the package versions."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = {name: package_version(name) for name in PACKAGES}
    parts = [
        f"{_cpu()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB · Python "
        f"{platform.python_version()}, {', '.join(f'{n} {v}' for n, v in packages.items() if v)} · "
        f"{date.today().isoformat()}"
    ]
    for title, header, rows in TABLES:
        lines = [
            f"**{title}**\n",
            f"| {' | '.join(header)} |",
            f"| --- |{' ---: |' * (len(header) - 1)}",
        ]
        parts.append("\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]))
    return "\n\n".join(parts) + "\n"


def _cpu() -> str:
    import torch

    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        model = next(
            (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
            "CPU",
        )
    return f"{model} ({torch.backends.cpu.get_cpu_capability()})"
