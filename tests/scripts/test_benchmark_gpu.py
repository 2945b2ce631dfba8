"""The GPU benchmark, as far as it can be exercised without one: on the emulated device, tiny, where no figure means
anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import benchmark_gpu
from scripts.benchmark_gpu import Bench, measured
from scripts.gpu_benchmark import clock, record, training
from scripts.gpu_benchmark.record import Record, Row
from scripts.gpu_benchmark.scenes import Size, make_scene
from scripts.gpu_benchmark.targets import verdict
from utils.engine.device import Device, choose_device
from utils.errors import EnvironmentFault, run_main

ROOT = Path(__file__).resolve().parent.parent.parent
TINY = Size(100, 16, 16, frequency=1)
STEP = "training step"


def row(what: str, who: str, value: float, scene: str = "100k", gaussians: int = 100_000, unit: str = "ms") -> Row:
    return Row("step", scene, gaussians, what, who, value, unit, value, value, 10, "how")


@pytest.fixture
def emulated(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An emulated device, scenes of a few Gaussians, as few calls as possible."""
    monkeypatch.setattr(benchmark_gpu, "SMOKE", TINY)
    monkeypatch.setattr(clock, "WARM_UP", 1)
    monkeypatch.setattr(clock, "LEAST", 1)
    monkeypatch.setattr(benchmark_gpu, "BATCH", 2)
    return f"emulated:{emulated_library}"


@pytest.fixture(autouse=True)
def back_to_the_cpu() -> object:
    yield
    choose_device("cpu")


