"""What an equation does, in words that do not change with the release of JAX.

`describe` reads the name and the parameters of an equation and returns one of
`descriptions`.
"""

import functools
import itertools
from typing import Any

import jax
from jax.extend import core as jex

from adaoptax.measure.programs.descriptions import (
    Along,
    Branch,
    Broadcast,
    Call,
    Concatenate,
    Convolution,
    Create,
    Description,
    Entrywise,
    Gather,
    Loop,
    Product,
    Reduce,
    Reshape,
    Scatter,
    Shape,
    Slice,
    Stack,
    Tile,
    Transpose,
    Unknown,
    Unstack,
    While,
    Window,
)
from adaoptax.measure.programs.equations import Parameters, body_of_call, read_scan

_COPIES = "copy copy_p name sharding_constraint mesh_cast reshard device_put pvary pcast"
_HOW = {
    **dict.fromkeys(_COPIES.split(), "same"),
    "convert_element_type": "cast",
    "neg": "neg",
    **dict.fromkeys(["real", "imag", "conj", "reduce_precision", "stop_gradient"], "linear"),
    **dict.fromkeys(["add", "add_any", "sub", "complex"], "add"),
    **dict.fromkeys(["and", "or", "not"], "logic"),
    **dict.fromkeys(["eq", "ne"], "equal"),
    **{name: name for name in ("mul", "div", "square", "sqrt")},
    "select_n": "select",
    "is_finite": "finite",
}
_OTHER = (
    "abs acos acosh asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt"
    " ceil clamp clz cos cosh digamma eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma"
    " igamma_grad_a igammac integer_pow le le_to lgamma log log1p log2 logistic lt lt_to max min"
    " mulhi nextafter one_minus_square polygamma polynomial population_count pow"
    " random_gamma_grad regularized_incomplete_beta rem round rsqrt shift_left"
    " shift_right_arithmetic shift_right_logical sign sin sinh tan tanh threefry2x32 xor zeta"
)
_SUMS = "reduce_sum"
_REDUCTIONS = "reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
_CUMULATIVE = "cumsum cumprod cummax cummin cumlogsumexp"
_WINDOWS = "reduce_window_sum reduce_window_max reduce_window_min reduce_window"
# Of matrices on the last two axes, and what follows a batch of keys.
_MATRICES = (
    "cholesky eigh eig svd qr geqrf geqp3 householder_product lu lu_pivots_to_permutation"
    " triangular_solve tridiagonal tridiagonal_solve schur hessenberg custom_lin"
)
_SCATTERS = (
    "scatter scatter-add scatter_add scatter-sub scatter_sub scatter-mul scatter_mul scatter-min"
    " scatter_min scatter-max scatter_max"
)
_CALLS = ("jit", "pjit", "closed_call", "core_call")
_REMAT = ("remat2", "checkpoint", "remat")
_CUSTOM = ("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr")
_DRAWS = ("random_bits", "random_gamma", "rng_bit_generator", "rng_uniform")
_KEYS = ("random_wrap", "random_unwrap", "random_seed", "random_split", "random_fold_in")


def describe(eqn: jex.JaxprEqn) -> Description:
    """What an equation does; `Unknown` for a primitive without a description."""
    name = eqn.primitive.name
    if (read := _READERS.get(name)) is not None:
        return read(eqn, Parameters(eqn))
    return Unknown(name)


def _shape(v: Any) -> Shape:
    return tuple(getattr(v.aval, "shape", ()))


def _entrywise(how: str, eqn: jex.JaxprEqn, params: Parameters) -> Entrywise:
    return Entrywise(how, eqn.primitive.name == "stop_gradient")


def _integer_pow(eqn: jex.JaxprEqn, params: Parameters) -> Entrywise:
    return Entrywise({1: "linear", 2: "square"}.get(params["y"], "other"))


def _broadcast(eqn: jex.JaxprEqn, params: Parameters) -> Broadcast:
    return Broadcast(tuple(params["broadcast_dimensions"]))


def _reshape(eqn: jex.JaxprEqn, params: Parameters) -> Reshape:
    order = params.get("dimensions")
    return Reshape(_shape(eqn.outvars[0]), None if order is None else tuple(order))


def _expand(eqn: jex.JaxprEqn, params: Parameters) -> Reshape:
    return Reshape(_shape(eqn.outvars[0]))


def _transpose(eqn: jex.JaxprEqn, params: Parameters) -> Transpose:
    return Transpose(tuple(params["permutation"]))


def _squeeze(eqn: jex.JaxprEqn, params: Parameters) -> Reduce:
    return Reduce(frozenset(params["dimensions"]), sums=True)


def _reduce(sums: bool, eqn: jex.JaxprEqn, params: Parameters) -> Reduce:
    chooses = not sums and eqn.primitive.name not in ("reduce_prod", "reduce_xor")
    return Reduce(frozenset(params["axes"]), sums, chooses)


