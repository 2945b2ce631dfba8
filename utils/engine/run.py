"""A run: its folder (one run at a time), what is due when, signals, saving, resuming."""

from __future__ import annotations

import fcntl
import os
import resource
import secrets
import signal
import string
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from torch import Tensor

from utils.engine.checkpoint import (
    MANIFEST,
    META,
    check_tensors,
    list_checkpoints,
    load_checkpoint,
    newest_good,
    read_object,
    save_checkpoint,
)
from utils.engine.device import AUTO, device_named
from utils.engine.log import Log
from utils.engine.options import Options, due_at, flags_from_options, options_from_flags
from utils.errors import EnvironmentFault, InputError, MienError, disk_advice, one_line
from utils.io.atomic import atomic_file, remove, write_json
from utils.io.json_files import JsonObject, read_json

OPTIONS, RUN_FACTS, LOCK, CHECKPOINTS = "options.json", "run.json", ".lock", "checkpoints"
LONGEST_NAME, MOST_STEPS = 255, 10**9  # bytes; steps
# Options that may differ between a run and its continuation: they do not change what is computed, or are paths of files
# that must have the same contents (`inputs`).
FREE = {"resume", "start_checkpoint", "debug_from", "detect_anomaly", "data_device", "quiet", "threads", "overwrite",
        "ip", "port", "model_path", "device", "cache_dir", "image_memory_gb", "config", "interval", "test_iterations",
        "save_iterations", "checkpoint_iterations", "source_path", "data_root", "flame_model",
        "flame_masks", "vgg_weights", "lpips_vgg16_weights", "lpips_alex_weights"}  # fmt: skip
STATE_INPUTS = {"source_path", "flame_model"}  # a state makes sense with these alone; steps may depend on others too


class Stateful(Protocol):
    """Something that a checkpoint holds."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor], /) -> None: ...


class Interrupted(MienError):
    """A signal ended the run after it had been saved."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after saving step {step}; continue with --resume")
        self.exit_code = 128 + number