def test_without_a_gpu_it_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_main(benchmark_gpu.main, []) == 3
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: --device cuda:0: ") and said.err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--device", "cpu"], ["--steps", "0"], ["--gaussians", "5"], ["--limit", "0"]])
def test_refusals(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(benchmark_gpu.main, flags) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_emulated_device_measures_nothing(emulated: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(benchmark_gpu.main, ["--device", emulated]) == 2
    assert "Add --smoke" in capsys.readouterr().err


def test_every_section_runs_and_nothing_is_written(
    emulated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = ["render", "forward_backward", "step", "gsplat", "fps", "training", "long"]
    flags = ["--device", emulated, "--smoke", "--steps", "2", "--output", str(tmp_path), "--sections", *sections]
    assert run_main(benchmark_gpu.main, flags) == 0
    said = capsys.readouterr()
    assert "emulated on the CPU: no figure says anything about a GPU" in said.out
    for what in ("render, as called from Python", "forward + backward, as called from Python", "training step",
                 "training step, batch of 2, per view", "training step, autograd", "avatar with mesh update",
                 "2 steps with the default rates", "gsplat: not measured: gsplat needs a GPU",
                 "training: not measured: a training needs a GPU"):  # fmt: skip
        assert what in said.out
    assert said.out.count("captured whole in a CUDA graph") >= 3
    assert "extrapolated" not in said.out and not list(tmp_path.iterdir())


def test_scenes_are_the_same_every_time_and_look_like_heads() -> None:
    size = Size(2000, 66, 96, frequency=6)
    one, two = (make_scene(size, Device("cpu")) for _ in range(2))
    assert torch.equal(one.frames[3].image, two.frames[3].image)
    assert not torch.equal(one.frames[3].image, one.frames[4].image)
    assert all(torch.equal(one.avatar.columns[name], column) for name, column in two.avatar.columns.items())
    for frame in one.frames:
        white = (frame.image > 0.99).all(0)
        assert 0.3 < float(white.float().mean()) < 0.52  # an ellipse over 3/4 of the height, with a fuzzy rim
        assert bool(white[[0, 0, -1, -1], [0, -1, 0, -1]].all()) and not bool(white[44:52, 29:37].any())


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, AssertionError])
def test_a_section_that_fails_is_recorded_and_the_rest_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    known = Record({"gpu": "NVIDIA Card X", "date": "today"}, tmp_path)
    bench = Bench(Device("cuda:0"), [TINY], known, 10, 10, 1, False)

    def fails(_: Bench) -> None:
        known.add(row(STEP, "ours", 0.5))
        raise kind("CUDA error: out of luck\nmore")

    monkeypatch.setitem(benchmark_gpu.SECTIONS, "step", fails)
    assert not measured(bench, "step")
    files = sorted(tmp_path.iterdir())
    assert [file.suffix for file in files] == [".json", ".md"] and files[0].stem.startswith("gpu-nvidia-card-x-20")
    body = json.loads(files[0].read_text())
    assert body["rows"][0]["value"] == 0.5 and body["remarks"] == [
        f"step: failed: {kind.__name__}: CUDA error: out of luck"
    ]
    assert "| 100k | training step | 0.500 |" in files[1].read_text()
    monkeypatch.setitem(benchmark_gpu.SECTIONS, "fps", lambda _: known.add(row("avatar", "ours", 1.0)))
    assert measured(bench, "fps")
    assert len(json.loads(files[0].read_text())["rows"]) == 2 and len(list(tmp_path.iterdir())) == 2
    assert record.free_stem(tmp_path, "NVIDIA Card X") == files[0].stem + "b"


def test_targets_stand_beside_the_figures() -> None:
    known = Record({}, None)
    for made in (row(STEP, "ours", 0.5), row(STEP, "gsplat", 2.1), row(STEP, "ours", 1.0, "50k", 50_000)):
        known.add(made)
    known.save()
    assert known.rows[0].target == "met: <= 0.9 ms; met: >= 4x gsplat"
    assert known.rows[2].target == ""
    assert verdict(STEP, 100_000, 1.0, None) == "missed: <= 0.9 ms; not known: >= 4x gsplat"
    assert verdict(STEP, 100_000, 0.8, 3.1) == "met: <= 0.9 ms; missed: >= 4x gsplat"
    assert verdict("something else", 100_000, 1.0, None) == ""
    first = known.cells()[0]
    assert first[:6] == ("100k", STEP, "0.500", "0.500 to 0.500", "2.100", "4.20")
    assert len(known.cells()) == 2


def test_time_that_is_up_is_said(emulated: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Record({}, None)
    bench = Bench(choose_device(emulated)[0], [TINY, TINY], known, 1e-9, 1, 1, True)
    bench.begin("render")
    benchmark_gpu.render(bench)
    assert known.remarks == ["render: out of time, 2 of 2 parts left out"] and not known.rows


def test_a_program_that_fails_or_takes_too_long_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import sys\nprint('error: no such flag', file=sys.stderr)\nsys.exit(2)\n")
    with pytest.raises(EnvironmentFault, match="train.py ended with 2: error: no such flag"):
        training.run([sys.executable, str(tmp_path / "train.py")], 60)
    (tmp_path / "train.py").write_text("import time\ntime.sleep(60)\n")
    with pytest.raises(EnvironmentFault, match="train.py took longer than 0 s"):
        training.run([sys.executable, str(tmp_path / "train.py")], 0.1)


def test_extrapolation_and_the_cpu_s_figures() -> None:
    assert training.full_run_minutes(20_000, 30) == 15.0
    for name in ("built-in subject", "statue"):
        subject = training.cpu_reference()[name]
        assert subject["iterations"] == 3000 and subject["val"] > 30 and subject["test"] > 29


def test_it_runs_with_pytorch_and_numpy_alone(emulated_library: Path) -> None:
    """In a process where nothing else can be imported."""
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('tqdm', 'plyfile', 'cv2', 'yaml', 'safetensors', 'tensorboard', 'lpips',\n"
        "                                  'torchvision', 'av', 'PIL', 'roma', 'scipy', 'gsplat', 'fused_ssim'):\n"
        "            raise ImportError(name + ' is refused')\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from scripts import benchmark_gpu\n"
        "from scripts.gpu_benchmark import clock\n"
        "from scripts.gpu_benchmark.scenes import Size\n"
        "benchmark_gpu.SMOKE, clock.WARM_UP, clock.LEAST = Size(100, 16, 16, frequency=1), 1, 1\n"
        "sys.exit(benchmark_gpu.run_main(benchmark_gpu.main, sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", program, "--device", f"emulated:{emulated_library}", "--smoke",
               "--sections", "render"]  # fmt: skip
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == 0, done.stderr
    assert "render, as called from Python" in done.stdout


def test_a_subject_that_fails_does_not_take_the_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Record({}, None)
    bench = Bench(Device("cuda:0"), [TINY], known, 10, 10, 1, False)
    bench.begin("training")

    def train(flags: list[str], *_: object) -> training.Trained:
        if flags == ["demo"]:
            raise EnvironmentFault("train.py ended with 3")
        return training.Trained(3000, 20.0, 25.0, 11_000, {"val": 40.0, "test": 30.0}, "step: captured")

    monkeypatch.setattr(training, "demo_flags", lambda folder, limit: ["demo"])
    monkeypatch.setattr(training, "statue_flags", lambda: ["statue"])
    monkeypatch.setattr(training, "train", train)
    with pytest.raises(EnvironmentFault, match="built-in subject: train.py ended with 3"):
        benchmark_gpu.train_subjects(bench)
    assert [(r.scene, r.what, r.value) for r in known.rows][2:] == [
        ("statue", "PSNR on val", 40.0), ("statue", "PSNR on test", 30.0)]  # fmt: skip
    assert "on the CPU 43.98 dB" in known.rows[2].note
