"""A shape of a set as a workload: the export of its module, what the tools make of it, the forms by hand, PyTorch."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from export.bench import cases, elsewhere, exports, hand_built, ort_contenders, tools, torch_contenders
from export.bench.contender import CONTRIB, EXPORT, HAND, NARROW, OURS, PEER, Contender
from export.bench.shapes import Shape
from export.bench.truth import judged
from export.bench.workload import Work, Workload

_log = logging.getLogger(__name__)
OUTPUT = ("output",)


class Files:
    """The exports of each family and what the tools make of them, made once for all shapes of the family."""

    def __init__(self, folder: Path, *, verify: bool) -> None:
        """Takes the folder that files are written to, and whether our own fusing is verified."""
        self._folder, self._verify = folder, verify
        self._made: dict[tuple[str, ...], Path | Exception] = {}

    def exported(self, shape: Shape, route: str) -> Path:
        """Returns the plain export of a shape's module. Raises Unavailable where the exporter does."""
        path = self._folder / f"{shape.family}-{shape.heads}-{shape.kv_heads}.{route}.onnx"

        def make() -> Path:
            _log.info("export    %s by %s", shape.family, route)
            return exports.export(cases.module(shape), cases.draw(shape, 0), route, path)

        return self._once((shape.family, route), make)

    def of_tool(self, shape: Shape, route: str, tool: str, make: Callable[[Path, Path], Path]) -> Path:
        """Returns what a tool makes of an export; its failure is raised again each time it is asked for."""

        def run() -> Path:
            path = self.exported(shape, route)
            _log.info("fuse      %s (%s) by %s", shape.family, route, tool)
            return make(path, path.with_name(f"{path.stem}.{tool.replace(' ', '-')}.onnx"))

        return self._once((shape.family, route, tool), run)

    @property
    def verify(self) -> bool:
        """Whether our own fusing runs each attention before and after."""
        return self._verify

    def _once(self, name: tuple[str, ...], make: Callable[[], Path]) -> Path:
        if name not in self._made:
            try:
                self._made[name] = make()
            except Exception as error:  # kept: the next shape would fail alike
                self._made[name] = error
        found = self._made[name]
        if isinstance(found, Exception):
            raise found
        return found


def workload(
    shape: Shape, files: Files, *, routes: tuple[str, ...], threads: int, seed: int, flex: bool = True
) -> Workload:
    """Returns a shape with all its contenders.

    Args:
        shape: The shape.
        files: Where exports are made and kept.
        routes: Keys of `exports.ROUTES`.
        threads: Threads of ONNX Runtime's sessions.
        seed: Of the inputs.
        flex: Whether flex_attention is compiled, which takes a while for each shape.
    """
    module, inputs = cases.module(shape), cases.draw(shape, seed)
    feeds = {name: x.numpy() for name, x in inputs.items()}
    contenders = [c for route in routes for c in _of_route(shape, files, route, feeds, threads)]
    for name, model in hand_built.forms(shape).items():
        kind = CONTRIB if name.startswith("com.microsoft") else NARROW if name == hand_built.NARROW else HAND
        contenders.append(ort_contenders.contender(name, kind, model, feeds, threads, outputs=OUTPUT))
    contenders += [torch_contenders.eager(module, inputs, OUTPUT), *torch_contenders.sdpa(shape, inputs)]
    if flex:
        contenders.append(torch_contenders.flex(shape, inputs))

    return Workload(
        name=shape.name,
        sizes=shape.sizes,
        dtype="fp32",
        contenders=(*contenders, *elsewhere.contenders()),
        work=Work(
            shape.flops(cases.kept_pairs(shape, inputs)),
            shape.bytes(),
            "4 D for each query head, query and key that it sees; Q, K and V read and the output written once",
        ),
        judge=lambda answers: judged(shape, inputs, answers),
        items=("tokens", shape.batch * shape.queries),
    )


def _of_route(shape: Shape, files: Files, route: str, feeds: Mapping[str, Any], threads: int) -> list[Contender]:
    width = shape.heads * shape.size

    def made(name: str, kind: str, tool: Callable[[Path, Path], Path], stage: str = "") -> Contender:
        def model() -> Path:
            return files.of_tool(shape, route, name, tool)

        return ort_contenders.contender(name, kind, model, feeds, threads, route=route, stage=stage, outputs=OUTPUT)

    def plain() -> Path:
        return files.exported(shape, route)

    return [
        ort_contenders.contender(
            "as exported", EXPORT, plain, feeds, threads, route=route, stage="exported", outputs=OUTPUT
        ),
        made("fused, not lowered", OURS, lambda path, out: tools.fused(path, out, verify=files.verify), "fused"),
        made("attnproof", OURS, lambda path, out: tools.lowered(path, out, verify=files.verify), "lowered"),
        *(
            made(name, PEER, lambda path, out, tool=tool: tool(path, out, shape.heads, width))  # type: ignore[misc]
            for name, tool in tools.PEERS.items()
        ),
    ]
