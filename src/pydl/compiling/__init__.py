"""``torch.compile(net, backend="pydl")``: our ops and chains in any model, by a rewritten graph. No code is generated.

In this order, each importing from those above it alone:

memory.py      what a node of TorchDynamo's graph reads and writes, and whether one may move past others
functions.py   which function of ours serves a node, or why torch's does: the table of ``pydl.swapped()``
run.py         what a rewritten graph calls beside ``pydl.functional``
chains.py      several nodes that become one call
rewrite.py     all that on a graph and on those inside it, with a note on each call
backend.py     the entry point that torch.compile loads
explain.py     ``pydl.explain``: the notes as a table

Nothing here imports TorchDynamo until something is compiled. Conditions that may change after compiling are asked
again at each call, by the functions of ``pydl.functional``; torch.compile's guards hold the rest.
"""

from pydl.compiling.explain import explain

__all__ = ["explain"]
