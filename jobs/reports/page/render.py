"""The page as one HTML file: template, style and scripts, and every text of the table escaped.

The template escapes by itself (Jinja's `autoescape`), the scripts build no HTML, and a content
security policy lets the browser run these scripts alone and load files of the folder alone.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.console import printable

FOLDER = Path(__file__).parent / "web"
SCRIPTS = ("vendor/uPlot.iife.min.js", "charts.js", "page.js")
STYLES = ("vendor/uPlot.min.css", "page.css")
# Characters that change the direction of all that follows: they would change other texts as well.
OVERRIDES = {
    ord(char): f"\\u{ord(char):04x}"
    for char in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
}


def rendered(page: Mapping[str, Any]) -> str:
    """The HTML of a page."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "count": count,
        "percent": percent,
        "clock": clock,
        "span": span,
        "name": lambda text: printable(str(text)),
        "spoken": lambda text: str(text).translate(OVERRIDES),
    }
    script = "\n".join(_read(name) for name in SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html").render(
        **page,
        script=script,
        script_hash=f"sha256-{digest}",
        style="\n".join(_read(name) for name in STYLES),
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def count(number: float | None) -> str:
    """12345 -> 12,345."""
    return "–" if number is None else f"{number:,.0f}"


def percent(share: float | None, digits: int = 1) -> str:
    """0.1234 -> 12.3 %."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def clock(seconds: float | None) -> str:
    """A duration or time: 4.1 s, 1:02, 2:03:04."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def span(hours: float) -> str:
    """A sum of durations: 12.3 s, 1.4 min, 2.5 h, 12,345 h."""
    if hours < 1 / 60:
        return f"{3600 * hours:.1f} s"
    if hours < 1:
        return f"{60 * hours:.1f} min"
    return f"{hours:,.1f} h" if hours < 1000 else f"{hours:,.0f} h"
