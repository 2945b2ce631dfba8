"""Comparison of runs: grouping, statistics over seeds, best marks, LaTeX, one HTML file without links, refusals."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts import compare_results
from scripts.compare import charts, pictures
from scripts.compare.checks import changes_of, warnings_of
from scripts.compare.claims import CLAIMS, NOT_MEASURABLE, NOT_REACHED, REACHED, judge
from scripts.compare.html import judged
from scripts.compare.runs import Experiment, group, read_run
from scripts.compare.tables import SECTIONS, Spread, build_table, build_tables, difference
from scripts.compare.text import escape_latex, grid, latex_text, terminal_table
from utils.errors import InputError, run_main
from utils.io.images import write_png
from utils.io.video import VideoReader

SIZE, FRAMES = 16, 3
NAN_REASON = "no weights & <none>"


def write_run(folder: Path, seed: int, test: dict[str, Any], whole: dict[str, Any] | None = None, **flags: Any) -> Path:
    """A run folder by hand, with three pictures of each split."""
    folder.mkdir(parents=True)
    options = {"seed": seed, "iterations": 60, "source_path": "/data/head", "gaussian_budget": 0, **flags}
    (folder / "options.json").write_text(json.dumps(options))
    facts = {"iteration": 60, "inputs": {"source_path": "a" * 64, "flame_model": "b" * 64}}
    (folder / "run.json").write_text(json.dumps(facts))
    splits = {"test": {"lpips_vgg": None, "lpips_vgg_reason": NAN_REASON, **test}, "val": {"psnr": 30.0, "ssim": 0.9}}
    whole = {"gaussians": 1000, "fps": 100.0, "train_seconds": 50.0, "peak_memory_mb": 500.0, **(whole or {})}
    (folder / "metrics.json").write_text(json.dumps({"iteration": 60, **whole, "splits": splits}))
    rows = [f"{step},{split},psnr,{20 + seed + step / 10}" for step in (20, 40, 60) for split in ("val", "test")]
    rows += [f"{step},train,l1,{1 / step}" for step in (20, 40, 60)]
    (folder / "log.csv").write_text("\n".join(["step,split,name,value", *rows]) + "\n")
    rng = np.random.default_rng(7)
    for split in ("val", "test"):
        inside = folder / split / "ours_60"
        for number in range(FRAMES):
            truth = rng.integers(0, 200, (SIZE, SIZE, 3)).astype(np.uint8)
            write_png(inside / "gt" / f"{number:05d}.png", truth)
            write_png(inside / "renders" / f"{number:05d}.png", truth + np.uint8(10 + seed))
        frames = [{"file": f"{n:05d}.png", "name": f"p{n}", "camera_id": "c1", "sequence": 0,
                   "timestep": n + FRAMES * (split == "test")} for n in range(FRAMES)]  # fmt: skip
        record = {"frames": frames, "regions": [], "background": [1, 1, 1]}
        (inside / "frames.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Baseline and adaptive with two seeds, and one seed of both at a budget."""
    for seed, value in enumerate((31.0, 31.5)):
        write_run(tmp_path / f"baseline_seed{seed}", seed, {"psnr": value, "ssim": 0.9})
        write_run(tmp_path / f"adaptive_seed{seed}", seed, {"psnr": value + 0.25 * (seed + 1), "ssim": 0.9},
                  {"gaussians": 800 - seed}, densify_grad_threshold=0.0007)  # fmt: skip
    for name, value in (("baseline", 29.0), ("adaptive", 30.0)):
        write_run(tmp_path / f"{name}_budget500_seed0", 0, {"psnr": value}, {"gaussians": 500}, gaussian_budget=500)
    return tmp_path


def experiments_of(folder: Path) -> list[Experiment]:
    return compare_results.compare([folder], "").experiments  # type: ignore[return-value]


