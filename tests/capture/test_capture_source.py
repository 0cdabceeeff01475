"""What a user may name, and every way it can be wrong: a clear sentence, and never a traceback of theirs alone."""

import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from export.capture import is_onnx, load_source, of_module
from export.errors import UsageError

HEAD = """
import torch
from torch import nn
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(4, 4)
    def forward(self, x, mask=None):
        return self.proj(x)
"""

SPOILT = """
def make():
    model = Model()
    model.proj.{}.data.view(-1)[0] = float('{}')
    return model, (torch.zeros(2, 3, 4),)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(body: str, name: str = "attnuser.py", head: str = HEAD) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(head + textwrap.dedent(body))
        return str(path)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith(("attnuser", "attnsibling", "attnpackage", "user_")):
            del sys.modules[name]


def refused(text: str) -> str:
    with pytest.raises(UsageError) as caught:
        load_source(text)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_importing_capture_imports_no_torch() -> None:
    code = "import sys, export.capture; print([m for m in ('torch', 'onnx', 'onnxruntime') if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_a_file_is_imported_with_its_folder_on_the_path(write, tmp_path: Path, capsys) -> None:
    write("WIDTH = 3", "attnsibling.py", head="")
    path = write(
        """
        import attnsibling
        def make():
            print("building")
            return Model(), (torch.randn(2, attnsibling.WIDTH, 4),)
        """
    )
    source = load_source(f"{path}:make")
    assert source.inputs["x"].shape == (2, 3, 4) and source.dynamic == {"x": {0: "batch", 1: "length"}}
    assert not source.module.training and source.form is None
    out, err = capsys.readouterr()
    assert (out, err) == ("", "building\n")


def test_the_weights_a_factory_draws_depend_on_the_seed_alone(write) -> None:
    path = write("def make(): return Model(), (torch.zeros(2, 3, 4),)")
    first, again, other = (load_source(f"{path}:make", seed=s).module.proj.weight for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_module_path_is_searched_from_the_working_directory(write, tmp_path: Path, monkeypatch) -> None:
    write("def make(): return Model(), {'x': torch.randn(2, 3, 4)}", "attnpackage/model.py")
    monkeypatch.chdir(tmp_path)
    assert list(load_source("attnpackage.model:make").inputs) == ["x"]
    assert "no module attnpackage.nothing" in refused("attnpackage.nothing:make")
    assert "no module attnabsent" in refused("attnabsent.model:make")


def test_a_file_may_share_its_name_with_an_installed_package(write) -> None:
    path = write("def make(): return Model(), (torch.zeros(2, 3, 4),)", "colorsys.py")
    import colorsys

    assert load_source(f"{path}:make").inputs["x"].shape == (2, 3, 4)
    assert sys.modules["colorsys"] is colorsys


def test_half_precision_modules_and_inputs_become_fp32(write) -> None:
    path = write("def make(): return Model().half(), (torch.zeros(2, 3, 4, dtype=torch.float16),)")
    source = load_source(f"{path}:make")
    assert source.module.proj.weight.dtype == source.inputs["x"].dtype == torch.float32


def test_an_onnx_file_is_told_apart() -> None:
    assert is_onnx("model.onnx") and not is_onnx("model.py:make") and not is_onnx("mha-rope")
    assert "model_file.load" in refused("model.onnx")


def test_a_form_by_name_and_a_near_miss() -> None:
    source = load_source("mha-rope")
    assert source.form is not None and source.dynamic is source.form.dynamic
    assert len(set(source.sizes().values())) == len(source.sizes())  # no two dimensions of one size
    assert "Did you mean mha-rope" in refused("mha-roppe")


@pytest.mark.parametrize(
    ("body", "name", "words"),
    [
        ("def make(): return Model(), (torch.zeros(2, 3, 4),)", "", "names no factory. It defines make."),
        ("def make(): return Model(), (torch.zeros(2, 3, 4),)", ":made", "Did you mean make?"),
        ("make = 3", ":make", "is a int, not a function"),
        ("", ":Model", "is a module, not a factory"),
        ("def make(n): return Model(), ()", ":make", "missing 1 required positional argument: 'n'"),
        ("def make():\n    raise ValueError('no weights')", ":make", "raised ValueError: no weights, at "),
        ("def make(): return Model()", ":make", "returned the module alone"),
        ("def make(): return 3", ":make", "returned a int"),
        ("def make(): return 1, 2, 3, 4", ":make", "returned 4 values"),
        ("def make(): return 'model', (torch.zeros(2),)", ":make", "returned a str where the torch.nn.Module belongs"),
        ("def make(): return Model(), torch.zeros(2, 3, 4)", ":make", "A single tensor x is written (x,)"),
        ("def make(): return Model(), ()", ":make", "the inputs give no `x`"),
        ("def make(): return Model(), (1, 2, 3)", ":make", "there are 3 inputs, but Model.forward takes (x, mask)"),
        ("def make(): return Model(), {'y': torch.zeros(2)}", ":make", "the inputs name `y`"),
        ("def make(): return Model(), {'mas': torch.zeros(2)}", ":make", "Did you mean `mask`?"),
        ("def make(): return Model(), (None,)", ":make", "there is no tensor among the inputs"),
        ("def make(): return Model(), (torch.zeros(2).numpy(),)", ":make", "`x` is a numpy.ndarray"),
        ("def make(): return Model(), (torch.zeros(2, dtype=torch.complex64),)", ":make", "`x` is complex"),
        ("def make(): return Model(), (torch.zeros(2, 3, 5),)", ":make", "its own example inputs (x (2, 3, 5))"),
        (
            SPOILT.format("weight", "nan"),
            ":make",
            "The parameter `proj.weight` holds 1 NaN of 16 values",
        ),
        (
            SPOILT.format("bias", "inf"),
            ":make",
            "The parameter `proj.bias` holds 1 infinite of 4 values",
        ),
        ("def make(): return Model(), (torch.zeros(2, 3, 4),), {'y': {0: 'b'}}", ":make", "names `y`, which is no"),
        ("import attnnowhere", ":make", "No module named 'attnnowhere'"),
        ("def make(: pass", ":make", "SyntaxError"),
        ("raise SystemExit(3)", ":make", "__main__"),
        ("from . import x", ":make", "package.module:factory"),
    ],
)  # fmt: skip
def test_every_wrong_factory_is_a_sentence(write, body: str, name: str, words: str) -> None:
    path = write(body)
    assert words in refused(path + name)


def test_the_line_of_the_users_error_is_named(write) -> None:
    path = write("def make():\n    weights = {}\n    return weights['attention']\n")
    message = refused(f"{path}:make")
    assert "KeyError" in message and f"{path}:{len(HEAD.splitlines()) + 3}" in message
    assert "return weights['attention']" in message


def test_a_missing_file_and_a_missing_suffix(write, tmp_path: Path) -> None:
    assert "There is no file" in refused(str(tmp_path / "absent.py") + ":make")
    path = write("def make(): ...")
    assert "Did you mean" in refused(path.removesuffix(".py") + ":make")


def test_infinities_of_a_mask_buffer_are_no_bad_weights() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((5, 5), float("-inf")).triu(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x @ x.transpose(1, 2) + self.mask).softmax(-1) @ x

    assert of_module("causal", Causal(), (torch.randn(2, 5, 4),)).sizes() == {"batch": 2}


def test_positional_only_parameters() -> None:
    class Positional(nn.Module):
        def forward(self, x, /):
            return x

    with pytest.raises(UsageError, match="`x` is positional-only"):
        of_module("positional", Positional(), (torch.zeros(2),))


def test_outputs_that_no_graph_has() -> None:
    class Cache:
        pass

    class Returning(nn.Module):
        def __init__(self, value: object) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: torch.Tensor) -> object:
            return self.value

    for value, words in (((torch.zeros(1), Cache()), "returns a Cache, which a graph cannot"), (None, "no tensor")):
        with pytest.raises(UsageError, match=words):
            of_module("returning", Returning(value), (torch.zeros(2, 3),))


def test_wrappers_are_taken_off() -> None:
    inner = nn.Linear(4, 4)
    with warnings.catch_warnings():
        # torch.compile imports a part of PyTorch that uses what PyTorch has deprecated.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="torch")
        compiled = torch.compile(inner)
    for wrapped in (compiled, nn.DataParallel(inner)):
        assert list(of_module("wrapped", wrapped, (torch.zeros(2, 3, 4),)).inputs) == ["input"]


def test_lazy_modules_must_be_called_first() -> None:
    with pytest.raises(UsageError, match="`weight` has no value yet"):
        of_module("lazy", nn.LazyLinear(4), (torch.zeros(2, 3),))


def test_inputs_do_not_share_memory_with_the_users() -> None:
    x = torch.zeros(2, 3, 4)
    source = of_module("identity", nn.Identity(), {"input": x})
    source.inputs["input"].add_(1)
    assert not x.any()
