import importlib
import subprocess
import sys

import pytest
import torch
from torch.overrides import TorchFunctionMode

from engines.errors import UsageError
from export.model import registry, rope
from export.model.draw import PADDINGS
from export.model.form import Case

OWN = [
    name
    for place, names in registry.FAMILIES.items()
    if place.split(":")[0].rpartition(".")[2] in {"default", "dit", "timm_forms"}
    for name in names
]


def example(form, **changes):
    return form.draw(Case("example", {name: best for name, (_, best, _) in form.dims.items()}, **changes))


def test_naming_the_forms_imports_neither_torch_nor_any_family():
    code = (
        "import sys; from export.model import registry; names = registry.form_names(); "
        "assert 'mha-rope' in names, names; "
        "loaded = {'torch', 'onnx', 'numpy', 'export.model.default'} & set(sys.modules); assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("place", registry.FAMILIES)
def test_every_family_defines_exactly_the_forms_its_row_names(place):
    module, attribute = place.split(":")
    forms = getattr(importlib.import_module(module), attribute)
    assert tuple(form.name for form in forms) == registry.FAMILIES[place]


def test_no_name_is_listed_twice():
    assert len(registry.form_names()) == sum(len(names) for names in registry.FAMILIES.values())
    assert len(set(registry.form_names())) == len(registry.form_names())


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match=r"no form called 'mha-rop'\. Did you mean mha-rope"):
        registry.get("mha-rop")
    with pytest.raises(UsageError, match=r"no form called 'zzz'\. `python -m export forms` lists"):
        registry.get("zzz")


def test_a_missing_family_fails_for_its_own_names_only(monkeypatch):
    places = dict(registry.FORMS) | {"lost": "export.model.lost:FORMS", "promised": "export.model.default:FORMS"}
    monkeypatch.setattr(registry, "FORMS", places)
    with pytest.raises(UsageError, match=r"'lost' cannot be loaded: No module named 'export\.model\.lost'"):
        registry.get("lost")
    with pytest.raises(UsageError, match=r"'promised' is listed under export\.model\.default:FORMS, which does not"):
        registry.get("promised")
    assert registry.get("mha-rope").name == "mha-rope"


class Softmaxes(TorchFunctionMode):
    """Counts the softmax attentions a forward pass computes, in either spelling."""

    KINDS = (torch.softmax, torch.Tensor.softmax, torch.nn.functional.scaled_dot_product_attention)

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func in self.KINDS
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", OWN)
def test_a_form_counts_its_attentions_and_rotations_truthfully(name, monkeypatch):
    form = registry.get(name)
    turns = []
    apply = rope.apply_rotary
    monkeypatch.setattr(rope, "apply_rotary", lambda *a, **k: turns.append(1) or apply(*a, **k))
    with Softmaxes() as softmaxes, torch.no_grad():
        form.make()(**example(form))
    assert (softmaxes.count, len(turns)) == (form.attentions, form.ropes)


@pytest.mark.parametrize("name", OWN)
def test_a_form_is_drawn_the_same_twice_in_float32_with_the_axes_it_declares(name):
    form = registry.get(name)
    first, second = form.make().state_dict(), form.make().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    dims = {name: low + place + 1 for place, (name, (low, _, _)) in enumerate(form.dims.items())}
    inputs, again = form.draw(Case("shape", dims)), form.draw(Case("shape", dims))
    assert list(inputs) == list(form.dynamic) and not form.make().training
    for key, tensor in inputs.items():
        assert torch.equal(tensor, again[key])
        assert tensor.dtype in (torch.float32, torch.bool)
        for axis, size in enumerate(tensor.shape):
            named = form.dynamic[key].get(axis)
            assert named is None or size == dims[named]
    louder, other = example(form, magnitude=30.0), example(form, seed=1)
    torch.testing.assert_close(louder["x"], 30 * example(form)["x"])
    assert not torch.equal(other["x"], example(form)["x"])


@pytest.mark.parametrize("name", OWN)
def test_a_forms_paddings_are_those_that_change_its_masks(name):
    form = registry.get(name)
    masks = [key for key, tensor in example(form).items() if tensor.dtype == torch.bool]
    assert bool(form.padding) == bool(masks) and set(form.padding) <= set(PADDINGS)
    for key in masks:
        drawn = [example(form, padding=padding)[key] for padding in ("none", *form.padding)]
        assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
        seen = example(form, padding="full-row")[key].flatten(1).any(1)
        assert not seen[-1] and seen[:-1].all()
