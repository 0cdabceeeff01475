"""Exports a form with one of torch's exporters and holds ONNX Runtime to what the module computes."""

import io
import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import torch

from export.model.form import Case, Form

OPSETS = {"dynamo": 23, "torchscript": 17}


def export(module: torch.nn.Module, inputs: dict, dynamic: dict, exporter: str) -> onnx.ModelProto:
    """The module as ONNX, with every axis of `dynamic` symbolic."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        if exporter == "torchscript":
            warnings.filterwarnings(
                "ignore", "You are using the legacy TorchScript-based ONNX export", DeprecationWarning
            )
            warnings.filterwarnings("ignore", "The feature will be removed", DeprecationWarning)  # its own internals
            torch.onnx.export(
                module,
                tuple(inputs.values()),
                out,
                dynamo=False,
                opset_version=OPSETS[exporter],
                input_names=list(inputs),
                dynamic_axes={name: dict(axes) for name, axes in dynamic.items()},
            )
            return onnx.load_from_string(out.getvalue())
        # torch's own decomposition pass calls torch's own deprecated spelling.
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used, since it shares", UserWarning)
        names = {name for axes in dynamic.values() for name in axes.values()}
        dims = {name: torch.export.Dim(name, min=1) for name in names}
        program = torch.onnx.export(
            module,
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSETS[exporter],
            dynamic_shapes={name: {axis: dims[dim] for axis, dim in axes.items()} for name, axes in dynamic.items()},
            verbose=False,
        )
        return program.model_proto


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(runtime: ort.InferenceSession, inputs: dict) -> list:
    return runtime.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})


def outputs_of(module: torch.nn.Module, inputs: dict) -> list:
    with torch.no_grad():
        out = module(**inputs)
    return [t.numpy() for t in (out if isinstance(out, tuple) else (out,))]


def cases_of(form: Form) -> list[Case]:
    """Three shapes the export has not seen: the profile's smallest, an odd one, and its largest; and every padding."""
    smallest = {name: low for name, (low, _, _) in form.dims.items()}
    odd = {name: 3 + 2 * place for place, name in enumerate(form.dims)}
    largest = {name: high for name, (_, _, high) in form.dims.items()}
    shapes = (("smallest", smallest), ("odd", odd), ("largest", largest))
    cases = [Case(f"{name}-none", dims, seed=1) for name, dims in shapes]
    return cases + [Case(f"odd-{padding}", odd, padding, seed=2) for padding in form.padding]


def assert_exports(form: Form, exporter: str) -> Counter:
    """Exports the form, compares ONNX Runtime with PyTorch on every case, and returns the graph's operator counts."""
    module = form.make()
    example = {name: optimum if optimum > 1 else 2 for name, (_, optimum, _) in form.dims.items()}
    drawn = form.draw(Case("example", example, form.padding[0] if form.padding else "none"))
    model = export(module, drawn, form.dynamic, exporter)
    named = {v.name: [d.dim_param for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    for name, axes in form.dynamic.items():
        assert {axis: named[name][axis] for axis in axes} == dict(axes), f"input '{name}' lost its dimension names"
    assert {e.version for e in model.opset_import if e.domain == ""} == {OPSETS[exporter]}
    runtime = session(model)
    for case in cases_of(form):
        inputs = form.draw(case)
        for got, want in zip(run(runtime, inputs), outputs_of(module, inputs), strict=True):
            assert got.shape == want.shape, case.name
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5, equal_nan=True, err_msg=case.name)
    return Counter(node.op_type for node in model.graph.node)
