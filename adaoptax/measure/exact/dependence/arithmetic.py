"""Rules of primitives that compute: elementwise functions, reductions, products.

A rule takes the equation and what is known of its operands, none mixed or unknown and at least one
of them data, and returns what is known of the result.
"""

from collections.abc import Callable, Iterable, Sequence

from adaoptax.measure.exact.dependence.value import (
    ANY,
    CROSSED,
    UNKNOWN,
    Equation,
    Scale,
    Value,
    merge,
    mixed,
    mixed_by,
    nonlinear_scale,
    one_batch_axis,
    product_scale,
    renumber,
    sum_scale,
    verdict,
)

_LINEAR = (
    "add add_any sub neg copy copy_p real imag conj complex reduce_precision stop_gradient name"
    " convert_element_type sharding_constraint mesh_cast reshard device_put pvary pcast"
)
_COMPARISONS = "eq ne lt le gt ge eq_to lt_to le_to is_finite"
_BOUNDS = "max min clamp abs"
_NONLINEAR = (
    "acos acosh and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt"
    " ceil clz cos cosh digamma erf erf_inv erfc exp exp2 expm1 floor igamma igammac integer_pow"
    " lgamma log log1p log2 logistic mulhi nextafter not one_minus_square or polygamma polynomial"
    " population_count pow regularized_incomplete_beta rem round rsqrt shift_left"
    " shift_right_arithmetic shift_right_logical sign sin sinh sqrt square tan tanh xor zeta"
)
_CHOICES = "reduce_max reduce_min reduce_and reduce_or argmax argmin"
_CUMULATIVE = "cumsum cumprod cummax cummin cumlogsumexp"
_WINDOWS = "reduce_window_sum reduce_window_max reduce_window_min"


# --- Elementwise ------------------------------------------------------------------------------


def linear(eqn: Equation, *ins: Value) -> Value:
    """Sums and casts."""
    out = merge(ins, eqn, sum_scale(ins))
    # A sum that becomes an integer is an index or a size: see `nonlinear`.
    return UNKNOWN if out.sums and eqn.integer and eqn.name == "convert_element_type" else out


def nonlinear(eqn: Equation, *ins: Value) -> Value:
    """All else that acts entry by entry."""
    out = merge(ins, eqn, nonlinear_scale(ins))
    out = (_crossed(out) or out)._replace(faint=False)
    if out.mixed or not out.sums:
        return out
    if eqn.name in _COMPARISONS.split():  # a guard: is the loss finite, are there any tokens?
        return out._replace(sums=None, soft=f"{eqn} compares a sum over the examples")
    if eqn.name in _BOUNDS.split() and not eqn.outs[0][0]:  # a guard, too: loss >= 0, tokens >= 1
        return out._replace(scale=None)
    return UNKNOWN if eqn.integer else mixed_by(out.sums, eqn)  # integers: indices, sizes


def _mul(eqn: Equation, a: Value, b: Value) -> Value:
    return _product(eqn, [a, b], product_scale([a, b]))


def _div(eqn: Equation, a: Value, b: Value) -> Value:
    if b.sums:
        return mixed_by(b.sums, eqn)
    return _product(eqn, [a, b], product_scale([a, b], divide=True))


def _product(eqn: Equation, ins: Sequence[Value], scale: Scale) -> Value:
    out = merge(ins, eqn, scale)
    several = sum(value.data for value in ins) > 1
    return _sum_meets_data(eqn, ins) or (several and _crossed(out)) or _faint(eqn, ins, out)


def _sum_meets_data(eqn: Equation, ins: Sequence[Value]) -> Value | None:
    firm = [value for value in ins if value.data and not value.soft]
    sums = next((value.sums for value in firm if value.sums), None)
    return mixed_by(sums, eqn) if sums and len(firm) > 1 else None


def _crossed(x: Value) -> Value | None:
    """The verdict on added rows of different examples, at their first nonlinear use."""
    return mixed(x.order[1]) if x.order[:1] == CROSSED else None


def _faint(eqn: Equation, ins: Sequence[Value], out: Value) -> Value:
    fixed_pairs = any(not v.data and len(eqn.axes_in(i)) > 1 for i, v in enumerate(ins))
    return out._replace(faint=out.pairs and (fixed_pairs or any(v.faint for v in ins)))


def select_n(eqn: Equation, which: Value, *cases: Value) -> Value:
    """One of the cases in each entry. Also takes mixed and unknown operands."""
    if not (which.data or eqn.ins[0][0]):  # one choice for all, as between training and not
        return branches(cases)
    found = verdict([which, *cases])
    if found:
        return found
    case = merge(cases, eqn, sum_scale(cases))
    return case if case.mixed else _product(eqn, [which, case], case.scale)


def branches(cases: Sequence[Value]) -> Value:
    """One of several values, chosen at run time: mixed only if none may be separate."""
    data = [case for case in cases if case.data]
    if any(case.mixed for case in data) and not all(case.mixed for case in data):
        return UNKNOWN
    return merge(cases, None, sum_scale(cases))


# --- Reductions -------------------------------------------------------------------------------


def _reduce_sum(eqn: Equation, x: Value, *_: Value) -> Value:
    return _sum_over(eqn, x, set(eqn.params["axes"]))


def _sum_over(eqn: Equation, x: Value, axes: set[int]) -> Value:
    out = x._replace(rows=renumber(x.rows, axes))
    if eqn.axes_in() & axes - x.rows:  # terms that are the same for all rows
        out = out._replace(scale=None)
    return _summed(eqn, x, out) if x.rows & axes else out


