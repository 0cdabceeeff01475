"""What is known to fail in an export, and what to write instead: a table, read in order."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Remedy:
    """A failure with a known rewrite.

    Attributes:
        what: What happened, in one clause; `{0}` is the first group that `text` or `code` caught.
        rewrite: What to write instead.
        text: Pattern of "ExceptionType: message" through the chain of causes; None fits every message.
        code: Pattern of the user's line; None fits every line.
    """

    what: str
    rewrite: str
    text: str | None = None
    code: str | None = None

    def fits(self, text: str, code: str) -> str | None:
        """Returns `what`, filled in, if the remedy is for this failure."""
        caught: list[str] = []
        for pattern, subject in ((self.text, text), (self.code, code)):
            if pattern is None:
                continue
            found = re.search(pattern, subject)
            if found is None:
                return None
            caught += [group for group in found.groups() if group]
        return self.what.format(*(caught or [""]))


_FROM_VALUES = (
    "Take sizes from shapes (x.shape[1]), and turn lengths into masks by comparing positions: "
    "torch.arange(x.shape[1]) < lengths[:, None]."
)

REMEDIES = (
    Remedy(
        "repeat_interleave has a count that is no constant",
        "Repeat by x[:, :, None].expand(-1, -1, n, -1, -1).flatten(1, 2), with n a Python int from __init__.",
        code=r"repeat_interleave\(",
    ),
    Remedy(
        "the operator {0} has no ONNX form in this exporter",
        "Rotate with real numbers: cat([x1 * cos - x2 * sin, x1 * sin + x2 * cos]); --exporter dynamo takes "
        "view_as_complex in many cases.",
        text=r"(?:op='|operator ')(\w+[.:]+(?:view_as_complex|view_as_real|polar|complex))|number type: (complex)",
    ),
    Remedy(
        "the operator {0} has no ONNX form in this exporter",
        "Write it with operators that have one, or try the other --exporter.",
        text=r"No ONNX function found for <OpOverload\(op='([\w.]+)'|Exporting the operator '([\w:.]+)'",
    ),
    Remedy(
        "this exporter does not know grouped keys and values (enable_gqa)",
        "Use --exporter dynamo, or repeat keys and values for every query head before the attention.",
        text=r"enable_gqa",
    ),
    Remedy(
        "forward leaves PyTorch for numpy",
        "Use the torch function of the same name; what does not depend on the inputs belongs in __init__ as a buffer.",
        code=r"\.numpy\(|from_numpy\(|\bnp\.",
    ),
    Remedy(
        "a size or index is read from a tensor's values",
        _FROM_VALUES,
        code=r"\.item\(|\.tolist\(|\bint\(.*(max|min|sum)\(|\brange\(",
    ),
    Remedy("a size or index is read from a tensor's values", _FROM_VALUES, text=r"extract specialized integer"),
    Remedy(
        "the code branches on a tensor's values",
        "Compute both branches and choose by torch.where(condition, a, b); for rows that see no key, "
        "m | ~m.any(-1, keepdim=True) needs no branch. Move checks of the inputs out of forward.",
        text=r"[Dd]ata-?[Dd]ependent",
    ),
    Remedy(
        "two tensors have different dtypes once the module is in the dtype of the export",
        "A tensor made in forward or kept in fp32 meets weights in another dtype: cast it with .to(x.dtype).",
        text=r"same dtype|expected scalar type|xpected .{0,40}dtype|dtype mismatch|mat1 and mat2 must have",
    ),
    Remedy(
        "PyTorch's CPU has no kernel for this operator in {0}",
        "Export in fp32 (--dtype fp32), or write the operator otherwise.",
        text=r"not implemented for '(Half|BFloat16)'",
    ),
    Remedy(
        "torch.where chooses between bool tensors, for which ONNX Runtime's CPU has no kernel",
        "Write (c & a) | (~c & b) with bool operators.",
        text=r"find an implementation for Where",
    ),
    Remedy(
        "a tensor is changed in place where the exporter cannot follow",
        "Write scores = scores.masked_fill(mask, value) instead of scores[mask] = value or masked_fill_.",
        code=r"\]\s*=[^=]|\w_\(",
    ),
    Remedy(
        "a tensor is changed in place where the exporter cannot follow",
        "Write scores = scores.masked_fill(mask, value) instead of scores[mask] = value or masked_fill_.",
        text=r"in-?place|mutat|leaf Variable",
    ),
    Remedy(
        "an input or output is an object the exporter cannot take apart",
        "Give and return tensors, tuples and dicts; for Hugging Face models, use_cache=False and return_dict=True.",
        text=r"[Pp]ytree|Unsupported input type|not a known type",
    ),
    Remedy(
        "a size of the traced run was frozen into the graph",
        "Take it from x.shape, or use -1; make tables and masks of that size in forward, from x.shape.",
        text=r"running (Reshape|Expand|Slice|Add|Mul|Where|MatMul|Concat) node",
    ),
)
"""The first that fits is the one told."""


def remedy(text: str, code: str) -> tuple[str, str] | None:
    """Returns (what happened, what to write instead), or None for a failure nobody has met.

    Args:
        text: The exceptions' types and messages, or ONNX Runtime's message.
        code: The user's line, or "".
    """
    for row in REMEDIES:
        what = row.fits(text, code)
        if what is not None:
            return what, row.rewrite
    return None
