"""Checkpoints: whole or absent, verified, and the previous good one when the newest is not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from utils.engine.checkpoint import KEEP, MANIFEST, META, TENSORS, list_checkpoints, load_checkpoint, newest_good
from utils.engine.checkpoint import save_checkpoint as save
from utils.errors import EnvironmentFault, InputError


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((100, 3), value), "step": torch.tensor(int(value))}


def test_round_trip_and_pruning(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, tensors(step), {"note": "x"})
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_0000003", "step_0000002"][:KEEP]
    path, state, meta, complaints = newest_good(tmp_path)
    assert (
        path.name == "step_0000003" and meta.integer("step", 3, 3) == 3 and meta.text("note") == "x" and not complaints
    )
    assert torch.equal(state["a"], tensors(3)["a"]) and int(state["step"]) == 3
    assert not [entry for entry in tmp_path.iterdir() if ".tmp-" in entry.name]


@pytest.mark.parametrize("name", [TENSORS, META, MANIFEST])
@pytest.mark.parametrize("damage", ["remove", "cut", "flip", "empty"])
def test_damage_falls_back_to_the_checkpoint_before(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 1, tensors(1), {})
    victim = save(tmp_path, 2, tensors(2), {}) / name
    content = bytearray(victim.read_bytes())
    if damage == "remove":
        victim.unlink()
    elif damage == "cut":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "flip":
        content[len(content) // 2] ^= 0x10
        victim.write_bytes(content)
    else:
        victim.write_bytes(b"")
    path, state, _, complaints = newest_good(tmp_path)
    assert path.name == "step_0000001" and int(state["step"]) == 1
    assert len(complaints) == 1 and "step_0000002" in complaints[0]


def test_every_checkpoint_bad_is_an_input_error(tmp_path: Path) -> None:
    (save(tmp_path, 1, tensors(1), {}) / TENSORS).write_bytes(b"no")
    with pytest.raises(InputError, match="no complete checkpoint"):
        newest_good(tmp_path)


def test_other_schema_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1, tensors(1), {})
    meta = json.loads((path / META).read_text())
    with pytest.raises(InputError, match="expected"):
        (path / META).write_text(json.dumps({**meta, "schema": 99}))
        load_checkpoint(path)


def test_unwritable_folder_names_the_path(tmp_path: Path) -> None:
    blocker = tmp_path / "checkpoints"
    blocker.write_text("a file where the folder should be")
    with pytest.raises(EnvironmentFault, match="checkpoints"):
        save(blocker, 1, tensors(1), {})


def save_for_ever(folder: str, ready: str) -> None:
    torch.set_num_threads(1)
    step = 1
    while True:
        save(Path(folder), step, {"a": torch.full((40_000,), float(step))}, {})
        Path(ready).write_text(str(step))
        step += 1


def test_killed_while_saving_the_newest_acknowledged_checkpoint_loads(tmp_path: Path) -> None:
    """SIGKILL at 12 random moments of a process that only saves; the full count runs outside the tests."""
    chance = random.Random(0)
    context = multiprocessing.get_context("fork")
    for trial in range(12):
        folder, ready = tmp_path / f"trial{trial}", tmp_path / f"ready{trial}"
        process = context.Process(target=save_for_ever, args=(str(folder), str(ready)))
        process.start()
        deadline = time.monotonic() + 30
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        acknowledged = int(ready.read_text() or 0)
        _, state, meta, _ = newest_good(folder)
        assert meta.integer("step", 1, 10**9) >= acknowledged
        assert torch.equal(state["a"], torch.full((40_000,), float(meta.integer("step", 1, 10**9))))
