"""Bad input through the whole program: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

import train
from tests.tiny import write_tiny
from utils.errors import run_main

Spoil = Callable[[Path], object]


def edit_frame(field: str, value: object) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "capture" / "transforms_train.json"
        content = json.loads(path.read_text())
        content["frames"][2][field] = value
        path.write_text(json.dumps(content))

    return spoil


class Hostile:
    """Unpickling this runs a command."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch /tmp/mien-was-here",)


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


FAULTS: dict[str, tuple[Spoil, str]] = {
    "missing image": (lambda f: (f / "capture/images/00001_00.png").unlink(), "00001_00.png"),
    "truncated PNG": (lambda f: cut(f / "capture/images/00001_01.png", 0.6), "00001_01.png"),
    "truncated matte": (lambda f: cut(f / "capture/fg_masks/00002_00.png", 0.9), "00002_00.png"),
    "NaN matrix": (edit_frame("transform_matrix", [[float("nan")] * 4] * 4), "transforms_train.json"),
    "zero matrix": (edit_frame("transform_matrix", [[0.0] * 4] * 4), "transform_matrix"),
    "negative focal length": (edit_frame("fl_x", -3.0), "fl_x"),
    "timestep as text": (edit_frame("timestep_index", "7"), "timestep_index"),
    "path out of the data root": (edit_frame("file_path", "../../../../etc/passwd"), "file_path"),
    "hostile FLAME file": (lambda f: (f / "head.pkl").write_bytes(pickle.dumps(Hostile(), 2)), "head.pkl"),
    "truncated FLAME file": (lambda f: cut(f / "head.pkl", 0.5), "head.pkl"),
    "no FLAME file": (lambda f: (f / "head.pkl").unlink(), "make demo"),
    "broken masks": (lambda f: (f / "masks.pkl").write_bytes(b"junk"), "masks.pkl"),
    "broken parameters": (lambda f: cut(f / "capture/flame_param/00001.npz", 0.5), "00001.npz"),
    "no transforms": (lambda f: (f / "capture/transforms_train.json").unlink(), "transforms_train.json"),
    "not JSON": (lambda f: cut(f / "capture/transforms_train.json", 0.7), "transforms_train.json"),
}


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_one_line_exit_2_nothing_written(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = write_tiny(tmp_path / "data")
    spoil, named = FAULTS[name]
    spoil(tmp_path / "data")
    before = sorted(path for path in tmp_path.rglob("*"))
    assert run_main(train.main, [*flags, "-m", str(tmp_path / "out"), "--iterations", "2"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and named in lines[0] and "Traceback" not in lines[0]
    assert sorted(path for path in tmp_path.rglob("*")) == before, "something was written"
    assert not Path("/tmp/mien-was-here").exists()
