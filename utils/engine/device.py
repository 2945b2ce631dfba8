"""Where a program computes: what `--device` means, whether this machine can do it, and why not.

    auto             the first GPU that PyTorch and the native library can use, else the CPU; the log says which and
                     why. The environment variable MIEN_DEVICE, if set, is taken instead
    cpu              any machine
    cuda, cuda:i     a GPU, the first or number i (from 0)
    emulated[:PATH]  for developers: the CUDA kernels on the CPU, by the library at PATH or $MIEN_EMULATED; slow

Results are bit-identical on one kind of device: the CPU, or one model of GPU.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.utils.deterministic

from utils.errors import EnvironmentFault, InputError, one_line

NATIVE = "diff_gaussian_rasterization._device"
AUTO, CPU = "auto", "cpu"
PREFERRED, EMULATED_LIBRARY, EMULATED_BYTES = "MIEN_DEVICE", "MIEN_EMULATED", "MIEN_EMULATION_BYTES"
KNOWN = re.compile(r"cpu|cuda(:[0-9]{1,4})?|emulated(:.+)?", re.DOTALL)
WORKSPACE = ":4096:8"  # of cuBLAS, whose sums depend on it; what PyTorch's documentation asks for


@dataclass(frozen=True)
class Device:
    """A device by its full name: `cpu`, `cuda:0` or `emulated:PATH`."""

    name: str

    @property
    def kind(self) -> str:
        """`cpu`, `cuda` or `emulated`."""
        return self.name.partition(":")[0]

    @property
    def torch(self) -> torch.device:
        """Where its tensors lie."""
        return torch.device(self.name if self.kind == "cuda" else "cpu")

    @property
    def accelerated(self) -> bool:
        """Whether the CUDA kernels do the work: its values should not be read in every step."""
        return self.kind != "cpu"

    @property
    def model(self) -> str:
        """What results depend on: `cpu`, `emulated`, or the name of the GPU."""
        return torch.cuda.get_device_name(self.torch) if self.kind == "cuda" else self.kind

    def free_bytes(self) -> int | None:
        """Memory that is free on it; None where that is not limited."""
        if self.kind == "cuda":
            return torch.cuda.mem_get_info(self.torch)[0]
        limit = os.environ.get(EMULATED_BYTES, "") if self.kind == "emulated" else ""
        return int(limit) if limit.isdecimal() else None


def device_named(name: str, source: str | Path = "command line") -> Device:
    """The device of a name, `auto` excepted; whether it is there is another question. source: where the name is from.

    Raises:
        InputError: there is no device of that name.
    """
    if not KNOWN.fullmatch(name):
        raise InputError(source, "--device", f"found {name!r}, expected auto, cpu, cuda or cuda:NUMBER")
    kind, _, rest = name.partition(":")
    if kind == "cuda":
        return Device(f"cuda:{int(rest or 0)}")
    if kind == "emulated":
        path = rest or os.environ.get(EMULATED_LIBRARY, "")
        if not path:
            raise InputError("command line", "--device", "emulated: no library",
                             f"Give emulated:PATH, or set {EMULATED_LIBRARY}.")  # fmt: skip
        return Device(f"emulated:{Path(path).absolute()}")
    return Device(kind)


def choose_device(wanted: str, native: bool = True) -> tuple[Device, str]:
    """The device that `--device` asks for, ready for use; and a line for the log that says which and why.

    Args:
        wanted: as typed. native: whether the native library has to work on it (False: PyTorch alone).

    Raises:
        InputError: no device of that name exists.
        EnvironmentFault: this machine can't use it; says what is missing.
    """
    preferred = os.environ.get(PREFERRED, "") if wanted == AUTO else ""
    if preferred not in ("", AUTO):
        device, why = device_named(preferred), f"{PREFERRED} is set"
    elif wanted == AUTO:
        device, why = first_usable(native)
    else:
        device, why = device_named(wanted), ""
    if device.accelerated and (reason := missing(device, native)):
        raise EnvironmentFault(f"--device {device.name}: {reason}; --device cpu works anywhere")
    begin_use(device)
    named = f"{device.name} ({device.model})" if device.kind == "cuda" else device.name
    return device, f"device: {named}" + (f": {why}" if why else "")


def first_usable(native: bool) -> tuple[Device, str]:
    """The first GPU that can be used, or else the CPU; and the reason."""
    reasons = []
    for index in range(max(1, gpu_count())):
        device = Device(f"cuda:{index}")
        reason = missing(device, native)
        if not reason:
            passed = "; ".join(reasons)
            return device, f"the first GPU that can be used{f' ({passed})' if passed else ''}"
        reasons.append(f"{device.name}: {reason}")
    return Device(CPU), f"no GPU can be used ({'; '.join(reasons)})"


def gpu_count() -> int:
    """How many GPUs PyTorch finds. What it warns of, of an old driver say, is said by `torch_lacks`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.cuda.device_count() if torch.cuda.is_available() else 0


def missing(device: Device, native: bool) -> str:
    """Why an accelerated device can't be used here, with what to do; empty if it can."""
    if device.kind == "cuda":
        return torch_lacks(device) or (library_lacks(device) if native else "")
    try:
        emulate(Path(device.name.partition(":")[2]))
    except (ImportError, OSError) as error:
        return one_line(str(error))
    return ""


def torch_lacks(device: Device) -> str:
    """Why PyTorch can't use a GPU; empty if it can."""
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA (pytorch.org has builds with it)"
    count = gpu_count()
    if count == 0:
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return f"PyTorch can't use a GPU: {first_line(error).partition('. Please ')[0]}"
        return "PyTorch finds 0 GPUs"
    if (device.torch.index or 0) >= count:
        return f"PyTorch finds {count} GPUs here, numbered from 0"
    try:
        torch.zeros(1, device=device.torch).add_(1).item()
    except RuntimeError as error:  # torch.AcceleratorError, torch.OutOfMemoryError
        return f"PyTorch can't use it: {first_line(error)}"
    return ""


def library_lacks(device: Device) -> str:
    """Why the native library can't use a GPU that PyTorch can; empty if it can."""
    try:
        from diff_gaussian_rasterization._device import device_library
        from diff_gaussian_rasterization.image import to_float

        device_library()
        to_float(torch.zeros(16, dtype=torch.uint8, device=device.torch)).sum().item()
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # DeviceFault is a RuntimeError
        return f"the native library can't use it: {first_line(error)}"
    return ""


def emulate(path: Path | None) -> None:
    """Let the emulated library do the work of CPU tensors from now on; None: no longer.

    Raises:
        ImportError: it, or the native package, can't be loaded.
    """
    from diff_gaussian_rasterization._device import emulate as run_emulated

    run_emulated(path)


def begin_use(device: Device) -> None:
    """Make it the current device, and its results depend on nothing but their input."""
    torch.set_num_threads(1)  # the native kernels have their own threads; torch's sums would depend on their number
    if device.kind != "emulated" and NATIVE in sys.modules:
        emulate(None)
    if device.kind != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", WORKSPACE)  # before cuBLAS is first used
    torch.cuda.set_device(device.torch)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # Only a warning where PyTorch has no deterministic kernel: docs/gpu.md lists what that concerns.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] - a launch per new tensor


def first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return one_line(text.splitlines()[0]).rstrip(". ")
