"""Law: what changes nothing is not there: Identity, same-type Cast, same shape, Concat of one, empty Pad, 1 * x..."""

import onnx_ir as ir

from export.graph.build import bypass
from export.graph.values import array, dims, integers, made_by, permutation, uniform


def drop_noops(graph: ir.Graph) -> int:
    """Lets every node of `graph` that provably returns its input be bypassed; returns how many."""
    dropped = 0
    for node in graph:
        if node.domain in ("", "ai.onnx") and _changes_nothing(node):
            source, result = node.inputs[_data(node)], node.outputs[0]
            if source is None:
                continue
            if result.is_graph_output():  # the node stays to give the output its name; others need not read it
                users = list(result.uses())
                for user, at in users:
                    user.replace_input_with(at, source)
                dropped += bool(users)
                continue
            if source.shape is None:
                source.shape = result.shape
            bypass(result, source)
            graph.remove(node, safe=True)
            dropped += 1
    return dropped


_NEUTRAL = {"Mul": 1.0, "Div": 1.0, "Add": 0.0, "Sub": 0.0}


def _data(node: ir.Node) -> int:
    """Returns which input holds the data: the other one of a sum or product may be its neutral number.

    Of a Where it is the branch that a constant condition chooses everywhere.
    """
    if node.op_type == "Where":
        condition = array(node.inputs[0])
        return 2 if condition is not None and not condition.any() else 1
    turned = node.op_type in ("Mul", "Add") and array(node.inputs[0]) is not None
    return 1 if turned and uniform(node.inputs[0]) == _NEUTRAL[node.op_type] else 0


def _changes_nothing(node: ir.Node) -> bool:
    source, result = node.inputs[0] if node.inputs else None, node.outputs[0] if node.outputs else None
    if source is None or result is None:
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Concat":
        return len(node.inputs) == 1
    if node.op_type == "Cast":
        return source.dtype is not None and source.dtype == result.dtype
    if node.op_type == "Dropout":
        return inactive_dropout(node)
    if node.op_type == "Transpose":
        perm = permutation(node)
        return perm is not None and perm == tuple(range(len(perm)))
    if node.op_type == "Pad":
        return set(integers(node.inputs[1]) or (1,)) == {0} if len(node.inputs) > 1 else False
    if node.op_type in _NEUTRAL and len(node.inputs) == 2:
        data = node.inputs[_data(node)]
        number = array(node.inputs[1 - _data(node)])  # a bias that is zero today is a weight nevertheless
        neutral = number is not None and number.size == 1 and float(number.reshape(-1)[0]) == _NEUTRAL[node.op_type]
        return neutral and dims(data) is not None and dims(data) == dims(result)
    if node.op_type == "Where":
        condition, data = array(source), node.inputs[_data(node)]
        settled = condition is not None and condition.size > 0 and condition.all() == condition.any()
        return settled and data is not None and dims(data) is not None and dims(data) == dims(result)
    if node.op_type in ("Reshape", "Expand"):
        before, after = dims(source), dims(result)
        return before is not None and before == after
    return False


def inactive_dropout(node: ir.Node) -> bool:
    """Says whether a Dropout does nothing: training mode is off and its mask is not used."""
    if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is None or uniform(training) == 0.0:
        return True
    data = array(training)
    return data is not None and not data.any()


def join_transposes(graph: ir.Graph) -> int:
    """Makes one Transpose of two in a row; returns how many were joined. A joined one may be a no-op then."""
    joined = 0
    for node in graph:
        if node.domain not in ("", "ai.onnx") or node.op_type != "Transpose":
            continue
        inner = made_by(node.inputs[0], "Transpose")
        if inner is None:
            continue
        first, second = permutation(inner), permutation(node)
        if first is None or second is None or len(first) != len(second):
            continue
        node.replace_input_with(0, inner.inputs[0])
        node.attributes["perm"] = ir.AttrInt64s("perm", [first[axis] for axis in second])
        joined += 1
    return joined


def join_reshapes(graph: ir.Graph) -> int:
    """Lets a Reshape that provably restores the shape before the last one be bypassed; returns how many."""
    joined = 0
    for node in graph:
        if node.domain not in ("", "ai.onnx") or node.op_type not in ("Reshape", "Unsqueeze", "Squeeze"):
            continue
        inner = made_by(node.inputs[0], "Reshape", "Unsqueeze", "Squeeze")
        if inner is not None and (inner.op_type, node.op_type) == ("Squeeze", "Unsqueeze"):
            continue  # one of a pair of channels taken out and put back: RoPE is read from this
        source, result = inner.inputs[0] if inner is not None else None, node.outputs[0]
        shape = dims(source)
        if source is None or shape is None or shape != dims(result) or result.is_graph_output():
            continue
        bypass(result, source)
        graph.remove(node, safe=True)
        joined += 1
    return joined
