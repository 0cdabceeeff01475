"""Which forms there are, and where each lives: a table that imports nothing until a form is asked for.

The table maps a module attribute holding a tuple of forms to the names of those forms, so that `--help` and name
completion never import torch, and a family that cannot be imported fails for its own names only.
"""

import difflib
import importlib
from types import MappingProxyType

from engines.errors import UsageError
from export.model.form import Form

# "module:ATTRIBUTE" -> the names in that tuple, in the same order. A family adds its own row; a test compares both.
FAMILIES: dict[str, tuple[str, ...]] = {
    "export.model.default:FORMS": (
        "mha-rope",
        "mha-rope-causal",
        "mha-rope-sdpa",
        "mha-rope-interleaved",
        "mha-rope-partial",
    ),
    "export.model.dit:FORMS": ("dit", "dit-xpos", "dit-joint", "dit-4d-mask"),
    "export.model.timm_forms:FORMS": (
        "timm",
        "timm-mask",
        "timm-qknorm",
        "timm-qknorm-rms",
        "timm-sdpa",
        "timm-rope",
        "timm-rope-half",
    ),
    "export.model.conformer_forms:FORMS": (
        "espnet-mha",
        "espnet-mha-cache",
        "espnet-relpos",
        "espnet-relpos-absolute",
        "espnet-chunk-mask",
    ),
    "export.model.tutorial:FORMS": (
        "tutorial-mha",
        "tutorial-cross",
        "tutorial-causal",
        "tutorial-weights",
        "tutorial-sdpa",
    ),
    "export.model.minigpt:FORMS": ("gpt-causal", "gpt-rank3-mask"),
    "export.model.llama:FORMS": ("llama-gqa", "llama-gqa-sdpa"),
    "export.model.d2l:FORMS": ("d2l-mha", "d2l-mha-per-query"),
    "export.model.flash:FORMS": ("flash-packed",),
    "export.model.linear:FORMS": ("linear-attention",),
    "export.model.informer_forms:FORMS": (
        "informer-encoder-self",
        "informer-decoder-self",
        "informer-decoder-cross",
        "informer-cross-values",
        "informer-dsattention",
        "probattention",
        "probattention-masked",
        "probattention-buffer",
    ),
}


def _by_name(families: dict[str, tuple[str, ...]]) -> dict[str, str]:
    return {name: place for place, names in families.items() for name in names}


FORMS = MappingProxyType(_by_name(FAMILIES))
"""Read-only {form name: "module:ATTRIBUTE"}."""


def form_names() -> tuple[str, ...]:
    """Returns the name of every form, in the order of the table, without importing any of them."""
    return tuple(FORMS)


def get(name: str) -> Form:
    """Returns the form called `name`, importing its family on first use.

    Raises:
        UsageError: There is no form of that name, or its family does not hold what the table promises.
    """
    place = FORMS.get(name)
    if place is None:
        close = difflib.get_close_matches(name, FORMS, n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(f"There is no form called '{name}'.{hint} `python -m export forms` lists them all.")
    module_name, attribute = place.split(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"The form '{name}' cannot be loaded: {error}. Its family {module_name} needs that module; install it."
        ) from error
    for form in getattr(module, attribute):
        if isinstance(form, Form) and form.name == name:
            return form
    raise UsageError(f"The form '{name}' is listed under {place}, which does not define it. Correct the registry.")
