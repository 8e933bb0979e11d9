"""RAY_ADDRESS: the cluster that a run joins, looked at before anything waits for it."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
from collections.abc import Callable

from jobs.resources import CannotRun

PATIENCE_S = 30.0  # for a head that is just starting
NEXT_TRY_S = 1.0
LOOK_EVERY_S = 3.0
LAST_COMMIT_S = 60.0
GONE_AFTER_S = 40.0  # a head that starts again, with its state on Redis, may take a moment


def ray_address() -> str | None:
    """The address of the cluster to join, or None if the run starts a Ray of its own.

    Raises CannotRun for an address that Ray would not join.
    """
    address = os.environ.get("RAY_ADDRESS", "").strip()
    if address in ("", "local"):
        return None
    if re.match(r"https?://", address):
        raise CannotRun(
            "RAY_ADDRESS: expected the address of the cluster's head, such as 10.0.0.1:6379, or none, "
            f"found {address}, which takes jobs: unset it, or submit the run to it "
            f"(ray job submit --address {address} -- python -m jobs.label CONFIG)"
        )
    if address != "auto" and _host_and_port(address) is None:
        raise CannotRun(
            "RAY_ADDRESS: expected host:port of the cluster's head, such as 10.0.0.1:6379, "
            f"found {address!r}"
        )
    return address


def expect_answer(address: str, say: Callable[[str], None]) -> None:
    """Wait until something accepts connections at the address. Raises CannotRun, with the reason, if nothing
    does within PATIENCE_S: Ray itself would silently try for a quarter of an hour."""
    place = _host_and_port(address)
    if place is None:  # "auto" is a file's content
        return
    until = time.monotonic() + PATIENCE_S
    is_first = True
    while True:
        try:
            socket.create_connection(place, timeout=max(1.0, until - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + NEXT_TRY_S > until:
                raise CannotRun(
                    f"RAY_ADDRESS: expected a Ray cluster at {address}, found none within "
                    f"{PATIENCE_S:g} s ({error.strerror or error}): start it (ray start --head), correct "
                    "the address, or unset RAY_ADDRESS to run on this machine"
                ) from None
            if is_first:
                say(
                    f"waiting up to {PATIENCE_S:g} s for the Ray cluster at {address} (RAY_ADDRESS)"
                )
            is_first = False
            time.sleep(NEXT_TRY_S)


def _host_and_port(address: str) -> tuple[str, int] | None:
    match = re.fullmatch(r"(?:ray://)?\[?([^\[\]/]+?)\]?:(\d{1,5})", address)
    return (match[1], int(match[2])) if match and int(match[2]) < 65536 else None


class HeadGone(Exception):
    """The cluster's head has died, and with it the cluster. Exit code 1."""


class HeadWatch:
    """Checks every few seconds whether the cluster's head still accepts connections, until `end`.

    Ray ends every process of the cluster, the driver too, a minute after the head has gone, without a
    message. So `gone` is called before that, from a thread; and `hopeless` if the run has not ended
    LAST_COMMIT_S later, as it waits for an answer of the head.
    """

    def __init__(
        self,
        address: str,
        gone: Callable[[HeadGone], None],
        hopeless: Callable[[HeadGone], None],
    ) -> None:
        self.address, self.gone, self.hopeless = address, gone, hopeless
        self.error = HeadGone(f"the Ray cluster at {address} is gone")
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def is_there(self) -> bool:
        """Whether the head accepts connections now."""
        place = _host_and_port(self.address)
        if place is None:
            return True
        try:
            socket.create_connection(place, timeout=LOOK_EVERY_S).close()
        except OSError:
            return False
        return True

    def end(self) -> None:
        self._ended.set()

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._ended.wait(LOOK_EVERY_S):
            if self.is_there():
                seen = time.monotonic()
            elif time.monotonic() - seen > GONE_AFTER_S:
                self.gone(self.error)
                if not self._ended.wait(LAST_COMMIT_S):
                    self.hopeless(self.error)
                return
