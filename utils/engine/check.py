"""Rules that span several options: each a condition that must not hold, the flags it names and what to do."""

from __future__ import annotations

from pathlib import Path

from utils.engine.options import Options
from utils.errors import InputError

Rule = tuple[bool, str, str, str]  # broken?, the flag, what is wrong, what to do
MOST_ITERATIONS, MOST_THREADS, MOST_VIEWS = 10**9, 1024, 4096
RATES = ("feature_lr", "opacity_lr", "scaling_lr", "rotation_lr", "flame_expr_lr", "flame_trans_lr", "flame_pose_lr",
         "flame_offset_lr")  # fmt: skip


OFFSET_WEIGHTS = ("lambda_dynamic_offset", "lambda_dynamic_offset_std", "lambda_laplacian")


def check(options: Options, source: str | Path = "command line") -> None:
    """Raise InputError for the first rule that the options break; `source` is where they come from."""
    run, optimiser, data, model = options.run, options.optimiser, options.data, options.model
    iterations, threads = optimiser.iterations, run.threads
    rules = [
        (not data.source_path, "--source_path", "is missing", "Give the dataset folder: -s FOLDER."),
        (not 1 <= iterations <= MOST_ITERATIONS, "--iterations", f"found {iterations}, expected 1 to 10^9", ""),
        (not 0 <= model.sh_degree <= 3, "--sh_degree", f"found {model.sh_degree}, expected 0 to 3", ""),
        (not 0 < model.init_opacity < 1, "--init_opacity", f"found {model.init_opacity}, expected between 0 and 1", ""),
        (model.init_scale <= 0, "--init_scale", f"found {model.init_scale}, expected > 0", ""),
        (not (data.resolution == -1 or 1 <= data.resolution <= 16384), "--resolution", f"found {data.resolution}, "
         "expected -1, 1, 2, 4, 8 or a width", ""),
        (run.seed < 0, "--seed", f"found {run.seed}, expected >= 0", ""),
        (not 0 <= threads <= MOST_THREADS, "--threads", f"found {threads}, expected 0 to {MOST_THREADS}", ""),
        (not 1 <= optimiser.batch_size <= MOST_VIEWS, "--batch_size", f"found {optimiser.batch_size}, expected 1 to "
         f"{MOST_VIEWS}", ""),
        (run.resume != "" and run.start_checkpoint != "", "--start_checkpoint", "contradicts --resume", "--resume "
         "continues the same run, --start_checkpoint starts another from its state. Give one of the two."),
        (run.resume != "" and run.overwrite, "--overwrite", "contradicts --resume", "Give one of the two."),
    ]  # fmt: skip
    for name in ("position_lr_init", "position_lr_final"):
        value = getattr(optimiser, name)
        rules.append((value <= 0, f"--{name}", f"found {value}, expected > 0", "The rate falls log-linearly."))
    offsets = options.losses["offsets"]
    weighted = [name for name in OFFSET_WEIGHTS if getattr(offsets, name)]
    rules.append((bool(weighted) and not options.rig.train_dynamic_offset, f"--{'/'.join(weighted)}", "weighs dynamic "
                  "offsets, but they are not trained", "Add --train_dynamic_offset."))  # fmt: skip
    rules.append((options.rig.train_dynamic_offset and options.rig.not_finetune_flame_params, "--train_dynamic_offset",
                  "contradicts --not_finetune_flame_params", "Give one of the two."))  # fmt: skip
    dense = options.densification
    rules += densification_rules(options)
    never_zero = {"densification_interval": dense, "opacity_reset_interval": dense, "sh_interval": optimiser,
                  "position_lr_max_steps": optimiser}  # fmt: skip
    for name, group in never_zero.items():
        value = getattr(group, name)
        rules.append((value == 0, f"--{name}", "found 0, expected >= 1, or -1", ""))
    rules.append((run.interval == 0, "--interval", "found 0, expected >= 1, or -1", ""))
    rules.append((dense.densify_grad_threshold < 0, "--densify_grad_threshold", "is negative, expected >= 0", ""))
    for name in RATES:
        rules.append(
            (getattr(optimiser, name) < 0, f"--{name}", f"found {getattr(optimiser, name)}, expected >= 0", "")
        )
    for name in ("test_iterations", "save_iterations", "checkpoint_iterations"):
        early = [step for step in getattr(run, name) if step < 1]
        rules.append((bool(early), f"--{name}", f"found {early}, expected iterations from 1", ""))
    for broken, flag, problem, advice in rules:
        if broken:
            raise InputError(source, flag, problem, advice)


def densification_rules(options: Options) -> list[Rule]:
    """What the flags of densification must not say."""
    dense = options.densification
    return [
        (dense.gaussian_budget < 0, "--gaussian_budget", f"found {dense.gaussian_budget}, expected >= 0", ""),
        (dense.percent_dense < 0, "--percent_dense", f"found {dense.percent_dense}, expected >= 0", ""),
        (not 0 <= dense.prune_opacity <= 1, "--prune_opacity", f"found {dense.prune_opacity}, expected 0 to 1", ""),
        (dense.use_adaptive_densification and dense.densification == "none", "--use_adaptive_densification",
         "contradicts --densification none", "Give one of the two."),
        (not 0.01 <= dense.adaptive_densify_ratio <= 100, "--adaptive_densify_ratio",
         f"found {dense.adaptive_densify_ratio}, expected 0.01 to 100", ""),
        (dense.needs_regions and not options.rig.flame_masks, "--flame_masks",
         f"is missing: --region_source {dense.region_source} asks where eyes, mouth and nose are",
         "Give FLAME_masks.pkl, or --region_source error."),
    ]  # fmt: skip
