"""A process that may die in place of its parent.

It runs a generator of Arrow tables, hands each one over in shared memory, and notes what it is at
where its parent can read it whatever becomes of it. It is spawned, not forked (Ray's workers have
threads), kept for later, and imports what its generator needs: neither Ray nor torch.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

START_S = 300.0  # for its imports, from a cold disk on a machine with much else to do
BETWEEN_CLIPS = 10  # times a clip's limit: a tar's next member, a row group, a slow store
OUT_OF_MEMORY = 71  # its exit code where no clip is to blame for a MemoryError
START = (
    "import sys; sys.path[:] = sys.argv[4:]; from jobs.child import serve; serve(*sys.argv[1:4])"
)
TAKEN = b"taken"
ALLOCATOR = {
    # One clip's sound goes where the last one's was. Otherwise glibc hands such memory back to the
    # kernel, which fills it with zeros again, page by page: a third of the time of decoding WAV.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # of which Ray counts none for what reads

_idle: list[Child] = []


class Died(Exception):
    """The child ended or was late, at a clip or (`clip_id` empty) on the way to the next one.

    `kind` is `crashed`, `timeout` or `memory`; `row` is the row of its plan that it was at;
    `by_chance` says that it was killed from outside, as the kernel does when memory is short.
    """

    def __init__(self, kind: str, message: str, clip_id: str, row: int, by_chance: bool = False):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.by_chance = kind, message, by_chance
        self.clip_id, self.row = clip_id, row


class Shared:
    """Memory of a child and its parent: in front a note of what the child is at, which outlives
    it and costs a system call, and behind that the table which it hands over.
    """

    NOTE = struct.Struct("<ddq32s")  # since when, seconds of sound, row, clip_id
    TABLE = 4096  # where it begins
    KEPT_BYTES = 64 << 20  # for the next table; pages that are there already are filled faster

    def __init__(self, file: BinaryIO | None = None):
        if file is not None:
            self.file = file
        elif sys.platform == "linux":
            self.file = os.fdopen(os.memfd_create("earmark"), "w+b")
        else:
            self.file = tempfile.TemporaryFile()  # type: ignore[assignment]  # noqa: SIM115
        self.at("", 0)

    def at(self, clip_id: str, row: int) -> None:
        """A clip begins; or, with an empty `clip_id`, the way to the next one, in `row`."""
        self._now = time.monotonic(), row, clip_id.encode()
        self.decoded(0.0)

    def decoded(self, sound_s: float) -> None:
        """So much of the clip's sound is there."""
        since, row, clip_id = self._now
        os.pwrite(self.file.fileno(), self.NOTE.pack(since, sound_s, row, clip_id), 0)

    def note(self) -> tuple[float, float, int, str]:
        """Since when (`time.monotonic`), seconds of sound so far, row, `clip_id`."""
        note = os.pread(self.file.fileno(), self.NOTE.size, 0)
        since, sound_s, row, clip_id = self.NOTE.unpack(note)
        return since, sound_s, row, clip_id.rstrip(b"\0").decode()

    def put(self, table: pa.Table) -> int:
        """The child's part; returns the table's size in bytes."""
        self.file.seek(self.TABLE)
        with pa.ipc.new_stream(self.file, table.schema) as stream:
            stream.write_table(table)
        self.file.flush()
        return self.file.tell() - self.TABLE

    def take(self, size: int) -> pa.Table:
        """The parent's part: a copy, so that there is room for the next one."""
        buffer = pa.allocate_buffer(size)
        rest = memoryview(buffer)
        while len(rest):
            rest = rest[os.preadv(self.file.fileno(), [rest], self.TABLE + size - len(rest)) :]
        if size > self.KEPT_BYTES:
            os.ftruncate(self.file.fileno(), self.TABLE)
        return pa.ipc.open_stream(buffer).read_all()


