"""The sheet shows the pictures that it was given, and the error where it is."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from scripts.contact_sheet import main, sheet_view
from utils.errors import InputError, run_main
from utils.io.contact_sheet import GAP, LINE, MARGIN, Crop, SheetView, contact_sheet, error_map
from utils.io.images import read_image
from utils.io.rendered import SplitWriter, list_pairs

TOP = MARGIN + LINE  # of the first row of pictures


def view(level: int = 90, height: int = 40, width: int = 32) -> SheetView:
    truth = np.full((height, width, 3), level, np.uint8)
    render = truth.copy()
    render[10:20, 8:16] += 30
    return SheetView(truth, render, "val 00000", "PSNR 20.0 dB")


def inferno(level: int) -> np.ndarray:
    return cv2.applyColorMap(np.array([[level]], np.uint8), cv2.COLORMAP_INFERNO)[0, 0, ::-1]


def test_truth_render_and_error_stand_side_by_side() -> None:
    shown = view()
    sheet = contact_sheet([shown], gain=4, tile=32)
    tiles = [sheet[TOP : TOP + 40, x : x + 32] for x in (MARGIN + i * (32 + GAP) for i in range(3))]
    assert np.array_equal(tiles[0], shown.truth) and np.array_equal(tiles[1], shown.render)
    assert np.array_equal(tiles[2], error_map(shown.truth, shown.render, 4))
    assert np.array_equal(tiles[2][15, 12], inferno(120)) and np.array_equal(tiles[2][2, 2], inferno(0))


def test_label_and_note_are_drawn_below() -> None:
    with_text, without = (
        contact_sheet([SheetView(view().truth, view().render, label, note)], tile=32)
        for label, note in (("val 00000", "PSNR"), ("", ""))
    )
    changed = np.argwhere((with_text != without).any(axis=2))
    assert len(changed) > 20
    assert changed[:, 0].min() >= TOP + 40 and changed[:, 0].max() < TOP + 40 + GAP + LINE


def test_views_read_downwards_in_two_columns() -> None:
    sheet = contact_sheet([view(level) for level in (10, 20, 30, 40)], tile=32, across=0)
    right = sheet.shape[1] - MARGIN - (3 * 32 + 2 * GAP)
    corners = [sheet[y, x, 0] for x in (MARGIN, right) for y in (TOP, TOP + 40 + LINE + GAP)]
    assert corners == [10, 20, 30, 40]


def test_error_is_the_mean_over_channels_and_saturates() -> None:
    truth, render = np.zeros((1, 2, 3), np.uint8), np.zeros((1, 2, 3), np.uint8)
    render[0, 0] = (30, 0, 60)
    render[0, 1] = 200
    assert np.array_equal(error_map(truth, render, 2)[0], [inferno(60), inferno(255)])
    assert np.array_equal(error_map(truth, render, 2), error_map(render, truth, 2))


def test_crop_shows_that_part_at_the_tile_size() -> None:
    sheet = contact_sheet([view()], crop=Crop(8, 10, 8, 10), tile=64)
    assert (sheet[TOP : TOP + 80, MARGIN : MARGIN + 64] == 90).all()
    assert (sheet[TOP : TOP + 80, MARGIN + 64 + GAP : MARGIN + 128 + GAP] == 120).all()


@pytest.mark.parametrize("crop", [Crop(-1, 0, 4, 4), Crop(0, 0, 33, 4), Crop(0, 38, 4, 4), Crop(0, 0, 0, 4)])
def test_a_crop_outside_the_view_is_refused(crop: Crop) -> None:
    with pytest.raises(InputError, match="--crop: val 00000: .*32x40"):
        contact_sheet([view()], crop=crop)


def test_no_views_and_different_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="no views"):
        contact_sheet([])
    with pytest.raises(InputError, match="val 7: .*expected one size"):
        contact_sheet([SheetView(view().truth, view().render[1:], "val 7")])


def test_notes_say_the_psnr(tmp_path: Path) -> None:
    mask = np.zeros((40, 32), np.uint8)
    mask[10:20, 8:16] = 255  # where the render is wrong
    with SplitWriter(tmp_path / "ours_9") as writer:
        writer.write(view().render, view().truth, mask)
        writer.write(view().render, view().truth, np.zeros_like(mask))
    notes = [sheet_view("val", pair).note for pair in list_pairs(tmp_path / "ours_9")]
    whole, inside = (-10 * np.log10((30 / 255) ** 2 * share) for share in (80 / 1280, 1))
    assert notes == [f"PSNR {whole:.1f} dB, foreground {inside:.1f} dB", f"PSNR {whole:.1f} dB"]


def test_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("val", "test"):
        with SplitWriter(tmp_path / "my run" / split / "ours_9") as writer:
            for level in (40, 80, 120, 160):
                writer.write(view(level).render, view(level).truth, np.full((40, 32), 255, np.uint8))
    monkeypatch.chdir(tmp_path)
    flags = ["--views", "1", "--tile", "32", "--crop", "0", "0", "32", "20", "-o", "out/sheet.png"]
    assert run_main(main, ["-m", "my run", *flags]) == 0
    assert capsys.readouterr().out == "out/sheet.png\n"
    sheet = read_image(tmp_path / "out" / "sheet.png")
    assert sheet[TOP, MARGIN, 0] == 80 and sheet.shape[0] == 2 * MARGIN + 2 * LINE + 2 * (20 + LINE + GAP)
    for flag, value, message in (
        ("--views", "4", "--views: 4: found 4 frames"),
        ("--split", "train", "found rendered splits"),
        ("--gain", "0", "--gain: found 0.0, expected more than 0"),
    ):
        assert run_main(main, ["-m", "my run", flag, value]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "my run" / "contact_sheet.png").exists()
    assert run_main(main, ["-m", "my run", "--count", "2"]) == 0  # the first and the last of both splits
    corners = read_image(tmp_path / "my run" / "contact_sheet.png")[TOP, MARGIN]
    assert corners.tolist() == [40, 40, 40]
