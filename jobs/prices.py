"""What a cluster's machines cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from jobs.resources import Nodes


def machines(nodes: Nodes) -> dict[str, float]:
    """The machines of a cluster by kind: GPUs by the name that Ray has for their type, or `GPU`, and the
    CPUs of machines without one."""
    counts = defaultdict[str, float](float)
    for node in nodes:
        if gpus := node.get("GPU", 0.0):
            kind = next((name for name in node if name.startswith("accelerator_type:")), "GPU")
            counts[kind] += gpus
        elif cpus := node.get("CPU", 0.0):
            counts["CPU"] += cpus
    return dict(counts)


def price_per_hour(machines: Mapping[str, float], prices: Mapping[str, float]) -> float | None:
    """The price of these machines for an hour, or None if that of some kind is not known."""
    own = {
        kind: prices.get(kind, None if kind == "CPU" else prices.get("GPU")) for kind in machines
    }
    known = [machines[kind] * price for kind, price in own.items() if price is not None]
    return sum(known) if machines and len(known) == len(machines) else None


def cost(seconds: float | None, hourly: float | None) -> float | None:
    """The price of `seconds` at `hourly` an hour, or None if either is not known."""
    return None if seconds is None or hourly is None else seconds / 3600 * hourly
