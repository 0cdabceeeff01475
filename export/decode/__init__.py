"""A causal model run a token at a time: a prefill and a step graph, their cache, and whether they are right.

```
tokens     which tensors hold one row a token, and whether each token is treated alone
positions  what hangs on positions, cut to those of a step
grow       a step with past and present tensors: ONNX Runtime
given      a model that brings such tensors along
static     two graphs over a cache of fixed length, written in place: TensorRT
truth      one forward over everything, in float64
judge      prefill and steps against it, with every padding, and to the end of the cache
opening    a loop over what was built
stage      all of it for one build
```
"""
