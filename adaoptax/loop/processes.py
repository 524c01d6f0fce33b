"""The rows of each process: which they are, global arrays of them, and checks that all agree."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from adaoptax._validate import round_up, whole_number
from adaoptax.loop.rows import Batch
from adaoptax.loop.rows import num_rows as count_rows


@dataclasses.dataclass(frozen=True)
class RowBlock:
    """The rows of process `index` out of `count`: the same block of every micro-batch.

    Attributes:
        index: Number of this process, from 0.
        count: Number of processes.
        micro: Examples of one micro-batch of all processes; `count` divides it.
    """

    index: int
    count: int
    micro: int

    @property
    def micro_rows(self) -> int:
        """Rows of this process in one micro-batch."""
        return self.micro // self.count

    def num_rows(self, num_examples: int) -> int:
        """How many of the next `num_examples` examples are rows of this process."""
        whole, rest = divmod(num_examples, self.micro)
        in_the_last = rest - self.index * self.micro_rows
        return whole * self.micro_rows + min(max(in_the_last, 0), self.micro_rows)

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows of this process out of `rows`, which begin with a micro-batch."""
        if self.count == 1:
            return rows
        return rows[np.arange(len(rows)) // self.micro_rows % self.count == self.index]


def row_block(process: Any, micro_batch_size: int) -> RowBlock:
    """The block of the process ``(index, count)``; None asks JAX, which starts its backend."""
    if process is None:
        process = jax.process_index(), jax.process_count()
    if not (isinstance(process, (tuple, list)) and len(process) == 2):
        raise ValueError(
            f"Expected process to be a pair (index, count), got process={process!r}: pass for "
            "example (jax.process_index(), jax.process_count()), or None, which means the same."
        )
    index = whole_number("index of process", process[0], 0, "processes are counted from 0.")
    count = whole_number("count of process", process[1], 1, "at least this process reads.")
    if index >= count:
        raise ValueError(
            f"Expected process=(index, count) with index < count, got process={(index, count)}: "
            "processes are counted from 0."
        )
    if micro_batch_size % count:
        raise ValueError(
            f"Expected micro_batch_size to be a multiple of the {count} processes, got "
            f"micro_batch_size={micro_batch_size}: sizes count the examples of all processes, and "
            "each process reads an equal part; pass for example "
            f"micro_batch_size={round_up(micro_batch_size, count)}."
        )
    return RowBlock(index, count, micro_batch_size)


def data_process(sharding: NamedSharding) -> tuple[int, int]:
    """Number of this process among those that hold different rows, and the number of these.

    With one mesh axis over all devices, that is the index of the process and the count of all.
    Where the devices of one row belong to several processes (a model axis larger than a host),
    these processes have to read the same rows, and get the same number.

    Args:
        sharding: How the rows of a batch lie on the devices; its first axis is that of the rows.

    Returns:
        ``(index, count)``, for the argument `process` of `BatchLoader`.

    Raises:
        ValueError: If two processes share a part of their rows but not all.

    Examples:
        >>> import adaoptax, jax
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> adaoptax.data_process(jax.NamedSharding(mesh, jax.P("data")))
        (0, 1)
    """
    num_devices = len(sharding.device_set)
    shape = (num_devices,) * max(len(sharding.spec), 1)
    starts: dict[int, set[int]] = {}
    indices: dict[Any, Any] = dict(sharding.devices_indices_map(shape))
    for device, index in indices.items():
        starts.setdefault(device.process_index, set()).add(index[0].start or 0)
    parts = sorted({frozenset(part) for part in starts.values()}, key=min)
    disjoint = sum(len(part) for part in parts) == len(frozenset.union(*parts))
    if not (disjoint and all(len(part) == len(parts[0]) for part in parts)):
        raise ValueError(
            f"Expected a sharding in which two processes hold the same rows or none in common, "
            f"got {sharding.spec} on the mesh {dict(sharding.mesh.shape)}: order the devices of "
            "the mesh by process, as jax.make_mesh does."
        )
    own = starts.get(jax.process_index())
    if own is None:
        raise ValueError(
            f"Expected a mesh with devices of every process, got {dict(sharding.mesh.shape)} "
            f"without one of process {jax.process_index()}: build it from jax.devices()."
        )
    return parts.index(frozenset(own)), len(parts)


def global_batch(
    batch: Batch, sharding: NamedSharding, num_rows: int, *, num_groups: int | None = None
) -> Batch:
    """Puts the rows that every process read together, as one batch of global arrays.

    With one process it is an explicit `jax.device_put`. The rows of process 0 come first, then
    those of process 1: as a set, the batch is the same on every number of processes, while
    contiguous groups of its rows are not. With `num_groups` they are: the rows are cut in groups
    that each have rows of all processes and devices (whole micro-batches, if the size of a group
    is a multiple of `micro_batch_size`), so that statistics over groups are those of one process
    up to rounding.

    Args:
        batch: What the loader of this process delivered.
        sharding: How rows lie on the devices, such as ``NamedSharding(mesh, P("data"))``; leaves
            of fewer axes take the first entries of its spec.
        num_rows: Rows of the batch over all processes: `BatchLoader.num_rows`. It is asked for,
            not guessed from `batch`: processes that guess from unequal parts would build arrays
            of unequal shapes, and wait for each other for ever.
        num_groups: If given, leaves have the shape ``[num_groups, num_rows / num_groups, ...]``
            and the groups lie on all devices: cut for a loop over groups.

    Returns:
        A `Batch` of global arrays; its `mask` has the shape of the rows.

    Raises:
        ValueError: If this process holds another number of rows than its part of `num_rows`, or
            if the groups or the devices do not divide them.

    Examples:
        >>> import adaoptax, jax, numpy as np
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> sharding = jax.NamedSharding(mesh, jax.P("data"))
        >>> loader = adaoptax.BatchLoader(np.arange(100), batch_size=32)
        >>> batch = adaoptax.global_batch(next(loader), sharding, loader.num_rows)
        >>> batch.data.shape, batch.data.sharding.spec
        ((32,), P('data',))
        >>> adaoptax.global_batch(next(loader), sharding, 32, num_groups=4).data.shape
        (4, 8)
    """
    num_rows = whole_number("num_rows", num_rows, 1, "it counts the rows of all processes.")
    _, count = data_process(sharding)
    own_rows = count_rows(batch)
    if own_rows * count != num_rows:
        raise ValueError(
            f"Expected num_rows={num_rows} rows over the {count} processes that hold different "
            f"ones, got {own_rows} on process {jax.process_index()}: this usually means that the "
            "loader was made with another process=(index, count), or resized to another number; "
            "pass process=data_process(sharding) and num_rows=loader.num_rows."
        )
    if num_groups is not None:
        num_groups = whole_number("num_groups", num_groups, 1, "groups of rows.")
        if own_rows % num_groups:
            raise ValueError(
                f"Expected num_groups to divide the {own_rows} rows of each process, got "
                f"num_groups={num_groups}: pass num_rows // micro_batch_size."
            )
    parts = num_parts(sharding)
    rows_of_group = num_rows // (num_groups or 1)
    if rows_of_group % parts:
        raise ValueError(
            f"Expected rows that divide over the {parts} parts of {sharding.spec} on the mesh "
            f"{dict(sharding.mesh.shape)}, got {rows_of_group}"
            f"{'' if num_groups is None else ' in each group'}: choose a micro_batch_size that is "
            f"a multiple of {parts}."
        )

    def place(leaf: Any) -> jax.Array:
        spec = sharding.spec[: np.ndim(leaf)]
        shape = (num_rows, *np.shape(leaf)[1:])
        if num_groups is not None:
            leaf = np.reshape(leaf, (num_groups, own_rows // num_groups, *np.shape(leaf)[1:]))
            spec, shape = (None, *spec), (num_groups, rows_of_group, *shape[1:])
        place = NamedSharding(sharding.mesh, PartitionSpec(*spec))
        # An explicit transfer, though JAX counts it as one only where there is one process.
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_process_local_data(place, leaf, shape)

    return jax.tree.map(place, batch)


def num_parts(sharding: NamedSharding) -> int:
    """Number of parts that the rows are cut into."""
    axes = sharding.spec[0] if len(sharding.spec) else None
    axes = (axes,) if isinstance(axes, str) else tuple(axes or ())
    return math.prod(sharding.mesh.shape[axis] for axis in axes)


def check_same_everywhere(**numbers: int) -> None:
    """Raises on every process where a whole number is not the same on all of them.

    Sizes that differ would not be noticed by JAX: the processes would wait in different
    collectives. All processes have to call this at the same place. It waits for all of them and
    moves eight bytes a number (about a millisecond on one machine, a round trip on a network), so
    call it after a restore and every now and then, rather than in every step.

    Args:
        **numbers: Names and whole numbers below 2**63 in size.

    Raises:
        ValueError: If a number differs; the message lists it for every process.

    Returns:
        None.

    Examples:
        >>> import adaoptax, numpy as np
        >>> loader = adaoptax.BatchLoader(np.arange(100), batch_size=8)
        >>> adaoptax.loop.check_same_everywhere(
        ...     batch_size=loader.resize(16), examples_seen=loader.examples_seen)
    """
    for name, number in numbers.items():
        whole_number(name, number, -(2**63), "processes compare whole numbers.")
    # As pairs of 32-bit words, since JAX would cut 64-bit integers.
    words = np.array(list(numbers.values()), np.int64).view(np.uint32)
    with jax.transfer_guard("allow"):
        gathered = np.asarray(multihost_utils.process_allgather(words))
    everywhere = gathered.reshape(-1, len(words)).view(np.int64)
    for name, values in zip(numbers, everywhere.T, strict=True):
        if len(set(values.tolist())) > 1:
            raise ValueError(
                f"Expected {name} to be the same on all processes, got {values.tolist()} on the "
                "processes 0, 1, ...: decide sizes from replicated values (what the jitted step "
                "returns), never from time, memory or rows of one process."
            )
