r"""Exact per-example statistics at about the price of the gradient.

What is wanted are the norms :math:`\lVert g_i \rVert^2` of the gradients of B examples, their inner
products with the mean gradient g, their sums of squares per coordinate. What is too expensive is to
form the :math:`g_i`: B times the memory of the model, and for dense layers a hundred times the time
of the plain step. But the backward pass of a batch knows them all, in factors. A dense layer
receives inputs :math:`X_i` and output cotangents :math:`D_i`, and adds up
:math:`\sum_i X_i^\top D_i`; each term is the gradient of one example, and
:math:`\lVert x_i d_i^\top \rVert^2 = \lVert x_i \rVert^2 \lVert d_i \rVert^2` needs neither.

So, for any loss that JAX can trace, on the whole batch and as the user wrote it:

    loss of the batch                row_moments.py  a jaxpr
      |
    plan and proof                   planning.py     where the examples are (axes.py), what is known
      |                              proof.py        of each value (known.py), if examples meet,
      |                              rules/          which equation consumes which parameter, how
    walk                             walk.py         evaluates the jaxpr, equation by equation
      |                              taps.py         with those tapped that consume parameters
    value_and_grad                   row_moments.py  in parameters and carriers
      |
    statistics                       method.py       GradientStats

Between the plan and the gradient stands one trick. JAX transports cotangents, and nothing says
that a cotangent must be a derivative:

            parameter W            carriers (zeros)
                |                      |
    roots.py  [root] ------------------+        forward: hands out slots of zeros
                |  slot                         backward: factors (X, D) in; out come
                |                               dW for W, and statistics for the carriers
    taps.py   [tap]   x @ W                     forward: the equation as it was
                |                               backward: dx as it was, and (X, D)
               loss                             as the "cotangent" of the slot

The carriers are shared by all roots, so that JAX adds up the statistics of all parameters itself,
through `jit`, `jax.checkpoint` and `scan`. A stack of layers that is scanned over has its root in
the body of the scan, where the layer is one parameter. A recurrent cell, which every turn uses, has
its root outside; its slots come back with one entry a turn, and the turns are one long sequence.

What a root receives becomes statistics in `sums.py`: by formulas on the factors where there are
any (`rules/`, chosen by the cost model in `cost.py`); for several uses of one parameter by
`clusters.py`; and where parameters are normalised or multiplied with each other before an example
sees them, by forming the gradients one by one and pulling them back through those expressions
(`expressions.py`). Of a parameter without a rule (biases, scales, anything unknown) the cotangent
is cut along the axis of the examples, which is free for small ones; where not even that can be
done, the equation has one backward pass an example.

Every way is exact. `explain` prints which was taken for each parameter, and what it will cost.
"""
