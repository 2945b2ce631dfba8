"""The picture of an inspection: three photographs, and beside each the mesh drawn where the dataset puts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from scene.cameras import make_camera, rigid_fault
from scene.datasets import DataOptions
from scene.datasets.capture import FrameRecord, make_picture
from scene.image_store import Picture, prepare
from scene.rigs import Rig
from utils.contracts import Mesh
from utils.engine.inspection_mesh import Poser, overlap, place_of, silhouette_of, spread_out
from utils.engine.inspection_pictures import Look
from utils.engine.mesh_overlay import shade
from utils.io.contact_sheet import GAP, INK, LINE, MARGIN, PAGE

VIEWS, TILE = 3, 480  # photographs; their largest width in pixels
SKIN = np.array([255, 150, 60], np.float32)  # RGB of the mesh: a colour that faces and rooms rarely have
OPAQUE = 0.65
OUTLINE = (0, 190, 255)  # RGB
FONT = 15


def sheet(
    records: Sequence[FrameRecord], looks: Mapping[Picture, Look], rig: Rig | None, options: DataOptions
) -> np.ndarray | None:
    """First, middle and last timestep, of different cameras if there are several: uint8 [H, W, 3].

    Args:
        looks: the pictures that can be decoded.
        rig: None: the photographs alone.
    Returns:
        None if no picture can be decoded.
    """
    usable = [record for record in records if make_picture(record, options) in looks]
    if not usable:
        return None
    rows = [row(record, looks, rig, options) for record in spread_out(usable, min(VIEWS, len(usable)))]
    width = 2 * MARGIN + max(picture.shape[1] for picture, _ in rows)
    page = Image.new("RGB", (width, 2 * MARGIN + sum(p.shape[0] + LINE + GAP for p, _ in rows)), PAGE)
    draw, font, top = ImageDraw.Draw(page), ImageFont.load_default(FONT), MARGIN
    for picture, label in rows:
        page.paste(Image.fromarray(picture), (MARGIN, top))
        draw.text((MARGIN, top + picture.shape[0] + GAP), label, INK, font)
        top += picture.shape[0] + LINE + GAP
    return np.asarray(page)


def row(
    record: FrameRecord, looks: Mapping[Picture, Look], rig: Rig | None, options: DataOptions
) -> tuple[np.ndarray, str]:
    """Photograph and overlay side by side, and what is said about them."""
    picture = make_picture(record, options)
    width = min(TILE, picture.size[0])
    small = replace(picture, target=(width, max(1, round(width * picture.size[1] / picture.size[0]))))
    photograph = np.ascontiguousarray(prepare(small)[:3].transpose(1, 2, 0))
    label = f"{record.image.stem}, camera {record.camera_id}, {picture.size[0]}x{picture.size[1]}"
    if rig is None:
        return photograph, label
    if rigid_fault(record.world_to_camera):
        return np.concatenate([photograph, photograph], axis=1), f"{label}: its camera matrix is refused"
    vertices, k = Poser(rig, None)(record.timestep), record.intrinsics.resized(*small.target)
    light, covered = shade(Mesh(torch.from_numpy(vertices), rig.faces), make_camera(record.world_to_camera, k))
    overlay, inside = photograph.copy(), covered.numpy()
    skin = SKIN * light.numpy()[inside, None]
    overlay[inside] = np.rint(OPAQUE * skin + (1.0 - OPAQUE) * photograph[inside]).astype(np.uint8)
    silhouette = silhouette_of(small, looks[picture].background)
    if silhouette is not None:
        outlines, _ = cv2.findContours(silhouette.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        overlay = cv2.drawContours(overlay, outlines, -1, OUTLINE, 1)
        label += f": overlap {overlap(inside, silhouette):.2f} (blue: outline of the matte)"
    place = place_of(vertices, record.world_to_camera, k)
    label += "" if place == "fine" else f", the mesh: {place}"
    gap = np.full((photograph.shape[0], GAP, 3), PAGE, np.uint8)
    return np.concatenate([photograph, gap, overlay], axis=1), label
