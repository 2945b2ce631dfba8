"""C5: checkpoints with missing, cut, flipped or exchanged files, and whole ones that hold something else."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from scripts.torture_cases.case import (
    FIRST_CHECKPOINT,
    Box,
    Case,
    Command,
    Refused,
    Works,
    flip,
    spread,
    state_digest,
)

TENSORS, META, MANIFEST = "state.safetensors", "state.json", "manifest.json"
EARLY = f"step_{FIRST_CHECKPOINT:07d}"
FILES = (TENSORS, META, MANIFEST)
CUTS = {TENSORS: 50, META: 10, MANIFEST: 8}
COLUMNS = ("means", "sh0", "shN", "opacities", "scales", "quats")
MOTION = ("rotation", "neck_pose", "jaw_pose", "eyes_pose", "translation", "expr")
MOMENTS = ("exp_avg", "exp_avg_sq")
STATE = [
    *(f"columns.{name}" for name in COLUMNS),
    "binding",
    "sh_degree",
    *(f"flame.{name}" for name in MOTION),
    *(f"optimiser.{name}.{moment}" for name in (*COLUMNS, *MOTION) for moment in MOMENTS),
    "optimiser.count",
    *(f"optimiser.{name}.steps" for name in MOTION),
    *(f"densification.{name}" for name in ("gradient", "seen", "radius", "pruned")),
]
Spoil = Callable[[Path], object]


def falls_back(name: str, spoil: Spoil) -> Case:
    """The newest checkpoint is damaged: the run says so, steps back, and ends in the bits of an undisturbed run."""

    def prepare(box: Box) -> Command:
        shutil.rmtree(box.avatar)  # so that the result must be computed again
        spoil(box.newest())
        return box.resume()

    return Case(
        "C5", name, prepare, Works(stepped_back, "the checkpoint before it is used, and that is said"), trained=True
    )


def stepped_back(box: Box, errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.startswith("warning: ")]
    if len(lines) != 1 or box.newest().name not in lines[0] or "stepping back" not in lines[0]:
        return f"expected one warning that names {box.newest().name}, found {lines}"
    intact = box.root.parent / "intact" / "run"
    same = state_digest(box.run) == state_digest(intact)
    return "" if same else "the continued run ends in other bits than the undisturbed one"


def refused(name: str, spoil: Spoil, *words: str, path: bool = False) -> Case:
    """Every checkpoint is spoilt, or the one that is asked for by path."""

    def prepare(box: Box) -> Command:
        chosen = [box.newest()] if path else list(box.checkpoints.iterdir())
        for folder in chosen:
            spoil(folder)
        return box.train(f"--resume={box.newest()}", out=box.run) if path else box.resume()

    return Case("C5", name, prepare, Refused(("checkpoints", *words)), trained=True)


def continued(name: str, spoil: Spoil, *words: str, works: str = "") -> Case:
    """The only checkpoint is one of an early step; what it holds would be trained on. It is refused, naming `words`,
    unless `works` says why it is not."""

    def prepare(box: Box) -> Command:
        shutil.rmtree(box.newest())
        shutil.rmtree(box.avatar)
        spoil(box.checkpoints / EARLY)
        return box.resume()

    expected = Works(why=works) if works else Refused((rf"checkpoints\S*{EARLY}", *words))
    return Case("C5", name, prepare, expected, trained=True)


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    yield from damage()
    yield from bits()
    yield from everything_damaged()
    yield from other_state()
    yield from other_facts()


def damage() -> Iterator[Case]:
    """Files missing, cut, emptied, exchanged; folders that are none."""
    for file in FILES:
        yield falls_back(f"{file} missing", lambda folder, f=file: (folder / f).unlink())
        yield falls_back(f"{file} a folder", lambda folder, f=file: ((folder / f).unlink(), (folder / f).mkdir()))
        yield falls_back(
            f"{file} of the checkpoint before",
            lambda folder, f=file: shutil.copyfile(folder.with_name(EARLY) / f, folder / f),
        )
        yield falls_back(f"{file} a byte longer", lambda folder, f=file: append(folder / f, b"x"))
        for share in spread(1000, CUTS[file]):

            def shorten(folder: Path, file: str = file, share: int = share) -> None:
                data = (folder / file).read_bytes()
                (folder / file).write_bytes(data[: len(data) * share // 1010])  # not just the last line end

            yield falls_back(f"{file} cut to {share / 10:g} %", shorten)
    yield falls_back("an empty folder", lambda folder: [(folder / file).unlink() for file in FILES])
    yield falls_back("a file instead of the folder", lambda folder: (shutil.rmtree(folder), folder.write_bytes(b"x")))
    yield falls_back(
        "the manifest lists a file outside",
        lambda folder: manifest(folder, lambda m: m | {"../../../options.json": m[META]}),
    )
    yield falls_back("the manifest lists one file only", lambda folder: manifest(folder, lambda m: {META: m[META]}))
    yield falls_back("the manifest holds numbers", lambda folder: manifest(folder, lambda m: dict.fromkeys(m, 1)))
    yield falls_back("the manifest is a list", lambda folder: manifest(folder, list))


def append(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)


def manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def bits() -> Iterator[Case]:
    """One flipped bit in each tensor, in the header of the tensors and in both JSON files."""
    for index, name in enumerate(STATE):

        def spoil(folder: Path, name: str = name, index: int = index) -> None:
            data = (folder / TENSORS).read_bytes()
            size = int.from_bytes(data[:8], "little")
            start, end = json.loads(data[8 : 8 + size])[name]["data_offsets"]
            flip(folder / TENSORS, 8 * (8 + size + start) + (7 * index) % (8 * (end - start)))

        yield falls_back(f"a bit of {name} flipped", spoil)
    for file in FILES:
        for share in (0.0, 0.3, 0.9):
            yield falls_back(
                f"{file}: a bit flipped at {share:.0%}",
                lambda folder, f=file, s=share: flip(
                    folder / f, int(8 * s * (min((folder / f).stat().st_size, 2000) - 1)) + 4
                ),
            )


def everything_damaged() -> Iterator[Case]:
    """No checkpoint is left to step back to."""
    for file in FILES:
        yield refused(f"all: {file} missing", lambda folder, f=file: (folder / f).unlink(), "no complete checkpoint")
        yield refused(
            f"all: {file} cut", lambda folder, f=file: (folder / f).write_bytes(b"{"), "no complete checkpoint"
        )
        if file != MANIFEST:
            yield refused(f"by path: {file} missing", lambda folder, f=file: (folder / f).unlink(), file, path=True)
        yield refused(f"by path: {file} cut", lambda folder, f=file: (folder / f).write_bytes(b"{"), file, path=True)
    yield refused("by path: no manifest", lambda folder: (folder / MANIFEST).unlink(), "no checkpoint", path=True)
    yield refused(
        "all: empty folders", lambda folder: [(folder / file).unlink() for file in FILES], "no complete checkpoint"
    )


def reseal(folder: Path) -> None:
    """Write the manifest anew, so that it verifies."""
    found = {}
    for name in (TENSORS, META):
        data = (folder / name).read_bytes()
        found[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(found))


def state(change: Callable[[dict[str, Tensor]], object]) -> Spoil:
    """Change the tensors of a checkpoint that still verifies."""

    def spoil(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / TENSORS)
        change(tensors)
        (folder / TENSORS).write_bytes(safetensors.torch.save(tensors))
        reseal(folder)

    return spoil


def meta(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """Change the facts of a checkpoint that still verifies."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / META).read_text())
        change(content)
        (folder / META).write_text(json.dumps(content))
        reseal(folder)

    return spoil


