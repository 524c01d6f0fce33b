"""What an equation can do: the words in which programs are described.

They do not change with the release of JAX. Axes are numbered as in the operands, unless it says
otherwise.
"""

import dataclasses
from typing import Any

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Entrywise:
    """Entry i of the result comes from entries i of the operands.

    Attributes:
        how: "same" (a copy), "cast", "neg", "linear" (in its one operand otherwise), "add", "mul",
            "div", "square", "sqrt", "select", "finite", "equal", "logic", or "other".
        drops_gradient: Whether no gradient flows through it.
    """

    how: str
    drops_gradient: bool = False


@dataclasses.dataclass(frozen=True)
class Broadcast:
    """Axis i of the operand becomes axis `dims[i]`; all other axes of the result are new."""

    dims: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reshape:
    """The same entries in the same order, in another shape.

    With `order`, axis i of what is reshaped is axis `order[i]` of the operand.
    """

    new: Shape
    order: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Transpose:
    """Axis i of the result is axis `order[i]` of the operand."""

    order: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reduce:
    """The axes are gone: summed over, or otherwise (also those of size 1 that are squeezed).

    Attributes:
        axes: The axes.
        sums: Whether the entries are summed.
        chooses: Whether the result is the same if entries are there twice.
    """

    axes: frozenset[int]
    sums: bool
    chooses: bool = False


@dataclasses.dataclass(frozen=True)
class Along:
    """Entries meet or move along `axes` only; every other axis stays where it is.

    Attributes:
        axes: Along which entries meet or move.
        kept: If given, only so many axes, from the front, are those of the operands.
        permutes: Whether the result has the same entries in another order.
    """

    axes: frozenset[int]
    kept: int | None = None
    permutes: bool = False


@dataclasses.dataclass(frozen=True)
class Slice:
    """Parts of the operand, one for each result: `starts` to `limits` in steps of `strides`."""

    starts: tuple[Shape, ...]
    limits: tuple[Shape, ...]
    strides: Shape


@dataclasses.dataclass(frozen=True)
class Concatenate:
    """Operands one after the other along `axis`."""

    axis: int


@dataclasses.dataclass(frozen=True)
class Stack:
    """Operands side by side on a new axis `axis`."""

    axis: int


@dataclasses.dataclass(frozen=True)
class Unstack:
    """The parts of the operand along `axis`, which they do not have, one for each result."""

    axis: int


@dataclasses.dataclass(frozen=True)
class Tile:
    """The operand again and again: `times` along each axis."""

    times: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """`jax.lax.dot_general`: contracted and batch axes of both operands."""

    contract: tuple[tuple[int, ...], tuple[int, ...]]
    batch: tuple[tuple[int, ...], tuple[int, ...]]

    def free(self, side: int, ndim: int) -> list[int]:
        """The other axes of an operand, in the order that the result has them in."""
        gone = {*self.contract[side], *self.batch[side]}
        return [axis for axis in range(ndim) if axis not in gone]

    def place(self, side: int, axis: int, ndims: tuple[int, int]) -> int | None:
        """Which axis of the result an axis of an operand is; None for a contracted one."""
        if axis in self.contract[side]:
            return None
        if axis in self.batch[side]:
            return self.batch[side].index(axis)
        before = len(self.batch[0]) + (len(self.free(0, ndims[0])) if side else 0)
        return before + self.free(side, ndims[side]).index(axis)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """`jax.lax.conv_general_dilated`.

    Attributes:
        images: Axes of the images: batch, features, then space.
        kernel: Axes of the kernel: out, in, then space.
        results: Axes of the results: batch, features, then space.
        strides, padding, dilation, kernel_dilation: One entry a spatial axis.
        feature_groups, batch_groups: Numbers of groups.
    """

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    results: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    feature_groups: int
    batch_groups: int