def _psum(eqn: jex.JaxprEqn, params: Parameters) -> Description:
    """Over axes of a `jax.vmap`, which are axes of the array, and not over devices."""
    axes = params["axes"]
    if all(isinstance(axis, int) for axis in axes):
        return Reduce(frozenset(axes), sums=True)
    return Unknown(eqn.primitive.name)


def _cumulative(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    return Along(frozenset([params["axis"]]))


def _windows(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    shapes = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
    same = zip(*shapes, params["window_dimensions"], strict=True)
    return Along(frozenset(i for i, (a, b, size) in enumerate(same) if a != b or size != 1))


def _sort(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    return Along(frozenset([params["dimension"]]))


def _top_k(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    name = "reduction_dimension" if eqn.primitive.name == "approx_top_k" else "axis"
    ndim = len(_shape(eqn.invars[0]))
    return Along(frozenset([params.get(name, ndim - 1) % ndim]))


def _rev(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    return Along(frozenset(params["dimensions"]), permutes=True)


def _slice(eqn: jex.JaxprEqn, params: Parameters) -> Slice:
    starts = tuple(params["start_indices"])
    return Slice(
        (starts,), (tuple(params["limit_indices"]),), params["strides"] or (1,) * len(starts)
    )


def _pad(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    config = params["padding_config"]
    return Along(frozenset(i for i, entry in enumerate(config) if tuple(entry) != (0, 0, 0)))


def _split(eqn: jex.JaxprEqn, params: Parameters) -> Slice:
    axis, shape = params["axis"], _shape(eqn.invars[0])
    ends = list(itertools.accumulate(params["sizes"], initial=0))
    at = lambda value, rest: (*rest[:axis], value, *rest[axis + 1 :])
    zeros = (0,) * len(shape)
    return Slice(
        tuple(at(end, zeros) for end in ends[:-1]),
        tuple(at(end, shape) for end in ends[1:]),
        (1,) * len(shape),
    )


def _changed(eqn: jex.JaxprEqn) -> frozenset[int]:
    sizes = zip(_shape(eqn.invars[0]), _shape(eqn.outvars[0]), strict=True)
    return frozenset(i for i, (a, b) in enumerate(sizes) if a != b)


def _fft(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    ndim = len(_shape(eqn.invars[0]))
    return Along(frozenset(range(ndim - len(params["fft_lengths"]), ndim)))


def _matrices(eqn: jex.JaxprEqn, params: Parameters) -> Along:
    ndim = len(_shape(eqn.invars[0]))
    if eqn.primitive.name == "lu_pivots_to_permutation":
        return Along(frozenset(), kept=ndim - 1)
    ranks = [len(_shape(v)) for v in (*eqn.invars, *eqn.outvars) if _shape(v)]
    return Along(frozenset(), kept=max(min(ndim - 2, *ranks), 0))


def _keys(eqn: jex.JaxprEqn, params: Parameters) -> Description:
    ndim = max((len(_shape(v)) for v in eqn.invars), default=0)
    if not ndim:
        return Create(draws=eqn.primitive.name in ("random_split", "random_fold_in"))
    return Along(frozenset(), kept=ndim - (eqn.primitive.name == "random_wrap"))


def _draws(eqn: jex.JaxprEqn, params: Parameters) -> Description:
    if eqn.invars and _shape(eqn.invars[0]) and eqn.primitive.name == "random_bits":
        return Along(frozenset(), kept=len(_shape(eqn.invars[0])))
    return Create(draws=True)


def _concatenate(eqn: jex.JaxprEqn, params: Parameters) -> Concatenate:
    return Concatenate(params["dimension"])


def _stack(eqn: jex.JaxprEqn, params: Parameters) -> Stack:
    return Stack(params["axis"] % len(_shape(eqn.outvars[0])))


def _unstack(eqn: jex.JaxprEqn, params: Parameters) -> Unstack:
    return Unstack(params["axis"] % len(_shape(eqn.invars[0])))


def _tile(eqn: jex.JaxprEqn, params: Parameters) -> Tile:
    return Tile(tuple(params["reps"]))


def _product(eqn: jex.JaxprEqn, params: Parameters) -> Product:
    contract, batch = params["dimension_numbers"]
    pair = lambda both: (tuple(map(int, both[0])), tuple(map(int, both[1])))
    return Product(pair(contract), pair(batch))


def _convolution(eqn: jex.JaxprEqn, params: Parameters) -> Convolution:
    numbers = params["dimension_numbers"]
    return Convolution(
        tuple(numbers.lhs_spec),
        tuple(numbers.rhs_spec),
        tuple(numbers.out_spec),
        tuple(params["window_strides"]),
        tuple(map(tuple, params["padding"])),
        tuple(params["lhs_dilation"]),
        tuple(params["rhs_dilation"]),
        params["feature_group_count"],
        params["batch_group_count"],
    )


def _gather(eqn: jex.JaxprEqn, params: Parameters) -> Gather:
    numbers = params["dimension_numbers"]
    return Gather(
        tuple(numbers.offset_dims),
        tuple(numbers.collapsed_slice_dims),
        tuple(numbers.start_index_map),
        tuple(numbers.operand_batching_dims),
        tuple(numbers.start_indices_batching_dims),
        tuple(params["slice_sizes"]),
        "CLIP" in str(params["mode"]).upper(),
    )


def _scatter(eqn: jex.JaxprEqn, params: Parameters) -> Scatter:
    numbers = params["dimension_numbers"]
    return Scatter(
        tuple(numbers.update_window_dims),
        tuple(numbers.inserted_window_dims),
        tuple(numbers.scatter_dims_to_operand_dims),
        tuple(numbers.operand_batching_dims),
        tuple(numbers.scatter_indices_batching_dims),
    )


def _dynamic_slice(eqn: jex.JaxprEqn, params: Parameters) -> Window:
    return Window(frozenset(range(len(_shape(eqn.invars[0])))) - _changed(eqn), 1)


def _dynamic_update(eqn: jex.JaxprEqn, params: Parameters) -> Window:
    sizes = zip(_shape(eqn.invars[0]), _shape(eqn.invars[1]), strict=True)
    return Window(frozenset(i for i, (a, b) in enumerate(sizes) if a == b), 2)


def _call(eqn: jex.JaxprEqn, params: Parameters) -> Call:
    return Call(body_of_call(eqn))


def _remat(eqn: jex.JaxprEqn, params: Parameters) -> Call:
    options = {name: params[name] for name in ("policy", "prevent_cse")}
    return Call(jex.ClosedJaxpr(params["jaxpr"], []), remat=options)


def _custom(eqn: jex.JaxprEqn, params: Parameters) -> Call:
    body = params.get("fun_jaxpr") or params.get("call_jaxpr") or body_of_call(eqn)
    return Call(body, custom=True, backward=eqn.primitive.name.startswith("custom_vjp"))


def _solve(eqn: jex.JaxprEqn, params: Parameters) -> Call:
    lengths, programs = params["const_lengths"], params["jaxprs"]
    before = lengths.matvec + lengths.vecmat
    after = before + lengths.solve + lengths.transpose_solve
    rest = range(after, len(eqn.invars))
    operands = (*range(before, before + lengths.solve), *rest)
    return Call(programs.solve, custom=True, operands=operands)


def _expanded(eqn: jex.JaxprEqn, params: Parameters) -> Call:
    """Of jax >= 0.12: an operation with rules of its own, such as `searchsorted`."""
    program = jax.make_jaxpr(params["_prim"].expand)(*(v.aval for v in eqn.invars))
    return Call(program, custom=True)


def _scan(eqn: jex.JaxprEqn, params: Parameters) -> Loop:
    return Loop(*read_scan(eqn))


def _while(eqn: jex.JaxprEqn, params: Parameters) -> While:
    return While(
        params["cond_nconsts"], params["body_nconsts"], params["cond_jaxpr"], params["body_jaxpr"]
    )


def _cond(eqn: jex.JaxprEqn, params: Parameters) -> Branch:
    return Branch(tuple(params["branches"]))


def _create(eqn: jex.JaxprEqn, params: Parameters) -> Create:
    return Create(draws=False)


_SPECIAL = {
    "integer_pow": _integer_pow,
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "expand_dims": _expand,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reduce_sum": functools.partial(_reduce, True),
    "psum": _psum,
    "psum_invariant": _psum,
    "sort": _sort,
    "top_k": _top_k,
    "approx_top_k": _top_k,
    "rev": _rev,
    "slice": _slice,
    "pad": _pad,
    "split": _split,
    "fft": _fft,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _tile,
    "dot_general": _product,
    "conv_general_dilated": _convolution,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update,
    "custom_linear_solve": _solve,
    "call_hi_primitive": _expanded,
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "iota": _create,
    "empty": _create,
    "empty2": _create,
}
_READERS: dict[str, Any] = {
    **{name: functools.partial(_entrywise, how) for name, how in _HOW.items()},
    **dict.fromkeys(_OTHER.split(), functools.partial(_entrywise, "other")),
    **dict.fromkeys(_REDUCTIONS.split(), functools.partial(_reduce, False)),
    **dict.fromkeys(_CUMULATIVE.split(), _cumulative),
    **dict.fromkeys(_WINDOWS.split(), _windows),
    **dict.fromkeys(_MATRICES.split(), _matrices),
    **dict.fromkeys(_SCATTERS.split(), _scatter),
    **dict.fromkeys(_CALLS, _call),
    **dict.fromkeys(_REMAT, _remat),
    **dict.fromkeys(_CUSTOM, _custom),
    **dict.fromkeys(_DRAWS, _draws),
    **dict.fromkeys(_KEYS, _keys),
    **_SPECIAL,
}
