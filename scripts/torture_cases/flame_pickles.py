"""C6: hostile, malformed and contradictory FLAME pickles; the corpus of `tests/flame_model/hostile.py` and damage."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from scripts.torture_cases.case import Box, Case, Command, Either, Expected, Refused, Works, cut, flip, spread
from tests.flame_model import hostile

CUTS, FLIPS = 12, 15
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
    yield from damage(np.random.default_rng([seed, 6]))


def damage(rng: np.random.Generator) -> Iterator[Case]:
    """Cut files, flipped bits, no file."""

    def damaged(name: str, spoil: Callable[[Any], object], expected: Expected) -> Case:
        def prepare(box: Box) -> Command:
            spoil(box.head)
            return box.train()

        return Case("C6", name, prepare, expected)

    for share in spread(1000, CUTS):
        yield damaged(f"cut to {share / 10:g} %", lambda path, s=share: cut(path, path.stat().st_size * s // 1000),
                      Refused((MODEL, r"byte \d+")))  # fmt: skip
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
            model = pickle.loads(box.head.read_bytes())  # noqa: S301 - written by tests/tiny.py a moment ago
            change(model)
            return pickle.dumps(model, 4)  # at 2, an array without elements asks for `bytes`

        return case(name, content, *words)

    for field in ("v_template", "shapedirs", "posedirs", "J_regressor", "weights", "kintree_table", "f"):
        yield changed(f"field {field} missing", lambda m, f=field: m.pop(f), field)
        yield changed(f"field {field} flat", lambda m, f=field: m.__setitem__(f, m[f].ravel()), field)
        if field != "f":  # a mesh of one face less is a mesh
            yield changed(f"field {field} a row short", lambda m, f=field: m.__setitem__(f, m[f][:-1]),
                          "" if field == "v_template" else field)  # fmt: skip
        if m_float(field):
            yield changed(f"field {field} with NaN", lambda m, f=field: m[f].__setitem__((0, 0), np.nan), field)
    for value in (72, 2**31, 2**32 - 1):
        yield changed(f"a face of vertex {value}", lambda m, v=value: m["f"].__setitem__((3, 1), v), "f: ")
    yield changed("weights that sum to 2", lambda m: m["weights"].__imul__(2), "weights")
    yield changed(
        "a joint that is its own parent", lambda m: m["kintree_table"].__setitem__((0, 2), 2), "kintree_table"
    )
    yield changed("no faces", lambda m: m.__setitem__("f", m["f"][:0]), "f: ")


def m_float(field: str) -> bool:
    return field not in ("kintree_table", "f")
