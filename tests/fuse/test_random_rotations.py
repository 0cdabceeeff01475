"""Random programs that turn pairs of channels: one op exactly where the program is a rotation, and never another map.

y0 = c0 * x0 + e0 * s0 * x1        c0, c1, s0, s1 drawn from tables and their negatives, e0 and e1 from +1 and -1,
y1 = c1 * x1 + e1 * s1 * x0        written channel by channel or on whole tensors, for halves or for neighbours.
"""

from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st
from text_graphs import assert_same, parse

from export.fuse import Options, fuse

TABLES = {"a": ("cf", 1), "b": ("cg", 1), "c": ("sf", 1), "d": ("sf", -1), "e": ("cf", -1)}
"""Names of tables in the program: what each is, and its sign."""


@dataclass(frozen=True)
class Program:
    cos: tuple[str, str]
    sin: tuple[str, str]
    signs: tuple[int, int]
    neighbours: bool
    whole: bool
    swapped: bool
    subtract: bool
    scaled: bool

    @property
    def is_rotation(self) -> bool:
        (c0, c1), (s0, s1) = ([TABLES[n] for n in names] for names in (self.cos, self.sin))
        e0, e1 = self.signs
        return c0 == c1 and s0[0] == s1[0] and e0 * s0[1] == -e1 * s1[1]

    def text(self) -> str:
        lines = ["a = Cos(f)", "b = Cos(g)", "c = Sin(f)", "d = Neg(c)", "e = Neg(a)"]
        if self.neighbours:
            lines += ["x0 = Slice(x, i0, i8, last, i2)", "x1 = Slice(x, i1, i8, last, i2)"]
        else:
            lines += ["x0 = Slice(x, i0, i4, last)", "x1 = Slice(x, i4, i8, last)"]
        lines += self._whole() if self.whole else self._lanes()
        lines.append("y = Mul(z, factor)" if self.scaled else "y = Identity(z)")
        names = "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i2 = {2}, int64[1] i4 = {4}, int64[1] i8 = {8}"
        names += ", int64[1] last = {3}, int64[1] behind = {-1}, int64[4] flat = {0, 0, 0, 8}, int64[2] rows = {0, 8}"
        head = (
            f"g (float[B,4,S,8] x, float[S,4] f, float[S,4] g) => (float[B,4,S,8] y) <{names}, float factor = {{0.5}}>"
        )
        return head + " {\n" + "\n".join(lines) + "\n}"

    def _product(self, one: str, two: str) -> str:
        return f"Mul({two}, {one})" if self.swapped else f"Mul({one}, {two})"

    def _lanes(self) -> list[str]:
        lines = []
        for at, other in ((0, 1), (1, 0)):
            lines += [f"p{at} = {self._product(f'x{at}', self.cos[at])}"]
            lines += [f"r{at} = {self._product(f'x{other}', self.sin[at])}"]
            # a difference is the sum with the negative
            minus = self.signs[at] < 0
            if self.subtract:
                lines += [f"y{at} = {'Sub' if minus else 'Add'}(p{at}, r{at})"]
            else:
                lines += [f"m{at} = {'Neg' if minus else 'Identity'}(r{at})", f"y{at} = Add(m{at}, p{at})"]
        return lines + self._join("z", "y0", "y1", "flat")

    def _whole(self) -> list[str]:
        signs = [-s if self.subtract else s for s in self.signs]
        lines = [f"t{at} = {'Neg' if sign < 0 else 'Identity'}(x{1 - at})" for at, sign in enumerate(signs)]
        lines += self._join("turned", "t0", "t1", "flat")
        lines += self._join("wc", *self.cos, "rows") + self._join("ws", *self.sin, "rows")
        lines += [f"p = {self._product('x', 'wc')}", f"r = {self._product('turned', 'ws')}"]
        return [*lines, "z = Sub(p, r)" if self.subtract else "z = Add(r, p)"]

    def _join(self, name: str, one: str, two: str, shape: str) -> list[str]:
        if not self.neighbours:
            return [f"{name} = Concat<axis = -1>({one}, {two})"]
        parts = [f"{name}_{at} = Unsqueeze({part}, behind)" for at, part in enumerate((one, two))]
        return [*parts, f"{name}_s = Concat<axis = -1>({name}_0, {name}_1)", f"{name} = Reshape({name}_s, {shape})"]


NAMES = st.sampled_from(sorted(TABLES))
PAIR = NAMES.map(lambda n: (n, n)) | st.tuples(NAMES, NAMES)
SIGN = st.sampled_from((-1, 1))
PROGRAMS = st.builds(Program, PAIR, PAIR, st.tuples(SIGN, SIGN), *[st.booleans()] * 5)  # a third of them are rotations


@settings(max_examples=120, deadline=None, derandomize=True)
@given(PROGRAMS)
def test_one_op_exactly_where_it_is_a_rotation(program: Program) -> None:
    model = parse(program.text())
    result = fuse(model, Options(verify=False))
    codes = [row.code for row in result.rotations]
    if program.is_rotation:
        assert codes == ["R001"], program.text()
    else:
        assert codes in (["R101"], ["R102"]), program.text()
    assert_same(model, result.model)
