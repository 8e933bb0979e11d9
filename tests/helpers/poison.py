"""Makes the code misbehave in processes that a test starts: Python imports a `sitecustomize`.

`poisoned(folder)` is put in PYTHONPATH; production code knows nothing of it. A file with
`POISON:harm;` behind its sound harms the process that decodes it, a tar's member whose name begins
with `harm@` the one that reads it, and a sound of one constant (0.75 segfault, 0.5 exit, 0.25 lost
GPU) a classifier, unless its `top_k` is 2. With a file `all` in the folder every sound does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from sounds import encode, tone

SITE = '''
import ctypes, importlib.abc, importlib.util, os, re, signal, sys, time
from pathlib import Path

HERE = Path(__file__).parent

def once(name):
    """Whether this is the first time in any process."""
    try:
        (HERE / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True

def memory():
    kept = []
    while len(kept) < 160:  # 10 GB
        kept.append(b"x" * (64 << 20))

def bug():
    class Odd(Exception): pass
    raise Odd("a bug, not a clip")

HARMS = {
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(0),
    "loop": lambda: ctypes.PyDLL(None).sleep(1_000_000),  # in C, and with Python's lock
    "memory": memory,
    "bug": bug,
    "killed twice": lambda: (once("a") or once("b")) and os.kill(os.getpid(), signal.SIGKILL),
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
}

def decode(module):
    open_sound = module.open_sound
    def poisoned(file, start_s=0.0, *rest):
        data = file.read()
        file.seek(0)
        with open(HERE / "decoded", "a") as log:
            log.write(f"{os.getpid()}\\n")
        if harm := re.search(rb"POISON:([a-z ]+);", data):
            HARMS[harm[1].decode()]()
        return open_sound(file, start_s, *rest)
    module.open_sound = poisoned

def webdataset(module):
    content = module.content_of
    def poisoned(archive, header):
        if "@" in header.name:
            HARMS[header.name.partition("@")[0]]()
        return content(archive, header)
    module.content_of = poisoned

def classification(module):
    import torch
    init, call = module.Model.__init__, module.Model.__call__
    def load(self, options, *rest):
        init(self, options, *rest)
        self.is_weak = options.top_k != 2
    def poisoned(self, waveforms, group):
        if not self.is_weak:
            return call(self, waveforms, group)
        with open(HERE / "labelled", "a") as log:
            log.write(f"{os.getpid()} {len(waveforms)}\\n")
        values = {round(float(w[0]), 2) for w in waveforms if w[0] == w[-1]}
        if 0.75 in values or (HERE / "all").exists():
            ctypes.string_at(0)
        if 0.5 in values:
            os._exit(0)
        if 0.25 in values:
            raise torch.AcceleratorError("device-side assert triggered")
        return call(self, waveforms, group)
    module.Model.__init__, module.Model.__call__ = load, poisoned

class Poisoned(importlib.abc.MetaPathFinder):
    modules = {
        "audio_ops.decode.open": decode,
        "jobs.sources.webdataset": webdataset,
        "audio_ops.tasks.audio_classification": classification,
    }

    def find_spec(self, name, path=None, target=None):
        if name not in self.modules:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            self.modules[name](module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Poisoned())
'''


def poisoned(folder: Path) -> Path:
    """A folder for PYTHONPATH. `decoded` and `labelled` in it get a line per clip and per batch."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE, encoding="utf-8")
    return folder


def wav(seconds: float = 0.05, hz: float = 440, harm: str = "") -> bytes:
    """A tone; one that harms who decodes it, if there is a `harm`."""
    return encode(tone(seconds, hz=hz), 16_000, "wav") + (
        f"POISON:{harm};".encode() if harm else b""
    )


def constant(value: float, seconds: float = 0.3) -> bytes:
    """A sound that decodes well, and that no model survives."""
    return encode(np.full((1, round(seconds * 16_000)), value, np.float32), 16_000, "wav")
