"""Measure rendered frames: `python metrics.py -m RUN [RUN ...]`, after `render.py`.

Compares RUN/{train,val,test}/ours_N/{renders,gt}/*.png and writes, in RUN,
  metrics.json           iteration, gaussians (all and by region), fps, train_seconds, peak_memory_mb, jitter of the
                         motion and, for each split, the mean over its views of every metric, quality by region and
                         stability over time; beside each null stands its reason as `NAME_reason`
  metrics_per_view.json  the same metrics of each view
  results.json           {"ours_N": {"SSIM", "PSNR", "LPIPS"}} of the test split, as users know it
  per_view.json          {"ours_N": {"SSIM": {file: value}, ...}} likewise

`--truth FILE`, an npz with the noise-free motion of the capture, adds the distance of the trained motion to it, beside
that of the tracker's.

Renders and truths are 8-bit PNGs: rounding adds 1.3e-6 to the squared error, 0.01 dB at 33 dB. docs/metrics.md defines
the metrics; `PSNR` is the whole-image one. LPIPS takes images in [-1, 1] and needs backbone weights
that don't come with its package (`utils/perceptual_networks.py`); `LPIPS` is the one of VGG. Papers on head avatars fed
it images in [0, 1]: `--lpips_range 01` adds `lpips_vgg_01` and `lpips_alex_01`, which do too, and puts the former into
`LPIPS`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from arguments.flags import OneLineParser
from utils.engine.device import Device, choose_device
from utils.engine.flow_metrics import (
    Step,
    flow_error,
    foreground,
    psnr_frame_variance,
    steps_of,
    temporal_stability,
    use_one_thread,
)
from utils.engine.metrics import Scores, image_tensor, mean_scores, score
from utils.engine.metrics_table import table
from utils.engine.motion_metrics import Facts, motion_facts, read_run_motion, read_truth, truth_facts
from utils.engine.region_metrics import REGIONS, RegionSums, region_scores, region_sums, summarise_regions
from utils.errors import InputError, MienError, one_line, run_main
from utils.io.atomic import write_json
from utils.io.json_files import is_number, read_json
from utils.io.progress import progress
from utils.io.rendered import RENDER_AGAIN, Pair, choose_iteration, list_pairs
from utils.io.take_record import TakeRecord, read_take_record
from utils.perceptual_networks import LPIPS_VARIANTS, Lpips, load_lpips

MOST_THREADS = 8  # each holds the features of two pictures: 1 GiB for VGG at 802x550
LPIPS_LEAST = 32  # pixels; below, its last layers are empty
NO_RECORD = "no frames.json: render again"
STEP_METRICS = ("flow_error", "temporal_stability")
Item = TypeVar("Item")
Result = TypeVar("Result")
KNOWN_NAMES = {"SSIM": "ssim", "PSNR": "psnr", "LPIPS": "lpips_vgg"}


@dataclass(frozen=True)
class Distances:
    """The LPIPS networks that could be loaded, and why the others could not."""

    networks: Mapping[str, Lpips]  # "vgg", "alex"
    reasons: Mapping[str, str]
    also_01: bool  # feed images in [0, 1] as well

    def names(self) -> dict[str, str]:
        """Names of the metrics in results -> variant."""
        suffixes = ("", "_01") if self.also_01 else ("",)
        return {f"lpips_{variant}{suffix}": variant for suffix in suffixes for variant in LPIPS_VARIANTS}


@dataclass(frozen=True)
class TakeFiles:
    """What was rendered of a split."""

    pairs: Sequence[Pair]
    record: TakeRecord | None  # None: rendered before there was one


@dataclass(frozen=True)
class Work:
    """What is to be measured of one run."""

    run: Path
    iteration: int
    splits: Mapping[str, TakeFiles]
    facts: Facts  # what is known without looking at pictures


@dataclass(frozen=True)
class ViewScores:
    """What was measured of one picture."""

    scores: Scores
    regions: Mapping[str, RegionSums]


@dataclass(frozen=True)
class TakeScores:
    """What was measured of a split."""

    views: Mapping[str, ViewScores]  # by file
    steps: Mapping[str, Scores]  # by the first file of two consecutive ones
    record: TakeRecord | None


def parse_arguments(argv: list[str]) -> Any:
    parser = OneLineParser(prog="metrics.py", allow_abbrev=False)
    parser.add_argument("-m", "--model_paths", "--model_path", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--iteration", type=int, default=-1, help="which rendered iteration; -1: the newest")
    parser.add_argument("--truth", default="", metavar="FILE", help="npz: noise-free rotation, translation, expr ...")
    parser.add_argument("--lpips_vgg16_weights", default="", metavar="FILE", help=".safetensors or torchvision's .pth")
    parser.add_argument("--lpips_alex_weights", default="", metavar="FILE", help=".safetensors or torchvision's .pth")
    parser.add_argument("--lpips_range", choices=("11", "01"), default="11", help="01: add LPIPS on [0, 1] (see above)")
    parser.add_argument("--device", default="auto", help="of LPIPS: cpu, cuda[:i], or auto: a GPU if one can be used")
    parser.add_argument("--threads", type=int, default=0, help="views measured at once; 0: one per core, up to 8")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    return parser.parse_args(argv)


def load_distances(options: Any, device: Device) -> Distances:
    """Load both LPIPS networks; weights that weren't asked for by path may be absent, which is said.

    Raises:
        InputError, EnvironmentFault: weights given by path can't be used.
    """
    given = {"vgg": options.lpips_vgg16_weights, "alex": options.lpips_alex_weights}
    networks, reasons = {}, {}
    for variant, path in given.items():
        try:
            networks[variant] = load_lpips(variant, path).to(device.torch)
        except MienError as error:
            if path:
                raise
            reasons[variant] = str(error)
            if not options.quiet:
                print(f"lpips_{variant}: not computed: {error}", file=sys.stderr)
    return Distances(networks, reasons, options.lpips_range == "01")


def find_work(run: Path, iteration: int, truth: str) -> Work:
    """The frames to measure; every pair is looked for before the first is read.

    Raises:
        InputError: nothing rendered, a frame that only one side has, or a truth that isn't this run's.
    """
    chosen, folders = choose_iteration(run, iteration)
    order = {"val": 0, "test": 1, "train": 2}
    splits = sorted(folders, key=lambda split: (order[split.split("_")[0]], split))
    facts = {**run_facts(run, chosen), **facts_of_motion(run, chosen, truth)}
    return Work(run, chosen, {split: find_take(folders[split]) for split in splits}, facts)


def find_take(folder: Path) -> TakeFiles:
    """The frames in a folder `ours_N` and what it says about them."""
    pairs = list_pairs(folder)
    record = read_take_record(folder, {pair.name for pair in pairs})
    if record is None and pairs[0].regions is not None:
        raise InputError(folder / "frames.json", "", "is missing, but there are region maps", RENDER_AGAIN)
    return TakeFiles(pairs, record)


def facts_of_motion(run: Path, iteration: int, truth: str) -> Facts:
    """How the trained motion trembles and, if a truth was given, how far it is from it."""
    motion = read_run_motion(run, iteration)
    if truth and isinstance(motion, str):
        raise InputError(run, "", f"has no motion to compare with --truth: {motion}")
    known = {} if isinstance(motion, str) or not truth else truth_facts(motion, read_truth(Path(truth)), Path(truth))
    return {**motion_facts(motion), **known}


@torch.no_grad()
def measure(pair: Pair, distances: Distances, regions: Sequence[str]) -> ViewScores:
    """All metrics of one view, None where undefined, and sums by region. regions: names of the labels of its map."""
    files = pair.read()
    render, truth = image_tensor(files[0]), image_tensor(files[1])
    mask = None if files[2] is None else image_tensor(files[2])
    found = score(render, truth, mask, threads=1)  # views run beside one another
    large = min(render.shape[1:]) >= LPIPS_LEAST
    for name, variant in distances.names().items():
        network = distances.networks.get(variant)
        found[name] = distance(network, render, truth, name.endswith("_01")) if network and large else None
    labels = pair.read_regions((render.shape[2], render.shape[1]), len(regions))
    return ViewScores(found, {} if labels is None else region_sums(render, truth, labels, regions))


def measure_step(step: Step, pairs: Mapping[str, Pair], background: Sequence[float]) -> Scores:
    """How the change from one picture to the next compares with that of the photographs."""
    (render, truth, mask), (render_after, truth_after, mask_after) = pairs[step.first].read(), pairs[step.second].read()
    if render.shape != render_after.shape:
        raise InputError(pairs[step.second].render, "", "has another size than the picture before", RENDER_AGAIN)
    renders, truths = (render, render_after), (truth, truth_after)
    inside, after = foreground(truth, mask, background), foreground(truth_after, mask_after, background)
    return {"flow_error": flow_error(renders, truths, inside),
            "temporal_stability": temporal_stability(renders, truths, inside | after)}  # fmt: skip


def distance(network: Lpips, render: Tensor, truth: Tensor, on_01: bool) -> float:
    """LPIPS of two images [3, H, W] in [0, 1], fed as [-1, 1] or, by mistake, as they are."""
    a, b = (image[None].to(network.shift.device) for image in (render, truth))
    return float(network(a, b) if on_01 else network(2 * a - 1, 2 * b - 1))


def measure_take(take: TakeFiles, distances: Distances, threads: int, title: str, quiet: bool) -> TakeScores:
    """Measure every view and every two consecutive ones of a split, `threads` at a time."""
    record = take.record
    regions = () if record is None else record.regions
    of_view = partial(measure, distances=distances, regions=regions)
    views = in_threads(of_view, take.pairs, threads, title, quiet)
    pairs, steps = {pair.name: pair for pair in take.pairs}, [] if record is None else steps_of(record.frames)
    of_step = partial(measure_step, pairs=pairs, background=() if record is None else record.background)
    changes = in_threads(of_step, steps, threads, f"{title} motion", quiet) if steps else []
    return TakeScores(
        dict(zip(pairs, views, strict=True)),
        {step.first: change for step, change in zip(steps, changes, strict=True)},
        record,
    )


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], threads: int, title: str, quiet: bool
) -> list[Result]:
    """`function` of each item, in their order; the first error ends the rest."""
    with ThreadPoolExecutor(threads) as pool:
        try:
            return list(progress(pool.map(function, items), len(items), title, quiet))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def summarise(take: TakeScores, distances: Distances) -> Facts:
    """What is said of a split, and reasons for what is missing."""
    views = list(take.views.values())
    reason = NO_RECORD if take.record is None else "no region maps: render.py needs a bound avatar and --flame_masks"
    regions = summarise_regions([view.regions for view in views], reason)
    return {**summarise_views([view.scores for view in views], distances), **regions, **summarise_steps(take)}


def summarise_views(views: Sequence[Scores], distances: Distances) -> Facts:
    """Means over the views."""
    summary: Facts = {}
    variants = distances.names()
    for name, mean in mean_scores(views).items():
        summary[name] = mean
        lacking = sum(view[name] is None for view in views)
        if name in variants:
            reason = distances.reasons.get(variants[name], f"needs {LPIPS_LEAST} pixels along each side")
        else:
            reason = "no matte, or an empty one"
        if lacking:
            part = "" if lacking == len(views) else f"{lacking} of {len(views)} views don't count: "
            summary[f"{name}_reason"] = part + reason
    return summary


def summarise_steps(take: TakeScores) -> Facts:
    """Stability over time: means over all two consecutive pictures of one camera."""
    found: Scores = {"psnr_frame_variance": None, **dict.fromkeys(STEP_METRICS)}
    reasons = dict.fromkeys(found, NO_RECORD)
    if take.record is not None:
        psnr = {file: value for file, view in take.views.items() if (value := view.scores["psnr"]) is not None}
        found["psnr_frame_variance"] = psnr_frame_variance(psnr, take.record.frames)
        found |= mean_scores(take.steps.values())
        lacking = "too small, or no foreground" if take.steps else "no two consecutive pictures of one camera"
        reasons = {
            **dict.fromkeys(STEP_METRICS, lacking),
            "psnr_frame_variance": "no camera has three consecutive ones",
        }
    summary: Facts = {}
    for name, value in found.items():
        summary[name] = value
        if value is None:
            summary[f"{name}_reason"] = reasons[name]
    return summary


def run_facts(run: Path, iteration: int) -> Facts:
    """What training and rendering wrote about themselves; null, with the reason, if it is of another iteration."""
    sources = {"gaussians": ("render.json", "run.json"), "fps": ("render.json",)}
    sources |= {name: ("run.json",) for name in ("train_seconds", "peak_memory_mb")}
    sources |= {f"{what}_{region}": ("render.json",) for what in ("gaussians", "density") for region in REGIONS}
    facts: Facts = {"iteration": iteration}
    for name, files in sources.items():
        known = [content[name] for file in files if name in (content := facts_of(run / file, iteration))]
        facts[name] = known[0] if known else None
        if not known:
            needs = " (needs --flame_masks)" if name.startswith(("gaussians_", "density_")) else ""
            facts[f"{name}_reason"] = f"no {' or '.join(files)} of iteration {iteration} says it{needs}"
    return facts


def facts_of(path: Path, iteration: int) -> dict[str, float]:
    """The numbers in a JSON file, if it exists and is of this iteration.

    Raises:
        InputError: no JSON object.
    """
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, "", "found something else than a JSON object", "Remove it, or render again.")
    if content.get("iteration") != iteration:
        return {}
    return {name: value for name, value in content.items() if is_number(value)}


def write_results(work: Work, takes: Mapping[str, TakeScores], distances: Distances) -> dict[str, Any]:
    """Write the JSON files of a run, `metrics.json` last, and return what that holds."""
    splits = {split: summarise(take, distances) for split, take in takes.items()}
    per_split = {split: {file: view_record(take, file) for file in take.views} for split, take in takes.items()}
    write_json(work.run / "metrics_per_view.json", {"iteration": work.iteration, "splits": per_split})
    if "test" in takes:
        known = {**KNOWN_NAMES, **({"LPIPS": "lpips_vgg_01"} if distances.also_01 else {})}
        means = {known_as: splits["test"][name] for known_as, name in known.items()}
        views = per_split["test"]
        per_view = {known_as: {file: view[name] for file, view in views.items()} for known_as, name in known.items()}
        write_json(work.run / "results.json", {f"ours_{work.iteration}": means})
        write_json(work.run / "per_view.json", {f"ours_{work.iteration}": per_view})
    metrics = {**work.facts, "splits": splits}
    write_json(work.run / "metrics.json", metrics)
    return metrics


def view_record(take: TakeScores, file: str) -> Scores:
    """The metrics of one picture; those of the step to the next one are null where there is none."""
    view = take.views[file]
    step: Scores = dict.fromkeys(STEP_METRICS)
    return {**view.scores, **region_scores(view.regions), **step, **take.steps.get(file, {})}


def usable_cores() -> int:
    """Cores that this process may use; macOS doesn't say, so all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: list[str]) -> None:
    options = parse_arguments(argv)
    device, note = choose_device(options.device, native=False)
    use_one_thread()  # views are what runs side by side
    threads = options.threads if options.threads > 0 else min(MOST_THREADS, usable_cores())
    work = [find_work(Path(run), options.iteration, options.truth) for run in options.model_paths]
    distances = load_distances(options, device)
    if distances.networks and device.accelerated and not options.quiet:
        print(f"LPIPS: {note}", file=sys.stderr)
    for one in work:
        takes = {
            split: measure_take(files, distances, threads, f"{one.run.name} {split}", options.quiet)
            for split, files in one.splits.items()
        }
        metrics = write_results(one, takes, distances)
        print(table(one.run, metrics))
        if "test" not in takes and not options.quiet:
            name = one_line(str(one.run))
            print(f"{name}: no take `test`, so no results.json and per_view.json, which are about it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_main(main))