class Run:
    """The run folder and its clock.

    Args:
        options: everything the run depends on. inputs: fingerprints of the files it depends on, by flag; a resumed run
            must have the same. parts: what a checkpoint holds besides the step.
    """

    def __init__(self, options: Options, inputs: Mapping[str, str], parts: tuple[Stateful, ...]) -> None:
        chosen, iterations = options.run, options.optimiser.iterations
        self.folder, self.options, self.inputs, self.parts = Path(chosen.model_path), options, dict(inputs), parts
        self.evaluate_at = due_at(chosen.test_iterations, chosen.interval, iterations)
        self.save_at = due_at(chosen.save_iterations, chosen.interval, iterations)
        self.checkpoint_at = due_at(chosen.checkpoint_iterations, chosen.interval, iterations)
        self.model = device_named(chosen.device).model
        self.signal = 0
        self.seconds = 0.0
        made = not os.path.lexists(self.folder)
        self.lock = lock_folder(self.folder)
        for leftover in [*self.folder.glob(".*.tmp-*"), *self.folder.glob("*/.*.tmp-*")]:
            remove(leftover)  # of a run that was killed while it wrote; the lock is ours, so nobody writes them now
        try:
            self.first = self.restore()
            if chosen.overwrite:  # only now: a refused run leaves the one that is there alone
                clear_folder(self.folder)
            self.write_options()
        except MienError:
            os.close(self.lock)
            if made:  # a refused run leaves nothing behind
                remove(self.folder)
            raise
        self.log = Log(self.folder, self.first, iterations, chosen.quiet)
        self.started = time.monotonic()

    def restore(self) -> int:
        """Load the checkpoint that --resume asks for and return its step; 0 for a new run."""
        wanted = self.options.run.resume
        if not wanted:
            return self.start_from(self.options.run.start_checkpoint)
        if wanted == "latest" and not list_checkpoints(self.folder / CHECKPOINTS):
            started = read_object(self.folder / OPTIONS).get("start_checkpoint", "")
            if not isinstance(started, str):
                raise InputError(self.folder / OPTIONS, "start_checkpoint", f"found {started!r}, expected text")
            self.options.run.start_checkpoint = started  # so that options.json goes on to say it
            print(f"{self.folder}: the run was stopped before its first checkpoint; starting from "
                  f"{started or 'step 1'}", file=sys.stderr)  # fmt: skip
            return self.start_from(started)
        if wanted == "latest":
            path, tensors, meta, complaints = newest_good(self.folder / CHECKPOINTS)
            for line in complaints:
                print(f"warning: {line}", file=sys.stderr)
        else:
            path = Path(wanted)
            tensors, meta = load_checkpoint(path)
        self.check_inputs(path, meta, self.inputs)
        # a flag that Mien didn't have when the run began is at its default, which leaves a run as it was
        options = {**flags_from_options(options_from_flags({}, path)), **meta.object("options").value}
        for flag, value in flags_from_options(self.options).items():
            if flag not in FREE and options.get(flag) != value:
                raise InputError(path, flag, f"found {options.get(flag)!r}, the command line says {value!r}",
                                 "Resume with the options of the run, or begin another from its state with "
                                 "--start_checkpoint.")  # fmt: skip
        self.load(path, tensors)
        self.say_another_device(path, meta)
        self.seconds = meta.number("train_seconds")
        if self.seconds < 0:
            raise meta.error("train_seconds", f"found {self.seconds}, expected at least 0")
        return meta.integer("step", 1, self.options.optimiser.iterations)

    def say_another_device(self, path: Path, meta: JsonObject) -> None:
        """Warn if the run went on elsewhere so far: same bits are promised on one kind of device only."""
        before, now = meta.value.get("device"), device_named(self.options.run.device).model
        if isinstance(before, str) and before != now:
            print(f"warning: {path}: was trained on {one_line(before)}, goes on on {now}: the result will not have the "
                  "bits of an undisturbed run", file=sys.stderr)  # fmt: skip

    def start_from(self, checkpoint: str) -> int:
        """Load the state that --start_checkpoint names and return its step; other options are the new run's own."""
        if not checkpoint:
            return 0
        path = Path(checkpoint)
        tensors, meta = load_checkpoint(path)
        step, iterations = meta.integer("step", 1, MOST_STEPS), self.options.optimiser.iterations
        if step >= iterations:
            raise InputError(path, "step", f"found {step}, expected less than --iterations {iterations}")
        self.check_inputs(path, meta, {flag: found for flag, found in self.inputs.items() if flag in STATE_INPUTS})
        self.load(path, tensors)
        return step

    def check_inputs(self, path: Path, meta: JsonObject, expected: Mapping[str, str]) -> None:
        """Refuse a checkpoint made from other files: it holds their motion, and Gaussians on their head."""
        inputs = meta.object("inputs").value
        for flag, fingerprint in expected.items():
            if inputs.get(flag) != fingerprint:
                raise InputError(path, flag, "the run was made from other files", "Give the files of that run.")

    def load(self, path: Path, tensors: dict[str, Tensor]) -> None:
        """Hand a checkpoint's tensors to the parts of the run, if they fit."""
        check_tensors(path, tensors, self.tensors())
        for part in self.parts:
            try:
                part.load_state_dict(tensors)
            except ValueError as error:
                raise InputError(path, "", str(error)) from error

    def tensors(self) -> dict[str, Tensor]:
        """The state of every part."""
        return {name: tensor for part in self.parts for name, tensor in part.state_dict().items()}

    def write_options(self) -> None:
        """Save the options as JSON, and as the `cfg_args` text that old tools read."""
        flat = flags_from_options(self.options)
        write_json(self.folder / OPTIONS, flat)
        camera = str(flat["select_camera_id"])
        flat = {**flat, "select_camera_id": int(camera) if camera.lstrip("-").isdigit() else camera}
        with atomic_file(self.folder / "cfg_args", "w") as file:
            file.write(f"Namespace({', '.join(f'{name}={value!r}' for name, value in flat.items())})\n")

    def steps(self, settle: Callable[[], None] = lambda: None) -> Iterator[int]:
        """The steps that are left; a signal ends them after the current one.

        Args:
            settle: called before the state is saved then; raises if a step went wrong.
        """
        before = {number: signal.signal(number, self.on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for step in range(self.first + 1, self.options.optimiser.iterations + 1):
                yield step
                if self.signal:
                    settle()
                    self.checkpoint(step)
                    raise Interrupted(self.signal, step)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            self.log.close()
            os.close(self.lock)

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + number)  # a second signal: at once; files are only ever replaced whole
        self.signal = number

    def checkpoint(self, step: int) -> None:
        """Write everything that a bit-identical continuation needs."""
        meta: dict[str, Any] = {"inputs": self.inputs, "options": flags_from_options(self.options),
                                "train_seconds": self.elapsed(), "device": self.model}  # fmt: skip
        named = self.options.run.checkpoint_iterations
        save_checkpoint(self.folder / CHECKPOINTS, step, self.tensors(), meta, named)

    def elapsed(self) -> float:
        """Seconds spent training, resumed parts included."""
        return self.seconds + time.monotonic() - self.started

    def write_facts(self, step: int, facts: Mapping[str, Any]) -> None:
        """Write `run.json`: what metrics.py reports beside the quality, and what the run was made from."""
        write_json(self.folder / RUN_FACTS, {"iteration": step, **facts, "inputs": self.inputs, "device": self.model,
                                             "train_seconds": round(self.elapsed(), 3),
                                             "peak_memory_mb": round(peak_memory_mb(), 1)})  # fmt: skip


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def wanted_device(options: Options) -> str:
    """What --device means for this run: a resumed one keeps its own unless another is asked for."""
    run = options.run
    if run.device != AUTO or not run.resume:
        return run.device
    if run.resume == "latest":
        flags = read_object(Path(run.model_path) / OPTIONS)
    else:
        path = Path(run.resume) / META
        flags = JsonObject.of(path, "", read_json(path)).object("options").value
    return str(flags.get("device", AUTO))


def choose_folder(options: Options) -> None:
    """Fill in the run folder and refuse one that already holds a run. Writes nothing.

    Raises:
        InputError: a run is there and neither --resume nor --overwrite was given, or --resume and no run is there.
    """
    run = options.run
    if not run.model_path:
        letters = "".join(secrets.choice(string.ascii_lowercase) for _ in range(10))
        run.model_path = str(Path("output") / letters)
    folder = Path(run.model_path)
    if os.path.lexists(folder) and not os.path.isdir(folder):  # os.path: False for names that are too long
        raise InputError(folder, "", "is no folder", "Choose another -m.")
    if len(os.fsencode(folder.name)) > LONGEST_NAME:
        raise InputError(folder, "", f"has a name of over {LONGEST_NAME} bytes", "Choose another -m.")
    refuse_if_held(folder)
    holds_run = os.path.lexists(folder / OPTIONS)
    if holds_run and not run.resume and not run.overwrite:
        raise InputError(folder, "", "already holds a run", "Continue it with --resume, replace it with --overwrite, "
                         "or choose another -m.")  # fmt: skip
    if run.resume == "latest" and not holds_run:
        raise InputError(folder, "", "holds no run to resume", "Start without --resume.")
    if os.path.isfile(run.start_checkpoint):
        raise InputError(run.start_checkpoint, "", "is a file, expected a folder RUN/checkpoints/step_N",
                         "The original's .pth lacks the FLAME motion and can't be continued.")  # fmt: skip
    for checkpoint in {run.resume, run.start_checkpoint} - {"", "latest"}:
        if not os.path.isfile(Path(checkpoint) / MANIFEST):
            raise InputError(checkpoint, "", "is no checkpoint", "Give a folder RUN/checkpoints/step_N.")
    own = (folder / CHECKPOINTS).resolve()
    if holds_run and run.resume not in ("", "latest") and Path(run.resume).resolve().parent != own:
        raise InputError(folder, "", f"holds another run than {run.resume}", "Choose another -m.")
    if run.overwrite and run.start_checkpoint and Path(run.start_checkpoint).resolve().parent == own:
        raise InputError(run.start_checkpoint, "", "belongs to the run that --overwrite replaces", "Choose another -m.")


def refuse_if_held(folder: Path) -> None:
    """Raise EnvironmentFault if another process trains in the folder; makes and changes nothing."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return  # there is no lock, or none that a run has made: locking itself will say
    try:
        hold(folder, descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def hold(folder: Path, descriptor: int, kind: int) -> None:
    """Lock a run's lock file; raises EnvironmentFault naming the process that holds it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        raise EnvironmentFault(f"{folder}: another run is training in this folder ({holder}). Wait for it, or choose "
                               "another -m.") from error  # fmt: skip


def lock_folder(folder: Path) -> int:
    """Make the folder and hold it for this process; the operating system lets go when the process ends.

    Raises:
        EnvironmentFault: another process trains in it, or it can't be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise EnvironmentFault(
            f"{folder}: can't be written: {error.strerror or error}. {disk_advice(error)}"
        ) from error
    try:
        hold(folder, descriptor, fcntl.LOCK_EX)
    except EnvironmentFault:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode(), 0)
    return descriptor


def clear_folder(folder: Path) -> None:
    """Remove what an earlier run left in the folder (--overwrite); only names that a run makes itself."""
    names = (CHECKPOINTS, "point_cloud", "train", "val", "test", OPTIONS, RUN_FACTS, "cfg_args", "log.csv",
             "cameras.json", "render.json", "metrics.json", "results.json", "per_view.json",
             "metrics_per_view.json", "tracked_motion.npz", "contact_sheet.png")  # fmt: skip
    rendered = [*folder.glob("*/ours_*")]  # of splits, drivers, motions and orbits, and export/
    for path in [folder / name for name in names] + rendered + [*folder.glob("events.out.tfevents.*")]:
        remove(path)
