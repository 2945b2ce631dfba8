"""Rules that span several options: each a condition that must not hold, the flags it names and what to do."""

from __future__ import annotations

from utils.engine.options import Options
from utils.errors import InputError


def check(options: Options) -> None:
    """Raise InputError for the first rule that the options break."""
    run, optimiser, data = options.run, options.optimiser, options.data
    rules = [
        (not data.source_path, "--source_path", "is missing", "Give the dataset folder: -s FOLDER."),
        (optimiser.iterations < 1, "--iterations", f"found {optimiser.iterations}, expected >= 1", ""),
        (not 0 <= options.model.sh_degree <= 3, "--sh_degree", f"found {options.model.sh_degree}, expected 0-3", ""),
        (run.seed < 0, "--seed", f"found {run.seed}, expected >= 0", ""),
        (run.threads < 0, "--threads", f"found {run.threads}, expected >= 0 (0: all cores)", ""),
        (run.device != "cpu" and options.run.rasterizer == "native", "--device", f"found {run.device}, but "
         "--rasterizer native runs on cpu", "Use --rasterizer gsplat on a GPU, or --device cpu."),
        (run.resume != "" and run.overwrite, "--overwrite", "contradicts --resume", "Give one of the two."),
    ]  # fmt: skip
    for broken, flag, problem, advice in rules:
        if broken:
            raise InputError("command line", flag, problem, advice)
