"""Batches of the loader as micro-batches on the devices."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import NamedSharding, P

from adaoptax._validate import round_up
from adaoptax.loop.processes import data_process, global_batch, num_parts
from adaoptax.loop.rows import Batch, num_rows


@dataclasses.dataclass(frozen=True)
class MicroBatches:
    """How a batch is cut, and where it goes.

    Attributes:
        size: Examples of a micro-batch, over all processes.
        capacities: Row counts that have a program; None for any whole number of micro-batches.
        sharding: Where rows lie; None for the device of the parameters. Its devices have to divide
            a micro-batch.
    """

    size: int
    capacities: tuple[int, ...] | None
    sharding: NamedSharding | None

    def __post_init__(self) -> None:
        if self.sharding is None:
            return
        if not isinstance(self.sharding, NamedSharding):
            raise TypeError(
                f"Expected sharding to be a NamedSharding, got {type(self.sharding).__name__}: pass"
                ' jax.NamedSharding(mesh, jax.P("data")).'
            )
        parts = num_parts(self.sharding)
        if self.size % parts:
            raise ValueError(
                f"Expected micro_batch_size to be a multiple of the {parts} parts of"
                f" {self.sharding.spec}, got micro_batch_size={self.size}: every device holds rows"
                f" of every micro-batch; pass micro_batch_size={round_up(self.size, parts)}."
            )

    @functools.cached_property
    def processes(self) -> int:
        """Processes that hold different rows."""
        return 1 if self.sharding is None else data_process(self.sharding)[1]

    def count(self, batch: Batch) -> int:
        """Micro-batches in what the loader of this process delivered; the same everywhere."""
        rows = num_rows(batch) * self.processes
        if rows % self.size:
            raise ValueError(
                f"Expected a batch of whole micro-batches of micro_batch_size={self.size} rows, got"
                f" {rows} rows: give BatchLoader the same micro_batch_size, and"
                " pad_to=step.capacities."
            )
        if self.capacities is not None and rows not in self.capacities:
            raise ValueError(
                f"Expected a batch padded to one of {self.capacities} rows, got {rows}: each has"
                " one program; give BatchLoader pad_to=step.capacities."
            )
        return rows // self.size

    def place(self, batch: Batch) -> Batch:
        """The whole batch on the devices: leaves [micro-batches, rows, ...]."""
        count = self.count(batch)
        if self.sharding is None:
            cut = lambda x: np.reshape(x, (count, self.size, *np.shape(x)[1:]))
            return jax.device_put(jax.tree.map(cut, batch))
        return global_batch(batch, self.sharding, count * self.size, num_groups=count)

    def place_one(self, batch: Batch, i: int) -> Batch:
        """Micro-batch i on the devices; without a mask where it is known to be full."""
        own = self.size // self.processes
        part = jax.tree.map(lambda x: x[i * own : (i + 1) * own], batch)
        # A process sees its own rows only, and all have to run the same program.
        full = self.processes == 1 and bool(np.all(part.mask == 1))
        if self.sharding is None:
            part = jax.device_put(part._replace(mask=None) if full else part)
        else:
            part = global_batch(part, self.sharding, self.size)
        return part._replace(mask=None) if full else part

    def num_real(self, batch: Batch) -> int:
        """One past the last micro-batch with a real row, as far as all processes know."""
        count = self.count(batch)
        if self.processes > 1:
            return count
        real = np.flatnonzero(np.reshape(batch.mask != 0, (count, -1)).any(axis=1))
        return int(real[-1]) + 1 if len(real) else 0

    def shapes(self, example: Any, count: int | None, masked: bool = True) -> Batch:
        """Shapes of `count` micro-batches on the devices (of one, without that axis, for None).

        `example` is a `Batch` of any size, or one example without a leading axis.
        """
        shapes = jax.eval_shape(lambda x: x, example)  # in the dtypes that devices hold
        leading, mask = 0, jnp.dtype(bool)
        if isinstance(shapes, Batch):
            leading, mask = len(shapes.mask.shape), shapes.mask.dtype
            shapes = shapes.data
        axes = (self.size,) if count is None else (count, self.size)

        def shape(each: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            if self.sharding is None:
                return jax.ShapeDtypeStruct((*axes, *each), dtype)
            spec = P(*(None,) * (len(axes) - 1), *self.sharding.spec[: 1 + len(each)])
            place = NamedSharding(self.sharding.mesh, spec)
            return jax.ShapeDtypeStruct((*axes, *each), dtype, sharding=place)

        data = jax.tree.map(lambda x: shape(x.shape[leading:], x.dtype), shapes)
        return Batch(data, shape((), mask) if masked else None)  # type: ignore[arg-type]


def check_batch(batch: Any) -> None:
    """Raises TypeError for what is not a batch of the loader."""
    if not isinstance(batch, Batch):
        raise TypeError(
            f"Expected batch to be a Batch of BatchLoader, got {type(batch).__name__}: pass what"
            " the loader gives, or make one with adaoptax.Batch(data, mask)."
        )


def is_placed(batch: Batch) -> bool:
    """Whether `batch` was put on the devices by `place`; ValueError if by anything else."""
    if np.ndim(batch.mask) == 2:
        return True
    if isinstance(batch.mask, jax.Array):
        raise ValueError(
            "Expected a batch of the host or one of step.place(batch), got rows that are on the"
            f" devices in the shape {np.shape(batch.mask)}: leave jax.device_put and global_batch"
            " to the step."
        )
    return False


def nbytes_on_a_device(tree: Any) -> int:
    """Bytes that the arrays of a tree take on each of their devices."""
    size = lambda x: math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    return sum(size(leaf) for leaf in jax.tree.leaves(tree))
