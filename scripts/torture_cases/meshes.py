"""N3: degenerate triangles, a scene without extent, one or few views. All of it is finite, or refused."""

from __future__ import annotations

import csv
import math
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch

from flame_model import load_flame
from scripts.torture_cases.case import Box, Case, Command, Expected, Refused, Works
from tests.scene.make_capture import read_transforms, write_transforms
from utils.io.ply import read_gaussian_ply

Change = Callable[[dict[str, Any]], object]


def model_fields(path: Path) -> dict[str, Any]:
    """The arrays of a model file under FLAME's names."""
    assets = load_flame(path)
    parents = assets.parents.astype(np.int64)
    parents[0] = 2**32 - 1
    arrays = {
        "v_template": assets.template,
        "shapedirs": np.concatenate([assets.shape_dirs, assets.expr_dirs], 2),
        "posedirs": assets.pose_dirs,
        "J_regressor": assets.joint_regressor,
        "weights": assets.weights,
        "kintree_table": np.stack([parents, np.arange(len(parents))]),
        "f": assets.faces,
    }
    doubles = {
        name: array.astype(np.int64 if array.dtype.kind == "i" else np.float64) for name, array in arrays.items()
    }
    return {**doubles, "edition": assets.edition}


def finite(box: Box, errors: str) -> str:
    """Nothing that a run left behind holds NaN or infinity."""
    for path in sorted(box.root.rglob("state.safetensors")):
        for name, tensor in safetensors.torch.load_file(path).items():
            if not bool(tensor.isfinite().all()):
                return f"{path.parent.name}: {name} holds a value that is not finite"
    for path in sorted(box.root.rglob("point_cloud.ply")):
        read_gaussian_ply(path)
    log = box.out / "log.csv"
    for row in csv.DictReader(log.open()) if log.exists() else ():
        if not math.isfinite(float(row["value"])):
            return f"log.csv: {row}"
    return ""


def says_once(pattern: str) -> Works:
    """All is finite, and one line tells the user."""

    def check(box: Box, errors: str) -> str:
        lines = [line for line in errors.splitlines() if re.search(pattern, line)]
        return finite(box, errors) or (
            "" if len(lines) == 1 else f"expected one line that says {pattern}, found {lines}"
        )

    return Works(check, "finite, with one warning", chatty=True)


def aloud(command: Command) -> Command:
    """Without --quiet."""
    return replace(command, argv=[word for word in command.argv if word != "--quiet"])


def mesh(name: str, change: Change, expected: Expected | None = None) -> Case:
    """Change the model file."""

    def prepare(box: Box) -> Command:
        model = model_fields(box.head)
        change(model)
        box.head.write_bytes(pickle.dumps(model, 2))
        return aloud(box.train()) if isinstance(expected, Works) and expected.chatty else box.train()

    return Case("N3", name, prepare, expected or Works(finite, "a triangle without area gets a finite frame"))


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    yield from triangles()
    yield from broken()
    yield from views()


def triangles() -> Iterator[Case]:
    """Triangles without area, turned over, or of extreme shape."""

    def at(face: int, corners: tuple[int, int, int]) -> Change:
        return lambda m: m["f"].__setitem__(face, corners)

    def corner(face: int, index: int, place: Callable[[np.ndarray], np.ndarray]) -> Change:
        """Move one corner of a face to where `place` puts it, given the face's corners [3, 3]."""

        def change(m: dict[str, Any]) -> None:
            ids = m["f"][face]
            m["v_template"][ids[index]] = place(m["v_template"][ids])

        return change

    yield mesh("one edge of 0: the first", at(5, (1, 1, 2)))
    yield mesh("one edge of 0: the second", at(5, (1, 2, 2)))
    yield mesh("one edge of 0: the last", at(5, (1, 2, 1)))
    yield mesh("all corners one vertex", at(5, (4, 4, 4)))
    yield mesh("two vertices in one place", corner(5, 1, lambda p: p[0]))
    yield mesh(
        "all vertices of a face in one place", lambda m: m["v_template"].__setitem__(m["f"][9], m["v_template"][3])
    )
    yield mesh("collinear", corner(5, 2, lambda p: 0.5 * (p[0] + p[1])))
    yield mesh("a needle", corner(5, 2, lambda p: p[0] + 1e-12))
    yield mesh("turned over", lambda m: m["f"].__setitem__(5, m["f"][5][::-1].copy()))
    yield mesh("every face turned over", lambda m: m.__setitem__("f", m["f"][:, ::-1].copy()))
    yield mesh("a face twice", lambda m: m["f"].__setitem__(6, m["f"][5]))
    yield mesh("one face 1 km long", corner(5, 0, lambda p: p[0] + 1000.0))
    yield mesh("one face only", lambda m: m.__setitem__("f", m["f"][:1]))
    yield mesh("vertices without faces", lambda m: m.__setitem__("f", m["f"][:20]))
    yield mesh("all vertices in one place", lambda m: m["v_template"].__imul__(0.0))
    yield mesh("a degenerate face is warned about once", at(5, (1, 1, 2)), says_once("without area|degenerate"))


def broken() -> Iterator[Case]:
    """Vertices that are no places."""

    def vertex(value: float) -> Change:
        return lambda m: m["v_template"].__setitem__((7, 1), value)

    for value in (np.nan, np.inf, -np.inf):
        yield mesh(f"a vertex at {value}", vertex(value), Refused((r"head\.pkl", "v_template")))
    yield mesh("a vertex at 1e300", vertex(1e300), Refused((r"head\.pkl", "v_template")))
    yield mesh("a vertex at 1e38", vertex(1e38), Refused((r"head\.pkl", "v_template")))


def views() -> Iterator[Case]:
    """One static camera, few frames, few held-out views."""

    def case(name: str, edit: Callable[[Path], object], *flags: str, expected: Expected | None = None) -> Case:
        def prepare(box: Box) -> Command:
            edit(box.capture)
            command = box.train(*flags)
            return aloud(command) if isinstance(expected, Works) and expected.chatty else command

        return Case("N3", name, prepare, expected or Works(finite, "any number of views"))

    def keep(split: str, count: int) -> Callable[[Path], object]:
        return lambda folder: write_transforms(folder, split, (3 * read_transforms(folder, split))[:count])

    def static(folder: Path) -> None:
        first = read_transforms(folder)[0]["transform_matrix"]
        for split in ("train", "val", "test"):
            frames = [{**frame, "transform_matrix": first} for frame in read_transforms(folder, split)]
            write_transforms(folder, split, frames)

    yield case("a static camera, extent of the head", static)
    yield case("a static camera, extent of the cameras (0)", static, "--scene_extent=cameras")
    yield case(
        "a static camera with extent 0 is warned about",
        static,
        "--scene_extent=cameras",
        expected=says_once("--scene_extent cameras is 0"),
    )
    for count in (1, 2, 9):
        yield case(f"{count} test views", keep("test", count))
        yield case(f"{count} validation views", keep("val", count))
    yield case("no validation file", lambda folder: (folder / "transforms_val.json").unlink())
    yield case("one camera only", lambda folder: None, "--select_camera_id=0")

    def one_frame(folder: Path) -> None:
        for split in ("val", "test"):
            write_transforms(folder, split, [])
        keep("train", 1)(folder)

    yield case("one frame in all", one_frame)
    yield case("nothing held out", one_frame, "--densify_from_iter=0", "--densification_interval=1")
    yield Case("N3", "no mattes", no_mattes, Works(finite, "datasets without mattes are read"))


def no_mattes(box: Box) -> Command:
    shutil.rmtree(box.capture / "fg_masks")
    return box.train()
