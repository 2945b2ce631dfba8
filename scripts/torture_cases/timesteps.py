"""N4: timesteps with gaps, out of range, of the wrong type, or in a held-out split only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.torture_cases.case import Box, Case, Command, Expected, Refused, Works
from tests.scene.make_capture import read_transforms, write_transforms

SPLITS = ("train", "val", "test")
PLACE = r"transforms_\w+\.json: frames\[\d+\]\.timestep_index"
DELETE = object()


def case(name: str, change: dict[int, Any], *words: str, expected: Expected | None = None) -> Case:
    """Give every frame of the timesteps in `change` another timestep."""

    def prepare(box: Box) -> Command:
        for split in SPLITS:
            frames = read_transforms(box.capture, split)
            for frame in frames:
                value = change.get(frame["timestep_index"], frame["timestep_index"])
                if value is DELETE:
                    del frame["timestep_index"]
                else:
                    frame["timestep_index"] = value
            write_transforms(box.capture, split, frames)
        return box.train()

    return Case("N4", name, prepare, expected or Refused((PLACE, *words)))


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row; the intact capture has timesteps 0 to 3, the last one in test alone."""
    yield case("a gap in the middle", {1: 4}, "timestep 1", "0 to 4")
    yield case("a gap before the last", {3: 9}, "timestep 3", "0 to 9")
    yield case("the first is 1", {0: 4}, "timestep 0", "0 to 4")
    yield case("all moved by 5", {0: 5, 1: 6, 2: 7, 3: 8}, "timestep 0", "0 to 8")
    yield case("-1", {2: -1}, "found -1", r"\[0, ")
    yield case("none", {1: DELETE}, "missing")
    yield case("null", {1: None}, "missing")
    yield case("text", {1: "7"}, '"7"')
    yield case("a fraction", {1: 1.5}, "1.5")
    yield case("true", {1: True}, "true")
    yield case("10^9", {3: 10**9}, "1000000000")
    yield case("10^7", {3: 10**7}, "timestep 3|10000000")
    yield case("2^63", {3: 2**63}, "integer")
    yield case(
        "two timesteps made one", {2: 1, 3: 2}, expected=Refused((r"frames\[\d+\]\.flame_param_path", "timestep 1"))
    )
    yield Case(
        "N4", "one in validation only", lambda box: keep(box, "val"), Works(why="timesteps count over all splits")
    )
    yield Case("N4", "one in test only", lambda box: box.train(), Works(why="timesteps count over all splits"))


def keep(box: Box, split: str) -> Command:
    """Timestep 1 stays in one split alone."""
    for other in SPLITS:
        if other != split:
            frames = [frame for frame in read_transforms(box.capture, other) if frame["timestep_index"] != 1]
            write_transforms(box.capture, other, frames)
    return box.train()