@dataclasses.dataclass(frozen=True)
class Gather:
    """Slices of operand 0 at the indices in operand 1, whose last axis holds coordinates.

    Attributes:
        offsets: Axes of the result that are axes of the slices.
        collapsed: Axes of the operand that slices have no more.
        indexed: Which axis of the operand each coordinate is of.
        batch: Axes of the operand that go along with axes of the indices.
        batch_of_indices: The latter.
        sizes: Of a slice.
        clips: Whether an index out of bounds takes the nearest entries.
    """

    offsets: tuple[int, ...]
    collapsed: tuple[int, ...]
    indexed: tuple[int, ...]
    batch: tuple[int, ...]
    batch_of_indices: tuple[int, ...]
    sizes: Shape
    clips: bool

    def numbered(self, coordinate: int, along: int) -> "Gather":
        """The same, where that coordinate only counts along an axis of the indices."""
        axis = self.indexed[coordinate]
        batch, of_indices = (*self.batch, axis), (*self.batch_of_indices, along)
        return dataclasses.replace(self, batch=batch, batch_of_indices=of_indices)


@dataclasses.dataclass(frozen=True)
class Scatter:
    """Operand 2 is put into (or added to) operand 0 at the indices in operand 1.

    Attributes:
        windows: Axes of the updates that are axes of the operand.
        inserted: Axes of the operand that updates do not have.
        indexed: Which axis of the operand each coordinate is of.
        batch, batch_of_indices: As in `Gather`.
    """

    windows: tuple[int, ...]
    inserted: tuple[int, ...]
    indexed: tuple[int, ...]
    batch: tuple[int, ...]
    batch_of_indices: tuple[int, ...]

    def numbered(self, coordinate: int, along: int) -> "Scatter":
        """The same, where that coordinate only counts along an axis of the indices."""
        axis = self.indexed[coordinate]
        without = lambda axes: tuple(a for a in axes if a != axis)
        return Scatter(
            self.windows,
            without(self.inserted),
            without(self.indexed),
            (*self.batch, axis),
            (*self.batch_of_indices, along),
        )


@dataclasses.dataclass(frozen=True)
class Window:
    """A part of operand 0 is taken or replaced at an index that is known when the program runs.

    Attributes:
        whole: Axes of which the part has all.
        arrays: The first so many operands are arrays; the others are indices.
    """

    whole: frozenset[int]
    arrays: int


@dataclasses.dataclass(frozen=True)
class Call:
    """Runs a program on its operands.

    Attributes:
        program: Closed jaxpr.
        remat: Options of `jax.checkpoint`, if it is one; or None.
        custom: Whether its derivatives are its own, so that it must not be entered.
        backward: Whether what flows back is of its own too, and need not be linear (`custom_vjp`).
        operands: Which operands the program takes, if not all.
    """

    program: Any
    remat: Any = None
    custom: bool = False
    backward: bool = False
    operands: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Loop:
    """`jax.lax.scan`: operands are constants, the first carry, and what is scanned over."""

    num_consts: int
    num_carry: int
    program: Any
    options: Any


@dataclasses.dataclass(frozen=True)
class While:
    """`jax.lax.while_loop`: operands are constants of the condition, of the body, and the carry."""

    num_of_condition: int
    num_of_body: int
    condition: Any
    program: Any


@dataclasses.dataclass(frozen=True)
class Branch:
    """`jax.lax.cond` and `switch`: operand 0 says which of the programs runs on the others."""

    programs: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Create:
    """Makes its result out of nothing, or of random keys: no entry of an operand is an entry of it.

    Attributes:
        draws: Whether the result is random.
    """

    draws: bool


@dataclasses.dataclass(frozen=True)
class Unknown:
    """Not known here."""

    name: str


Description = (
    Entrywise
    | Broadcast
    | Reshape
    | Transpose
    | Reduce
    | Along
    | Concatenate
    | Stack
    | Unstack
    | Tile
    | Product
    | Slice
    | Convolution
    | Gather
    | Scatter
    | Window
    | Call
    | Loop
    | While
    | Branch
    | Create
    | Unknown
)
