"""Every historic way of pickling a FLAME model reads exactly; what is not a consistent model is refused by field."""

from __future__ import annotations

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

import flame_model
from flame_model import load as load_module
from tests.flame_model import synthetic
from utils.errors import InputError

CHUMPY = ("v_template", "shapedirs", "posedirs", "weights")


def _dumps(model: dict[str, Any]) -> dict[str, bytes]:
    sparse = synthetic.with_sparse(model)
    files = {f"python3-{protocol}": pickle.dumps(sparse, protocol) for protocol in range(5)}
    files |= {f"chumpy-{protocol}": synthetic.chumpy_dumps(sparse, CHUMPY, protocol) for protocol in (0, 1, 2, 3, 4)}
    files |= {f"python2-{protocol}": synthetic.Python2(protocol).dumps(sparse) for protocol in (0, 2)}
    files |= {f"python2-chumpy-{protocol}": synthetic.Python2(protocol, CHUMPY).dumps(sparse) for protocol in (0, 2)}
    files["dense"] = pickle.dumps(model, 2)
    files["csr"] = pickle.dumps(synthetic.with_sparse(model, "csr"), 4)
    files["python2-csr"] = synthetic.Python2(2).dumps(synthetic.with_sparse(model, "csr"))
    files["fortran"] = pickle.dumps({k: np.asfortranarray(v) if k == "posedirs" else v for k, v in model.items()}, 4)
    big_endian = {k: v.astype(v.dtype.newbyteorder(">")) if isinstance(v, np.ndarray) else v for k, v in model.items()}
    files["big-endian"] = pickle.dumps(big_endian, 4)
    return files


@pytest.mark.parametrize("kind", _dumps(synthetic.fields(8, 1)))
def test_reads_every_way_of_pickling_exactly(kind: str, tmp_path: Path) -> None:
    model = synthetic.fields()
    path = tmp_path / "model.pkl"
    path.write_bytes(_dumps(model)[kind])
    assets = flame_model.load_flame(path)
    same = {
        "template": model["v_template"],
        "shape_dirs": model["shapedirs"][:, :, :300],
        "expr_dirs": model["shapedirs"][:, :, 300:],
        "pose_dirs": model["posedirs"],
        "joint_regressor": model["J_regressor"],
        "weights": model["weights"],
    }
    for name, expected in same.items():
        array = getattr(assets, name)
        assert array.dtype == np.float32 and array.flags.c_contiguous, name
        np.testing.assert_array_equal(array, expected.astype(np.float32), name)
    np.testing.assert_array_equal(assets.faces, model["f"])
    assert assets.faces.dtype == np.int64
    assert tuple(assets.parents) == synthetic.PARENTS
    assert assets.fingerprint == hashlib.sha256(path.read_bytes()).hexdigest()
    assert assets.source == path


def test_edition_is_what_the_file_says_else_its_counts(tmp_path: Path) -> None:
    model = synthetic.fields()
    named = flame_model.load_flame(synthetic.write(tmp_path / "a.pkl", {**model, "edition": "mien-demo-1"}))
    assert named.edition == "mien-demo-1"
    assert flame_model.load_flame(synthetic.write(tmp_path / "b.pkl", model)).edition == "60 vertices, 58 faces"


def test_another_topology_gets_no_teeth(tmp_path: Path) -> None:
    assets = flame_model.load_flame(synthetic.write(tmp_path / "a.pkl", synthetic.fields()))
    assert assets.with_teeth() is assets


