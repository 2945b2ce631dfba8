"""The FPS benchmark runs on a dataset view, on a frontal view and on a bare PLY; it measures nothing here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from scripts import benchmark_fps
from tests.test_train import SCHEDULE, run
from tests.tiny import write_tiny
from utils.errors import run_main
from utils.io.images import read_image


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("fps")
    flags = [*write_tiny(folder / "tiny"), *SCHEDULE, "--iterations", "2"]
    assert run(folder / "run", flags) == 0
    return folder / "run", flags[flags.index("--flame_model") + 1]


def benchmark(folder: Path, *words: str) -> dict[str, float]:
    result = folder / "result.json"
    assert run_main(benchmark_fps.main, [*words, "--n_iter", "3", "--quiet", "--json", str(result)]) == 0
    return json.loads(result.read_text())


def test_views(tmp_path: Path, trained: tuple[Path, str]) -> None:
    folder, model = trained
    own = benchmark(tmp_path, "-m", str(folder), "--timestep", "1")
    assert (own["width"], own["height"], own["n_iter"]) == (24, 20, 3) and own["fps"] > 0
    front = benchmark(tmp_path, "-m", str(folder), "--no_dataset", "--vis", str(tmp_path / "x.png"))
    assert (front["width"], front["height"]) == (550, 802) and front["gaussians"] == own["gaussians"]
    picture = read_image(tmp_path / "x.png", (550, 802))
    assert picture[401, 275].tolist() != [255] * 3 and picture[5, 5].tolist() == [255] * 3  # the head is in the middle
    shutil.copytree(folder / "point_cloud/iteration_2", tmp_path / "bare")
    bare = benchmark(tmp_path, "--point_path", str(tmp_path / "bare/point_cloud.ply"), "--flame_model", model,
                     "--width", "64", "--height", "48", "--vis", str(tmp_path / "wide.png"))  # fmt: skip
    assert (bare["width"], bare["height"], bare["gaussians"]) == (64, 48, own["gaussians"])
    rows = np.argwhere((read_image(tmp_path / "wide.png") < 250).any(-1))[:, 0]
    assert 30 < np.ptp(rows) < 48  # the head fills about 80 % of the shorter side


@pytest.mark.parametrize("words, named", [
    ([], "--model_path"), (["-m", "RUN", "--point_path", "x"], "--model_path"), (["--point_path", "x.ply"], "x.ply"),
    (["-m", "RUN", "--n_iter", "0"], "--n_iter"), (["-m", "RUN", "--timestep", "99"], "--timestep"),
    (["-m", "RUN", "--no_dataset", "--timestep", "4"], "--timestep: found 4, expected 0 to 3"),
    (["--point_path", "PLY", "--threads", "-5"], "--threads: found -5"),
    (["-m", "RUN", "--threads", "-5"], "--threads: found -5")])  # fmt: skip
def test_refusals(trained: tuple[Path, str], words: list[str], named: str, capfd: pytest.CaptureFixture[str]) -> None:
    known = {"RUN": str(trained[0]), "PLY": str(trained[0] / "point_cloud/iteration_2/point_cloud.ply")}
    assert run_main(benchmark_fps.main, [*(known.get(word, word) for word in words), "--quiet"]) == 2
    *before, last = capfd.readouterr().err.splitlines()
    assert last.startswith("error: ") and named in last and all("decoded" in line for line in before)