def put(name: str, change: Callable[[Tensor], Tensor]) -> Spoil:
    return state(lambda tensors: tensors.__setitem__(name, change(tensors[name]).contiguous()))


def set_first(value: float) -> Callable[[Tensor], Tensor]:
    def change(tensor: Tensor) -> Tensor:
        tensor.view(-1)[0] = value
        return tensor

    return change


def other_state() -> Iterator[Case]:
    """Checkpoints that verify but hold tensors of something else: another topology, subject, type."""
    for name in (
        "columns.means",
        "binding",
        "flame.expr",
        "optimiser.shN.exp_avg",
        "optimiser.count",
        "optimiser.jaw_pose.steps",
        "densification.seen",
        "sh_degree",
    ):
        yield continued(f"state: {name} missing", state(lambda tensors, n=name: tensors.pop(n)), name)
    for name in (
        "columns.means",
        "columns.shN",
        "columns.opacities",
        "flame.translation",
        "flame.expr",
        "optimiser.means.exp_avg",
        "optimiser.expr.exp_avg_sq",
        "densification.gradient",
    ):
        yield continued(f"state: {name} a row short", put(name, lambda t: t[:-1]), name)
        yield continued(f"state: {name} with an axis more", put(name, lambda t: t[..., None]), name)
    for name in ("columns.scales", "binding", "optimiser.quats.exp_avg"):
        yield continued(f"state: {name} as float16", put(name, lambda t: t.half()), name)
    for name in ("columns.quats", "flame.rotation", "optimiser.opacities.exp_avg_sq"):
        for value in (float("nan"), float("inf")):
            yield continued(f"state: {name} holds {value}", put(name, set_first(value)), name)
    for value in (-1, 10**6, 2**40):
        yield continued(f"state: bound to face {value}", put("binding", set_first(value)), "binding")
    for value in (-1, 7):
        yield continued(f"state: sh_degree {value}", put("sh_degree", set_first(value)), "sh_degree")
    yield continued("state: a step count of -5", put("optimiser.count", set_first(-5)), "count")
    yield continued("state: no tensors", state(lambda tensors: tensors.clear()))
    for name, content in (
        ("empty", b""),
        ("pickle", b"\x80\x02}."),
        ("a header of 4 GiB", b"\xff" * 4 + b"\0" * 4),
        ("a header that is no JSON", b"\x04\0\0\0\0\0\0\0nope"),
    ):

        def spoil(folder: Path, content: bytes = content) -> None:
            (folder / TENSORS).write_bytes(content)
            reseal(folder)

        yield continued(f"state: {name}", spoil)