def _bad_models() -> dict[str, tuple[str, dict[str, Any]]]:
    m = synthetic.fields()
    v = len(m["v_template"])

    def changed(name: str, index: Any, value: Any) -> dict[str, Any]:
        array = m[name].copy()
        array[index] = value
        return {name: array}

    table = m["kintree_table"]
    return {
        "template of 2 coordinates": ("v_template", {"v_template": m["v_template"][:, :2]}),
        "template NaN": ("v_template", changed("v_template", (3, 1), np.nan)),
        "too large for float32": ("v_template", changed("v_template", (3, 1), 1e200)),
        "no expressions": ("shapedirs", {"shapedirs": m["shapedirs"][:, :, :300]}),
        "shapedirs of other vertices": ("shapedirs", {"shapedirs": m["shapedirs"][:-1]}),
        "posedirs of 9": ("posedirs", {"posedirs": m["posedirs"][:, :, :9]}),
        "posedirs infinite": ("posedirs", changed("posedirs", (0, 0, 0), np.inf)),
        "regressor transposed": ("J_regressor", {"J_regressor": m["J_regressor"].T}),
        "regressor text": ("J_regressor", {"J_regressor": "none"}),
        "sparse too large": ("J_regressor", {"J_regressor": scipy.sparse.csc_matrix((5, v + 1))}),
        "sparse template": ("v_template", {"v_template": scipy.sparse.csc_matrix(m["v_template"])}),
        "weights do not sum to 1": ("weights", changed("weights", (7, 2), 3.0)),
        "faces out of range": ("f", changed("f", (0, 0), v)),
        "faces negative": ("f", {"f": m["f"].astype(np.int64) - 1}),
        "faces float": ("f", {"f": m["f"].astype(float)}),
        "faces empty": ("f", {"f": m["f"][:0]}),
        "no root": ("kintree_table", changed("kintree_table", (0, 0), 0)),
        "cyclic tree": ("kintree_table", changed("kintree_table", (0, 1), 2)),
        "own parent": ("kintree_table", changed("kintree_table", (0, 3), 3)),
        "parent beyond": ("kintree_table", changed("kintree_table", (0, 3), 17)),
        "ids permuted": ("kintree_table", {"kintree_table": table[:, [0, 1, 2, 4, 3]]}),
        "edition number": ("edition", {"edition": 3}),
        "object array": ("weights", {"weights": m["weights"].astype(object)}),
        "complex": ("weights", {"weights": m["weights"].astype(complex)}),
        "text array": ("weights", {"weights": m["weights"].astype(str)}),
    }


@pytest.mark.parametrize("case", _bad_models())
def test_refuses_what_is_not_a_consistent_model(case: str, tmp_path: Path) -> None:
    field, change = _bad_models()[case]
    path = synthetic.write(tmp_path / "model.pkl", {**synthetic.fields(), **change}, 4)
    with pytest.raises(InputError) as caught:
        flame_model.load_flame(path)
    assert str(path) in str(caught.value) and field in str(caught.value)


@pytest.mark.parametrize("name", [k for k in synthetic.fields(8, 1) if not k.startswith("bs_")])
def test_names_the_missing_entry(name: str, tmp_path: Path) -> None:
    model = synthetic.fields()
    del model[name]
    with pytest.raises(InputError, match=f"model.pkl: {name}: this entry is missing"):
        flame_model.load_flame(synthetic.write(tmp_path / "model.pkl", model))


@pytest.mark.parametrize("change", ["start", "order", "end", "index", "negative", "lengths", "float", "shape"])
def test_refuses_contradicting_sparse_matrices(change: str, tmp_path: Path) -> None:
    matrix = scipy.sparse.csc_matrix(synthetic.fields()["J_regressor"])
    if change == "start":
        matrix.indptr[0] = 1
    elif change == "order":
        matrix.indptr[3], matrix.indptr[4] = matrix.indptr[4] + 1, matrix.indptr[3]
    elif change == "end":
        matrix.indptr[-1] += 1
    elif change in ("index", "negative"):
        matrix.indices[2] = 5 if change == "index" else -1
    elif change == "lengths":
        matrix.data = matrix.data[:-1]
    elif change == "float":
        matrix.indices = matrix.indices.astype(float)
    else:
        matrix._shape = (5, 2**40)
    path = synthetic.write(tmp_path / "model.pkl", {**synthetic.fields(), "J_regressor": matrix})
    with pytest.raises(InputError, match=r"J_regressor: byte \d+: found a sparse matrix"):
        flame_model.load_flame(path)


def test_sparse_duplicates_add_up(tmp_path: Path) -> None:
    model = synthetic.fields()
    matrix = scipy.sparse.csc_matrix(model["J_regressor"])
    matrix.indices[matrix.indptr[0] : matrix.indptr[1]] = 0
    assets = flame_model.load_flame(synthetic.write(tmp_path / "model.pkl", {**model, "J_regressor": matrix}))
    assert assets.joint_regressor[0, 0] == pytest.approx(model["J_regressor"][:, 0].sum(), rel=1e-6)


