"""Is the device that was asked for there? Asked once, at the start, instead of a traceback from the depths."""

from __future__ import annotations

import torch

from utils.errors import EnvironmentFault, InputError


def check_device(name: str) -> None:
    """Raise unless `name` is `cpu`, or `cuda[:i]` on a machine that has it.

    Raises:
        InputError: no device of that name exists.
        EnvironmentFault: this machine doesn't have it.
    """
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdigit())):
        raise InputError("command line", "--device", f"found {name!r}, expected cpu, cuda or cuda:NUMBER")
    if kind == "cpu":
        return
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(index or 0) >= count:
        raise EnvironmentFault(f"--device {name}: PyTorch finds {count} GPUs here; use --device cpu")
