"""Where two models part: the first tensor beyond its budget, the node that makes it, and the likely cause.

```
side        what the user named, opened as a graph (a module is exported; it keeps its own forward hooks)
feeds       the inputs: a .npz, or cases drawn as parity draws them
tensors     a graph that gives any of its tensors, a few at a time
yardstick   what each tensor must be: float64, and the reach of the dtype (onnx graphs and modules)
pairs       which tensor of B is which of A, by the names the exporters kept
walk        what a tensor is made from, what comes after, where attentions end
judging     B's tensors on one case, verdict by verdict
search      blocks first, then inside the block, in the order of the graph
operands    one attention's Q, K, V and mask as arrays; rotation: the RotaryEmbedding before Q or K
signatures  the table of likely causes of an attention, each tried on those arrays
cause       which of the two tables to ask, and the node it is about
differing   what tells two nodes of one tensor apart: weights, attributes, factors, overflow
result      the record; export/report/bisection.py is the view
```
"""
