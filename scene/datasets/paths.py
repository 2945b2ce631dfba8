"""Which files a dataset may name, and where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from scene.datasets.options import DataOptions
from utils.errors import InputError
from utils.io.json_files import JsonObject

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
OPTIONAL_SPLITS = ("val",)  # monocular exports may lack it


@dataclass(frozen=True)
class Paths:
    """Turns the relative paths of a dataset into files, and keeps them inside `root`."""

    folder: Path  # of the JSON file; resolved
    root: Path  # resolved
    images: str  # name of the picture folder that replaces `images`
    _real_folders: dict[Path, Path] = field(default_factory=dict, compare=False, repr=False)

    def file(self, place: JsonObject, name: str, adjust: Callable[[Path], Path] = Path) -> Path:
        """The existing file that a field names; raises InputError if it is absolute, leaves the root or is missing."""
        return existing(place, name, self.inside(place, name, adjust))

    def inside(self, place: JsonObject, name: str, adjust: Callable[[Path], Path] = Path) -> Path:
        """The path that a field names, existing or not."""
        text = Path(place.text(name))
        if text.is_absolute() or "\\" in str(text):
            problem = f"found {str(text)!r}, expected a path relative to the JSON file, with forward slashes"
            raise place.error(name, problem)
        try:
            path = self._real(adjust(self.folder / text))
        except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
            raise place.error(name, f"{str(text)!r} can't be followed: {error}") from error
        if not path.is_relative_to(self.root):
            advice = "If that is meant, pass --data_root with a folder that contains both."
            raise place.error(name, f"{path} lies outside {self.root}", advice)
        return path

    def _real(self, path: Path) -> Path:
        """`path.resolve()`, with folders remembered: a capture has thousands of files in a few folders."""
        folder = path.parent
        if folder not in self._real_folders:
            self._real_folders[folder] = folder.resolve()
        real = self._real_folders[folder] / path.name
        return real.resolve() if path.name == ".." or os.path.islink(real) else real

    def image(self, path: Path) -> Path:
        """`.png` is appended where no picture suffix is given, and `images` may stand for another folder."""
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            path = path.with_name(path.name + ".png")
        return path.parent.with_name(self.images) / path.name if path.parent.name == "images" else path


def existing(place: JsonObject, name: str, path: Path) -> Path:
    """`path`, or an InputError about the field `name` if there is no such file."""
    if not os.path.isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise place.error(name, f"{path} does not exist", "The dataset is incomplete: copy or export it again.")
    return path


def find_paths(folder: Path, options: DataOptions) -> Paths:
    """Where the dataset is and what it may reach.

    Raises:
        InputError: `--data_root` does not contain the dataset, or `--images` is no name of a folder.
    """
    source = folder.resolve()
    root = Path(os.path.expanduser(options.data_root)).resolve() if options.data_root else source.parent
    if not root.is_dir() or not source.is_relative_to(root):
        problem = f"found {options.data_root!r}, expected a folder that contains {source}"
        raise InputError("command line", "--data_root", problem)
    return Paths(source, root, picture_folder(options))


def picture_folder(options: DataOptions) -> str:
    """The name of the picture folder that `--images` gives; InputError for a path."""
    if not options.images or Path(options.images).name != options.images:
        raise InputError("command line", "--images", f"found {options.images!r}, expected the name of a folder")
    return options.images


def is_there(path: Path, split: str) -> bool:
    """Whether there is a transforms file; InputError if a split that must have one has none."""
    if split in OPTIONAL_SPLITS and not path.exists():
        return False
    if not path.is_file():
        raise InputError(path, "", "does not exist", 'Export it; for no frames write {"frames": []}.')
    return True