def test_runs_are_grouped_by_name_and_options(outputs: Path) -> None:
    found = {one.name: one.seeds for one in experiments_of(outputs)}
    assert found == {"baseline": (0, 1), "baseline_budget500": (0,), "adaptive": (0, 1), "adaptive_budget500": (0,)}
    families = {one.name: (one.family, one.budgeted) for one in experiments_of(outputs)}
    assert families["adaptive_budget500"] == ("adaptive", True) and families["adaptive"] == ("adaptive", False)


@pytest.mark.parametrize("folder, seed, label", [
    ("adaptive_seed12", 12, "adaptive"), ("base_statue_0", 0, "base_statue"), ("run10", 0, "run10"),
    ("x/seed3", 3, "x"), ("a_seed1", 2, "a_seed1"), ("b-seed-4", 4, "b")])  # fmt: skip
def test_labels(tmp_path: Path, folder: str, seed: int, label: str) -> None:
    assert read_run(write_run(tmp_path / folder, seed, {})).label == label


def test_other_options_under_one_name_are_told_apart(tmp_path: Path) -> None:
    first = read_run(write_run(tmp_path / "run_seed0", 0, {}))
    second = read_run(write_run(tmp_path / "run_seed1", 1, {}, lambda_dssim=0.3))
    assert [one.name for one in group([first, second])] == ["run (lambda_dssim 0.2)", "run (lambda_dssim 0.3)"]
    same = read_run(write_run(tmp_path / "other/run_seed0", 0, {}))
    with pytest.raises(InputError, match="seed: found 0, as in"):
        group([first, same])


def test_mean_and_sample_deviation(outputs: Path) -> None:
    tables = {table.section.key: table for table in build_tables(experiments_of(outputs), experiments_of(outputs)[0])}
    rows = {experiment.name: cells for experiment, cells in tables["quality_test"].rows}
    assert list(rows) == ["baseline", "adaptive"]
    spread, change = rows["adaptive"][0].spread, rows["adaptive"][0].difference
    assert spread is not None and change is not None
    assert (spread.mean, spread.deviation, spread.n) == (
        pytest.approx(np.mean([31.25, 32.0])), pytest.approx(np.std([31.25, 32.0], ddof=1)), 2)  # fmt: skip
    assert change.mean == pytest.approx(0.375) and change.deviation == pytest.approx(np.std([0.25, 0.5], ddof=1))
    assert rows["baseline"][0].difference is None
    budget = {experiment.name: cells for experiment, cells in tables["budgets"].rows}
    assert list(budget) == ["baseline_budget500", "adaptive_budget500"]
    psnr = budget["adaptive_budget500"][1]
    assert psnr.difference is not None and psnr.difference.mean == pytest.approx(1.0)  # to the baseline of 500
    assert psnr.spread is not None and psnr.spread.deviation is None  # of one seed


def test_differences_are_over_shared_seeds() -> None:
    found = difference({0: 2.0, 1: 5.0, 3: 9.0}, {0: 1.0, 1: 3.0, 2: 100.0})
    assert found is not None and (found.mean, found.n) == (1.5, 2)
    relative = difference({0: 90.0, 1: 60.0}, {0: 100.0, 1: 50.0}, relative=True)
    assert relative is not None and relative.mean == pytest.approx(np.mean([-10.0, 20.0]))
    assert difference({0: 1.0}, {1: 1.0}) is None


def test_best_is_bold_on_a_terminal(outputs: Path) -> None:
    tables = build_tables(experiments_of(outputs), experiments_of(outputs)[0])
    quality = next(table for table in tables if table.section.key == "quality_test")
    cost = next(table for table in tables if table.section.key == "cost")
    best = {(e.name, m.name) for table in (quality, cost) for e, cells in table.rows
            for m, cell in zip(table.metrics, cells, strict=True) if cell.best}  # fmt: skip
    assert best == {("adaptive", "psnr"), ("adaptive", "gaussians")}  # equal SSIM, FPS, ...: nobody is best
    bold = re.findall(r"\033\[1m(.*?)\033\[0m", "\n".join(terminal_table(quality, True)))
    assert [text.strip() for text in bold] == ["Held-out moments (test)", "31.62 ±0.53 (+0.38)"]
    plain = "\n".join(terminal_table(quality, False))
    assert "\033" not in plain and "31.62 ±0.53 (+0.38)*" in plain and f"LPIPS (VGG): —: {NAN_REASON}" in plain
    assert len({len(line) for line in grid([[("a", False), ("1", True)], [("bb", False), ("22", False)]], False)}) == 1


