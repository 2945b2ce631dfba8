"""Measure rendered frames: `python metrics.py -m RUN [RUN ...]`, after `render.py`.

Compares RUN/{train,val,test}/ours_N/{renders,gt}/*.png and writes, in RUN,
  metrics.json           iteration, gaussians, fps, train_seconds, peak_memory_mb and, for each split, the mean over its
                         views of every metric; beside each null stands its reason as `NAME_reason`
  metrics_per_view.json  the same metrics of each view
  results.json           {"ours_N": {"SSIM", "PSNR", "LPIPS"}} of the test split, as users know it
  per_view.json          {"ours_N": {"SSIM": {file: value}, ...}} likewise

Renders and truths are 8-bit PNGs: rounding adds 1.3e-6 to the squared error, 0.01 dB at 33 dB. The metrics are defined
in `utils/engine/metrics.py`; `PSNR` is the whole-image one. LPIPS takes images in [-1, 1] and needs backbone weights
that don't come with its package (`utils/perceptual_networks.py`); `LPIPS` is the one of VGG. Papers on head avatars fed
it images in [0, 1]: `--lpips_range 01` adds `lpips_vgg_01` and `lpips_alex_01`, which do too, and puts the former into
`LPIPS`.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments.flags import OneLineParser
from utils.engine.device import check_device
from utils.engine.metrics import Scores, image_tensor, mean_scores, score
from utils.errors import InputError, MienError, one_line, run_main
from utils.io.atomic import write_json
from utils.io.json_files import is_number, read_json
from utils.io.progress import progress
from utils.io.rendered import Pair, choose_iteration, list_pairs
from utils.perceptual_networks import LPIPS_VARIANTS, Lpips, load_lpips

MOST_THREADS = 8  # each holds the features of two pictures: 1 GiB for VGG at 802x550
LPIPS_LEAST = 32  # pixels; below, its last layers are empty
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
class Work:
    """What is to be measured of one run."""

    run: Path
    iteration: int
    splits: Mapping[str, Sequence[Pair]]
    facts: Mapping[str, float | str | None]  # what training and rendering wrote about themselves


def parse_arguments(argv: list[str]) -> Any:
    parser = OneLineParser(prog="metrics.py", allow_abbrev=False)
    parser.add_argument("-m", "--model_paths", "--model_path", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--iteration", type=int, default=-1, help="which rendered iteration; -1: the newest")
    parser.add_argument("--lpips_vgg16_weights", default="", metavar="FILE", help=".safetensors or torchvision's .pth")
    parser.add_argument("--lpips_alex_weights", default="", metavar="FILE", help=".safetensors or torchvision's .pth")
    parser.add_argument("--lpips_range", choices=("11", "01"), default="11", help="01: add LPIPS on [0, 1] (see above)")
    parser.add_argument("--device", default="cpu", help="of LPIPS: cpu or cuda[:i]")
    parser.add_argument("--threads", type=int, default=0, help="views measured at once; 0: one per core, up to 8")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--debug", action="store_true", help="print a traceback with every error")
    return parser.parse_args(argv)


def load_distances(options: Any) -> Distances:
    """Load both LPIPS networks; weights that weren't asked for by path may be absent, which is said.

    Raises:
        InputError, EnvironmentFault: weights given by path can't be used.
    """
    given = {"vgg": options.lpips_vgg16_weights, "alex": options.lpips_alex_weights}
    networks, reasons = {}, {}
    for variant, path in given.items():
        try:
            networks[variant] = load_lpips(variant, path).to(options.device)
        except MienError as error:
            if path:
                raise
            reasons[variant] = str(error)
            if not options.quiet:
                print(f"lpips_{variant}: not computed: {error}", file=sys.stderr)
    return Distances(networks, reasons, options.lpips_range == "01")


def find_work(run: Path, iteration: int) -> Work:
    """The frames to measure; every pair is looked for before the first is read.

    Raises:
        InputError: nothing rendered, or a frame that only one side has.
    """
    chosen, folders = choose_iteration(run, iteration)
    order = {"val": 0, "test": 1, "train": 2}
    return Work(
        run,
        chosen,
        {
            split: list_pairs(folders[split])
            for split in sorted(folders, key=lambda split: (order[split.split("_")[0]], split))
        },
        run_facts(run, chosen),
    )


@torch.no_grad()
def measure(pair: Pair, distances: Distances) -> Scores:
    """All metrics of one view; None where undefined."""
    files = pair.read()
    render, truth = image_tensor(files[0]), image_tensor(files[1])
    mask = None if files[2] is None else image_tensor(files[2])
    found = score(render, truth, mask, threads=1)  # views run beside one another
    large = min(render.shape[1:]) >= LPIPS_LEAST
    for name, variant in distances.names().items():
        network = distances.networks.get(variant)
        found[name] = distance(network, render, truth, name.endswith("_01")) if network and large else None
    return found


def distance(network: Lpips, render: Tensor, truth: Tensor, on_01: bool) -> float:
    """LPIPS of two images [3, H, W] in [0, 1], fed as [-1, 1] or, by mistake, as they are."""
    a, b = (image[None].to(network.shift.device) for image in (render, truth))
    return float(network(a, b) if on_01 else network(2 * a - 1, 2 * b - 1))


def measure_views(work: Work, distances: Distances, threads: int, quiet: bool) -> dict[str, dict[str, Scores]]:
    """Measure every view, `threads` at a time: split -> file -> metrics."""
    found: dict[str, dict[str, Scores]] = {}
    for split, pairs in work.splits.items():
        with ThreadPoolExecutor(threads) as pool:
            try:
                views = pool.map(partial(measure, distances=distances), pairs)
                scores = list(progress(views, len(pairs), f"{work.run.name} {split}", quiet))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        found[split] = {pair.name: view for pair, view in zip(pairs, scores, strict=True)}
    return found


def summarise(views: Mapping[str, Scores], distances: Distances) -> dict[str, float | str | None]:
    """Means over the views, and reasons for what is missing."""
    summary: dict[str, float | str | None] = {}
    variants = distances.names()
    for name, mean in mean_scores(views.values()).items():
        summary[name] = mean
        lacking = sum(view[name] is None for view in views.values())
        if name in variants:
            reason = distances.reasons.get(variants[name], f"needs {LPIPS_LEAST} pixels along each side")
        else:
            reason = "no matte, or an empty one"
        if lacking:
            part = "" if lacking == len(views) else f"{lacking} of {len(views)} views don't count: "
            summary[f"{name}_reason"] = part + reason
    return summary


def run_facts(run: Path, iteration: int) -> dict[str, float | str | None]:
    """What training and rendering wrote about themselves; null, with the reason, if it is of another iteration."""
    sources = {"gaussians": ("render.json", "run.json"), "fps": ("render.json",)}
    sources |= {name: ("run.json",) for name in ("train_seconds", "peak_memory_mb")}
    facts: dict[str, float | str | None] = {"iteration": iteration}
    for name, files in sources.items():
        known = [content[name] for file in files if name in (content := facts_of(run / file, iteration))]
        facts[name] = known[0] if known else None
        if not known:
            facts[f"{name}_reason"] = f"no {' or '.join(files)} of iteration {iteration} says it"
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


def write_results(work: Work, views: Mapping[str, Mapping[str, Scores]], distances: Distances) -> dict[str, Any]:
    """Write the JSON files of a run, `metrics.json` last, and return what that holds."""
    splits = {split: summarise(of_split, distances) for split, of_split in views.items()}
    write_json(work.run / "metrics_per_view.json", {"iteration": work.iteration, "splits": views})
    if "test" in views:
        known = {**KNOWN_NAMES, **({"LPIPS": "lpips_vgg_01"} if distances.also_01 else {})}
        means = {known_as: splits["test"][name] for known_as, name in known.items()}
        per_view = {
            known_as: {file: view[name] for file, view in views["test"].items()} for known_as, name in known.items()
        }
        write_json(work.run / "results.json", {f"ours_{work.iteration}": means})
        write_json(work.run / "per_view.json", {f"ours_{work.iteration}": per_view})
    metrics = {**work.facts, "splits": splits}
    write_json(work.run / "metrics.json", metrics)
    return metrics


def table(run: Path, metrics: Mapping[str, Any]) -> str:
    """The means as text for the terminal."""
    lines = [f"{one_line(str(run))} (iteration {metrics['iteration']})"]
    for split, summary in metrics["splits"].items():
        shown = [f"{name} {value:.4f}" for name, value in summary.items() if isinstance(value, float)]
        lines.append(f"  {split}: {', '.join(shown)}")
    return "\n".join(lines)


def usable_cores() -> int:
    """Cores that this process may use; macOS doesn't say, so all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: list[str]) -> None:
    options = parse_arguments(argv)
    check_device(options.device)
    torch.set_num_threads(1)  # views are what runs side by side
    torch.backends.cudnn.allow_tf32 = False  # the same figures on every device
    threads = options.threads if options.threads > 0 else min(MOST_THREADS, usable_cores())
    work = [find_work(Path(run), options.iteration) for run in options.model_paths]
    distances = load_distances(options)
    for one in work:
        views = measure_views(one, distances, threads, options.quiet)
        metrics = write_results(one, views, distances)
        print(table(one.run, metrics))
        if "test" not in views and not options.quiet:
            name = one_line(str(one.run))
            print(f"{name}: no take `test`, so no results.json and per_view.json, which are about it", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run_main(main))
