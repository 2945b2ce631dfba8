"""C2: the JSON files of a capture and of a run, spoiled as a whole and field by field."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scripts.torture_cases.case import Box, Case, Command, Either, Expected, Refused, Works, cut, spread
from tests.scene.make_capture import HEIGHT, WIDTH, read_transforms, write_transforms

TRAIN = "transforms_train.json"
DELETE, FRAME = object(), 3
NAN, INFINITY = float("nan"), float("inf")
CUTS = 12
# Values that no field takes; None (JSON's null) counts as missing.
WRONG: dict[str, Any] = {
    "missing": DELETE,
    "null": None,
    "an object": {},
    "a list": [1],
    "true": True,
    "NaN": NAN,
    "Infinity": INFINITY,
    "10^400": 10**400,
}
OPTIONAL = {"camera_index", "camera_id", "cx", "cy", "fl_x", "fl_y", "fg_mask_path", "camera_angle_x", "camera_angle_y"}
FIELDS: dict[str, dict[str, Any]] = {
    "timestep_index": {"text": "7", "a fraction": 1.5, "negative": -1},
    "camera_index": {"text": "0", "a fraction": 1.0, "negative": -2},
    "camera_id": {"a number": 5, "empty": "", "a NUL": "a\0b", "a new line": "a\nb", "half a surrogate": "\ud800"},
    "w": {"text": "24", "zero": 0, "negative": -1, "a fraction": 24.0, "10^9": 10**9},
    "h": {"text": "20", "zero": 0, "negative": -1, "a fraction": 20.5, "10^9": 10**9},
    "fl_x": {"text": "60", "zero": 0, "negative": -60.0, "1e-9": 1e-9, "1e300": 1e300},
    "fl_y": {"text": "60", "zero": 0, "negative": -60.0, "1e-9": 1e-9, "1e300": 1e300},
    "cx": {"text": "12", "1e30": 1e30, "-1e30": -1e30},
    "cy": {"text": "10", "1e30": 1e30, "-1e30": -1e30},
    "camera_angle_x": {"text": "1", "zero": 0.0, "negative": -1.0, "pi": math.pi, "4": 4.0, "tiny": 5e-324},
    "camera_angle_y": {"text": "1", "zero": 0.0, "negative": -1.0, "pi": math.pi, "4": 4.0, "tiny": 5e-324},
    "file_path": {"a number": 3, "empty": "", "no such file": "images/none.png", "a folder": "images"},
    "fg_mask_path": {"a number": 3, "empty": "", "no such file": "fg_masks/none.png", "a new line": "fg_masks/\n"},
    "flame_param_path": {
        "a number": 3,
        "empty": "",
        "no such file": "flame_param/9.npz",
        "of another": "flame_param/00000.npz",
    },
    "transform_matrix": {"text": "one", "a number": 1.0, "empty": []},
}
Spoil = Callable[[Box], object]


def case(name: str, spoil: Spoil, *words: str, expected: Expected | None = None) -> Case:
    def prepare(box: Box) -> Command:
        spoil(box)
        return box.train()

    return Case("C2", name, prepare, expected or Refused(words))


def set_field(field: str, value: Any, split: str = "train", frame: int = FRAME) -> Spoil:
    def spoil(box: Box) -> None:
        frames = read_transforms(box.capture, split)
        if value is DELETE:
            del frames[frame][field]
        else:
            frames[frame][field] = value
        write_transforms(box.capture, split, frames)

    return spoil


def put(content: bytes | str, name: str = TRAIN) -> Spoil:
    return lambda box: (box.capture / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cases(seed: int) -> Iterator[Case]:
    """All cases of the row."""
    yield from fields()
    yield from matrices()
    yield from whole_files()
    yield from structures()
    yield from run_files()
    yield from presets()


def fields() -> Iterator[Case]:
    """Each field, with what no field takes and with values of its own type that are wrong."""
    for field, own in FIELDS.items():
        for what, value in {**WRONG, **own}.items():
            name, place = f"{field}: {what}", (TRAIN, rf"frames\[{FRAME}\]\.{field}")
            absent = value is DELETE or value is None
            if absent and field in OPTIONAL:
                yield case(name, set_field(field, value), expected=Works(why=f"{field} is optional"))
            else:
                yield case(name, set_field(field, value), *place)
    for field, value in (("w", WIDTH + 1), ("h", HEIGHT - 1)):
        yield case(f"{field}: not that of the picture", set_field(field, value), r"00001_01\.png", "size")

    def no_focal(box: Box) -> None:
        for field in ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y"):
            set_field(field, DELETE)(box)

    yield case("no focal length at all", no_focal, TRAIN, rf"frames\[{FRAME}\]\.fl_x")


def matrices() -> Iterator[Case]:
    """Camera matrices that are no rigid motion."""
    place = (TRAIN, rf"frames\[{FRAME}\]\.transform_matrix")

    def changed(row: int, column: int, value: Any) -> list[list[Any]]:
        matrix = np.eye(4).tolist()
        matrix[row][column] = value
        return matrix

    wrong: dict[str, Any] = {
        "zero": np.zeros((4, 4)).tolist(),
        "3x3": np.eye(3).tolist(),
        "4x3": np.eye(4)[:, :3].tolist(),
        "3x4": np.eye(4)[:3].tolist(),
        "5x5": np.eye(5).tolist(),
        "flat": np.eye(4).ravel().tolist(),
        "ragged": [[1, 0, 0, 0], [0, 1], [0, 0, 1, 0], [0, 0, 0, 1]],
        "nested": [np.eye(4).tolist()] * 4,
        "singular": changed(0, 0, 0.0),
        "scaled": (1.01 * np.eye(4)).tolist(),
        "mirrored": changed(2, 2, -1.0),
        "sheared": changed(0, 1, 0.1),
        "NaN inside": changed(0, 3, NAN),
        "Infinity inside": changed(1, 1, INFINITY),
        "-Infinity inside": changed(2, 3, -INFINITY),
        "1e300 inside": changed(0, 0, 1e300),
        "text inside": changed(0, 0, "1"),
        "true inside": changed(0, 0, True),
        "null inside": changed(3, 3, None),
        "last row": changed(3, 0, 0.5),
        "w of -10": changed(3, 3, -10.0),
        "w of 1e9": changed(3, 3, 1e9),
        "10^400 inside": changed(0, 3, 10**400),
        "1e39 m away (beyond float32)": changed(0, 3, 1e39),
        "1e300 m away": changed(1, 3, -1e300),
    }
    for what, value in wrong.items():
        yield case(f"transform_matrix: {what}", set_field("transform_matrix", value), *place)
    far = Either(Refused(place), Works(why="a camera that sees nothing shows the background"))
    yield case("transform_matrix: 1e6 m away", set_field("transform_matrix", changed(0, 3, 1e6)), expected=far)
    yield case("transform_matrix: 1e20 m away", set_field("transform_matrix", changed(0, 3, 1e20)), expected=far)


def whole_files() -> Iterator[Case]:
    """Files that are no JSON, or not in UTF-8, or built to exhaust a parser."""
    for share in spread(1000, CUTS):

        def shorten(box: Box, share: int = share) -> None:
            path = box.capture / TRAIN
            cut(path, path.stat().st_size * share // 1000)

        yield case(f"cut to {share / 10:g} %", shorten, TRAIN, "line 1 column")

    def prefixed(mark: bytes, encoding: str) -> Spoil:
        return lambda box: (box.capture / TRAIN).write_bytes(
            mark + (box.capture / TRAIN).read_text("utf-8").encode(encoding)
        )

    yield case("UTF-8 with a byte order mark", prefixed(b"\xef\xbb\xbf", "utf-8"), TRAIN, "byte order mark")
    yield case("UTF-16", prefixed(b"\xff\xfe", "utf-16-le"), TRAIN, "byte order mark")
    yield case("UTF-16, big-endian", prefixed(b"\xfe\xff", "utf-16-be"), TRAIN, "byte order mark")
    yield case("UTF-16 without a mark", prefixed(b"", "utf-16-le"), TRAIN)
    yield case("UTF-32", prefixed(b"\xff\xfe\0\0", "utf-32-le"), TRAIN)
    contents: dict[str, tuple[bytes | str, str]] = {
        "empty": ("", "line 1"),
        "spaces": ("   ", "line 1"),
        "latin 1": (b'{"frames": "\xe9"}', "UTF-8"),
        "text": ("hello", "line 1"),
        "a NUL": (b'{"frames": []\0}', "line 1"),
        "a comment": ("{} // x", "line 1"),
        "a trailing comma": ('{"frames": [],}', "line 1"),
        "single quotes": ("{'frames': []}", "line 1"),
        "two values": ("{}{}", "line 1"),
        "a control character": ('{"frames": "\x01"}', "line 1"),
        "10^5 lists": ("[" * 100_000, ""),
        "10^5 lists, closed": ("[" * 100_000 + "]" * 100_000, "deep"),
        "10^5 objects": ('{"a":' * 100_000 + "1" + "}" * 100_000, "deep"),
        "10^5 lists in frames": ('{"frames":' + "[" * 100_000 + "]" * 100_000 + "}", "deep"),
        "a number of 10^6 digits": ('{"frames": ' + "1" * 1_000_000 + "}", "number|integer"),
        "a fraction of 10^6 digits": ('{"frames": 0.' + "1" * 1_000_000 + "}", "frames"),
        "1e999": ('{"frames": 1e999}', "frames"),
        "pickle": (b"\x80\x04}.", "UTF-8"),
        "zip": (b"PK\x03\x04", ""),
        "NaN as the whole": ("NaN", "NaN"),
    }
    for name, (content, word) in contents.items():
        yield case(f"{name} as JSON", put(content), TRAIN, word)


def structures() -> Iterator[Case]:
    """JSON that is valid but not a transforms file."""
    contents = {"null": "null", "a list": "[]", "text": '"x"', "a number": "1", "true": "true"}
    for name, content in contents.items():
        yield case(f"{name} as transforms", put(content), TRAIN, "expected an object")
    frames = {
        "nothing": ("{}", "frames"),
        "null": ('{"frames": null}', "frames"),
        "an object": ('{"frames": {}}', "frames"),
        "text": ('{"frames": "x"}', "frames"),
        "a number": ('{"frames": 7}', "frames"),
        "no frame": ('{"frames": []}', "frames"),
        "a number as frame": ('{"frames": [1]}', r"frames\[0\]"),
        "null as frame": ('{"frames": [null]}', r"frames\[0\]"),
        "a list as frame": ('{"frames": [[]]}', r"frames\[0\]"),
        "an empty frame": ('{"frames": [{}]}', r"frames\[0\]\."),
    }
    for name, (content, place) in frames.items():
        yield case(f"frames of {name}", put(content), TRAIN, place)
    for split in ("val", "test"):
        file = f"transforms_{split}.json"
        yield case(f"{split}: frames a number", put('{"frames": 7}', file), file, "frames")
        yield case(f"{split}: cut", lambda box, f=file: cut(box.capture / f, 200), file, "line 1")
        yield case(
            f"{split}: a timestep as text",
            set_field("timestep_index", "1", split, 1),
            file,
            r"frames\[1\]\.timestep_index",
        )
    yield case("no train file", lambda box: (box.capture / TRAIN).unlink(), TRAIN)
    yield case("no test file", lambda box: (box.capture / "transforms_test.json").unlink(), "transforms_test.json")
    yield case("frames twice", put('{"frames": [], "frames": []}'), TRAIN, "frames: found this key twice")

    def twice(box: Box) -> None:
        path = box.capture / TRAIN
        path.write_text(path.read_text().replace('"w": 24', '"w": 24, "w": 24', 1))

    yield case("a field twice", twice, TRAIN, "w: found this key twice")
    yield case("NaN in a field nobody reads", set_field("note", NAN), TRAIN, rf"frames\[{FRAME}\]\.note")


def old_options() -> Iterator[Case]:
    """Without options.json the `cfg_args` of the original is read: text that looks like Python, and is never run."""

    def case_of(name: str, content: str | bytes | None, expected: Expected) -> Case:
        def prepare(box: Box) -> Command:
            (box.run / "options.json").unlink()
            path = box.run / "cfg_args"
            if content is None:
                path.unlink()
            else:
                text = content if isinstance(content, bytes) else content.replace("SOURCE", str(box.capture)).encode()
                path.write_bytes(text)
            return box.render()

        return Case("C2", f"cfg_args: {name}", prepare, expected, trained=True)

    yield case_of("gone as well", None, Refused((r"options\.json", "missing")))
    good = "Namespace(bind_to_mesh=True, eval=True, white_background=True, sh_degree=3, source_path='SOURCE')"
    yield case_of("of the original", good, Works(why="the original's runs can be rendered"))
    wrong = {
        "empty": b"",
        "junk": b"\x80\x04}.",
        "not UTF-8": b"Namespace(images='\xe9')",
        "a NUL": b"Namespace(seed=\x00)",
        "cut": good[:40],
        "a call": "__import__('os').system('touch marker')",
        "another name": "dict(eval=True)",
        "a call as value": "Namespace(seed=__import__('os').getpid())",
        "two stars": "Namespace(**{'seed': 1})",
        "a lambda": "Namespace(seed=(lambda: 1)())",
        "an attribute": "Namespace(seed=().__class__)",
        "10^5 brackets": "Namespace(seed=" + "(" * 100_000 + "1" + ")" * 100_000 + ")",
        "10^6 minus signs": "Namespace(seed=" + "-" * 1_000_000 + "1)",
        "10^5 digits": "Namespace(seed=" + "1" * 100_000 + ")",
        "2 MB": good[:-1] + ", images='" + "x" * 2_000_000 + "')",
        "text as a number": "Namespace(sh_degree='3')",
        "a flag twice": "Namespace(seed=1, seed=2)",
        "two lines": good + "\n" + good,
    }
    for name, content in wrong.items():
        yield case_of(name, content, Refused((r"cfg_args",)))


def run_case(name: str, file: str, spoil: Callable[[Path], object], *words: str, program: str = "render") -> Case:
    def prepare(box: Box) -> Command:
        spoil(box.run / file)
        return box.render() if program == "render" else box.metrics()

    return Case("C2", name, prepare, Refused((file.replace(".", r"\."), *words)), trained=True)


def change(**values: Any) -> Callable[[Path], object]:
    """Set keys of a JSON object file; DELETE removes one."""

    def spoil(path: Path) -> None:
        content = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not DELETE}))

    return spoil


def run_files() -> Iterator[Case]:
    """The JSON files of a run folder, read by render.py and metrics.py."""
    wrong = {
        "iterations": ("text", "3"),
        "sh_degree": ("nine", 9),
        "eval": ("a number", 1),
        "seed": ("-1", -1),
        "feature_lr": ("NaN", NAN),
        "resolution": ("0", 0),
        "rasterizer": ("unknown", "magic"),
        "test_iterations": ("a number", 5),
        "images": ("null", None),
        "lambda_xyz": ("negative", -1.0),
        "device": ("unknown", "abacus"),
        "no_such_flag": ("there", 1),
        "data_root": ("a list", []),
    }
    for field, (what, value) in wrong.items():
        yield run_case(f"options.json: {field} {what}", "options.json", change(**{field: value}), field)
    for file in ("options.json", "run.json"):
        yield run_case(f"{file}: cut", file, lambda path: cut(path, 40), "line")
        yield run_case(f"{file}: empty", file, lambda path: path.write_bytes(b""), "line")
        yield run_case(f"{file}: a list", file, lambda path: path.write_text("[]"), "expected an object")
        yield run_case(f"{file}: not UTF-8", file, lambda path: path.write_bytes(b'{"a": "\xff"}'), "UTF-8")
    yield from old_options()
    yield run_case("run.json: inputs a list", "run.json", change(inputs=[1]), "inputs")
    for what, value in (("another", {"source_path": "00" * 32}), ("a number", {"flame_model": 7})):
        case_words = next(iter(value))

        def prepare(box: Box, value: dict[str, Any] = value) -> Command:
            change(inputs=value)(box.run / "run.json")
            return box.render()

        yield Case("C2", f"run.json: {what} as fingerprint", prepare, Refused((case_words,)), trained=True)
    for file in ("run.json", "render.json"):
        yield run_case(f"metrics: {file} cut", file, lambda path: cut(path, 20), "line", program="metrics")
        yield run_case(f"metrics: {file} a list", file, lambda path: path.write_text("[]"), "object", program="metrics")
        yield run_case(
            f"metrics: {file} NaN",
            file,
            lambda path: path.write_text('{"iteration": NaN}'),
            "iteration",
            program="metrics",
        )


def presets() -> Iterator[Case]:
    """`--config FILE.yaml`: YAML that is none, that names Python objects, or that explodes."""
    laughs = "a: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{'*' + chr(97 + i)}, *a]\n" for i in range(20))
    files: dict[str, tuple[bytes | str, str]] = {
        "not YAML": ("a: [1,", "YAML"),
        "a call": ("seed: !!python/object/apply:os.system ['touch marker']", "YAML"),
        "a module": ("seed: !!python/module:os", "YAML"),
        "an unknown tag": ("seed: !magic 1", "YAML"),
        "a list": ("- 1", "list"),
        "a number": ("7", "int"),
        "not UTF-8": (b"images: \xe9", "YAML|UTF"),
        "a NUL": (b"seed: \x00", "YAML"),
        "an unknown flag": ("no_such_flag: 1", "no_such_flag"),
        "a number as flag": ("7: 1", "7"),
        "a list as flag": ("[1, 2]: 1", ""),
        "text as number": ("seed: nine", "seed"),
        "NaN": ("feature_lr: .nan", "feature_lr"),
        "a date": ("seed: 2020-01-01", "seed"),
        "10^4 brackets": ("seed: " + "[" * 10_000 + "]" * 10_000, ""),
        "2000 levels": ("\n".join(" " * i + "a:" for i in range(2_000)), ""),
        "aliases of aliases": (laughs, ""),
        "itself": ("seed: &a [*a]", "seed"),
        "two documents": ("seed: 1\n---\nseed: 2", "YAML"),
        "a flag twice": ("seed: 1\nseed: 2", "seed"),
        "a directory": ("", ""),
    }
    for name, (content, word) in files.items():

        def prepare(box: Box, name: str = name, content: bytes | str = content) -> Command:
            path = box.root / "preset.yaml"
            if name == "a directory":
                path.mkdir()
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
            return box.train(f"--config={path}")

        yield Case("C2", f"preset: {name}", prepare, Refused((r"preset\.yaml", word)))
