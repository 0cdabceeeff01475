"""The engine cache: when it hits, why it does not, and that processes and kills cannot spoil it."""

import dataclasses
import json
import os
import random
import signal
import time
from pathlib import Path

import cached_builds
import onnx
import pytest
from cached_builds import edit, get, pretend, save, start

from engines import build, engine_key, graph
from engines.errors import EngineBuildError
from engines.flags import Flags
from engines.lock import Lock
from engines.store import ENGINE, Damaged, Store, default_root

SLEEP = "\nimport time\nprint('{word}', flush=True)\ntime.sleep(60)"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save(tmp_path / "m.onnx")
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def sound(store: Store) -> int:
    """Returns how many entries there are; fails where one is not whole, or a lock is held or left."""
    for key in store.every_key():
        entry, _ = store.read(key)
        store.fetch(entry, store.root.parent / "sound.engine")
    assert sorted(p.name for p in store.root.iterdir()) == store.every_key()
    return len(store.every_key())


class TestHitsAndMisses:
    def test_the_second_build_is_the_first_ones_engine(self, place: Path, store: Store, monkeypatch) -> None:
        asked = pretend(monkeypatch)
        first = get(store, place / "m.onnx", place / "a.engine")
        assert (first.hit, first.why) == (False, f"nothing like it is in {store.root}")
        second = get(store, place / "m.onnx", place / "b.engine")
        assert second.hit
        assert second.why.startswith("entry ")
        assert asked == [89]
        assert (place / "b.engine").read_bytes() == (place / "a.engine").read_bytes()
        assert second.engine == dataclasses.replace(first.engine, path=place / "b.engine")
        assert second.engine.layers
        assert sound(store) == 1

    def test_a_miss_names_what_moved(self, place: Path, store: Store, monkeypatch) -> None:
        pretend(monkeypatch)
        get(store, place / "m.onnx", place / "e", label="net")
        sm = get(store, place / "m.onnx", place / "e", sm=120)
        assert sm.why.endswith("differs: sm was 89, is 120")
        sizes = get(store, place / "m.onnx", place / "e", sizes={"length": (1, 4, 32)})
        assert sizes.why.endswith("differs: profile was x=1x8:4x8:16x8, is x=1x8:4x8:32x8")
        save(place / "m.onnx", "Tanh")
        other = get(store, place / "m.onnx", place / "e", label="net")
        assert other.why.endswith("differs: graph changed")
        nothing = get(store, save(place / "n.onnx", "Sigmoid"), place / "e", label="another")
        assert nothing.why.startswith("nothing like it")
        pretend(monkeypatch, "1.8.0.1")
        newer = get(store, place / "m.onnx", place / "e")
        assert newer.why.endswith("differs: version was 1.7.1.116, is 1.8.0.1")

    def test_flags_are_part_of_the_key_and_the_place_of_timings_is_not(self, place: Path, store, monkeypatch) -> None:
        pretend(monkeypatch)
        monkeypatch.setattr("engines.flags.refuse", lambda asked, vendor: None)
        get(store, place / "m.onnx", place / "e", asked=Flags(timing_cache=str(place / "t")))
        assert get(store, place / "m.onnx", place / "e").hit
        refit = get(store, place / "m.onnx", place / "e", asked=Flags(refit=True))
        assert refit.why.endswith('differs: flags was {}, is {"refit": true}')
        assert refit.engine.flags == Flags(refit=True)
        assert get(store, place / "m.onnx", place / "e", asked=Flags(refit=True)).engine.flags == Flags(refit=True)

    def test_fresh_builds_again_and_replaces(self, place: Path, store: Store, monkeypatch) -> None:
        asked = pretend(monkeypatch)
        get(store, place / "m.onnx", place / "e")
        assert get(store, place / "m.onnx", place / "e", fresh=True).why == "a build from scratch was asked for"
        assert asked == [89, 89]
        assert sound(store) == 1

    def test_no_cache_and_a_cache_that_cannot_be_written(self, place: Path, monkeypatch, caplog) -> None:
        asked = pretend(monkeypatch)
        assert not get(None, place / "m.onnx", place / "e").hit
        (place / "file").touch()
        got = get(Store(place / "file" / "cache"), place / "m.onnx", place / "e")
        assert got.why == "the cache cannot be written"
        assert "cannot be used: Not a directory" in caplog.text
        assert asked == [89, 89]

    def test_a_build_that_fails_leaves_nothing(self, place: Path, store: Store, monkeypatch) -> None:
        pretend(monkeypatch)

        def fails(*args: object, **options: object) -> None:
            raise EngineBuildError("no kernel")

        monkeypatch.setattr(build, "build_engine", fails)
        with pytest.raises(EngineBuildError, match="no kernel"):
            get(store, place / "m.onnx", place / "e")
        assert list(store.root.iterdir()) == []

    def test_the_place(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ATTNPROOF_CACHE", "/x")
        assert default_root() == Path("/x/engines")
        monkeypatch.delenv("ATTNPROOF_CACHE")
        monkeypatch.setenv("XDG_CACHE_HOME", "/y")
        monkeypatch.setattr("sys.platform", "linux")
        assert default_root() == Path("/y/attnproof/engines")


class TestTampering:
    @pytest.mark.parametrize(
        ("name", "sentence"),
        [
            ("model.engine", "its model.engine is not the file that was written (the sha256 differs)"),
            ("engine.json", "its engine.json was edited"),
            ("build.json", "its build.json was edited"),
        ],
    )
    def test_a_changed_file_is_built_anew(self, place: Path, store: Store, monkeypatch, name: str, sentence) -> None:
        asked = pretend(monkeypatch)
        get(store, place / "m.onnx", place / "e")
        (key,) = store.every_key()
        path = store.root / key / name
        if name == "model.engine":
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        else:
            edit(path, lambda content: content.update(engines=[]))
        got = get(store, place / "m.onnx", place / "e")
        assert not got.hit
        assert got.why == f"entry {key[:12]} is there, but {sentence}"
        assert asked == [89, 89]
        assert sound(store) == 1
        assert get(store, place / "m.onnx", place / "e").hit

    def test_a_swapped_entry_is_not_believed(self, place: Path, store: Store, monkeypatch) -> None:
        pretend(monkeypatch)
        get(store, place / "m.onnx", place / "e")
        get(store, place / "m.onnx", place / "e", sm=120)
        one, two = store.every_key()
        os.rename(store.root / one, store.root / "kept")
        os.rename(store.root / two, store.root / one)
        with pytest.raises(Damaged, match="was edited"):
            store.read(one)


class TestKey:
    def parts(self, model: Path, **changes: object) -> engine_key.Parts:
        facts = graph.read(model)
        profile = build.Profile({}, {})
        options = {"vendor": cached_builds.fake_vendor(), "sm": 89, "profile": profile, "asked": Flags()} | changes
        return engine_key.parts(model, facts, **options)

    def test_weights_outside_the_file_count(self, place: Path) -> None:
        weight = onnx.numpy_helper.from_array(__import__("numpy").ones((8, 8), "float16"), "w")
        model = onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["": 20]> g (float16[n, 8] x) => (float16[n, 8] y) { y = MatMul(x, w) }'
        )
        model.graph.initializer.append(weight)
        onnx.save(model, place / "w.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
        before = self.parts(place / "w.onnx")
        data = bytearray((place / "w.bin").read_bytes())
        data[5] ^= 1
        (place / "w.bin").write_bytes(data)
        assert engine_key.difference(before, self.parts(place / "w.onnx")) == ("graph changed",)

    def test_the_plugins_sources_count_for_graphs_with_a_plugin(self, place: Path, monkeypatch) -> None:
        assert "plugins" not in self.parts(place / "m.onnx")
        with_plugin = save(place / "p.onnx", "attnproof.RotaryAttention")
        before = self.parts(with_plugin)
        assert len(before["plugins"]) == 64
        assert before["triton"]
        monkeypatch.setattr(engine_key, "_sources", lambda package: package.ljust(64))
        moved = engine_key.difference(before, self.parts(with_plugin))
        assert moved == ("toolkit changed", "plugins changed")

    def test_the_gpu_counts_where_the_builder_tunes_for_it(self, place: Path) -> None:
        moved = engine_key.difference(self.parts(place / "m.onnx"), self.parts(place / "m.onnx", gpu="NVIDIA L4"))
        assert moved == ("gpu was any, is NVIDIA L4",)


class TestProcesses:
    def test_two_builds_at_once_build_once(self, place: Path, store: Store) -> None:
        slow = "build.build_engine = lambda *a, **k: (print('building', flush=True), time.sleep(1), quick(*a, **k))[-1]"
        first = start(store.root, place / "m.onnx", place / "a.engine", slow)
        assert first.stdout.readline() == "building\n"
        second = start(store.root, place / "m.onnx", place / "b.engine", slow)
        told = [process.communicate(timeout=60) for process in (first, second)]
        assert [process.returncode for process in (first, second)] == [0, 0], told
        assert told[0][0].startswith("False nothing like it")
        assert told[1][0].startswith("True entry "), "the second waited, and never built"
        assert sound(store) == 1

    @pytest.mark.parametrize(
        ("where", "word"),
        [
            ("build.build_engine = lambda *a, **k: (print('here', flush=True), time.sleep(60))", "while it builds"),
            ("engine_json.entry = lambda *a: (print('here', flush=True), time.sleep(60))", "while it writes the entry"),
            ("artifact._swap = lambda *a: (print('here', flush=True), time.sleep(60))", "before the entry appears"),
        ],
    )
    def test_a_killed_build_leaves_a_sound_cache(self, place: Path, store, monkeypatch, where: str, word: str) -> None:
        process = start(store.root, place / "m.onnx", place / "a.engine", where)
        assert process.stdout.readline() == "here\n", word
        process.kill()
        process.communicate(timeout=60)
        assert store.every_key() == []
        asked = pretend(monkeypatch)
        assert not get(store, place / "m.onnx", place / "b.engine").hit
        assert asked == [89]
        assert sound(store) == 1, "the next build swept what the killed one left"

    def test_what_a_killed_build_left_goes_with_gc(self, place: Path, store: Store) -> None:
        process = start(
            store.root,
            place / "m.onnx",
            place / "a",
            "artifact._swap = lambda *a: (print('here', flush=True), time.sleep(60))",
        )
        process.stdout.readline()
        assert store.sweep() == 0, "its owner lives"
        process.kill()
        process.communicate(timeout=60)
        assert any(store.root.iterdir())
        assert store.sweep() >= 2
        assert list(store.root.iterdir()) == []

    def test_kills_at_any_moment(self, place: Path, store: Store, monkeypatch) -> None:
        # The child builds again and again, each time over the entry that is there.
        again = "for _ in range(2000): cached_builds.get(Store(Path({!r})), Path({!r}), Path({!r}), fresh=True)"
        loop = "print('begun', flush=True)\n" + again.format(str(store.root), str(place / "m.onnx"), str(place / "a"))
        rng = random.Random(0)
        for _ in range(8):
            process = start(store.root, place / "m.onnx", place / "a", loop)
            assert process.stdout.readline() == "begun\n"
            time.sleep(rng.uniform(0.05, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate(timeout=60)
            for key in store.every_key():
                entry, _ = store.read(key)
                store.fetch(entry, place / "fetched")
        pretend(monkeypatch)
        assert get(store, place / "m.onnx", place / "b").engine.size == 280_000
        store.sweep()
        assert sound(store) == 1

    def test_gc_leaves_an_entry_that_is_in_use(self, place: Path, store: Store, monkeypatch) -> None:
        pretend(monkeypatch)
        get(store, place / "m.onnx", place / "e")
        (key,) = store.every_key()
        lock = Lock.create(store.root / f"{key}.lock")
        assert not store.remove(key)
        lock.remove()
        assert store.remove(key)
        assert list(store.root.iterdir()) == []


def test_entries_say_what_they_are(place: Path, store: Store, monkeypatch) -> None:
    pretend(monkeypatch)
    get(store, place / "m.onnx", place / "e", label="net")
    os.utime(store.entries()[0].folder / "engine.json", (1, 1))
    get(store, place / "m.onnx", place / "e", sm=120)
    newest, oldest = store.entries()
    assert (newest.record.sm, oldest.record.sm, oldest.used) == (120, 89, 1)
    assert (oldest.label, oldest.size) == ("net", 280_000)
    content = json.loads((oldest.folder / "engine.json").read_text())
    assert set(content["parts"]) >= {"graph", "profile", "dtypes", "flags", "builder", "version", "sm", "toolkit"}
    get(store, place / "m.onnx", place / "e")
    assert store.entries()[0].record.sm == 89, "a hit is a use"
    assert (oldest.folder / ENGINE).stat().st_size == 280_000
