"""C6: hostile, malformed and contradictory FLAME pickles (`tests/flame_model/hostile.py`), damage, network weights."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.numpy

from flame_model import load_flame
from scripts.torture_cases.case import Box, Case, Command, Either, Expected, Refused, Works, cut, flip, spread
from scripts.torture_cases.meshes import model_fields
from tests.flame_model import hostile

CUTS, FLIPS = 12, 15
NO_ADVICE = "^(?!.*weights_only)"  # PyTorch's own message tells people to load the file unsafely
MODEL, MASKS = r"head\.pkl", r"masks\.pkl"


def case(name: str, content: Callable[[Box], bytes], *words: str, masks: bool = False) -> Case:
    def prepare(box: Box) -> Command:
        (box.masks if masks else box.head).write_bytes(content(box))
        return box.train()

    def acted(box: Box, errors: str) -> str:
        return "the file created the marker" if marker(box) in map(str, box.root.iterdir()) else ""

    return Case("C6", name, prepare, Refused((MASKS if masks else MODEL, *words), check=acted))


def marker(box: Box) -> str:
    return str(box.root / "marker")


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    for name in hostile.calls("x"):
        yield case(f"call: {name}", lambda box, n=name: hostile.calls(marker(box))[n], r"byte \d+", "not permitted")
    for name in ("os.system, global", "builtins.eval, stack global", "inst", "obj"):
        yield case(
            f"call in the masks: {name}", lambda box, n=name: hostile.calls(marker(box))[n], r"byte \d+", masks=True
        )
    for name, content in hostile.opcodes().items():
        yield case(f"opcode: {name}", lambda box, c=content: c, r"byte \d+")
    for name, content in hostile.records().items():
        yield case(f"record: {name}", lambda box, c=content: c, "v_template", r"byte \d+")
    yield case("masks that share one array", lambda box: hostile.shared_content(), "larger than the file", masks=True)
    yield from fields()
    yield from weights()
    yield from damage(np.random.default_rng([seed, 6]))


def damage(rng: np.random.Generator) -> Iterator[Case]:
    """Cut files, flipped bits, no file."""

    def damaged(name: str, spoil: Callable[[Any], object], expected: Expected) -> Case:
        def prepare(box: Box) -> Command:
            spoil(box.head)
            return box.train()

        return Case("C6", name, prepare, expected)

    for share in spread(1000, CUTS):
        yield damaged(
            f"cut to {share / 10:g} %",
            lambda path, s=share: cut(path, path.stat().st_size * s // 1000),
            Refused((MODEL, r"byte \d+")),
        )
    either = Either(Refused((MODEL,)), Works(why="a number that is as good as another"))
    for bit in sorted(rng.choice(8 * 400, FLIPS, replace=False).tolist()):
        yield damaged(f"bit {bit} flipped", lambda path, b=bit: flip(path, b), either)
    for name in ("model", "masks"):
        yield Case(
            "C6", f"no {name}", lambda box, n=name: gone(box, n), Refused(({"model": MODEL, "masks": MASKS}[name],))
        )


def gone(box: Box, name: str) -> Command:
    (box.head if name == "model" else box.masks).unlink()
    return box.train()


def fields() -> Iterator[Case]:
    """Models that read well and make no sense."""

    def changed(name: str, change: Callable[[dict[str, Any]], object], *words: str) -> Case:
        def content(box: Box) -> bytes:
            model = model_fields(box.head)
            change(model)
            return pickle.dumps(model, 4)  # at 2, an array without elements asks for `bytes`

        return case(name, content, *words)

    for field in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f"):
        yield changed(f"field {field} missing", lambda m, f=field: m.pop(f), field)
        yield changed(f"field {field} flat", lambda m, f=field: m.__setitem__(f, m[f].ravel()), field)
        if field != "f":  # a mesh of one face less is a mesh
            yield changed(
                f"field {field} a row short",
                lambda m, f=field: m.__setitem__(f, m[f][:-1]),
                "" if field == "v_template" else field,
            )
        if m_float(field):
            yield changed(f"field {field} with NaN", lambda m, f=field: m[f].__setitem__((0, 0), np.nan), field)
    for value in (72, 2**31, 2**32 - 1):
        yield changed(f"a face of vertex {value}", lambda m, v=value: m["f"].__setitem__((3, 1), v), "f: ")
    yield changed("weights that sum to 2", lambda m: m["weights"].__imul__(2), "weights")
    yield changed(
        "a joint that is its own parent", lambda m: m["kintree_table"].__setitem__((0, 2), 2), "kintree_table"
    )
    yield case_of_floats()
    yield changed("no faces", lambda m: m.__setitem__("f", m["f"][:0]), "f: ")


def case_of_floats() -> Case:
    """A model in single precision is a model."""

    def prepare(box: Box) -> Command:
        model = {
            name: value.astype(np.float32) if getattr(value, "dtype", None) == np.float64 else value
            for name, value in model_fields(box.head).items()
        }
        box.head.write_bytes(pickle.dumps(model, 4))
        return box.train()

    def writable(box: Box, errors: str) -> str:
        return "" if load_flame(box.head).template.flags.writeable else "its arrays are the bytes of the file"

    return Case("C6", "a model in float32", prepare, Works(writable, "real numbers of any type are read as float32"))


def m_float(field: str) -> bool:
    return field not in ("kintree_table", "f")


def weights() -> Iterator[Case]:
    """Files given to metrics.py as network weights: PyTorch's formats are pickles too."""

    def case_of(name: str, suffix: str, content: Callable[[Box], bytes]) -> Case:
        def prepare(box: Box) -> Command:
            path = box.root / f"weights{suffix}"
            path.write_bytes(content(box))
            return box.metrics(f"--lpips_alex_weights={path}")

        def acted(box: Box, errors: str) -> str:
            return "the file created the marker" if marker(box) in map(str, box.root.iterdir()) else ""

        return Case(
            "C6", f"weights: {name}", prepare, Refused((rf"weights\{suffix}", NO_ADVICE), check=acted), trained=True
        )

    def packed(box: Box) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/data.pkl", hostile.calls(marker(box))["os.system, global"])
            archive.writestr("a/version", "3")
        return file.getvalue()

    yield case_of("a call in a .pth", ".pth", packed)
    for name in ("os.system, global", "builtins.eval, stack global", "torch bytes, global"):
        yield case_of(f"a bare pickle, {name}", ".pth", lambda box, n=name: hostile.calls(marker(box))[n])
    for suffix in (".pth", ".safetensors"):
        yield case_of(f"empty {suffix}", suffix, lambda box: b"")
        yield case_of(f"junk as {suffix}", suffix, lambda box: b"hello" * 100)
    yield case_of("other tensors", ".safetensors", lambda box: safetensors.numpy.save({"a": np.zeros(3, np.float32)}))
    yield case_of("a header of 4 GiB", ".safetensors", lambda box: b"\xff" * 4 + bytes(4))
