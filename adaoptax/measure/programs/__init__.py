"""The one room that reads programs: what equations of traced functions do, and how to run them.

Nothing else in the package knows the name of a primitive, the parameters of an equation, or where
JAX keeps the bodies of its loops. A new release of JAX costs a look at these files.

    equations   what differs between the releases of JAX
    descriptions   what an equation can do, in plain words
    describe    reads an equation into one of them
    compare     whether equations of batches of two lengths do the same
    places      what equations are called in messages
    evaluate    traces, and runs equations: one, or a whole program with a say in each
    flops       the work of a program
"""
