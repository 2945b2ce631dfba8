"""The original's `cfg_args`: parsed, never evaluated."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.engine.cfg_args import read_cfg_args
from utils.errors import InputError

# As GaussianAvatars writes it: every loading flag, some of which do not exist here.
ORIGINAL = (
    "Namespace(sh_degree=3, source_path='/data/UNION10_306', target_path='', model_path='output/306', "
    "images='images', resolution=-1, white_background=True, data_device='cuda', eval=True, bind_to_mesh=True, "
    "disable_flame_static_offset=False, not_finetune_flame_params=False, select_camera_id=-1)"
)


def written(folder: Path, text: str) -> Path:
    path = folder / "cfg_args"
    path.write_text(text)
    return path


def test_an_originals_file(tmp_path: Path) -> None:
    flat = read_cfg_args(written(tmp_path, ORIGINAL))
    assert flat["source_path"] == "/data/UNION10_306" and flat["white_background"] is True and flat["eval"] is True
    assert flat["select_camera_id"] == "-1" and flat["sh_degree"] == 3 and "target_path" not in flat


@pytest.mark.parametrize("text, problem", [
    ("Namespace(a=__import__('os').system('touch HERE'))", "a: is no plain value"),
    ("__import__('os').system('touch HERE')", "expected Namespace"), ("Namespace(**{'eval': True})", r"found \*\*"),
    ("Namespace(3)", "expected Namespace"), ("Namespace(", "can't be parsed"), ("", "can't be parsed"),
    ("Namespace(sh_degree='three')", "sh_degree: found 'three'"), ("Namespace(eval=1)", "eval: found 1"),
    ("Namespace(sh_degree=3, sh_degree=2)", "is there twice"), ("\0", "can't be parsed"),
    ("Namespace(a=" + "(" * 400 + ")" * 400 + ")", "can't be parsed|is no plain"),
    ("Namespace(a=[x for x in ()])", "a: is no plain value"),
    ("Other(sh_degree=3)", "expected Namespace")])  # fmt: skip
def test_anything_else_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        read_cfg_args(written(tmp_path, text.replace("HERE", str(tmp_path / "touched"))))
    assert not (tmp_path / "touched").exists() and "\n" not in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected at most"):
        read_cfg_args(written(tmp_path, "Namespace(" + " " * (1 << 20) + ")"))
