"""Flags, presets and saved options."""

from __future__ import annotations

from pathlib import Path

import pytest

from arguments import parse, preset_names, read_preset
from utils.engine.options import due_at, flags_from_options, known_flags, options_from_flags
from utils.errors import InputError

SOURCE = ["-s", "data"]


def test_the_list_of_flags() -> None:
    """A flag can't appear or vanish unnoticed."""
    listed = (Path(__file__).parent / "flags.txt").read_text().split()
    assert sorted(known_flags()) == listed


@pytest.mark.parametrize("words, value", [([], False), (["--eval"], True), (["--eval", "True"], True),
                                          (["--eval", "false"], False)])  # fmt: skip
def test_both_forms_of_booleans(words: list[str], value: bool) -> None:
    assert parse([*SOURCE, *words], "train.py").data.eval is value


@pytest.mark.parametrize("words, named", [
    (["--eval", "maybe"], "--eval"), (["--iterations", "ten"], "--iterations"), (["--iteration", "10"], "--iteration"),
    (["--use_vgg", "1"], "--use_vgg"), (["--rasterizer", "metal"], "rasterizer"), (["--config", "nope"], "nope"),
    (["--iterations", "0"], "--iterations"), (["--sh_degree", "4"], "--sh_degree"),
    (["--resume", "--overwrite"], "--overwrite"), (["--opacity_lr", "nan"], "opacity_lr"),
    (["--densify_grad_threshold", "inf"], "densify_grad_threshold"), (["--position_lr_init", "-1"], "position_lr_init"),
    (["--init_opacity", "1"], "init_opacity"), (["--interval", "0"], "--interval"), (["--rotation_lr", "-1"], "rotat"),
    (["--test_iterations", "0", "5"], "--test_iterations"), (["--threads", "99999"], "--threads")])  # fmt: skip
def test_bad_flags_are_one_input_error(words: list[str], named: str) -> None:
    with pytest.raises(InputError) as caught:
        parse([*SOURCE, *words], "train.py")
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_source_is_needed() -> None:
    with pytest.raises(InputError, match="--source_path"):
        parse([], "train.py")


def test_typed_flags_beat_the_preset() -> None:
    options = parse([*SOURCE, "--config", "gaussian_avatars", "--opacity_lr", "0.5"], "train.py")
    assert options.optimiser.iterations == 600_000 and options.optimiser.opacity_lr == 0.5
    assert options.run.config == "gaussian_avatars" and options.densification.densify_from_iter == 10_000


def test_round_trip() -> None:
    options = parse([*SOURCE, "--seed", "3", "--test_iterations", "5", "7"], "train.py")
    assert options_from_flags(flags_from_options(options), "x") == options
    assert options.run.test_iterations == [5, 7]


@pytest.mark.parametrize("name", preset_names())
def test_presets_are_valid(name: str) -> None:
    options_from_flags(read_preset(name), name)


@pytest.mark.parametrize("text, problem", [("iterationz: 3", "iterationz"), ("- 3", "list"), ("a: [", "YAML")])
def test_bad_preset_files(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=problem):
        read_preset(str(path))


def test_what_is_due_follows_the_given_iterations() -> None:
    assert due_at([], -1, 3000) == frozenset(range(300, 3001, 300))
    assert due_at([], 1000, 2500) == {1000, 2000, 2500}
    assert due_at([1000], -1, 3000) == {1000, 3000}
    assert due_at([7000], -1, 3000) == {3000}
    assert due_at([], -1, 5) == {1, 2, 3, 4, 5}
