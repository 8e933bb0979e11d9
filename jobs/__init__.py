"""What runs: builds Ray Data pipelines, talks to storage."""

import os

# delta-rs brings an allocator of its own (jemalloc), which reads this when it is loaded. It would
# keep for good what compacting a table took, some 40 bytes for each row.
os.environ.setdefault("_RJEM_MALLOC_CONF", "dirty_decay_ms:0,muzzy_decay_ms:0")