def test_claims() -> None:
    class Fake:
        def __init__(self, **values: dict[int, float]) -> None:
            self.known = values
            self.runs = [self]

        def values(self, split: str, name: str) -> dict[int, float]:
            return self.known.get(name, {})

        def reason(self, split: str, name: str) -> str:
            return f"no {name}"

    base = Fake(psnr={0: 30.0}, gaussians={0: 1000.0}, fps={0: 100.0}, train_seconds={0: 100.0})
    ours: Any = Fake(psnr={0: 31.2}, gaussians={0: 820.0}, fps={0: 113.0}, train_seconds={0: 112.0})
    verdicts = {claim.name: judge(claim, ours, base) for claim in CLAIMS}  # type: ignore[arg-type]
    assert {name: verdict.verdict for name, verdict in verdicts.items()} == {
        "psnr": REACHED, "lpips_vgg": NOT_MEASURABLE, "gaussians": NOT_REACHED, "fps": REACHED,
        "train_seconds": NOT_REACHED}  # fmt: skip
    assert verdicts["gaussians"].measured == "−18.0 %" and verdicts["psnr"].measured == "+1.20 dB"
    assert verdicts["lpips_vgg"].reason == "no lpips_vgg"
    assert [claim.text for claim in CLAIMS] == ["≥ +1.1 dB", "≤ −27 %", "≤ −19 %", "≥ +13 %", "≤ +11 %"]
    frozen: Any = Fake(fps={0: 0.0}, gaussians={1: 5.0})
    reasons = {claim.name: judge(claim, ours, frozen).reason for claim in CLAIMS}
    assert reasons["fps"] == "the baseline's is zero" and reasons["gaussians"] == "no seed in common"
    assert reasons["psnr"] == "no psnr"
    several: Any = Fake(psnr={0: 31.2, 1: 31.0}, gaussians={0: 999.999})
    two: Any = Fake(psnr={0: 30.0, 1: 30.0}, gaussians={0: 1000.0})
    assert judge(CLAIMS[0], several, two).measured == "+1.10 ± 0.14 dB"
    assert judge(CLAIMS[2], several, two).measured == "0.0 %"  # what rounds to zero has no sign


def test_latex(outputs: Path) -> None:
    special = r"a_b & 5 % $x$ #1 {y} ~ ^ \z"
    expected = r"a\_b \& 5 \% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}z"
    assert escape_latex(special) == expected
    text = latex_text(build_tables(experiments_of(outputs), experiments_of(outputs)[0]))
    assert r"adaptive & \textbf{31.62} {\scriptsize $\pm$ 0.53} & " in text and r"adaptive\_budget500" in text
    assert text.count("{") == text.count("}") and not re.search(r"(?<!\\)_", text) and text.isascii()
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == text.count(r"\end{table}") > 3
    for line in (line for line in text.splitlines() if line.startswith("adaptive &")):
        assert line.endswith(r"\\")