def other_facts() -> Iterator[Case]:
    """Checkpoints that verify, of another schema, run or subject."""
    for name, value in (("older", 0), ("newer", 2), ("text", "1"), ("missing", None), ("true", True)):
        yield continued(f"schema {name}", meta(lambda m, v=value: m.__setitem__("schema", v)), "schema")
    for name in ("inputs", "options", "train_seconds", "step"):
        yield continued(f"facts: {name} missing", meta(lambda m, n=name: m.pop(n)), name)
        yield continued(f"facts: {name} a list", meta(lambda m, n=name: m.__setitem__(n, [])), name)
    for value in (-1, 2.5, 10**9, True, "3"):
        yield continued(f"facts: step {value!r}", meta(lambda m, v=value: m.__setitem__("step", v)), "step")
    yield continued("facts: train_seconds -1", meta(lambda m: m.__setitem__("train_seconds", -1.0)), "train_seconds")
    for flag in ("source_path", "flame_model"):
        yield continued(f"another {flag}", meta(lambda m, f=flag: m["inputs"].__setitem__(f, "00" * 32)), flag)
    yield continued("other options", meta(lambda m: m["options"].__setitem__("opacity_lr", 0.5)), "opacity_lr")
    of_older = "a flag that did not exist when the run began is at its default"
    yield continued("fewer options", meta(lambda m: m["options"].pop("opacity_lr")), works=of_older)

    def subject(box: Box) -> Command:
        path = box.capture / "transforms_train.json"
        path.write_text(path.read_text() + " ")
        return box.resume()

    def topology(box: Box) -> Command:
        box.head.write_bytes(box.head.read_bytes().replace(b"tiny", b"tinx"))
        return box.resume()

    yield Case("C5", "the capture changed since", subject, Refused(("source_path",)), trained=True)
    yield Case("C5", "the FLAME file changed since", topology, Refused(("flame_model",)), trained=True)
    flags = {"iterations": "9", "seed": "1", "sh_degree": "2", "feature_lr": "0.1"}
    for flag, value in flags.items():
        yield Case(
            "C5",
            f"resumed with another --{flag}",
            lambda box, f=flag, v=value: box.resume(f"--{f}={v}"),
            Refused((flag,)),
            trained=True,
        )
    yield Case(
        "C5",
        "resumed from a checkpoint into a new folder with other options",
        lambda box: box.train(f"--resume={box.newest()}", "--seed=1"),
        Refused(("seed",)),
        trained=True,
    )
    yield Case("C5", "resumed from nowhere", lambda box: box.train(f"--resume={box.root / 'none'}"), Refused(("none",)))