class Child:
    """The parent's end of it. Raises RuntimeError if it does not start."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.shared = Shared()
        with theirs:
            files = theirs.fileno(), self.shared.file.fileno()
            numbers = map(str, (os.getpid(), *files))
            self.process = subprocess.Popen(
                [sys.executable, "-X", "faulthandler", "-c", START, *numbers, *sys.path],
                stdin=subprocess.DEVNULL,
                pass_fds=files,
                env=ALLOCATOR | os.environ | NO_GPU,
            )
        self.connection = Connection(ours.detach())
        try:
            if self.connection.poll(START_S):
                self.connection.recv()
                return
            how = f"no answer within {START_S:g} s"
        except (EOFError, ConnectionError):
            how = _verdict(self.process.wait())[1]
        self.end()
        raise RuntimeError(f"a process to decode in did not start, stderr has its words: {how}")

    def tables(
        self,
        generator: Callable[..., Iterator[pa.Table]],
        arguments: dict[str, Any],
        timeout_s: float,
        memory_bytes: int,
    ) -> Iterator[pa.Table]:
        """What `generator(shared, **arguments)` yields there. Raises Died, and what it raises.

        A clip may take `timeout_s` and as long again as it sounds, not counting the time in which
        the caller asks for nothing; the child may have `memory_bytes` more than it has by now.
        """
        self.shared.at("", 0)
        with suppress(ConnectionError):  # dead: what is read next says of what
            self.connection.send((generator, arguments, memory_bytes))
        while (answer := self._answer(timeout_s)) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _answer(self, timeout_s: float) -> pa.Table | Exception | None:
        """The next table, None behind the last one, or what the generator raised. Raises Died."""
        asked = time.monotonic()
        try:
            while True:
                since, sound_s, _, clip_id = self.shared.note()
                limit_s = timeout_s + sound_s if clip_id else timeout_s * BETWEEN_CLIPS
                left_s = max(since, asked) + limit_s - time.monotonic()
                # Never for longer than a clip's limit: one may begin meanwhile.
                if self.connection.poll(max(0.0, min(left_s, timeout_s))):
                    break
                if left_s <= 0:
                    raise self._died("timeout", f"took longer than {limit_s:g} s")
            answer = self.connection.recv()
        except (EOFError, ConnectionError):
            code = self.process.wait()
            raise self._died(*_verdict(code), by_chance=code == -signal.SIGKILL) from None
        if not isinstance(answer, int):
            return answer
        table = self.shared.take(answer)
        with suppress(ConnectionError):  # it may have died since
            self.connection.send_bytes(TAKEN)
        return table

    def _died(self, kind: str, message: str, by_chance: bool = False) -> Died:
        _, _, row, clip_id = self.shared.note()
        return Died(kind, message, clip_id, row, by_chance)

    def end(self) -> None:
        """Kill it, if it lives."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def child() -> Iterator[Child]:
    """A child for as long as it is needed: one that is left from before (dead since then, perhaps:
    that is heard of like any death), or a new one.
    """
    one = _idle.pop() if _idle else Child()
    try:
        yield one
    except BaseException:
        one.end()
        raise
    _idle.append(one)


def _verdict(code: int) -> tuple[str, str]:
    """The kind and the message of a death."""
    if code == OUT_OF_MEMORY:
        return "memory", "the process ran out of the memory that it may have"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return "crashed", f"the process that worked on it ended with {how}"


def serve(parent: str, channel: str, memory: str) -> None:
    """What the child does, until its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: even in an endless loop
        if os.getppid() != int(parent):
            return
    connection = Connection(int(channel))
    shared = Shared(os.fdopen(int(memory), "r+b"))
    with suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            generator, arguments, memory_bytes = connection.recv()
            _limit_memory(memory_bytes)
            answer = None
            has_put = False
            try:
                for table in generator(shared, **arguments):
                    if has_put:
                        connection.recv_bytes()  # TAKEN
                    connection.send(shared.put(table))
                    has_put = True
                    del table  # while the next one grows
            except MemoryError:
                traceback.print_exc()
                os._exit(OUT_OF_MEMORY)
            except Exception as error:
                answer = ExceptionWithTraceback(_picklable(error), error.__traceback__)
            if has_put:
                connection.recv_bytes()
            connection.send(answer)


def _picklable(error: Exception) -> Exception:
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _limit_memory(more_bytes: int) -> None:
    """Make allocations fail beyond what is had by now and `more_bytes`. Only Linux counts them."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (pages * mmap.PAGESIZE + more_bytes, most))
