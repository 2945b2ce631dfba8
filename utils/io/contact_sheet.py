"""A contact sheet: for each view the truth, the render and where they differ, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.errors import InputError

PAGE, INK, FAINT = (22, 23, 26), (236, 236, 238), (150, 152, 158)  # RGB
GAP, MARGIN, BLOCK_GAP, LINE = 4, 20, 24, 26  # pixels
TITLE_SIZE, CAPTION_SIZE = 16, 14
COLUMNS = ("truth", "render", "error")


@dataclass(frozen=True)
class SheetView:
    """One view of the sheet."""

    truth: np.ndarray  # uint8 [H, W, 3]
    render: np.ndarray  # uint8 [H, W, 3]
    label: str  # which view it is
    note: str = ""  # what is said about it, e.g. its PSNR


@dataclass(frozen=True)
class Crop:
    """A rectangle of each view, pixels."""

    x: int
    y: int
    width: int
    height: int


def contact_sheet(
    views: Sequence[SheetView], gain: float = 5.0, crop: Crop | None = None, tile: int = 256, across: int = 0
) -> np.ndarray:
    """Lay out views as blocks of truth, render and error, each block with its label and note below.

    The error is the mean over the channels of the absolute difference, times `gain`, in the colours of the legend
    (black 0, yellow 1 / gain and more); it is taken before tiles are resized.

    Args:
        crop: show this part of each view only.
        tile: width of each picture in the sheet, pixels.
        across: blocks side by side; 0: one for up to three views, else two.
    Returns:
        uint8 [H, W, 3].
    Raises:
        InputError: no views, or a crop that lies outside a view.
    """
    if not views:
        raise InputError("contact sheet", "", "found no views, expected one or more")
    blocks = [_block(view, gain, crop, tile) for view in views]
    across = across or (1 if len(views) <= 3 else 2)
    across = min(across, len(views))
    block_width = blocks[0].width
    down = -(-len(blocks) // across)
    rows = [blocks[row::down] for row in range(down)]  # read downwards, so that a split stays together
    width = 2 * MARGIN + across * block_width + (across - 1) * BLOCK_GAP
    height = 2 * MARGIN + LINE + sum(max(block.height for block in row) for row in rows) + LINE
    sheet = Image.new("RGB", (width, height), PAGE)
    draw = ImageDraw.Draw(sheet)
    for block in range(across):
        left = MARGIN + block * (block_width + BLOCK_GAP)
        for column, title in enumerate(COLUMNS):
            text = f"error x {gain:g}" if title == "error" else title
            draw.text((left + column * (tile + GAP), MARGIN), text, INK, _font(TITLE_SIZE))
    top = MARGIN + LINE
    for row in rows:
        for index, block in enumerate(row):
            sheet.paste(block, (MARGIN + index * (block_width + BLOCK_GAP), top))
        top += max(block.height for block in row)
    _legend(sheet, draw, gain, top, tile)
    return np.asarray(sheet)


def error_map(truth: np.ndarray, render: np.ndarray, gain: float) -> np.ndarray:
    """Mean absolute difference over the channels times `gain`, of uint8 [H, W, 3], as colours of the same shape."""
    error = np.abs(truth.astype(np.float32) - render.astype(np.float32)).mean(axis=2) * gain
    return _colours(np.clip(np.rint(error), 0, 255).astype(np.uint8))


def _colours(levels: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def _block(view: SheetView, gain: float, crop: Crop | None, tile: int) -> Image.Image:
    if view.truth.shape != view.render.shape:
        found = f"truth {list(view.truth.shape)} and render {list(view.render.shape)}"
        raise InputError("contact sheet", view.label, f"found {found}, expected one size")
    truth, render = (_cropped(image, crop, view.label) for image in (view.truth, view.render))
    pictures = [truth, render, error_map(truth, render, gain)]
    size = (tile, max(1, round(tile * truth.shape[0] / truth.shape[1])))
    method = Image.Resampling.LANCZOS if size[0] < truth.shape[1] else Image.Resampling.BICUBIC
    block = Image.new("RGB", (3 * tile + 2 * GAP, size[1] + LINE + GAP), PAGE)
    for column, picture in enumerate(pictures):
        block.paste(Image.fromarray(picture).resize(size, method), (column * (tile + GAP), 0))
    draw, baseline = ImageDraw.Draw(block), size[1] + GAP
    draw.text((0, baseline), view.label, FAINT, _font(CAPTION_SIZE))
    draw.text((tile + GAP, baseline), view.note, INK, _font(CAPTION_SIZE))
    return block


def _cropped(image: np.ndarray, crop: Crop | None, label: str) -> np.ndarray:
    if crop is None:
        return image
    height, width = image.shape[:2]
    fits = crop.x >= 0 and crop.y >= 0 and crop.x + crop.width <= width and crop.y + crop.height <= height
    if not fits or crop.width < 1 or crop.height < 1:
        found = f"found x {crop.x}, y {crop.y}, {crop.width}x{crop.height}"
        raise InputError("--crop", label, f"{found}, expected a part of {width}x{height} pixels")
    return np.ascontiguousarray(image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width])


def _legend(sheet: Image.Image, draw: ImageDraw.ImageDraw, gain: float, top: int, tile: int) -> None:
    """A bar with the colours of the error, as wide as a tile, at the right end of the last line."""
    width, height, right = tile // 2, 10, sheet.width - MARGIN
    bar = _colours(np.linspace(0, 255, width).round().astype(np.uint8)[None].repeat(height, axis=0))
    text, font = f"{1 / gain:.2g} of the full range", _font(CAPTION_SIZE)
    left = right - round(draw.textlength(text, font)) - 8 - width
    sheet.paste(Image.fromarray(bar), (left, top + 8))
    draw.text((left + width + 8, top + 4), text, FAINT, font)
    draw.text((left - 16, top + 4), "0", FAINT, font)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
