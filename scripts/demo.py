"""The whole job on the built-in subject: make it, train, render, measure, and show where the results are.

`--control` trains one Gaussian per face without FLAME fine-tuning instead: what the avatar must beat.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONTROL = ["--densification", "none", "--not_finetune_flame_params"]


def run(title: str, script: str, *arguments: str) -> None:
    """Run one of Mien's programs; stop with its exit code if it fails."""
    print(f"== {title}", flush=True)
    started = time.monotonic()
    done = subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    print(f"   {time.monotonic() - started:.1f} s", flush=True)


def show(folder: Path) -> None:
    """Print the table of metrics and the files worth opening."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    size = f"{metrics['gaussians']} Gaussians after {metrics['iteration']} iterations"
    cost = f"{metrics['train_seconds']:.0f} s, {metrics['fps']:.0f} FPS, peak memory {metrics['peak_memory_mb']:.0f} MB"
    print(f"\n{size}, {cost}")
    for split, row in metrics["splits"].items():
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        print(f"{split:5s}" + "  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    print(f"\nvideo          {folder / 'test.mp4'}\ncontact sheet  {folder / 'contact_sheet.png'}")
    print(f"numbers        {folder / 'metrics.json'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--subject", type=Path, default=Path("output/demo_subject"), help="made here if absent")
    parser.add_argument("--run", type=Path, default=Path("output/demo"), help="run folder, replaced if it holds a run")
    parser.add_argument("--control", action="store_true", help="the control: one Gaussian per face, no FLAME tuning")
    options, extra = parser.parse_known_args()
    options.subject, options.run = options.subject.resolve(), options.run.resolve()
    model, capture = options.subject / "model", options.subject / "capture"
    started = time.monotonic()
    if not (capture / "transforms_test.json").is_file():
        run("Making the built-in subject", "scripts/make_demo_subject.py", "--output", str(options.subject))
    run("Training", "train.py", "-s", str(capture), "-m", str(options.run), "--bind_to_mesh", "--eval",
        "--white_background", "--config", "demo", "--overwrite", "--flame_model", str(model / "demo_head.pkl"),
        "--flame_masks", str(model / "demo_masks.pkl"), *(CONTROL if options.control else []), *extra)  # fmt: skip
    run("Rendering held-out frames", "render.py", "-m", str(options.run), "--skip_train")
    run("Measuring", "metrics.py", "-m", str(options.run))
    run("Contact sheet", "scripts/contact_sheet.py", "-m", str(options.run))
    newest = max((options.run / "test").glob("ours_*"), key=lambda path: int(path.name[5:]))
    (options.run / "test.mp4").write_bytes((newest / "renders.mp4").read_bytes())
    show(options.run)
    print(f"total          {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
