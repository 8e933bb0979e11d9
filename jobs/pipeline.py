"""The Ray Data graph of a run, and how its work is cut into blocks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from audio_ops.inference.checkpoint import Checkpoint
from audio_ops.tasks import load_task, most_speech
from jobs import ray_compat
from jobs.config import Config
from jobs.planning.committed import RowSettings
from jobs.planning.plan import Plan
from jobs.preflight import Run
from jobs.resources import (
    Nodes,
    Shares,
    TaskShare,
    block_bytes,
    nodes_now,
    nodes_to_come,
    part_in_flight,
    share_out,
)
from jobs.shared_storage import SeenInput, input_files, probe_of, refuse_other_disks
from jobs.sources import load_source
from jobs.table.schema import label_columns, labels_left
from jobs.table.table import HeldTable
from jobs.table.write import WriteSettings

if TYPE_CHECKING:
    import ray.data

FEW_CLIPS = 8  # a second reader would start while the model loads, and only delay it
CLIPS_PER_ACTOR = 32  # an actor takes as long to start as so many short clips to label


def pipeline(
    run: Run, todo: Plan, table: HeldTable, ledger: Any, clips_per_shard: int | None = None
) -> tuple[Shares, ray.data.Dataset]:
    """The dataset that labels `todo`: a row of `table.schema.WRITTEN` per data file.

    With `clips_per_shard` only the first clips of each shard.
    """
    import ray

    from jobs import planned_reads
    from jobs.workers.kept import kept_settings
    from jobs.workers.model_actor import ModelActor, ModelSettings
    from jobs.workers.read import ReadSettings, read_block

    config, nodes = of_tasks(run.config, run.wanted.names(todo.due)), nodes_now()
    work = blocks(todo.todo, config, least=256 if any(node.get("GPU") for node in nodes) else 16)
    shares = _shares(config, nodes, todo, len(work))
    write = _write_settings(run, table, tuple(config.tasks))
    seen = input_files(todo.todo["source"])
    checkpoints = {name: run.checkpoints[name] for name in config.tasks}
    refuse_other_disks(config, checkpoints, seen, write.probe, shares)
    rows = RowSettings.of(table, todo.files, run.wanted)
    rates, bits = sample_rates(config, checkpoints), write.bits
    wishes = {name: load_task(it.task).wants_speech(it) for name, it in config.tasks.items()}
    clips = planned_reads.dataset(
        work,
        read_block,
        {
            "settings": ReadSettings(
                config.input,
                config.audio,
                tuple(sorted(set(rates.values()))),
                most_speech(wishes.values()),
                run.kept,
                block_bytes(nodes),
                clips_per_shard,
                {bits[name]: (rates[name], wishes[name]) for name in config.tasks},
            ),
            "known": rows if todo.files else None,
            "kept": kept_settings(rows, run.config.tasks, run.kept.names) if todo.keeps else None,
            "ledger": ledger,
            "seen": SeenInput(ray.get_runtime_context().get_node_id(), tuple(seen.found)),
        },
        num_cpus=shares.prepare_cpus,
    )
    later = list(config.tasks)
    for name, options in config.tasks.items():
        later.remove(name)
        share = shares.tasks[name]
        model = ModelSettings(
            name,
            options,
            run.checkpoints[name],
            share.device,
            share.num_gpus,
            share.batch_s,
            share.threads,
            drop=tuple(columns_done_with(rates, name, later)),
            bit=bits[name],
        )
        clips = ray_compat.map_with_actors(
            clips,
            ModelActor,
            {"model": model, "ledger": ledger, "write": None if later else write},
            _actor_pool(share),
        )
    return shares, clips


def _shares(config: Config, nodes: Nodes, todo: Plan, blocks: int) -> Shares:
    """Set Ray Data's limits, and divide the cluster among the stages."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.target_max_block_size = block_bytes(nodes)
    ray_compat.set_in_flight_fraction(context, part_in_flight(config, nodes))
    sharded = load_source(config.input.format).SHARDED  # then there are more blocks to come
    useful = 1 << 30 if sharded else min(blocks, len(todo.todo) // CLIPS_PER_ACTOR)
    return share_out(config, nodes, useful, future_nodes=nodes_to_come())


def _write_settings(run: Run, table: HeldTable, tasks: Sequence[str]) -> WriteSettings:
    prints, configured = run.wanted.fingerprints, run.config.tasks
    left = labels_left(table.schema().names, table.settings(), configured, run.kept.names)
    return WriteSettings(
        schema=table.schema(),
        tasks={**label_columns(run.schema, configured), **left},
        path=table.path,
        storage_options=run.config.output_options,
        run_id=run.id,
        fingerprints={name: prints[name] for name in tasks},
        probe=probe_of(table.path, run.id),
        bits={name: bit for bit, name in enumerate(prints)},
    )


def of_tasks(config: Config, names: Collection[str]) -> Config:
    """The config with these tasks alone."""
    tasks = {name: options for name, options in config.tasks.items() if name in names}
    return config.model_copy(update={"tasks": tasks})


def _actor_pool(share: TaskShare) -> ray_compat.ActorPool:
    from jobs.workers.model_actor import environment

    # Blocks queued at one actor cannot move to another, so queue at most two. (A pool grows only when
    # more than this is queued; GPUs want more.)
    queued = None if share.num_gpus or share.max_actors > share.actors else 2
    return ray_compat.ActorPool(
        min_size=share.actors,
        max_size=share.max_actors,
        num_cpus=share.num_cpus,
        num_gpus=share.num_gpus,
        queued_blocks=queued,
        env_vars=environment(share.threads, on_gpu=share.device != "cpu"),
    )


def sample_rates(config: Config, checkpoints: Mapping[str, Checkpoint]) -> dict[str, int]:
    """The rate in Hz that each task's model needs."""
    return {
        name: load_task(options.task).sample_rate(options, checkpoints[name])
        for name, options in config.tasks.items()
    }


def columns_done_with(rates: Mapping[str, int], name: str, later: Sequence[str]) -> list[str]:
    """The waveforms that no later task needs and, after the last task, `speech`."""
    sound = [f"sound_{rates[name]}"] if rates[name] not in {rates[task] for task in later} else []
    return sound if later else [*sound, "speech"]


def blocks(todo: pa.Table, config: Config, least: int = 16) -> list[pa.Table]:
    """The plan in blocks. Their size decides how often files can be committed and how many clips a model
    gets at once (GPUs want more). The first block is split into quarters, so that the first labels
    come soon.

    Rows with an equal `_unit` stay together, however many there are.
    """
    asked = config.resources.clips_per_block
    size = asked or min(256, max(least, len(todo) // 64))
    if load_source(config.input.format).SHARDED:
        size = 1
    todo = todo.combine_chunks()
    quarters = [] if asked or len(todo) <= FEW_CLIPS else [n * (size // 4) for n in range(4)]
    cuts = sorted({cut for cut in (*quarters, *range(0, len(todo), size)) if cut < len(todo)})
    if "_unit" in todo.column_names:
        units = todo["_unit"].to_numpy()
        firsts = np.flatnonzero(np.diff(units, prepend=-1))  # the first row of each unit
        cuts = [int(cut) for cut in np.unique(firsts[np.searchsorted(firsts, cuts, "right") - 1])]
        todo = todo.drop_columns(["_unit"])
    return [
        todo.slice(start, stop - start)
        for start, stop in zip(cuts, [*cuts[1:], len(todo)], strict=True)
    ]
