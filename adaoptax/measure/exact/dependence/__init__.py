"""How the values inside a batch loss depend on its examples: an abstract interpretation.

`value` is what is known of one value, `arithmetic` and `moves` are the rules of the primitives,
`propagate` carries them through a jaxpr that was traced with B and with 2B rows.
"""
