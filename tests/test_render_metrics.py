"""render.py and metrics.py around an avatar whose pictures are known in closed form."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import metrics
import render
import train
from scene.frames import Split, View
from tests.tiny import write_tiny
from utils.contracts import Camera, Mesh, Rendered, Splats
from utils.engine import shots
from utils.engine.device import Device
from utils.engine.metrics import score
from utils.errors import EnvironmentFault, InputError, NumericalFault, run_main
from utils.io import rendered as rendered_files
from utils.io.images import encode_png, read_image, write_png
from utils.io.rendered import SplitWriter, list_pairs

HEIGHT, WIDTH = 33, 47


class Store:
    """An image store of seeded noise; slot 1 has no matte if `mattes` is False."""

    def __init__(self, mattes: bool) -> None:
        self.mattes = mattes

    def image(self, slot: int) -> Tensor:
        return torch.rand(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(slot))

    def mask(self, slot: int) -> Tensor | None:
        mask = torch.zeros(1, HEIGHT, WIDTH)
        mask[:, 4:20, 5 + slot : 30] = 1
        return mask if self.mattes else None


def split(name: str, slots: list[int], mattes: bool = True) -> Split:
    camera = Camera(torch.eye(4), torch.eye(3), WIDTH, HEIGHT)
    views = [View(camera, slot, 0, "cam0", f"{slot:05d}_00", Path("i.png"), None, None, name) for slot in slots]
    return Split(views, slots, Store(mattes), torch.ones(3))  # type: ignore[arg-type]


class RampRig:
    bound, timesteps = True, 8
    regions: dict[str, Tensor] = {}

    def __call__(self, timestep: int) -> Mesh:
        return Mesh(torch.full((5, 3), float(timestep)), torch.zeros(1, 3, dtype=torch.long))


class RampAvatar:
    """Gaussians that carry the timestep to the renderer."""

    rig = RampRig()

    def __len__(self) -> int:
        return 5

    def on(self, mesh: Mesh) -> Splats:
        return Splats(mesh.vertices, *[torch.zeros(5)] * 4, sh_degree=0)


def ramp(timestep: float, background: Tensor) -> Tensor:
    """Out of [0, 1] at both ends, so that clamping shows."""
    across = torch.linspace(-0.2, 1.2, WIDTH)[None, None, :].expand(3, HEIGHT, WIDTH)
    return across + 0.05 * timestep + 0.1 * background[:, None, None]


def draw(splats: Splats, camera: Camera, background: Tensor, with_depth: bool = True) -> Rendered:
    return Rendered(ramp(float(splats.means[0, 0]), background), *[torch.zeros(1)] * 4)


@dataclass
class FakeDataset:
    parts: dict[str, Split]
    source: Path = Path("data")
    sequence_starts: tuple[int, ...] = (0,)

    def splits(self) -> dict[str, Split]:
        return self.parts


def fake_run(mattes: bool = True, camera: str = "-1", render_image: Any = draw) -> Any:
    parts = {
        "train": split("train", [0, 1, 2], mattes),
        "val": split("val", [7, 3], mattes),
        "test": split("test", [4]),
    }
    options = SimpleNamespace(
        data=SimpleNamespace(select_camera_id=camera, white_background=True), run=SimpleNamespace(device="cpu")
    )
    return SimpleNamespace(
        options=options, dataset=FakeDataset(parts), avatar=RampAvatar(), render=render_image, iteration=30,
        device=Device("cpu"), note=""
    )  # fmt: skip


def run_render(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str, run: Any = None) -> int:
    calls = []

    def load_run(*arguments: Any) -> Any:
        calls.append(arguments)
        return run or fake_run()

    monkeypatch.setattr(shots, "load_run", load_run)
    code = run_main(render.main, ["-m", str(folder), "--quiet", *flags])
    assert len(calls) == 1
    return code


@pytest.fixture
def rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "no weights"))
    folder = tmp_path / "run"
    assert run_render(monkeypatch, folder) == 0
    return folder


def expected_scores(slot: int) -> dict[str, float | None]:
    """From the definition of ramp and store, through 8 bits."""
    image = (ramp(slot, torch.ones(3)).clamp(0, 1) * 255).round() / 255
    store = Store(True)
    return score(image, (store.image(slot) * 255).round() / 255, store.mask(slot))


def test_renders_are_laid_out_as_users_know_them(rendered: Path) -> None:
    names = sorted(str(path.relative_to(rendered)) for path in rendered.rglob("*") if path.is_file())
    frames = {"train": 3, "val": 2, "test": 1}
    expected = [
        f"{name}/ours_30/{kind}/{k:05d}.png"
        for name, count in frames.items()
        for kind in ("renders", "gt", "masks")
        for k in range(count)
    ]
    videos = [f"{name}/ours_30/{video}.mp4" for name in frames for video in ("renders", "gt")]
    records = [f"{name}/ours_30/frames.json" for name in frames]
    assert names == sorted([*expected, *videos, *records, "render.json"])
    facts = json.loads((rendered / "render.json").read_text())
    assert (facts["iteration"], facts["gaussians"]) == (30, 5) and facts["fps"] > 0


def test_pictures_are_clamped_and_rounded_in_json_order(rendered: Path) -> None:
    for k, slot in enumerate([7, 3]):
        expected = ramp(slot, torch.ones(3)).clamp(0, 1).permute(1, 2, 0).numpy() * 255
        found = read_image(rendered / "val" / "ours_30" / "renders" / f"{k:05d}.png")
        assert np.array_equal(found, np.rint(expected).astype(np.uint8))
        truth = read_image(rendered / "val" / "ours_30" / "gt" / f"{k:05d}.png")
        assert np.array_equal(truth, np.rint(Store(True).image(slot).permute(1, 2, 0).numpy() * 255).astype(np.uint8))


def test_videos_show_what_their_names_say(tmp_path: Path) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed")
    render_image, truth = (np.full((32, 48, 3), level, np.uint8) for level in (60, 180))
    with SplitWriter(tmp_path / "ours_1") as writer:
        writer.write(render_image, truth, None)
    for name, level in (("renders", 60), ("gt", 180)):
        with av.open(str(tmp_path / "ours_1" / f"{name}.mp4")) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert len(frames) == 1 and abs(float(frames[0].mean()) - level) < 3


@pytest.mark.parametrize("failing", [0, 20, 29])
def test_a_disk_error_in_a_thread_is_not_lost(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))

    def full(image: np.ndarray) -> bytes:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        return encode_png(image)

    monkeypatch.setattr(rendered_files, "encode_png", full)
    with pytest.raises(EnvironmentFault, match=r"\.png: can't be written: No space left on device"):
        write_frames(tmp_path / "test" / "ours_5", 15)
    assert list((tmp_path / "test").iterdir()) == []


def test_skipping_and_camera_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--skip_train", "--skip_val", "False", "--select_camera_id", "cam/8"]
    assert run_render(monkeypatch, tmp_path, *flags, run=fake_run(camera="cam/8")) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["render.json", "test_cam_8", "val_cam_8"]
    assert run_main(metrics.main, ["-m", str(tmp_path), "--quiet"]) == 0
    assert list(json.loads((tmp_path / "metrics.json").read_text())["splits"]) == ["val_cam_8", "test_cam_8"]
    assert not (tmp_path / "results.json").exists()


def test_overrides_reach_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["-m", "run", "--iteration", "7", "-s", "elsewhere", "--rasterizer", "reference", "--threads", "2"]
    options, overrides = render.parse_arguments(argv)
    assert (options.model_path, options.iteration, options.skip_val) == ("run", 7, False)
    assert overrides == {"source_path": "elsewhere", "rasterizer": "reference", "threads": 2}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--model_path: is missing"),
        (["-m", "run", "--skip_vall"], "--skip_vall"),
        (["-m", "run", "--iteration", "x"], "--iteration"),
    ],
)
def test_bad_command_lines_are_one_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(render.main, argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]


def test_nothing_left_to_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_render(monkeypatch, tmp_path, "--skip_train", "--skip_val", "--skip_test") == 2
    assert list(tmp_path.iterdir()) == []


def test_a_render_that_is_not_finite_names_the_frame_and_keeps_the_old_folder(rendered: Path) -> None:
    def holed(splats: Splats, camera: Camera, background: Tensor, with_depth: bool = True) -> Rendered:
        image = draw(splats, camera, background).image.clone()
        image[1, 2, 3] = torch.nan if splats.means[0, 0] == 3 else 0
        return Rendered(image, *[torch.zeros(1)] * 4)

    run, folder = fake_run(render_image=holed), rendered / "val" / "ours_30"
    options = shots.RenderOptions(model_path=str(rendered), quiet=True)
    before = (folder / "renders" / "00000.png").read_bytes()
    with pytest.raises(NumericalFault, match=r"val.ours_30: frame 1 \(00003_00\)"):
        render.render_take(run, shots.own_takes(run, ["train", "test"], "")[0], options)
    assert (folder / "renders" / "00000.png").read_bytes() == before
    assert [p.name for p in folder.parent.iterdir()] == ["ours_30"]


def test_rendering_again_replaces_the_folder(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = rendered / "val" / "ours_30" / "renders" / "00099.png"
    stale.write_bytes(b"")
    assert run_render(monkeypatch, rendered) == 0
    assert not stale.exists() and len(list_pairs(stale.parent.parent)) == 2


def test_metrics_json_has_the_means_of_the_views(rendered: Path) -> None:
    (rendered / "run.json").write_text(json.dumps({"iteration": 30, "train_seconds": 1.5, "peak_memory_mb": 9.5}))
    assert run_main(metrics.main, ["-m", str(rendered), "--quiet"]) == 0
    found = json.loads((rendered / "metrics.json").read_text())
    assert list(found)[:5] == ["iteration", "gaussians", "fps", "train_seconds", "peak_memory_mb"]
    assert (found["iteration"], found["gaussians"], found["train_seconds"], found["peak_memory_mb"]) == (
        30,
        5,
        1.5,
        9.5,
    )
    for name, slots in (("val", [7, 3]), ("test", [4]), ("train", [0, 1, 2])):
        views, summary = [expected_scores(slot) for slot in slots], found["splits"][name]
        for metric in views[0]:
            values = [view[metric] for view in views]
            assert summary[metric] == pytest.approx(np.mean(values), rel=1e-6)  # type: ignore[arg-type]
        for variant, file in (("vgg", "vgg16-397923af.pth"), ("alex", "alexnet-owt-7be5be79.pth")):
            assert summary[f"lpips_{variant}"] is None
            assert file in summary[f"lpips_{variant}_reason"]


def test_results_and_per_view_as_users_know_them(rendered: Path) -> None:
    assert run_main(metrics.main, ["-m", str(rendered), "--quiet"]) == 0
    expected = expected_scores(4)
    results = json.loads((rendered / "results.json").read_text())
    assert results == {
        "ours_30": {"SSIM": pytest.approx(expected["ssim"]), "PSNR": pytest.approx(expected["psnr"]), "LPIPS": None}
    }
    per_view = json.loads((rendered / "per_view.json").read_text())
    assert per_view["ours_30"] == {key: {"00000.png": value} for key, value in results["ours_30"].items()}
    everything = json.loads((rendered / "metrics_per_view.json").read_text())
    assert list(everything["splits"]["val"]) == ["00000.png", "00001.png"]


def test_facts_of_another_iteration_do_not_count(rendered: Path) -> None:
    (rendered / "run.json").write_text(json.dumps({"iteration": 60, "train_seconds": 1.5, "gaussians": 9}))
    (rendered / "render.json").unlink()
    assert run_main(metrics.main, ["-m", str(rendered), "--quiet"]) == 0
    found = json.loads((rendered / "metrics.json").read_text())
    for name in ("gaussians", "fps", "train_seconds", "peak_memory_mb"):
        assert found[name] is None and "of iteration 30" in found[f"{name}_reason"]


def test_without_mattes_the_foreground_is_null_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_render(monkeypatch, tmp_path, run=fake_run(mattes=False)) == 0
    assert not (tmp_path / "val" / "ours_30" / "masks").exists()
    assert run_main(metrics.main, ["-m", str(tmp_path), "--quiet"]) == 0
    summary = json.loads((tmp_path / "metrics.json").read_text())["splits"]["val"]
    assert summary["psnr_foreground"] is None and "matte" in summary["psnr_foreground_reason"]


def write_frames(folder: Path, count: int) -> Path:
    with SplitWriter(folder) as writer:
        for k in range(count):
            image, truth = (np.full((40, 40, 3), 10 * k + 10 * i, np.uint8) for i in (1, 2))
            writer.write(image, truth, None)
    return folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "gt" / "00001.png").unlink(), "gt: 00001.png: is missing"),
        (lambda f: (f / "renders" / "00002.png").unlink(), "renders: 00002.png: is missing"),
        (lambda f: (f / "renders" / "00007.png").write_bytes(b""), "gt: 00007.png: is missing"),
        (lambda f: write_png(f / "masks" / "00008.png", np.zeros((40, 40), np.uint8)), "00008.png: is missing"),
        (lambda f: [p.unlink() for p in f.glob("*/*.png")], "no frames"),
        (lambda f: write_png(f / "gt" / "00001.png", np.zeros((40, 41, 3), np.uint8)), "00001.png: size"),
        (lambda f: write_png(f / "gt" / "00001.png", np.zeros((40, 40), np.uint8)), "found 1 channels, expected 3"),
        (lambda f: (f / "gt" / "00001.png").write_bytes((f / "gt" / "00001.png").read_bytes()[:-9]), "00001.png"),
    ],
)
def test_frames_that_do_not_match_are_named(
    damage: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(write_frames(tmp_path / "test" / "ours_5", 3))
    assert run_main(metrics.main, ["-m", str(tmp_path), "--quiet"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not list(tmp_path.glob("*.json"))


def test_iterations_newest_by_number_or_as_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for iteration, count in ((900, 1), (1000, 2)):
        write_frames(tmp_path / "test" / f"ours_{iteration}", count)
    for flags, expected in (([], "ours_1000"), (["--iteration", "900"], "ours_900")):
        assert run_main(metrics.main, ["-m", str(tmp_path), "--quiet", *flags]) == 0
        assert list(json.loads((tmp_path / "results.json").read_text())) == [expected]
    capsys.readouterr()
    assert run_main(metrics.main, ["-m", str(tmp_path), "--quiet", "--iteration", "7"]) == 2
    assert "found rendered iterations 900, 1000, expected 7" in capsys.readouterr().err
    for folder, message in ((tmp_path / "none", "is no folder"), (tmp_path / "test", "holds no rendered frames")):
        assert run_main(metrics.main, ["-m", str(folder), "--quiet"]) == 2
        assert message in capsys.readouterr().err


def test_weights_given_by_path_must_work(rendered: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for flag in ("--lpips_vgg16_weights", "--lpips_alex_weights"):
        assert run_main(metrics.main, ["-m", str(rendered), "--quiet", flag, str(tmp_path / "gone.safetensors")]) == 2
        assert "gone.safetensors: no such file" in capsys.readouterr().err
    assert not (rendered / "metrics.json").exists()


@pytest.mark.filterwarnings("ignore:.*weight.*:UserWarning")  # how the lpips package calls torchvision
def test_lpips_and_the_range_of_the_literature(rendered: Path, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    lpips = pytest.importorskip("lpips", reason="lpips is not installed")
    torch.manual_seed(0)
    package = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    names = iter(torchvision.models.alexnet(weights=None).features.state_dict())
    state = {next(names): value for key, value in package.net.state_dict().items()}
    save_file(state, tmp_path / "alex.safetensors")
    flags = ["--lpips_alex_weights", str(tmp_path / "alex.safetensors"), "--lpips_range", "01"]
    assert run_main(metrics.main, ["-m", str(rendered), "--quiet", *flags]) == 0
    found = json.loads((rendered / "metrics.json").read_text())["splits"]["test"]
    folder = rendered / "test" / "ours_30"
    pair = [torch.from_numpy(read_image(folder / kind / "00000.png")) for kind in ("renders", "gt")]
    a, b = (image.permute(2, 0, 1)[None] / 255 for image in pair)
    with torch.no_grad():
        assert found["lpips_alex"] == pytest.approx(float(package(a, b, normalize=True)), rel=1e-4)
        assert found["lpips_alex_01"] == pytest.approx(float(package(a, b)), rel=1e-4)
    assert found["lpips_alex"] != pytest.approx(found["lpips_alex_01"], rel=1e-2)
    assert found["lpips_vgg_01"] is None and "vgg16" in found["lpips_vgg_01_reason"]


def test_devices_that_are_not_there_are_one_line(
    rendered: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for main in (render.main, metrics.main):
        for device, code in (("cuda", 3), ("cuda:1", 3), ("cpu:0", 2), ("gpu", 2), ("cuda:x", 2)):
            capsys.readouterr()
            assert run_main(main, ["-m", str(rendered), "--quiet", "--device", device]) == code
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and "--device" in lines[0]


def test_train_render_and_measure_agree(tmp_path: Path) -> None:
    """The three programs in a row: the last evaluation of training and metrics.py differ by 8-bit rounding alone."""
    run, flags = tmp_path / "run", write_tiny(tmp_path / "data")
    assert run_main(train.main, [*flags, "-m", str(run), "--iterations", "4", "--rasterizer", "reference"]) == 0
    assert run_main(render.main, ["-m", str(run), "--quiet"]) == 0
    assert run_main(metrics.main, ["-m", str(run), "--quiet"]) == 0
    rows = [row.split(",") for row in (run / "log.csv").read_text().splitlines()]
    found = json.loads((run / "metrics.json").read_text())
    assert found["iteration"] == 4 and found["train_seconds"] > 0 and found["peak_memory_mb"] > 0
    for name in ("val", "test"):
        summary = found["splits"][name]
        logged = {row[2]: float(row[3]) for row in rows if row[:2] == ["4", name] and row[2] in summary}
        assert {metric: summary[metric] for metric in logged} == pytest.approx(logged, rel=1e-3)
        assert len(logged) == 5
    names = sorted(path.name for path in (run / "val" / "ours_4" / "renders").iterdir())
    assert names == [f"{k:05d}.png" for k in range(len(names))] and len(names) > 1


def test_results_take_the_range_that_was_asked_for(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mean(torch.nn.Module):
        """Twice as large on [-1, 1] as on [0, 1]."""

        shift = torch.zeros(1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return (a - b).abs().mean(dim=(1, 2, 3))

    monkeypatch.setattr(metrics, "load_lpips", lambda variant, path: Mean())
    for flags, factor in (([], 2), (["--lpips_range", "01"], 1)):
        assert run_main(metrics.main, ["-m", str(rendered), "--quiet", *flags]) == 0
        summary = json.loads((rendered / "metrics.json").read_text())["splits"]["test"]
        results = json.loads((rendered / "results.json").read_text())["ours_30"]
        assert summary["lpips_vgg"] == pytest.approx(2 * summary["l1"], rel=1e-5)
        assert results["LPIPS"] == pytest.approx(factor * summary["l1"], rel=1e-5)
        assert "lpips_vgg_reason" not in summary


def test_damaged_facts_are_named(rendered: Path) -> None:
    (rendered / "run.json").write_text("[1, 2]")
    with pytest.raises(InputError, match="run.json"):
        metrics.main(["-m", str(rendered), "--quiet"])
