"""One temporary home for all that the tests make, one Ray for those that run the job in-process."""

from __future__ import annotations

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Short, because Ray puts sockets below it, whose paths the kernel limits to about 100 bytes.
HOME = Path(tempfile.mkdtemp(prefix="em-"))
# Of the process that starts pytest-xdist's workers, which inherit it.
CACHE = os.environ.setdefault("EARMARK_TESTS_CACHE", str(HOME / "cache"))

os.environ.update(
    XDG_STATE_HOME=str(HOME / "state"),  # the runs' logs
    XDG_CACHE_HOME=CACHE,  # weights and recordings, made once for all tests
    RAY_TMPDIR=str(HOME),
    RAY_AUTH_MODE="token",  # else Ray writes a token into the user's home
    RAY_AUTH_TOKEN=secrets.token_hex(32),
    RAY_USAGE_STATS_ENABLED="0",
    RAY_worker_niceness="0",  # Ray's default of 15 starves its workers beside other work
    RAY_idle_worker_killing_time_threshold_ms="600000",  # what a run started serves the next one
    RAY_agent_register_timeout_ms="120000",  # Ray's 30 s are few beside other work
    RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.pop("RAY_ADDRESS", None)


# Registered first, so that it runs last, after what libraries write when the interpreter ends.
atexit.register(shutil.rmtree, HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """A Ray of two CPUs in this process, which every `Job.run` then uses."""
    import ray

    from jobs import ray_compat

    with ray_compat.no_idle_services():
        ray.init(
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=256 << 20,
            logging_level="ERROR",
        )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def classifier() -> Path:
    """A tiny wav2vec2 that needs 400 samples at 16 kHz (0.025 s) or more."""
    from checkpoints import tiny_classifier

    return tiny_classifier(HOME / "models" / "wav2vec2", "wav2vec2")
