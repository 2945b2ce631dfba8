"""Checkpoints: everything that a bit-identical continuation needs, or nothing at all.

    RUN/checkpoints/step_0000123/{state.safetensors, state.json, manifest.json}

A checkpoint is built under a temporary name, every file fsynced, the manifest (sizes and SHA-256) written last, then
renamed. A reader trusts only a checkpoint whose manifest verifies, and steps back to the previous one otherwise.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from scene.gaussian_model import COLUMNS
from utils.errors import EnvironmentFault, InputError, disk_advice
from utils.io.atomic import fsync_folder, remove, write_json
from utils.io.json_files import JsonObject, read_json

SCHEMA = 1
KEEP = 2
TENSORS, META, MANIFEST = "state.safetensors", "state.json", "manifest.json"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], named: Collection[int] = ()
) -> Path:
    """Write `folder/step_N` and drop all but the newest two and the steps `named` by the user.

    Raises:
        EnvironmentFault: the disk is full or not writable; what was there stays as it was.
    """
    import safetensors.torch

    target = folder / f"step_{step:07d}"
    temporary = folder / f".{target.name}.tmp-{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        (temporary / TENSORS).write_bytes(safetensors.torch.save(on_cpu))
        write_json(temporary / META, {"schema": SCHEMA, "step": step, **meta})
        names = (TENSORS, META)
        for name in names:
            fsync_file(temporary / name)
        write_json(temporary / MANIFEST, {name: describe(temporary / name) for name in names})
        fsync_folder(temporary)
        remove(target)
        os.replace(temporary, target)
        fsync_folder(folder)
    except OSError as error:
        free = shutil.disk_usage(folder.parent).free >> 20
        problem = f"{target}: can't be written: {error.strerror or error}; {free} MiB are free"
        raise EnvironmentFault(f"{problem}. {disk_advice(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in list_checkpoints(folder)[KEEP:]:
        if int(old.name[5:]) not in named:
            shutil.rmtree(old, ignore_errors=True)
    return target


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], JsonObject]:
    """Read and verify one checkpoint.

    Raises:
        InputError: a file is missing, changed or of another schema.
    """
    import safetensors.torch

    manifest = read_object(path / MANIFEST)
    if set(manifest) != {TENSORS, META}:
        raise InputError(path / MANIFEST, "", f"lists {sorted(manifest)}, expected {[META, TENSORS]}")
    for name, expected in manifest.items():
        if not (path / name).is_file():
            raise InputError(path / name, "", "is missing, expected the file that the manifest lists")
        found = describe(path / name)
        if found != expected:
            raise InputError(path / name, "", f"found {found}, expected {expected}", "The file was cut or changed.")
    meta = JsonObject.of(path / META, "", read_json(path / META))
    meta.integer("schema", SCHEMA, SCHEMA)
    named = path.name.removeprefix("step_")
    if named.isdecimal():  # a copy may have another name
        meta.integer("step", int(named), int(named))
    try:
        return safetensors.torch.load_file(path / TENSORS), meta
    except safetensors.SafetensorError as error:
        raise InputError(path / TENSORS, "", f"not a safetensors file: {error}") from error


def newest_good(folder: Path) -> tuple[Path, dict[str, Tensor], JsonObject, list[str]]:
    """The newest checkpoint under `folder` that verifies, and a line about each newer one that does not.

    Raises:
        InputError: there is none.
    """
    complaints = []
    for path in list_checkpoints(folder):
        try:
            tensors, meta = load_checkpoint(path)
        except InputError as error:
            complaints.append(f"{error}; stepping back to the checkpoint before it")
            continue
        return path, tensors, meta, complaints
    raise InputError(folder, "", "found no complete checkpoint, expected at least one to resume from",
                     "; ".join(complaints) or "Start the run without --resume.")  # fmt: skip


def check_tensors(path: Path, found: Mapping[str, Tensor], fresh: Mapping[str, Tensor]) -> None:
    """Refuse tensors that verify but are not the state of such a run.

    Args:
        found: of the checkpoint. fresh: the state of the run at its start: same names and types; sizes too, except the
            number of Gaussians, which must be the same in every tensor that has a row per Gaussian.

    Raises:
        InputError: names the checkpoint and the tensor.
    """
    rows, binding = len(fresh["binding"]), found.get("binding")
    count = rows if binding is None or binding.dim() != 1 else len(binding)
    for name, expected in sorted(fresh.items(), key=lambda item: item[0] != "binding"):  # it says how many rows
        if name not in found:
            raise InputError(path, name, "is missing, expected the state of a run with these options",
                             "Start with the options of the checkpoint's run.")  # fmt: skip
        tensor, shape = found[name], list(expected.shape)
        if per_gaussian(name) and shape[:1] == [rows]:
            shape[0] = count
        if list(tensor.shape) != shape or tensor.dtype != expected.dtype:
            problem = f"found {tensor.dtype} {list(tensor.shape)}, expected {expected.dtype} {shape}"
            raise InputError(
                path, name, problem, "It belongs to another sequence, FLAME edition, --sh_degree or kind of run."
            )
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(path, name, "holds values that are not finite")


def per_gaussian(name: str) -> bool:
    """Whether a tensor of the state has a row per Gaussian: its columns, their moments and the statistics."""
    part, _, rest = name.partition(".")
    return part in ("binding", "columns", "densification") or (part == "optimiser" and rest.split(".")[0] in COLUMNS)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoint folders, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.startswith("step_") and path.name[5:].isdecimal()]
    return sorted(found, key=lambda path: int(path.name[5:]), reverse=True)


def describe(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that must hold an object; InputError otherwise."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "", f"found a {type(value).__name__}, expected an object")
    return value


def fsync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
