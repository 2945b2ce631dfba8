"""C7: names of folders and files that shells, encodings and file systems trip over, for each of the three programs."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.torture_cases.case import Box, Case, Command, Either, Expected, Refused, Works
from scripts.torture_cases.json_fields import set_field

NFC = unicodedata.normalize("NFC", "Zoë Ångström")
NAMES = {
    "spaces": "a  b ",
    "quotes": "a'b\"c",
    "a semicolon": "a; touch marker",
    "a command": "$(touch marker)`touch marker`",
    "an ampersand": "a && touch marker & b",
    "a new line": "a\nerror: all is well",
    "NFC": NFC,
    "NFD": unicodedata.normalize("NFD", NFC),
    "Chinese": "头像 🙂",
    "255 bytes": "é" * 127 + "x",
    "a dash": "-m",
    "two dashes": "--overwrite",
    "a percent sign": "%s%n %(x)d",
    "braces": "{x}{0}",
    "a star": "*?[a]",
    "a tilde": "~root",
    "a backslash": "a\\b",
    "a bell": "a\x07b\x1b[2J",
    "dots": "...",
    "a quarter of UTF-8": os.fsdecode(b"a\xe9b"),
}
TRAIN = "transforms_train.json"


def nothing_else(box: Box, errors: str) -> str:
    """No command ran: nothing is called marker, here or in the working folder."""
    found = [path for folder in (box.root, box.root.parent, Path.cwd()) for path in folder.glob("marker*")]
    return f"{found} appeared" if found else ""


WORKS = Works(nothing_else, "any name that the file system takes")
EITHER = Either(Refused(("",)), WORKS)


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    for what, name in NAMES.items():
        good = WORKS if is_utf8(name) else EITHER
        yield Case("C7", f"train.py: the run folder has {what}", lambda box, n=name: box.train(out=box.root / n), good)
        yield Case("C7", f"train.py: the capture and FLAME files have {what}", lambda box, n=name: moved(box, n), good)
        yield Case(
            "C7",
            f"render.py: the run folder has {what}",
            lambda box, n=name: renamed(box, n).render(),
            good,
            trained=True,
        )
        yield Case(
            "C7",
            f"metrics.py: the run folder has {what}",
            lambda box, n=name: renamed(box, n).metrics(),
            good,
            trained=True,
        )
    yield from inside_captures()
    yield from loops()
    yield from nulls()
    yield from command_lines()


def is_utf8(name: str) -> bool:
    return "\udce9" not in name


def moved(box: Box, name: str) -> Command:
    """Capture, head and masks under another name."""
    for attribute in ("capture", "head", "masks"):
        old = getattr(box, attribute)
        folder = box.root / attribute
        folder.mkdir()
        old.rename(folder / name)
        setattr(box, attribute, folder / name)
    return box.train()


def renamed(box: Box, name: str) -> Box:
    box.run.rename(box.root / name)
    box.run = box.root / name
    return box


def secret(box: Box) -> Path:
    """A good picture and parameters outside the data root; opening anything in there is reported."""
    folder = box.root / "outside"
    folder.mkdir()
    for name in ("images/00001_01.png", "flame_param/00001.npz"):
        (folder / Path(name).name).write_bytes((box.capture / name).read_bytes())
    return folder


def inside_captures() -> Iterator[Case]:
    """Paths in the JSON that leave the data root, or name odd files inside it."""
    fields = {"file_path": "00001_01.png", "fg_mask_path": "00001_01.png", "flame_param_path": "00001.npz"}

    def leaving(field: str, path: Callable[[Path], str]) -> Callable[[Box], Command]:
        def prepare(box: Box) -> Command:
            set_field(field, path(secret(box)))(box)
            return box.train()

        return prepare

    for field, name in fields.items():
        place: Expected = Refused((TRAIN, rf"frames\[\d\]\.{field}"))
        ways: dict[str, Callable[[Path], str]] = {
            "absolute": lambda folder, n=name: str(folder / n),
            "..": lambda folder, n=name: f"../../outside/{n}",
            ".. through images": lambda folder, n=name: f"images/../../../outside/{n}",
            "~": lambda folder, n=name: f"~/{n}",
            "a URL": lambda folder, n=name: f"file://{folder}/{n}",
            "a NUL": lambda folder, n=name: f"images/{n}\0.png",
            "backslashes": lambda folder, n=name: f"..\\..\\outside\\{n}",
            "300 characters": lambda folder: "images/" + "x" * 300,
            "only ..": lambda folder: "..",
            "only .": lambda folder: ".",
        }
        for what, path in ways.items():
            no_folder = field == "fg_mask_path" and what in ("~", "a URL")  # that reads as: exported without mattes
            yield Case("C7", f"train.py: {field} is {what}", leaving(field, path), EITHER if no_folder else place)
        yield Case("C7", f"train.py: {field} links outside", lambda box, f=field, n=name: linked(box, f, n), place)
    yield Case("C7", "train.py: images links outside", linked_folder, Refused((TRAIN, "file_path")))
    for what, name in NAMES.items():
        if name.isprintable() and "\\" not in name and len(name.encode("utf-8", "surrogateescape")) < 250:
            yield Case("C7", f"train.py: a picture has {what}", lambda box, n=name: picture(box, n), WORKS)


def linked(box: Box, field: str, name: str) -> Command:
    folder = {"file_path": "images", "fg_mask_path": "fg_masks", "flame_param_path": "flame_param"}[field]
    target = secret(box) / name
    (box.capture / folder / name).unlink()
    (box.capture / folder / name).symlink_to(target)
    return box.train()


def linked_folder(box: Box) -> Command:
    outside = box.root / "outside"
    (box.capture / "images").rename(outside)
    (box.capture / "images").symlink_to(outside)
    return box.train()


def picture(box: Box, name: str) -> Command:
    name = f"{name}.png"
    (box.capture / "images/00001_01.png").rename(box.capture / "images" / name)
    set_field("file_path", f"images/{name}")(box)
    return box.train()


def loops() -> Iterator[Case]:
    """A link to itself, a missing folder, or a file, where each path is expected."""

    def loop(box: Box) -> Path:
        (box.root / "loop").symlink_to(box.root / "loop")
        return box.root / "loop"

    def train_with(attribute: str, make: Callable[[Box], Path]) -> Callable[[Box], Command]:
        def prepare(box: Box) -> Command:
            setattr(box, attribute, make(box))
            return box.train()

        return prepare

    odd: dict[str, Callable[[Box], Path]] = {
        "a loop": loop,
        "missing": lambda box: box.root / "missing",
        "a device": lambda box: Path("/dev/null"),
        "below a file": lambda box: box.data / "masks.pkl" / "x",
        "300 characters": lambda box: box.root / ("x" * 300),
    }
    for attribute in ("capture", "head", "masks"):
        for what, make in odd.items():
            yield Case("C7", f"train.py: {attribute} is {what}", train_with(attribute, make), Refused((r"/",)))
    for program in ("render.py", "metrics.py"):
        for what, make in odd.items():

            def prepare(box: Box, program: str = program, make: Callable[[Box], Path] = make) -> Command:
                box.run = make(box)
                return box.render() if program == "render.py" else box.metrics()

            yield Case("C7", f"{program}: the run folder is {what}", prepare, Refused((r"/",)))
    out = Refused((r"/",), (2, 3))  # the folder would have to be made there: the machine refuses
    yield Case("C7", "train.py: the run folder is a loop", lambda box: box.train(out=loop(box)), out)
    yield Case(
        "C7", "train.py: the run folder has 300 characters", lambda box: box.train(out=box.root / ("x" * 300)), out
    )


def nulls() -> Iterator[Case]:
    """NUL bytes: no command line can hold one, but a preset and a saved run can."""
    for field in ("source_path", "flame_model", "flame_masks", "data_root", "cache_dir"):

        def saved(box: Box, field: str = field) -> Command:
            path = box.run / "options.json"
            content: dict[str, Any] = json.loads(path.read_text())
            path.write_text(json.dumps({**content, field: f"{content[field] or box.capture}\0x"}))
            flags = [word for word in box.render().argv if not word.startswith(f"--{field}=")]
            return Command(box.render().main, flags, "render.py")

        def preset(box: Box, field: str = field) -> Command:
            path = box.root / "preset.yaml"
            path.write_text(json.dumps({field: f"{box.capture}\0x"}))  # JSON is YAML
            command = box.train(f"--config={path}")
            flags = [word for word in command.argv if not word.startswith(f"--{field}=")]
            return Command(command.main, flags, "train.py")

        yield Case(
            "C7", f"render.py: {field} of the saved options holds a NUL", saved, refused_null(field), trained=True
        )
        yield Case("C7", f"train.py: {field} of a preset holds a NUL", preset, refused_null(field))


def refused_null(field: str) -> Expected:
    return Refused((rf"{field}|\\x00",))


def command_lines() -> Iterator[Case]:
    """Names that argparse would take for flags, empty ones, and options that name folders."""

    def typed(*flags: str) -> Callable[[Box], Command]:
        return lambda box: box.train(*flags)

    yield Case("C7", "train.py: -m -x", typed("-m", "-x"), Refused(("command line", "model_path")))
    yield Case("C7", "train.py: -s --eval", typed("-s", "--eval"), Refused(("command line", "source_path")))
    yield Case("C7", "train.py: no capture named", typed("--source_path="), Refused(("source_path",)))
    yield Case("C7", "train.py: --images above", typed("--images=../outside"), Refused(("images",)))
    yield Case("C7", "train.py: --images absolute", typed("--images=/etc"), Refused(("images",)))
    yield Case("C7", "train.py: --images unknown", typed("--images=other"), Refused((TRAIN, "file_path")))
    yield Case("C7", "train.py: --data_root unknown", typed("--data_root=/nowhere"), Refused(("data_root",)))
    yield Case(
        "C7", "train.py: --data_root a file", lambda box: box.train(f"--data_root={box.head}"), Refused(("data_root",))
    )
    yield Case(
        "C7",
        "train.py: --data_root elsewhere",
        lambda box: box.train(f"--data_root={box.capture / 'images'}"),
        Refused(("data_root",)),
    )
    yield Case(
        "C7",
        "train.py: the cache inside the capture",
        lambda box: box.train(f"--cache_dir={box.capture}/cache", "--image_memory_gb=0"),
        Refused(("cache_dir",)),
    )
    yield Case(
        "C7",
        "train.py: the cache below a file",
        lambda box: box.train(f"--cache_dir={box.head}/cache", "--image_memory_gb=0"),
        Refused((r"head\.pkl",), (2, 3)),
    )
    for program in ("render", "metrics"):
        yield Case(
            "C7",
            f"{program}.py: -m -x",
            lambda box, p=program: bare(box, p, "-m", "-x"),
            Refused(("command line", "-m")),
        )
        yield Case("C7", f"{program}.py: -m of nothing", lambda box, p=program: bare(box, p, "-m", ""), Refused(("",)))


def bare(box: Box, program: str, *flags: str) -> Command:
    command = box.render() if program == "render" else box.metrics()
    return Command(command.main, ["--quiet", *flags], command.script)
