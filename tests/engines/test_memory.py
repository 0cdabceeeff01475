"""The peak of a process's memory is its own: it grows with what it fills, and is not inherited."""

import subprocess
import sys

from engines import memory

ASK = "from engines import memory; print(memory.peak(), flush=True)"
FILL = f"x = bytearray(200 << 20); x[::4096] = b'1' * len(x[::4096]); del x; {ASK}"
START = f"import subprocess, sys; {FILL}; print(subprocess.run([sys.executable, '-c', {ASK!r}]).returncode)"


def asked(code: str) -> list[int]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [int(line) for line in done.stdout.split()]


def test_what_was_filled_counts_and_a_child_starts_anew() -> None:
    (little,) = asked(ASK)
    assert 2**20 < little < 100 << 20
    filled, child, code = asked(START)
    assert code == 0
    assert filled > 200 << 20
    assert child < 100 << 20


def test_a_system_that_does_not_tell(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> object:
        raise FileNotFoundError("/proc/self/status")

    monkeypatch.setattr("builtins.open", refuse)
    assert memory.peak() is None