def test_missing_model_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError) as caught:
        flame_model.load_flame(tmp_path / "nothing.pkl")
    for part in ("nothing.pkl", "https://flame.is.tue.mpg.de", "FLAME 2023 Open", "--flame_model", "make demo"):
        assert part in str(caught.value)
    monkeypatch.setattr(load_module, "ASSETS", tmp_path)
    with pytest.raises(InputError) as caught:
        flame_model.default_model_path()
    for name in ("flame2023_Open.pkl", "flame2023.pkl", "flame2023_no_jaw.pkl", "generic_model.pkl", "make demo"):
        assert name in str(caught.value)


def test_default_paths_prefer_the_open_edition_and_the_model_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets, elsewhere = tmp_path / "assets", tmp_path / "elsewhere"
    assets.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr(load_module, "ASSETS", assets)
    (assets / "generic_model.pkl").touch()
    assert flame_model.default_model_path() == assets / "generic_model.pkl"
    (assets / "flame2023_Open.pkl").touch()
    assert flame_model.default_model_path() == assets / "flame2023_Open.pkl"
    with pytest.raises(InputError, match="--flame_masks"):
        flame_model.default_masks_path(elsewhere / "model.pkl")
    (assets / "FLAME_masks.pkl").touch()
    assert flame_model.default_masks_path(elsewhere / "model.pkl") == assets / "FLAME_masks.pkl"
    assert flame_model.default_masks_path() == assets / "FLAME_masks.pkl"
    (elsewhere / "FLAME_masks.pkl").touch()
    assert flame_model.default_masks_path(elsewhere / "model.pkl") == elsewhere / "FLAME_masks.pkl"


def test_folders_and_pipes_are_not_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="is not a regular file"):
            flame_model.load_flame(path)


@pytest.mark.parametrize("protocol", range(5))
def test_masks_read_exactly_and_keep_extra_regions(protocol: int, tmp_path: Path) -> None:
    masks = synthetic.masks(60) | {"teeth": np.array([59, 58, 59])}
    loaded = flame_model.load_masks(synthetic.write(tmp_path / "masks.pkl", masks, protocol), 60)
    assert set(loaded) == set(masks) and set(flame_model.MASK_NAMES) < set(loaded)
    for name, ids in masks.items():
        np.testing.assert_array_equal(loaded[name], np.unique(ids))
        assert loaded[name].dtype == np.int64


@pytest.mark.parametrize(
    ("name", "ids"),
    {
        "nose": np.array([60]),
        "lips": np.array([-1]),
        "neck": np.array([0.5]),
        "face": np.zeros((2, 2), int),
        "scalp": np.array([], int),
        "boundary": None,
    }.items(),
)
def test_bad_masks_name_the_region(name: str, ids: np.ndarray | None, tmp_path: Path) -> None:
    masks: dict[str, Any] = synthetic.masks(60) | {name: ids}
    with pytest.raises(InputError, match=f"masks.pkl: {name}"):
        flame_model.load_masks(synthetic.write(tmp_path / "masks.pkl", masks, 4), 60)
    del masks[name]
    with pytest.raises(InputError, match=f"masks.pkl: {name}: this region is missing"):
        flame_model.load_masks(synthetic.write(tmp_path / "masks.pkl", masks, 4), 60)


def test_the_stand_in_reads_exactly(shared: Path) -> None:
    folder = shared / "data" / "flame_stand_in"
    assets = flame_model.load_flame(folder / "flame2023.pkl")
    with open(folder / "flame2023.pkl", "rb") as file:
        trusted = pickle.load(file)  # noqa: S301  our own file, as the independent reading
    assert (assets.n_vertices, len(assets.faces), assets.expr_dirs.shape[2]) == (5023, 9976, 100)
    np.testing.assert_array_equal(assets.shape_dirs, trusted["shapedirs"][..., :300].astype(np.float32))
    np.testing.assert_array_equal(assets.expr_dirs, trusted["shapedirs"][..., 300:].astype(np.float32))
    np.testing.assert_array_equal(assets.joint_regressor, trusted["J_regressor"].toarray().astype(np.float32))
    np.testing.assert_array_equal(assets.faces, trusted["f"])
    masks = flame_model.load_masks(folder / "FLAME_masks.pkl", 5143)
    with open(folder / "FLAME_masks.pkl", "rb") as file:
        trusted = pickle.load(file)  # noqa: S301
    for name, ids in trusted.items():
        np.testing.assert_array_equal(masks[name], np.sort(ids))
