"""Which devices a value differs on: all that depends on how this version of JAX tracks it.

Inside ``jax.shard_map(..., check_vma=True)`` (the default) every value has a type that says over
which mesh axes it varies, and `jax.grad` with respect to a value that does **not** vary returns the
gradient **summed** over devices. `vary` marks parameters as varying, so that gradients stay local.
Inside ``check_vma=False``, `jax.pmap` and ``jax.vmap(axis_name=...)`` nothing is tracked, gradients
are local, and `vary` does nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from adaoptax._tree import ArrayTree

AxisName = str | tuple[str, ...]

REDUCED_GRADIENTS = """\
Expected gradients that differ between the devices of axis_name={axis_name!r}, got leaves that are
equal on all of them: {leaves}.
This usually means that jax.grad was taken inside jax.shard_map with respect to replicated
parameters, where JAX sums the gradient over devices by itself (pmean afterwards changes nothing):
all devices then hold the same gradient, and no noise can be measured between them. Either
(a) differentiate adaoptax.vary(params, axis_name) in place of params,
(b) measure with adaoptax.measure.devices(axis_name), which differentiates by itself, or
(c) leave shard_map, and measure with adaoptax.measure.groups(n) under plain jax.jit.
A leaf made with jnp.zeros(shape) counts as equal on all devices: use jnp.zeros_like(gradient)."""


def axes_of(axis_name: AxisName) -> tuple[str, ...]:
    """`axis_name` as a tuple."""
    return tuple(axis_name) if isinstance(axis_name, tuple | list) else (axis_name,)


def check_bound(axis_name: AxisName) -> int:
    """The number of devices on `axis_name`; NameError with advice where it is not bound."""
    try:
        return jax.lax.axis_size(axes_of(axis_name))
    except NameError as error:
        raise NameError(
            f"Expected axis_name={axis_name!r} to be bound here, got {error}: call this inside"
            " jax.shard_map over a mesh with that axis, jax.pmap(axis_name=...) or"
            " jax.vmap(axis_name=...); under plain jax.jit measure with adaoptax.measure.groups(n)."
        ) from None


def varying_axes(x: Any) -> frozenset[str]:
    """Mesh axes over which `x` (an array or its shape) is known to differ between devices."""
    kind = x if isinstance(x, jax.ShapeDtypeStruct) else jax.typeof(x)
    manual = getattr(kind, "manual_axis_type", None)  # jax >= 0.10
    if manual is not None:
        return manual.varying
    return getattr(kind, "vma", None) or frozenset()


def manual_axes() -> frozenset[str]:
    """Mesh axes that `jax.shard_map` or `jax.pmap` maps over here."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def tracks_varying(axis_name: AxisName) -> bool:
    """True only inside ``jax.shard_map(..., check_vma=True)`` over `axis_name`."""
    return all(axis in varying_axes(jax.lax.axis_index(axis)) for axis in axes_of(axis_name))


def axes_apart(tree: ArrayTree) -> frozenset[str]:
    """Mesh axes over whose devices leaves of `tree` differ, or may differ where nobody tracks."""
    untracked = {axis for axis in manual_axes() if not tracks_varying(axis)}
    return frozenset(untracked).union(*map(varying_axes, jax.tree.leaves(tree)))


def vary(params: ArrayTree, axis_name: AxisName) -> ArrayTree:
    """Marks parameters as device-local, so that `jax.grad` returns local gradients.

    Inside `jax.shard_map` the gradient with respect to replicated parameters is already summed over
    devices, the same on all of them, and shows no noise. The gradient with respect to
    ``vary(params, axis_name)`` is the gradient of the loss of this device alone. Values are
    unchanged. Where JAX does not track varying values (``check_vma=False``, `jax.pmap`, `jax.vmap`)
    gradients are local anyway and this does nothing.

    Args:
        params: Pytree of parameters.
        axis_name: Name of the mesh axis, or a tuple of names.

    Returns:
        `params`, each leaf typed as varying over `axis_name`.

    Raises:
        NameError: If `axis_name` is not bound.

    Examples:
        >>> import adaoptax, functools, jax, jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",))
        >>> @functools.partial(
        ...     jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"))
        ... def local_gradient(w, x):
        ...     return jax.grad(lambda w: jnp.sum(x @ w))(adaoptax.vary(w, "data"))
        >>> local_gradient(jnp.ones(2), jnp.ones((4, 2))).tolist()  # sharded: one a device
        [4.0, 4.0]
    """
    check_bound(axis_name)
    return _cast(params, axes_of(axis_name)) if tracks_varying(axis_name) else params


def vary_like(tree: ArrayTree, like: ArrayTree) -> ArrayTree:
    """Types every leaf as varying over the axes of its partner in `like` (arrays or shapes).

    The start of a loop must have the type of its end.
    """
    return jax.tree.map(lambda x, other: _cast(x, tuple(sorted(varying_axes(other)))), tree, like)


def check_local(grads: ArrayTree, axis_name: AxisName) -> None:
    """Raises ValueError if a leaf of `grads` has already been reduced over `axis_name`."""
    if not tracks_varying(axis_name):
        return
    axes = set(axes_of(axis_name))
    reduced = leaves_where(grads, "grads", lambda leaf: not axes <= varying_axes(leaf))
    if reduced:
        listed = ", ".join(reduced[:5]) + (", ..." if len(reduced) > 5 else "")
        raise ValueError(REDUCED_GRADIENTS.format(axis_name=axis_name, leaves=listed))


def leaves_where(tree: ArrayTree, name: str, condition: Callable[[Any], bool]) -> list[str]:
    """Paths of the leaves that meet `condition`; a tree that is one leaf goes by `name`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [jax.tree_util.keystr(path) or name for path, leaf in leaves if condition(leaf)]


def _cast(tree: ArrayTree, axes: tuple[str, ...]) -> ArrayTree:
    def cast(x: Any) -> Any:
        x = jnp.asarray(x)
        missing = tuple(axis for axis in axes if axis not in varying_axes(x))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(cast, tree)
