"""A process that may die in place of its parent.

It runs a generator of Arrow tables, hands each table over in shared memory, and records there which
clip is in progress, so that its parent knows after its death. It is spawned, not forked (Ray's
workers have threads), reused, and imports only what its generator needs: neither Ray nor torch.
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

START_S = 300.0  # for its imports, from a cold disk on a busy machine
BETWEEN_CLIPS = 10  # times a clip's limit: a tar's next member, a row group, a slow store
OUT_OF_MEMORY = 71  # its exit code where no clip is to blame for a MemoryError
START = "import sys; sys.path[:] = sys.argv[4:]; from jobs.workers.sandbox import serve; serve(*sys.argv[1:4])"
TAKEN = b"taken"
ALLOCATOR = {
    # Each clip's sound reuses the memory of the one before. Otherwise glibc returns that memory to the
    # kernel, which fills it with zeros again, page by page: a third of the time of decoding WAV.
    "MALLOC_MMAP_THRESHOLD_": str(4 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 20),
}
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}  # Ray counts no GPU for workers that read

_idle: list[Sandbox] = []


class Died(Exception):
    """A sandbox ended or exceeded its time, at a clip or (`clip_id` empty) between two clips.

    `kind` is `crashed`, `timeout` or `memory`; `row` is the row of its plan in progress; `by_chance`
    says that it was killed from outside, as by the kernel when memory is short.
    """

    def __init__(self, kind: str, message: str, clip_id: str, row: int, by_chance: bool = False):
        super().__init__(f"{kind}: {message}")
        self.kind, self.message, self.by_chance = kind, message, by_chance
        self.clip_id, self.row = clip_id, row


class SharedMemory:
    """Memory that a sandbox and its parent share: a record of the clip in progress, which outlives
    the sandbox and costs one system call to write, and after it the table being handed over.
    """

    RECORD = struct.Struct("<ddq32s")  # started, decoded_s, row, clip_id
    TABLE = 4096  # offset in bytes
    KEPT_BYTES = 64 << 20  # for the next table: existing pages are filled faster

    def __init__(self, file: BinaryIO | None = None):
        if file is not None:
            self.file = file
        elif sys.platform == "linux":
            self.file = os.fdopen(os.memfd_create("earmark"), "w+b")
        else:
            self.file = tempfile.TemporaryFile()  # type: ignore[assignment]  # noqa: SIM115
        self.working_on("", 0)

    def working_on(self, clip_id: str, row: int) -> None:
        """Record that a clip begins or, with an empty `clip_id`, that none is in progress in `row`."""
        self._now = time.monotonic(), row, clip_id.encode()
        self.decoded(0.0)

    def waits(self) -> None:
        """Restart the time limit of the clip in progress, which waits for other processes."""
        _, row, clip_id = self._now
        self.working_on(clip_id.decode(), row)

    def decoded(self, decoded_s: float) -> None:
        """Record how many seconds of the clip are decoded."""
        started, row, clip_id = self._now
        os.pwrite(self.file.fileno(), self.RECORD.pack(started, decoded_s, row, clip_id), 0)

    def record(self) -> tuple[float, float, int, str]:
        """When the clip began (`time.monotonic`), seconds decoded so far, row, `clip_id`."""
        record = os.pread(self.file.fileno(), self.RECORD.size, 0)
        started, decoded_s, row, clip_id = self.RECORD.unpack(record)
        return started, decoded_s, row, clip_id.rstrip(b"\0").decode()

    def put(self, table: pa.Table) -> int:
        """Write a table, in the sandbox; returns its size in bytes."""
        self.file.seek(self.TABLE)
        with pa.ipc.new_stream(self.file, table.schema) as stream:
            stream.write_table(table)
        self.file.flush()
        return self.file.tell() - self.TABLE

    def take(self, size: int) -> pa.Table:
        """Read a table of `size` bytes, in the parent: a copy, so that the next one can be written."""
        buffer = pa.allocate_buffer(size)
        rest = memoryview(buffer)
        while len(rest):
            rest = rest[os.preadv(self.file.fileno(), [rest], self.TABLE + size - len(rest)) :]
        if size > self.KEPT_BYTES:
            os.ftruncate(self.file.fileno(), self.TABLE)
        return pa.ipc.open_stream(buffer).read_all()


class Sandbox:
    """The process, as its parent sees it. Raises RuntimeError if it does not start."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.memory = SharedMemory()
        with theirs:
            files = theirs.fileno(), self.memory.file.fileno()
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
        raise RuntimeError(
            f"a process to decode in did not start, see its messages on stderr: {how}"
        )

    def tables(
        self,
        generator: Callable[..., Iterator[pa.Table]],
        arguments: dict[str, Any],
        timeout_s: float,
        memory_bytes: int,
    ) -> Iterator[pa.Table]:
        """Yield the tables of `generator(memory, **arguments)`, run in the sandbox.

        A clip may take `timeout_s` plus its own duration, not counting the time in which the caller
        asks for no table; the process may allocate `memory_bytes` beyond what it has now.

        Raises Died, and whatever the generator raises.
        """
        self.memory.working_on("", 0)
        with suppress(ConnectionError):  # dead: `_answer` finds out of what
            self.connection.send((generator, arguments, memory_bytes))
        while (answer := self._answer(timeout_s)) is not None:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def _answer(self, timeout_s: float) -> pa.Table | Exception | None:
        """The next table, None after the last one, or the generator's exception. Raises Died."""
        asked = time.monotonic()
        try:
            while True:
                started, decoded_s, _, clip_id = self.memory.record()
                limit_s = timeout_s + decoded_s if clip_id else timeout_s * BETWEEN_CLIPS
                left_s = max(started, asked) + limit_s - time.monotonic()
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
        table = self.memory.take(answer)
        with suppress(ConnectionError):  # it may have died since
            self.connection.send_bytes(TAKEN)
        return table

    def _died(self, kind: str, message: str, by_chance: bool = False) -> Died:
        _, _, row, clip_id = self.memory.record()
        return Died(kind, message, clip_id, row, by_chance)

    def end(self) -> None:
        """Kill the process, if it is alive."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


@contextmanager
def sandbox() -> Iterator[Sandbox]:
    """A sandbox for the block of the `with`: an idle one, or a new one. An idle one that has died
    meanwhile raises Died when it is used, like any other.
    """
    one = _idle.pop() if _idle else Sandbox()
    try:
        yield one
    except BaseException:
        one.end()
        raise
    _idle.append(one)


def _verdict(code: int) -> tuple[str, str]:
    """The error kind and the message for an exit code."""
    if code == OUT_OF_MEMORY:
        return "memory", "the process ran out of the memory that it may have"
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return "crashed", f"the process that worked on it ended with {how}"


def serve(parent: str, channel: str, memory: str) -> None:
    """Run generators in the sandbox until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to everybody
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: even in an endless loop
        if os.getppid() != int(parent):
            return
    connection = Connection(int(channel))
    shared = SharedMemory(os.fdopen(int(memory), "r+b"))
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
                    size = shared.put(table)
                    connection.send(size)
                    has_put = True
                    del table  # while the next one grows
                    if size > shared.KEPT_BYTES:  # not while this one takes memory
                        connection.recv_bytes()
                        has_put = False
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
    """Make allocations fail beyond the present size plus `more_bytes`, on Linux."""
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[5])
        _, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (pages * mmap.PAGESIZE + more_bytes, hard_limit))
