"""Draws the subject: a z-buffer of mesh and strands, shaded per sample, three samples per pixel side."""

from __future__ import annotations

import cv2
import numpy as np
from diff_gaussian_rasterization.mesh import rasterize_mesh

from scripts.demo_subject import hair, shading, shape, texture
from scripts.demo_subject.template import Template

Array = np.ndarray
Floats = np.ndarray

SAMPLES = 3  # per pixel side


class Artist:
    """Holds what does not move (texture, strands, ambient openness) and draws posed meshes."""

    def __init__(self, head: Template, seed: int, detail: float = 1.0) -> None:
        texels = int(1024 * detail)
        self.faces = head.faces.astype(np.int32)
        self.uv = np.ascontiguousarray((head.uv * texels - 0.5).reshape(-1, 2).T, np.float32)  # [2, 3F] face corners
        self.texture, self.rough = texture.bake(head, texels)
        self.strands = hair.grow(head, seed, detail)
        self.openness = _openness(head).astype(np.float32)
        self.head = head
        self.mouth = head.of("mouth", "upper teeth", "lower teeth", "tongue")
        edge = (head.lid > 0) & (head.part == 0)
        column = np.nan_to_num(head.column)
        self.eyes = [(head.of("left eyeball"), edge & (column > 0)), (head.of("right eyeball"), edge & (column < 0))]
        middle = (head.part == 0) & (head.column == 0) & (head.row == head.rows["mouth"])
        self.lip_gap = int(np.flatnonzero(middle & (head.lip > 0))[0]), int(np.flatnonzero(middle & (head.lip < 0))[0])
        self._ribbon_faces = _ribbon_faces(len(self.strands.face), len(head.vertices))
        self._all_faces = np.concatenate([self.faces, self._ribbon_faces])

    def draw(
        self, vertices: Floats, world_to_camera: Array, focal: float, centre: tuple[float, float], size: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Colour [size, size, 3] over white and matte [size, size] of posed vertices [V, 3] (metres)."""
        n, large = SAMPLES, SAMPLES * size
        rotation = world_to_camera[:3, :3].astype(np.float32)
        eye = (-world_to_camera[:3, :3].T @ world_to_camera[:3, 3]).astype(np.float32)
        points, tangents, outward = self._pose_strands(vertices)
        ribbons = _ribbons(points, tangents, self.strands.width, eye)
        world = np.concatenate([vertices, ribbons.reshape(-1, 3)])
        seen = (world - eye) @ rotation.T
        screen = np.empty_like(seen)
        screen[:, 0] = n * (focal * seen[:, 0] / seen[:, 2] + centre[0])
        screen[:, 1] = n * (focal * seen[:, 1] / seen[:, 2] + centre[1])
        screen[:, 2] = seen[:, 2]
        face, weights, _ = rasterize_mesh(screen, self._all_faces, large, large, threads=1)
        image = np.ones((large, large, 3), np.float32)
        on_mesh, on_hair = (face >= 0) & (face < len(self.faces)), face >= len(self.faces)
        image[on_mesh] = shading.display(self._shade_mesh(vertices, screen, face[on_mesh], weights[on_mesh], eye)).T
        fibres = self.strands
        lit = shading.strands(points, tangents, outward, fibres.colour, fibres.openness, eye).reshape(-1, 3)
        ids = (self._ribbon_faces[face[on_hair] - len(self.faces)] - len(vertices)) // 2
        w = np.ascontiguousarray(weights[on_hair])
        image[on_hair] = shading.display(_interpolate(lit.T, ids.T, w.T)).T
        matte = (face >= 0).astype(np.float32)
        small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
        matte = cv2.resize(matte, (size, size), interpolation=cv2.INTER_AREA)
        return np.round(small * 255).astype(np.uint8), np.round(matte * 255).astype(np.uint8)

    def _pose_strands(self, vertices: Floats) -> tuple[Floats, Floats, Floats]:
        """Points and unit tangents [S, P, 3] and the outward direction [S, 3] of the strands on a posed mesh."""
        centre, frame = hair.face_frames(vertices, self.faces[self.strands.face])
        local = (self.strands.local / 1000.0).astype(np.float32)
        points = centre[:, None] + np.einsum("sij,skj->ski", frame, local)
        tangents = shading.unit(np.gradient(points, axis=1))
        return points.astype(np.float32), tangents.astype(np.float32), frame[..., 2].astype(np.float32)

    def _ambient(self, vertices: Floats) -> Floats:
        """Openness [V] of this pose: the baked one, darker in a closed mouth and under the upper lids."""
        openness = self.openness.copy()
        gap = float(np.linalg.norm(vertices[self.lip_gap[0]] - vertices[self.lip_gap[1]]))
        openness[self.mouth] *= 0.3 + 0.7 * min(gap / 0.018, 1.0)
        for ball, lid in self.eyes:
            distance = np.linalg.norm(vertices[ball][:, None] - vertices[lid][None], axis=-1).min(1)
            openness[ball] = 0.42 + 0.58 * np.clip((distance - 0.0012) / 0.0050, 0, 1)
        return openness

    def _shade_mesh(self, vertices: Floats, screen: Floats, face: np.ndarray, weights: Floats, eye: Floats) -> Floats:
        """Linear colours [3, N] of pixels on the mesh."""
        side = np.where(_turned_away(screen, self.faces), np.float32(-1), np.float32(1))[face]
        attributes = np.concatenate([_normals(vertices, self.faces).T, vertices.T, self._ambient(vertices)[None]])
        ids, w = self.faces[face].T, np.ascontiguousarray(weights.T)
        found = _interpolate(attributes, ids, w)
        u, v = _interpolate(self.uv, 3 * face + np.arange(3)[:, None], w)
        paint = np.ascontiguousarray(_sample(self.texture, u, v).T)
        rough = _sample(self.rough, u, v).T
        normal, position = shading.unit(found[:3], 0) * side, found[3:6]
        return shading.surface(normal, shading.unit(eye[:, None] - position, 0), found[6], paint, rough)


def _openness(head: Template) -> Array:
    """Baked ambient openness [V]; parts that are not in the sculpture get plain values."""
    skin = head.part == 0
    result = np.ones(len(head.vertices))
    p = head.vertices[skin]
    result[skin] = 0.15 + 0.85 * np.clip(shape.occlusion(p, shape.normals(p)) * 1.25, 0, 1)
    result[head.of("mouth")] = np.clip(0.75 - 0.22 * head.depth[head.of("mouth")], 0.05, 1)
    for name in ("upper teeth", "lower teeth"):
        teeth = head.of(name)
        result[teeth] = np.clip((head.vertices[teeth, 2] - 64) / 19, 0.02, 0.9) ** 1.8
    result[head.of("tongue")] = np.clip((head.vertices[head.of("tongue"), 2] - 40) / 45, 0.05, 0.7)
    for side in ("left", "right"):
        ear = head.of(f"{side} ear")
        index = np.arange(ear.sum())
        ring = np.where(index == 0, 0, 1 + (index - 1) // 22)
        result[ear] = np.interp(ring, range(12), [0.2, 0.24, 0.34, 0.7, 0.95, 0.75, 0.8, 1, 1, 0.8, 0.55, 0.35])
        result[head.of(f"{side} lid")] = 0.7
    return result


def _interpolate(values: Floats, ids: np.ndarray, weights: Floats) -> Floats:
    """Values [C, V] at points with corners ids [3, N] and barycentric weights [3, N]: [C, N]."""
    return values[:, ids[0]] * weights[0] + values[:, ids[1]] * weights[1] + values[:, ids[2]] * weights[2]


def _turned_away(screen: Floats, faces: np.ndarray) -> np.ndarray:
    """[F] faces whose back is seen (clockwise with y up is counter-clockwise with y down)."""
    a, b, c = (screen[faces[:, i], :2] for i in range(3))
    return (b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) > (b[:, 1] - a[:, 1]) * (c[:, 0] - a[:, 0])


def _normals(vertices: Floats, faces: np.ndarray) -> Floats:
    """Area-weighted vertex normals [V, 3], not normalised."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    area = np.cross(b - a, c - a)
    flat = faces.T.reshape(-1)
    stacked = np.tile(area, (3, 1))
    total = np.stack([np.bincount(flat, stacked[:, i], len(vertices)) for i in range(3)], -1)
    return shading.unit(total).astype(np.float32)


def _sample(image: Floats, u: Floats, v: Floats) -> Floats:
    """Bilinear samples [N, C] at texel coordinates u, v [N]."""
    width = 4096  # cv2.remap takes maps of at most 32767 columns
    rows = -(-len(u) // width)
    maps = np.zeros((2, rows * width), np.float32)
    maps[0, : len(u)], maps[1, : len(u)] = u, v
    maps = maps.reshape(2, rows, width)
    found = cv2.remap(image, maps[0], maps[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.reshape(-1, image.shape[2])[: len(u)]


def _ribbon_faces(strands: int, start: int) -> np.ndarray:
    """Two triangles between consecutive points of every ribbon; vertex order: strand, point, side."""
    first = start + 2 * (hair.POINTS * np.arange(strands)[:, None] + np.arange(hair.POINTS - 1)[None])
    quads = np.stack([first, first + 1, first + 2, first + 1, first + 3, first + 2], -1)
    return quads.reshape(-1, 3).astype(np.int32)


def _ribbons(points: Floats, tangents: Floats, width: Array, eye: Floats) -> Floats:
    """[S, P, 2, 3]: both edges of ribbons that face the camera and taper towards the tip."""
    across = shading.unit(np.cross(tangents, eye - points))
    taper = np.linspace(1.0, 0.25, hair.POINTS) ** 0.7
    half = (0.0005 * width[:, None] * taper)[..., None].astype(np.float32)
    return np.stack([points - across * half, points + across * half], 2).astype(np.float32)
