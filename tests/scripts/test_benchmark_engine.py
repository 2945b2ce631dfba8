"""The engine's benchmark: its rows, the bounds against numbers worked out by hand, its scenes. No time is asserted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("diff_gaussian_rasterization", reason="the native package is not installed")

from diff_gaussian_rasterization._library import isa_name, select_isa

from scripts import benchmark_engine
from scripts.engine_benchmark import bounds, goals, gsplat_reference, report, rivals, scenes, shell
from scripts.engine_benchmark.bounds import Facts, work_of
from scripts.engine_benchmark.machine import MB, REFERENCE, SIZES, Machine, Work, fastest, held_back
from scripts.engine_benchmark.report import Row
from scripts.engine_benchmark.scenes import Scene, Shell, draw, shell_scene
from scripts.engine_benchmark.stages import STAGES, best_times
from scripts.engine_benchmark.step import Laps, training, training_step
from tests.test_train import SCHEDULE, run
from tests.tiny import write_tiny
from utils.errors import run_main

TINY = Shell(200, 40, 40, frequency=3)
KEYS = {"scene", "stage", "threads", "ms", "bound_ms", "ratio"}
OURS = {"forward", "backward", "sum", "ssim", "adam", "rig", "step"}
PARTS = {f"step: {part}" for part in ("picture", "rig", "render", "loss", "backward", "guard", "observe", "adam")}


@pytest.fixture(scope="module")
def tiny() -> Scene:
    return shell_scene(TINY)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One tiny scene on a machine that need not be measured."""
    monkeypatch.setattr(benchmark_engine, "SCENES", {TINY.name: TINY})
    monkeypatch.setattr(benchmark_engine, "SHELLS", (TINY,))
    monkeypatch.setattr(benchmark_engine, "measure", lambda threads: REFERENCE)


def benchmark(folder: Path, *words: str) -> list[dict[str, Any]]:
    path = folder / "rows.json"
    assert run_main(benchmark_engine.main, [*words, "--repeat", "1", "--json", str(path)]) == 0
    return json.loads(path.read_text())


def test_rows(tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]) -> None:
    rows = benchmark(tmp_path, "--threads", "1", "2", "--markdown")
    assert all(set(row) == KEYS and row["scene"] == "0k/40" and row["ms"] > 0 for row in rows)
    for threads in (1, 2):
        found = {row["stage"]: row for row in rows if row["threads"] == threads}
        assert set(found) >= OURS | PARTS | {"forward (torch)", "ssim (torch)", "rig (torch)", "adam (torch fused)"}
        for stage in (*OURS, "sum (torch)"):
            assert found[stage]["ratio"] == pytest.approx(found[stage]["ms"] / found[stage]["bound_ms"], rel=0.1, abs=1)
        assert found["step: rig"]["bound_ms"] is None and found["step: rig"]["ratio"] is None
        assert found["step"]["ms"] >= 0.99 * sum(found[part]["ms"] for part in PARTS)  # one repeat: it is their sum
        assert found["sum (torch)"]["bound_ms"] == found["sum"]["bound_ms"]
    printed = capsys.readouterr().out.splitlines()
    lines = [line for line in printed if line.startswith("| 0k/40 |")]
    assert len(lines) == len(rows) and all(line.count("|") == len(report.HEADER) + 1 for line in lines)


def test_filters(tmp_path: Path, quick: None) -> None:
    before = isa_name()
    try:
        rows = benchmark(tmp_path, "--threads", "1", "--stages", "ssim", "--rivals", "none", "--isa", "scalar")
        assert [row["stage"] for row in rows] == ["ssim"] and isa_name() == "scalar"
    finally:
        select_isa(before)


@pytest.mark.parametrize("words, named", [
    (["--scenes", "10k/100"], "--scenes: found '10k/100'"), (["--threads", "0"], "--threads: found 0"),
    (["--repeat", "0"], "--repeat: found 0"), (["--gate", "--threads", "2"], "--gate"),
    (["-s", "x"], "--source_path"), (["--scenes", "--avatar", "/nowhere"], "/nowhere")])  # fmt: skip