class Links(HTMLParser):
    """Collects what a page would fetch, and its text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.titles: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.fetched += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "data")
        ]
        self.titles += [value or "" for name, value in attrs if name == "title"]


def written(folder: Path, *more: str) -> dict[str, str]:
    assert run_main(compare_results.main, [str(folder), *more]) == 0
    return {end: (folder / f"comparison.{end}").read_text(encoding="utf-8") for end in ("csv", "tex", "html")}


def test_html_needs_nothing_but_itself(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(outputs / "<b>&'x'_seed0", 0, {"psnr": 1.0})
    html = written(outputs)["html"]
    page = Links()
    page.feed(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "b>&'x'"} & set(page.tags)
    assert page.fetched and all(address.startswith("data:") for address in page.fetched)
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html
    assert "&lt;b&gt;&amp;&#39;x&#39;" in html and "<b>&'x'" not in html
    assert {"video", "svg", "polyline", "circle", "img"} <= set(page.tags)
    assert any(NAN_REASON in title for title in page.titles)
    assert "\033" not in capsys.readouterr().out


def test_same_runs_same_bytes(outputs: Path, tmp_path: Path) -> None:
    before = written(outputs)
    assert run_main(compare_results.main, [str(outputs), "-o", str(tmp_path / "again")]) == 0
    for end, text in before.items():
        assert (tmp_path / "again" / f"comparison.{end}").read_text(encoding="utf-8") == text


def test_csv(outputs: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(written(outputs, "--frames", "0", "--video_mb", "0")["csv"])))
    row = next(r for r in rows if (r["section"], r["experiment"], r["metric"]) == ("quality_test", "adaptive", "psnr"))
    assert float(row["mean"]) == 31.625 and row["values"] == "31.25 32.0" and row["best"] == "yes" and row["n"] == "2"
    lpips = next(r for r in rows if r["metric"] == "lpips_vgg" and r["section"] == "quality_test")
    assert lpips["mean"] == "" and lpips["reason"] == NAN_REASON


def test_csv_holds_the_claims_and_the_tracker(tmp_path: Path) -> None:
    motion = {"rmse_translation": 1e-3, "rmse_translation_tracked": 4e-3}
    for seed in (0, 1):
        write_run(tmp_path / f"baseline_seed{seed}", seed, {"psnr": 30.0}, motion)
        write_run(tmp_path / f"all_seed{seed}", seed, {"psnr": 31.0 + seed}, motion, lambda_dssim=0.3)
    texts = written(tmp_path, "--frames", "0", "--video_mb", "0")
    rows = {(r["section"], r["experiment"], r["metric"]): r for r in csv.DictReader(io.StringIO(texts["csv"]))}
    tracker = rows["rmse", "tracker", "rmse_translation"]
    assert float(tracker["mean"]) == 4.0 and tracker["unit"] == "mm"
    claim = rows["claims", "all", "psnr"]
    assert (claim["difference"], claim["unit"], claim["n"]) == ("1.5", "dB", "2")
    assert float(claim["difference_deviation"]) == pytest.approx(np.std([1, 2], ddof=1))
    assert claim["reason"] == "claimed ≥ +1.1 dB: reached"
    assert rows["claims", "all", "lpips_vgg"]["reason"] == f"claimed ≤ −27 %: not measurable here; {NAN_REASON}"
    assert "\\midrule\ntracker & 4.000 " in texts["tex"] and "over 2 seeds" in texts["tex"]
    assert "<li>LPIPS (test, VGG): —: no weights" in texts["html"]


def test_a_mean_that_lacks_runs_is_marked(outputs: Path) -> None:
    path = outputs / "adaptive_seed1/metrics.json"
    content = json.loads(path.read_text())
    content["splits"]["test"] |= {"psnr": None, "psnr_reason": "no light"}
    path.write_text(json.dumps(content))
    table = build_tables(experiments_of(outputs), experiments_of(outputs)[0])[0]
    plain = "\n".join(terminal_table(table, False))
    assert " 31.25 (+0.25)†" in plain and "PSNR: †: adaptive: 1 of 2 runs: no light" in plain
    assert "31.25\\dag{}" in latex_text([table]) and "$\\dagger" not in latex_text([table])
    assert "; \\dag{}: not of all seeds" in latex_text([table])
    assert '31.25<span class="spread" style="width:7ch">†' in written(outputs, "--frames", "0")["html"]


def test_a_difference_within_its_deviation_has_no_colour(outputs: Path) -> None:
    table = build_tables(experiments_of(outputs), experiments_of(outputs)[0])[0]
    metric, cell = table.metrics[0], table.rows[1][1][0]  # +0.375, deviation 0.177
    assert judged(cell, metric) == "good" and judged(cell, replace(metric, better="down")) == "bad"
    assert judged(replace(cell, difference=Spread(0.1, 0.2, 2)), metric) == ""
    assert judged(replace(cell, difference=Spread(-0.1, None, 1)), metric) == "bad"


def test_names_cannot_forge_lines_or_colours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        write_run(tmp_path / f"a\x1b[31m\nb $c_seed{seed}", seed, {"psnr": 30.0})
    texts = written(tmp_path, "--frames", "0", "--video_mb", "0")
    said = capsys.readouterr().out
    assert "\x1b" not in said and any(line.startswith("a\\x1b[31m\\nb $c  2 ") for line in said.splitlines())
    assert r"a\textbackslash{}x1b[31m\textbackslash{}nb \$c & 30.00" in texts["tex"]


def test_the_folder_where_one_stands(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(outputs / "baseline_seed0")
    before = set(Path().iterdir())
    assert run_main(compare_results.main, [".", "../adaptive_seed0", "--frames", "0", "--video_mb", "0"]) == 0
    assert set(Path().iterdir()) == before and (outputs / "comparison.csv").is_file()  # beside the runs
    assert "metrics.json of baseline_seed0 doesn't hold it" in (outputs / "comparison.csv").read_text()


def test_unfair_comparisons_are_named(outputs: Path) -> None:
    (outputs / "adaptive_seed1/run.json").write_text('{"iteration": 30}')
    write_run(outputs / "longer_seed0", 0, {"psnr": 30.0}, iterations=120)
    found = "\n".join(warnings_of(experiments_of(outputs)))
    assert "different --iterations (120: longer; 60: " in found
    assert "adaptive_seed1 is not finished: iteration 30 of 60." in found
    assert "longer_seed0 is not finished: iteration 60 of 120." in found
    assert "different seeds" in found and "different datasets" in found
    experiments = {one.name: one for one in experiments_of(outputs)}
    assert changes_of(experiments["longer"], experiments["baseline"]) == ["--iterations 120"]


def test_experiments_that_were_not_run_are_listed(outputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"name": "perceptual_seed0", "experiment": "perceptual", "status": "not run", "reason": "no weights"},
            {"name": "adaptive_seed0", "experiment": "adaptive", "status": "finished"}]  # fmt: skip
    (outputs / "ablations.json").write_text(json.dumps(rows))
    html = written(outputs, "--frames", "0", "--video_mb", "0")["html"]
    assert "<b>perceptual</b>: not run: no weights" in html
    assert "perceptual: not run: no weights" in capsys.readouterr().out


def test_a_cut_last_row_is_dropped_another_is_refused(outputs: Path) -> None:
    log = outputs / "baseline_seed0/log.csv"
    text = log.read_text()
    log.write_text(text + "80,tra")
    assert read_run(log.parent).curves["train", "l1"] == [(20, 1 / 20), (40, 1 / 40), (60, 1 / 60)]
    log.write_text(text + "80,tra\n" + "80,train,l1,0.5\n")
    with pytest.raises(InputError, match="log.csv: line 11: found '80,tra'"):
        read_run(log.parent)


@pytest.mark.parametrize("spoil, words, named", [
    (None, ["nowhere"], "nowhere: is no folder"),
    (None, ["{}", "--baseline", "x"], "--baseline: found x, expected one of baseline, adaptive"),
    (None, ["{}", "--frames", "-1"], "--frames: found -1"),
    (None, ["{}/baseline_seed0/val"], "holds no run"),
    ("metrics.json", ["{}"], "metrics.json: found something else"),
    ("run.json", ["{}"], "run.json: found something else"),
    ("options.json", ["{}"], "options.json: found a list of 1, expected an object")])  # fmt: skip
def test_refusals(
    outputs: Path, spoil: str | None, words: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if spoil:
        (outputs / "baseline_seed0" / spoil).write_text("[1]")
    assert run_main(compare_results.main, [word.format(outputs) for word in words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and named in lines[0]
    assert not list(outputs.glob("comparison.*"))


def test_a_run_without_metrics_has_dashes(outputs: Path) -> None:
    (outputs / "adaptive_seed0/metrics.json").unlink()
    (outputs / "adaptive_seed1/metrics.json").unlink()
    experiments = experiments_of(outputs)
    table = build_table(SECTIONS[0], experiments[::2], [experiments[0]] * 2)
    assert table is not None
    cell = table.rows[1][1][0]
    assert cell.spread is None and cell.reason.startswith("adaptive_seed0 has no metrics.json: python metrics.py -m ")


def test_error_map() -> None:
    truth = np.zeros((1, 3, 3), np.uint8)
    render = np.array([[[0, 0, 0], [51, 51, 51], [255, 255, 255]]], np.uint8)
    shown = pictures.error_map(render, truth)
    assert (shown[0, 1] == shown[0, 2]).all()  # both at the end of the scale: 51 / 255 = 0.2
    assert shown[0, 0].max() < 10 and shown[0, 1].min() > 100
    half = pictures.error_map(np.full((1, 1, 3), 26, np.uint8), np.zeros((1, 1, 3), np.uint8))
    assert shown[0, 0].sum() < half.sum() < shown[0, 1].sum()


def test_pictures_and_video(outputs: Path, tmp_path: Path) -> None:
    plain = [one for one in experiments_of(outputs) if not one.budgeted]
    assert [strip.title for strip in pictures.strips(plain, plain[0], {"test": 1, "val": 2})] == [
        "test 00001, camera c1, timestep 4",
        "val 00000, camera c1, timestep 0",
        "val 00002, camera c1, timestep 2",
    ]
    tile = pictures.strips(plain, plain[0], {"test": 1})[0].tiles[1]
    assert tile.name == "adaptive" and tile.psnr == pytest.approx(20 * np.log10(255 / 10), abs=1e-4)
    order = pictures.one_camera(plain[0].runs[0])
    assert order == [(split, f"{n:05d}.png") for split in ("val", "test") for n in range(FRAMES)]
    (tmp_path / "film.mp4").write_bytes(pictures.encode([pictures.along(one.runs[0], order) for one in plain], SIZE))
    with VideoReader(tmp_path / "film.mp4") as reader:
        assert reader.read(2 * FRAMES - 1).shape == (2 * SIZE, 3 * SIZE, 3)
    assert pictures.film(plain, plain[0], 10).data == "" and "larger than" in pictures.film(plain, plain[0], 10).note
    (outputs / "baseline_seed0/test/ours_60/frames.json").unlink()
    (outputs / "baseline_seed0/val/ours_60/frames.json").unlink()
    assert pictures.film(plain, plain[0], 10**7).data == ""


def test_axes() -> None:
    assert [tick.text for tick in charts.Axis(0, 3000, 0, 300).ticks()] == ["0", "500", "1000", "1500", "2000", "2500",
                                                                            "3000"]  # fmt: skip
    axis = charts.Axis(1e-4, 1.0, 100, 0, log=True)
    assert axis.place(1e-2) == 50.0 and [tick.at for tick in axis.ticks()] == [100.0, 75.0, 50.0, 25.0, 0.0]
    assert [charts.short(value) for value in (0.0, 25_000, 2.5e-6, -0.5)] == ["0", "25k", "2.5e−6", "−0.5"]


def test_curves(outputs: Path) -> None:
    found = {chart.title: chart for chart in charts.curve_charts(experiments_of(outputs), experiments_of(outputs)[0])}
    assert list(found) == ["PSNR, val", "PSNR, test", "l1, train"]
    lines = found["PSNR, val"].lines
    assert [line.strong for line in lines] == [False] * 4 + [True] * 2
    assert lines[-1].tip == "adaptive: 26.5 at 60"  # the mean of 26 and 27
    x, y = map(float, lines[-1].points.split()[-1].split(","))
    assert x == charts.WIDTH - charts.RIGHT and charts.TOP < y < charts.HEIGHT - charts.BOTTOM
    counts = charts.count_charts(experiments_of(outputs), experiments_of(outputs)[0])
    assert [chart.title for chart in counts] == ["PSNR, test", "PSNR, val"] and len(counts[0].dots) == 6
    assert [line.tip.split(":")[0] for line in counts[0].lines] == ["baseline", "adaptive"]
