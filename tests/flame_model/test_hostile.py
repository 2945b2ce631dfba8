"""A pickle can't make the reader do anything: hostile files and mutations end in an InputError that names the byte."""

from __future__ import annotations

import importlib.util
import pickle
import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flame_model import list_globals, load_flame, load_landmarks, load_masks
from flame_model.pickle_reader import MAX_FILE_BYTES
from tests.conftest import ROOT
from tests.flame_model import hostile, synthetic
from utils.errors import InputError


def refused(path: Path, load: Callable[[Path], Any] = load_flame) -> str:
    """The message with which `path` is refused, after checking that it is one and that nothing happened meanwhile."""
    modules = set(sys.modules)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert peak < 2_000_000 + 8 * path.stat().st_size, peak
    assert set(sys.modules) == modules
    assert message.isprintable() and len(message) < 1000
    assert str(path) in message and re.search(r"byte \d+", message), message
    return message


@pytest.mark.parametrize("name", hostile.calls("x"))
def test_no_call_is_ever_made(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile.calls(str(marker))[name])
    message = refused(path)
    assert "not permitted" in message
    assert not marker.exists()


@pytest.mark.parametrize("name", hostile.opcodes())
def test_refuses_malformed_opcodes(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile.opcodes()[name])
    refused(path)


@pytest.mark.parametrize("name", hostile.records())
def test_refuses_contradicting_records(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile.records()[name])
    assert "v_template" in refused(path)


def test_the_same_records_are_accepted_when_nothing_is_wrong(tmp_path: Path) -> None:
    """The refusals above are due to what is wrong: the array they are made of reads, then only its shape is refused."""
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile.as_field(hostile.array(b"K\x01\x85", b"C\x08" + bytes(8))))
    with pytest.raises(InputError, match=r"found shape \(1,\), expected \(any, 3\)"):
        load_flame(path)


def test_arrays_together_never_exceed_the_file(tmp_path: Path) -> None:
    path = tmp_path / "masks.pkl"
    path.write_bytes(hostile.shared_content())
    assert "together are larger than the file" in refused(path, lambda file: load_masks(file, 60))


def test_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    prefix = b"\x80\x02}" + hostile.text("v_template")
    path.write_bytes(prefix + hostile.called(hostile.named("os", "system"), hostile.text("true")) + b"s.")
    assert f"byte {len(prefix)}: asks for the global 'os system'" in refused(path)


def test_advice_for_protocol_5(tmp_path: Path) -> None:
    path = synthetic.write(tmp_path / "model.pkl", synthetic.fields(), 5)
    assert "protocol=4" in refused(path)


def test_large_files_are_refused_before_reading(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    with open(path, "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no space
    with pytest.raises(InputError, match="at most"):
        load_flame(path)


def test_landmark_globals_only_count_in_the_landmark_file(tmp_path: Path) -> None:
    path = tmp_path / "landmarks.npy"
    np.save(path, np.array({"x": 1}, dtype=object), allow_pickle=True)
    header = path.read_bytes()[:128]
    path.write_bytes(header + hostile.calls("x")["os.system, global"])
    message = refused(path, lambda file: load_landmarks(file, 10))
    assert "byte 128: asks for the global 'os system'" in message
    path.write_bytes(header + hostile.called(hostile.named("torch.storage", "_load_from_bytes"), b"C\x01x") + b".")
    assert "expected an object array" in refused(path, lambda file: load_landmarks(file, 10))


def test_listing_names_what_a_file_asks_for(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "model.pkl"
    path.write_bytes(hostile.calls(str(marker))["os.system, stack global"])
    listing = list_globals(path)
    assert [(name, permitted) for _, name, permitted in listing.globals] == [("os system", False)]
    assert listing.opcodes["REDUCE"] == listing.opcodes["STACK_GLOBAL"] == 1 and not listing.stopped
    path.write_bytes(hostile.opcodes()["extension 1"])
    assert "EXT1" in list_globals(path).stopped
    good = list_globals(synthetic.write(path, synthetic.with_sparse(synthetic.fields())))
    assert all(permitted for _, _, permitted in good.globals) and not good.stopped
    assert not marker.exists()


def test_the_script_reports_refused_globals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("flame_globals", ROOT / "scripts" / "flame_globals.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    good = synthetic.write(tmp_path / "good.pkl", synthetic.masks(60))
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(hostile.calls(str(tmp_path / "marker"))["builtins.eval, global"])
    assert script.main([str(good)]) == 0
    assert script.main([str(good), str(bad)]) == 2
    out = capsys.readouterr().out
    assert "'builtins eval', first at byte 0: REFUSED" in out and "'numpy dtype'" in out


def _seeds(folder: Path) -> dict[str, tuple[bytes, Callable[[Path], Any]]]:
    model = synthetic.with_sparse(synthetic.fields(6, 1))
    np.save(folder / "seed.npy", np.array({"full_lmk_faces_idx": np.zeros((1, 3), int)}, dtype=object))
    landmark = (folder / "seed.npy").read_bytes()
    chumpy = ("v_template", "weights")
    return {
        "masks": (pickle.dumps(synthetic.masks(60), 2), lambda path: load_masks(path, 60)),
        "model": (pickle.dumps(model, 4), load_flame),
        "python 2": (synthetic.Python2(2, chumpy).dumps(model), load_flame),
        "python 2, text": (synthetic.Python2(0, chumpy).dumps({**model, "shapedirs": model["weights"]}), load_flame),
        "landmarks": (landmark, lambda path: load_landmarks(path, 10)),
    }


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """One to four random edits: changed, inserted, removed, repeated or moved bytes, or a cut."""
    content = bytearray(data)
    for _ in range(random.integers(1, 5)):
        at, kind = int(random.integers(0, max(len(content), 1))), random.integers(0, 6)
        size = int(random.integers(1, 9))
        if kind == 0:
            content[at : at + 1] = random.bytes(1)
        elif kind == 1:
            content[at:at] = random.bytes(size)
        elif kind == 2:
            del content[at : at + size]
        elif kind == 3:
            content[at:at] = content[at : at + 4 * size]
        elif kind == 4:
            other = int(random.integers(0, max(len(content), 1)))
            content[at : at + size] = content[other : other + size]
        elif random.random() < 0.2:
            del content[at:]
    return bytes(content)


@pytest.mark.parametrize("name", ["masks", "model", "python 2", "python 2, text", "landmarks"])
def test_mutations_only_ever_raise_input_errors(name: str, tmp_path: Path) -> None:
    data, load = _seeds(tmp_path)[name]
    random = np.random.default_rng(7)
    path, outcomes = tmp_path / "mutant", {True: 0, False: 0}
    structure = len(data) if len(data) < 20_000 else None
    for _ in range(500):
        # In a large file random places are array bytes; most edits go to the ends, where the structure is.
        if structure is None and random.random() < 0.9:
            mutant = mutated(data[:600], random) + data[600:-4000] + mutated(data[-4000:], random)
        else:
            mutant = mutated(data, random)
        path.write_bytes(mutant)
        try:
            load(path)
            outcomes[True] += 1
        except InputError:
            outcomes[False] += 1
    assert outcomes[False] > 250
