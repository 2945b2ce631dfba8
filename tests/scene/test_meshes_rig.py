"""The rig of recorded meshes: it gives back what was recorded, and its file does too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from scene.rigs.meshes import MESHES_FILE, MeshesRig, read_meshes
from utils.contracts import Motion
from utils.errors import InputError

FACES = [[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]]


def meshes(timesteps: int = 5) -> np.ndarray:
    """[T, 4, 3] float32: a tetrahedron that grows; the middle timestep is the mean."""
    shape = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
    return np.stack([shape * (1 + 0.125 * t) + 0.25 for t in range(timesteps)])


def motion(vertices: np.ndarray | None = None, faces: list[list[int]] | None = None) -> Motion:
    values = torch.from_numpy(meshes() if vertices is None else vertices)
    return Motion({"vertices": values}, {"faces": torch.tensor(FACES if faces is None else faces)})


def test_a_timestep_is_its_mesh() -> None:
    rig = MeshesRig(motion(), "here", "cpu")
    assert rig.timesteps == 5 and rig.parameters == {} and rig.groups == {} and rig.state_dict() == {}
    assert rig.bound and rig.fingerprint == rig.edition == ""
    for timestep in range(5):
        mesh = rig(timestep)
        np.testing.assert_array_equal(mesh.vertices.numpy(), meshes()[timestep])
        assert mesh.faces.tolist() == FACES and mesh.faces.dtype == torch.int64
    assert rig.faces is rig(0).faces
    rig.load_state_dict({})


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [2, 0, 1, 3, 4], [0, 1, 3, 4, 2]])
def test_the_rest_mesh_is_a_recorded_one_near_the_mean(order: list[int]) -> None:
    rig = MeshesRig(motion(meshes()[order]), "here", "cpu")
    np.testing.assert_array_equal(rig.rest_mesh().vertices.numpy(), meshes()[2])


def test_equals_are_decided_by_time() -> None:
    rig = MeshesRig(motion(meshes(2)), "here", "cpu")
    np.testing.assert_array_equal(rig.rest_mesh().vertices.numpy(), meshes()[0])


def test_its_file_gives_the_same_motion(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 4, 3)).astype(np.float32)
    MeshesRig(motion(values), "here", "cpu").save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [MESHES_FILE]
    again = MeshesRig(read_meshes(tmp_path / MESHES_FILE), "here", "cpu")
    np.testing.assert_array_equal(again.vertices.numpy(), values)
    assert again.faces.tolist() == FACES
    np.testing.assert_array_equal(again.motion().per_frame["vertices"].numpy(), values)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"vertices": meshes()}, "faces: is missing"),
        ({"faces": np.array(FACES)}, "vertices: is missing"),
        ({"vertices": meshes()[0], "faces": np.array(FACES)}, r"vertices: found shape \[4, 3\]"),
        ({"vertices": meshes(), "faces": np.array(FACES) + 1}, "faces: found vertices 1 to 4, expected 0 to 3"),
        ({"vertices": meshes(), "faces": np.array(FACES) + 0.25}, "faces: found fractions"),
        ({"vertices": meshes() * np.float32(np.nan), "faces": np.array(FACES)}, "vertices: found nan"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    path = tmp_path / MESHES_FILE
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=f"{MESHES_FILE}: {message}"):
        read_meshes(path)


def test_more_than_its_file_could_give_back_is_refused_at_once() -> None:
    """6,000 meshes of 15,000 vertices (1.08 GB, expanded: no memory) would be refused when the avatar is loaded."""
    vertices = torch.from_numpy(meshes(1)[:, :1]).expand(6_000, 15_000, 3)
    with pytest.raises(InputError, match="here: vertices: takes 1080000048 bytes"):
        MeshesRig(Motion({"vertices": vertices}, {"faces": torch.tensor(FACES)}), "here", "cpu")


def test_a_motion_without_meshes_is_refused() -> None:
    with pytest.raises(InputError, match="here: vertices: is missing in per_frame"):
        MeshesRig(Motion({"expr": torch.zeros(2, 3)}, {"shape": torch.zeros(3)}), "here", "cpu")
    with pytest.raises(InputError, match="here: faces: found vertices -1 to 2"):
        MeshesRig(motion(faces=[[0, 1, -1], [0, 1, 2]]), "here", "cpu")
