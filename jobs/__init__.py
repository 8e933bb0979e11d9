"""The job: Ray Data pipelines, storage and the command line."""

import os

# delta-rs has its own allocator (jemalloc), which reads this when it is loaded. By default it would
# keep the memory that compacting a table took, some 40 bytes per row.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