def test_refusals(quick: None, words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(benchmark_engine.main, words) == 2
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_absent_instruction_set(
    quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(name: str) -> None:
        raise ValueError("this CPU has no such thing")

    monkeypatch.setattr("diff_gaussian_rasterization._library.select_isa", refuse)
    assert run_main(benchmark_engine.main, ["--isa", "avx512"]) == 2
    assert "--isa: this CPU has no such thing" in capsys.readouterr().err


def test_avatar(tmp_path: Path, quick: None) -> None:
    flags = [*write_tiny(tmp_path / "tiny"), *SCHEDULE, "--iterations", "2"]
    assert run(tmp_path / "run", flags) == 0
    rows = benchmark(tmp_path, "--scenes", "--avatar", str(tmp_path / "run"), "-s", flags[1], "--threads", "1")
    assert {str(row["scene"]).split()[0] for row in rows} == {"avatar"} and str(rows[0]["scene"]).endswith("/24x20")
    assert {row["stage"] for row in rows} >= OURS | PARTS | {"flame"}
    assert next(row for row in rows if row["stage"] == "flame")["bound_ms"] > 0


# Head shells of the goals: pairs, blocks, and milliseconds on two threads: instructions forward and backward, memory.
@pytest.mark.parametrize("splats, pairs, blocks, forward, backward, memory", [
    (10_000, 30_588, 135_679, 0.14, 0.30, 0.05), (50_000, 95_825, 246_200, 0.25, 0.58, 0.64),
    (10_000, 59_191, 395_714, 0.40, 0.84, 0.05), (50_000, 138_830, 576_305, 0.59, 1.29, 0.64)])  # fmt: skip
def test_raster_bounds(splats: int, pairs: int, blocks: int, forward: float, backward: float, memory: float) -> None:
    facts = Facts(splats, 16, pairs, blocks, 512 * 512, 9680, 4842)
    ms = {stage: report.bound(stage, facts, REFERENCE, 2) or 0.0 for stage in ("forward", "backward", "sum")}
    assert ms["forward"] == pytest.approx(forward + memory / 4, abs=0.01)
    assert ms["backward"] == pytest.approx(backward + memory * 3 / 4, abs=0.06)  # "about 45" per pair
    assert ms["sum"] == pytest.approx(forward + backward + memory, abs=0.07)
    assert report.bound("sum", facts, REFERENCE, 1) == pytest.approx(2 * ms["sum"])


def test_other_bounds() -> None:
    facts = Facts(50_000, 16, 138_830, 576_305, 512 * 512, 9680, 4842, flame_floats=1_000_000)
    # Adam, 59 floats each: 11.8 MB of gradients read, 35.4 MB updated; 47.2 MB are nearest to 64 MB: 74 and 37 GB/s.
    # 2.95 M values in 184,375 registers, 9 instructions each at 24.5 G/s.
    assert report.bound("adam", facts, REFERENCE, 2) == pytest.approx(11.8 / 74 + 35.4 / 37 + 0.0677, rel=1e-3)
    # SSIM: 786,432 values, 199 instructions per 16; 7 maps of 3.15 MB read, 4 written; 18.9 MB are nearest to 8 MB.
    ssim = 49_152 * 199 / 24.5e6 + 7 * 3.145728 / 197 + 4 * 3.145728 / 98.5
    assert report.bound("ssim", facts, REFERENCE, 2) == pytest.approx(ssim, rel=1e-3)
    # Rig: 42 floats read and 26 written per Gaussian.
    assert (bounds.RIG_READ, bounds.RIG_WRITTEN) == (42, 26)
    # FLAME: 4 MB of basis, twice.
    assert report.bound("flame", facts, REFERENCE, 2) == pytest.approx(8 / 197, rel=1e-3)
    parts = ("forward", "backward", "ssim", "adam", "flame")  # the picture is drawn on the mesh: nothing is placed
    total = sum(report.bound(stage, facts, REFERENCE, 2) or 0.0 for stage in parts)
    assert report.bound("step", facts, REFERENCE, 2) == pytest.approx(total)
    assert report.bound("adam (torch fused)", facts, REFERENCE, 2) == report.bound("adam", facts, REFERENCE, 2)
    assert work_of("step: adam", facts) == [] and work_of("tiles (gsplat reference)", facts) == []


def test_machine() -> None:
    assert REFERENCE.seconds(Work(instructions=24.5e9), 2) == 1.0 and REFERENCE.seconds(Work(instructions=1.0), 9) > 0
    assert REFERENCE.seconds(Work(read=74e9, written=37e9, footprint=60 * MB), 2) == pytest.approx(2.0)
    slow = Machine("x", {1: 2.0, 2: 1.0}, {1: dict.fromkeys(SIZES, 4.0), 2: dict.fromkeys(SIZES, 3.0)},
                   {1: dict.fromkeys(SIZES, 1.0), 2: dict(zip(SIZES, (1.0, 1.0, 1.0, 5.0), strict=True))})  # fmt: skip
    better = fastest([slow, Machine("x", {1: 1.0, 2: 3.0}, slow.read, slow.update)])
    assert better.instructions == {1: 2.0, 2: 3.0}
    assert set(better.update[1].values()) == {1.0} and set(better.update[2].values()) == {5.0}
    assert set(better.read[1].values()) == {4.0} and set(better.read[2].values()) == {5.0}  # what it updates it reads
    assert not held_back(REFERENCE) and "2 threads never got more than 1.5 times" in held_back(better)


def test_gate() -> None:
    rows = [Row("10k/256", "sum", 1, 3.2, 1.0, 3.2), Row("10k/256", "sum", 2, 99.0, 1.0, 99.0),
            Row("50k/256", "sum (torch)", 1, 99.0, 1.0, 99.0)]  # fmt: skip
    passed, lines = goals.gate(rows, "avx512")
    assert passed and len(lines) == 2 and all(line.endswith("pass") for line in lines)
    passed, lines = goals.gate([*rows, Row("50k/512", "sum", 1, 17.0, 5.0, 3.4)], "avx512")
    assert not passed and "3.40 times the bound, at most 3.30: FAIL" in lines[-1] and lines[-2].endswith("pass")
    passed, lines = goals.gate([Row("10k/256", "sum", 1, 3.4, 2.0, 1.7)], "avx512")
    assert not passed and "3.40 ms, at most 3.30: FAIL" in lines[0]
    assert goals.gate([Row("10k/256", "sum", 1, 7.5, 5.0, 1.5)], "avx2")[0]  # 2.3 times 3.3 ms
    assert goals.gate([Row("10k/256", "sum", 1, 32.0, 2.0, 16.0)], "scalar")[0]  # 10 times 3.3 ms; no ratio
    assert not goals.gate([], "avx512")[0]
    assert goals.goal("50k/512", "step", 1) == 26.0 and goals.goal("50k/256", "step", 1) is None


def test_gate_is_the_exit_code(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--gate", "--threads", "1", "--repeat", "1", "--stages", "raster", "--rivals", "none"]
    for verdict, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(goals, "gate", lambda rows, isa, verdict=verdict: (verdict, ["gate: x"]))
        assert run_main(benchmark_engine.main, words) == code


def test_mesh_is_closed() -> None:
    vertices, faces = shell.geodesic(4)
    assert faces.shape == (320, 3) and len(vertices) == 162  # 10 f^2 + 2
    directed = {edge for a, b, c in faces.tolist() for edge in ((a, b), (b, c), (c, a))}
    assert len(directed) == 960 and all((b, a) in directed for a, b in directed)
    a, b, c = vertices[faces].transpose(1, 0, 2)
    volume = np.einsum("ij,ij->i", a, np.cross(b, c)).sum() / 6
    assert 0.9 * 4 / 3 * np.pi < volume < 4 / 3 * np.pi


def test_bound_gaussians_are_the_shell(tiny: Scene) -> None:
    placed = tiny.avatar.place_on(tiny.avatar.rig(0))
    for name in ("means", "scales", "opacities", "sh"):
        torch.testing.assert_close(getattr(placed, name), tiny.splats[name], rtol=1e-4, atol=1e-6)
    aligned = (placed.quats * tiny.splats["quats"]).sum(-1).abs()
    torch.testing.assert_close(aligned, torch.ones_like(aligned))


def test_steps_repeat_themselves(tiny: Scene) -> None:
    trained = training(tiny, 1)
    before = {name: values.detach().clone() for name, values in tiny.avatar.parameters.items()}
    for _ in range(2):
        training_step(trained, Laps())
    assert tiny.avatar.sh_degree == 3
    assert all(torch.equal(values, before[name]) for name, values in tiny.avatar.parameters.items())
    moments = {**trained.optimiser.moments, **trained.optimiser.motion_moments}
    assert all(bool(first.any()) for first, _ in moments.values()) and "vertices" in moments
    assert bool(trained.strategy.statistics["gradient"].any())


def test_stages_take_turns() -> None:
    calls: list[str] = []

    def stage(name: str, seconds: list[float]):
        def run() -> dict[str, float]:
            calls.append(name)
            return {name: seconds[calls.count(name) - 1]}

        return run

    best = best_times([stage("a", [9.0, 3.0, 2.0, 4.0]), stage("b", [9.0, 0.5, 7.0, 6.0])], 3, warm_up=1)
    assert calls == ["a", "b", "a", "b", "a", "b", "a", "b"] and best == {"a": 2.0, "b": 0.5}
    both = best_times([stage("forward", [9.0, 1.0, 4.0]), stage("backward", [9.0, 5.0, 2.0])], 2, warm_up=1)
    assert both == {"forward": 1.0, "backward": 2.0, "sum": 3.0} and list(both)[-1] == "sum"
    assert set(STAGES) == {"raster", "ssim", "adam", "rig", "flame", "step"}


def test_rivals_draw_the_same_picture(tiny: Scene) -> None:
    try:
        module = gsplat_reference.load()
    except gsplat_reference.Absent as reason:
        pytest.skip(str(reason))
    ours = draw(tiny.splats, tiny.camera, torch.zeros(3))
    theirs = gsplat_reference.picture(module, tiny, tiny.splats)
    assert float(ours.max()) > 0.3 and float((ours - theirs).abs().max()) < 5e-3
    assert set(rivals.gsplat_tiles(tiny, 1)()) == {"tiles (gsplat reference)"}


def test_absent_rivals_are_named(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gsplat.cuda._torch_impl", None)
    rows = benchmark(tmp_path, "--threads", "1", "--stages", "raster")
    assert not any("gsplat" in str(row["stage"]) for row in rows)
    assert "gsplat reference: skipped: gsplat is not installed here" in capsys.readouterr().err


def test_scenes() -> None:
    assert list(scenes.SCENES) == ["10k/256", "50k/256", "10k/512", "50k/512", "50k/550x802", "100k/550x802",
                                   "200k/550x802"]  # fmt: skip
    assert set(goals.MUST_NOT_EXCEED) == set(goals.GOALS) == {scene.name for scene in scenes.SHELLS}
    assert all(g["sum"] == pytest.approx(g["forward"] + g["backward"]) for g in goals.GOALS.values())