def _psum(eqn: Equation, x: Value) -> Value:
    """Over axes of a `jax.vmap`, which are axes of the array, and over devices."""
    axes = {axis for axis in eqn.params["axes"] if isinstance(axis, int)}
    return _sum_over(eqn, x, axes)


def _summed(eqn: Equation, x: Value, out: Value) -> Value:
    """`out`, once `x` has lost a batch axis to a sum."""
    if x.pairs:
        return UNKNOWN if x.faint else _half_a_pair(eqn)
    if x.soft:
        return out
    return out._replace(sums=eqn, order=(), scale=None if x.sums else out.scale)


def _half_a_pair(eqn: Equation) -> Value:
    return mixed(f"{eqn} reduces values that each depend on two examples")


def _reduce(eqn: Equation, x: Value, *_: Value) -> Value:
    """Reductions that are no sum: max, argmax, any, ..."""
    if x.sums:
        return nonlinear(eqn, x)
    axes = set(eqn.params["axes"])
    out = x._replace(rows=renumber(x.rows, axes), scale=nonlinear_scale([x]))
    return _chosen(eqn, x, out) if x.rows & axes else out


def _chosen(eqn: Equation, x: Value, out: Value) -> Value:
    return out._replace(order=ANY, soft=x.soft or f"{eqn} chooses among the examples")


def _top_k(eqn: Equation, x: Value) -> Value:
    name = "reduction_dimension" if eqn.name == "approx_top_k" else "axis"
    axis = eqn.params[name] % len(eqn.ins[0][0])
    if x.sums or (axis in x.rows and eqn.axes_out()):
        return UNKNOWN
    out = x._replace(rows=x.rows - {axis}, scale=nonlinear_scale([x]))
    return _chosen(eqn, x, out) if axis in x.rows else out


def _cumulative(eqn: Equation, x: Value) -> Value:
    if eqn.params["axis"] not in x.rows:
        return x if eqn.name == "cumsum" else nonlinear(eqn, x)
    if eqn.integer:  # offsets, as in sorting tokens by expert
        return UNKNOWN
    return mixed(f"{eqn} accumulates over the examples")


def _reduce_window(eqn: Equation, *ins: Value) -> Value:
    out = (linear if eqn.name == "reduce_window_sum" else nonlinear)(eqn, *ins)
    window = eqn.params["window_dimensions"]
    return UNKNOWN if any(window[axis] != 1 for axis in out.rows) else out


# --- Products with a sum ----------------------------------------------------------------------


def _dot_general(eqn: Equation, a: Value, b: Value) -> Value:
    (sum_a, sum_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
    over_a, over_b = a.rows & set(sum_a), b.rows & set(sum_b)
    free = len(eqn.ins[0][0]) - len(sum_a)  # axes of the result in front of those of b
    rows = _rows_after(a.rows, sum_a, batch_a, len(batch_a))
    rows |= _rows_after(b.rows, sum_b, batch_b, free)
    same = [i for i, j in zip(sum_a, sum_b, strict=True) if not (i in over_a or j in over_b)]
    scale = None if eqn.axes_in() & set(same) else product_scale([a, b])
    # Rows meet where an axis of the batch is shared; x @ x.T pairs them in any order.
    shared = bool(over_a and over_b) or bool(a.rows & set(batch_a) and b.rows & set(batch_b))
    if shared and a.order != b.order and ANY not in (a.order, b.order):
        return mixed(f"{eqn} multiplies rows of different examples (shifted, reversed or sliced)")
    out = _sum_meets_data(eqn, [a, b]) or merge([a, b], None, scale)
    if out.mixed:
        return out
    out = out._replace(rows=rows)
    if not (over_a or over_b):
        return _faint(eqn, [a, b], out)
    if a.pairs or b.pairs:
        return UNKNOWN if a.faint or b.faint else _half_a_pair(eqn)
    fixed_matrix = not (a.data and b.data) and eqn.axes_out()  # between examples: the identity?
    if fixed_matrix or a.soft or b.soft:
        return UNKNOWN
    return _half_a_pair(eqn) if rows else _summed(eqn, a if over_a else b, out)


def _rows_after(
    rows: Iterable[int], summed: Sequence[int], batch: Sequence[int], offset: int
) -> frozenset[int]:
    """Where the rows of one operand of a dot_general are in its result."""
    kept = {batch.index(axis) for axis in rows if axis in batch}
    free = renumber((axis for axis in rows if axis not in batch), {*batch, *summed})
    return frozenset(kept | {axis + offset for axis in free})


def _convolution(eqn: Equation, x: Value, kernel: Value) -> Value:
    numbers = eqn.params["dimension_numbers"]
    if kernel.data or x.rows - {numbers.lhs_spec[0]} or eqn.params["batch_group_count"] > 1:
        return UNKNOWN if x.sums or kernel.sums else one_batch_axis(eqn)
    rows = frozenset(numbers.out_spec[0] for _ in x.rows)
    return x._replace(rows=rows, scale=product_scale([x, kernel]))


RULES: dict[str, Callable[..., Value]] = {
    **dict.fromkeys(_LINEAR.split(), linear),
    **dict.fromkeys(f"{_NONLINEAR} {_COMPARISONS} {_BOUNDS}".split(), nonlinear),
    "mul": _mul,
    "div": _div,
    "reduce_sum": _reduce_sum,
    "psum": _psum,
    "psum_invariant": _psum,
    **dict.fromkeys(_CHOICES.split(), _reduce),
    "top_k": _top_k,
    "approx_top_k": _top_k,
    **dict.fromkeys(_CUMULATIVE.split(), _cumulative),
    **dict.fromkeys(_WINDOWS.split(), _reduce_window),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
}
