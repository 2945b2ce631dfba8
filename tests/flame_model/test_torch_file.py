"""Files of torch.save read exactly; hostile ones end in an InputError, and nothing that they name is ever called."""

from __future__ import annotations

import collections
import io
import os
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flame_model.stored_zip import MAX_FILE_BYTES
from flame_model.torch_file import STORAGES, read_torch_file
from tests.flame_model import hostile, torch_files
from tests.flame_model.test_hostile import mutated
from utils.errors import InputError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def same(found: Any, expected: Any) -> None:
    """Equal values in equal containers; arrays for tensors."""
    if isinstance(expected, torch.Tensor):
        expected = expected.detach().numpy()
    if isinstance(expected, np.ndarray):
        assert type(found) is np.ndarray and found.dtype == expected.dtype and found.shape == expected.shape
        assert not found.flags.writeable or found.size == 0
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert type(found) is dict and list(found) == list(expected)
        for key in expected:
            same(found[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert type(found) is type(expected) and len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same(one, other)
    elif isinstance(expected, np.generic):
        assert type(found) is type(expected.item()) and found == expected.item()
    else:
        assert type(found) is type(expected) and found == expected


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_what_torch_saves(protocol: int, tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32)
    content = {
        **{str(dtype): torch.arange(6).to(dtype).reshape(2, 3) for dtype in DTYPES},
        "bool": torch.tensor([True, False]), "scalar": torch.tensor(2.5), "empty": torch.empty(0),
        "hollow": torch.empty(3, 0), "transposed": base.reshape(4, 6).t(), "same": base, "every other": base[::2],
        "part": base[5:17].reshape(3, 4)[:, 1:3], "parameter": torch.nn.Parameter(base.reshape(2, 12)),
        "numpy": np.arange(6.0).reshape(2, 3).T, "number": np.float32(4.5),
        "nested": [1, -2.5, None, True, "text", (3, {"a": 2**40, 7: "b"})],
        "ordered": collections.OrderedDict(z=base, a=1),
    }  # fmt: skip
    path = saved(content, tmp_path / "00007.frame", pickle_protocol=protocol)
    same(read_torch_file(path), content)
    assert len({*STORAGES}) == len(DTYPES) + 1


def test_views_share_their_storage(tmp_path: Path) -> None:
    base = torch.zeros(1000)
    found = read_torch_file(saved([base, base.reshape(10, 100), base[:5]], tmp_path / "views.pt"))
    assert all(np.shares_memory(found[0], view) for view in found[1:])


def test_reads_checkpoints_of_the_original(tmp_path: Path) -> None:
    """chkpntN.pth: (14 values, iteration) with parameters, an optimiser's state and a numpy scalar."""
    torch.manual_seed(0)
    widths = {"xyz": (3,), "f_dc": (1, 3), "f_rest": (15, 3), "scaling": (3,), "rotation": (4,), "opacity": (1,)}
    parameters = {name: torch.nn.Parameter(torch.randn(7, *width)) for name, width in widths.items()}
    groups = [{"params": [value], "lr": 1e-3, "name": name} for name, value in parameters.items()]
    optimiser = torch.optim.Adam(groups, lr=0.0, eps=1e-15)
    torch.stack([value.square().sum() for value in parameters.values()]).sum().backward()
    optimiser.step()
    captured = (
        3, *parameters.values(), torch.arange(7), torch.ones(9, dtype=torch.int32), torch.zeros(7), torch.rand(7, 1),
        torch.rand(7, 1), optimiser.state_dict(), np.float32(1.25),
    )  # fmt: skip
    assert len(captured) == 14
    path = saved((captured, 30_000), tmp_path / "chkpnt30000.pth")
    found, iteration = read_torch_file(path)
    same(found, captured)
    assert iteration == 30_000 and found[12]["param_groups"][1]["name"] == "f_dc"
    same(found[12]["state"][5]["exp_avg"], optimiser.state[parameters["opacity"]]["exp_avg"])


def test_state_dicts_keep_their_order_and_lose_their_metadata(tmp_path: Path) -> None:
    state = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()
    same(read_torch_file(saved(state, tmp_path / "net.pth")), dict(state))


def test_the_64_bit_record_counts_where_the_end_defers_to_it(tmp_path: Path) -> None:
    path = saved({"x": torch.arange(5)}, tmp_path / "x.pt")
    content = path.read_bytes()
    assert content[-98:-94] == b"PK\x06\x06"
    path.write_bytes(content[:-14] + b"\xff" * 12 + content[-2:])
    same(read_torch_file(path), {"x": torch.arange(5)})
    wide = [torch_files.Entry("a/data.pkl", b"K\x07.", wide=True), torch_files.Entry("a/data/0", b"", wide=True)]
    path.write_bytes(torch_files.pack(wide, wide=True))
    assert read_torch_file(path) == 7


def refused(path: Path, content: bytes) -> str:
    """The message with which `content` is refused, after checking that nothing happened meanwhile."""
    path.write_bytes(content)
    modules = set(sys.modules)
    tracemalloc.start()
    try:
        with pytest.raises(InputError) as caught:
            read_torch_file(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert peak < 2_000_000 + 8 * len(content), peak
    assert set(sys.modules) == modules
    assert message.isprintable() and len(message) < 1000 and message.startswith(f"{path}: "), message
    return message


def test_the_hand_made_file_is_accepted_when_nothing_is_wrong(tmp_path: Path) -> None:
    """What is refused below is refused for what is wrong with it."""
    path = tmp_path / "good.pt"
    path.write_bytes(torch_files.Tensor().file())
    same(read_torch_file(path), {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
    path.write_bytes(torch_files.torch_file(b"\x80\x02K\x01.", {"0": bytes(24)}, None))
    assert read_torch_file(path) == 1
    assert torch.load(io.BytesIO(torch_files.Tensor().file()), weights_only=True)["x"].shape == (2, 3)


@pytest.mark.parametrize("name", hostile.calls("x"))
def test_no_call_is_ever_made(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    message = refused(tmp_path / "x.pt", torch_files.torch_file(hostile.calls(str(marker))[name]))
    assert "not permitted" in message or "a call of 'collections OrderedDict'" in message
    assert "byte" in message and not marker.exists()


def test_offsets_are_those_of_the_file(tmp_path: Path) -> None:
    content = torch_files.torch_file(b"\x80\x02" + hostile.named("os", "system") + b".")
    message = refused(tmp_path / "x.pt", content)
    assert f"byte {content.index(b'cos')}: asks for the global 'os system'" in message
    assert "https://flame" not in message


@pytest.mark.parametrize("name", hostile.opcodes())
def test_refuses_malformed_opcodes(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "x.pt", torch_files.torch_file(hostile.opcodes()[name]))


@pytest.mark.parametrize("name", hostile.records())
def test_refuses_contradicting_records(name: str, tmp_path: Path) -> None:
    message = refused(tmp_path / "x.pt", torch_files.torch_file(hostile.records()[name]))
    assert "v_template" in message or "not permitted" in message


@pytest.mark.parametrize("name", torch_files.bad_tensors())
def test_refuses_tensors_that_contradict_their_storage(name: str, tmp_path: Path) -> None:
    message = refused(tmp_path / "x.pt", torch_files.bad_tensors()[name])
    assert ": x: byte " in message or "not permitted" in message


@pytest.mark.parametrize("name", torch_files.bad_archives())
def test_refuses_archives_that_torch_does_not_write(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "x.pt", torch_files.bad_archives()[name])


@pytest.mark.parametrize(
    "value",
    [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, 2).to_sparse(),
     torch.device("cpu"), torch.float32, torch.Size([2]), torch.nn.Linear(2, 2), np.array([{}]), np.array(["a"]),
     {1, 2}, Path("x"), torch.zeros(2).untyped_storage(), torch.zeros(2, dtype=torch.complex64).conj()],
)  # fmt: skip
def test_refuses_what_is_no_plain_data(value: Any, tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"x": value}, content)
    refused(tmp_path / "x.pt", content.getvalue())


def test_older_forms_are_refused_by_name(tmp_path: Path) -> None:
    content = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, content, _use_new_zipfile_serialization=False)
    assert "before version 1.6. If you trust it" in refused(tmp_path / "x.pt", content.getvalue())
    tar = bytes(257) + b"ustar\0" + bytes(249)
    assert "legacy .tar form of torch. If you trust it" in refused(tmp_path / "x.pt", tar)
    assert "expected a zip archive" in refused(tmp_path / "x.pt", b"hello")
    assert "expected a zip archive" in refused(tmp_path / "x.pt", b"")


def test_cut_files_are_refused(tmp_path: Path) -> None:
    content = saved({"x": torch.arange(50)}, tmp_path / "good.pt").read_bytes()
    for length in range(0, len(content), 37):
        refused(tmp_path / "x.pt", content[:length])


def test_folders_pipes_and_large_files_are_refused_unread(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse: takes no space
    cases = {"": "regular file|directory", "pipe": "regular file", "large": "at most", "none": "No such file"}
    for name, problem in cases.items():
        with pytest.raises(InputError, match=problem):
            read_torch_file(tmp_path / name)


def test_mutations_only_ever_raise_input_errors(tmp_path: Path) -> None:
    content = {
        "x": torch.arange(6.0).reshape(2, 3).t(),
        "y": [np.arange(3), np.float64(2)],
        "z": collections.OrderedDict(a=1),
    }
    good = saved(content, tmp_path / "good.pt").read_bytes()
    start = good.index(b"\x80\x02")
    random = np.random.default_rng(3)
    path, refusals = tmp_path / "mutant.pt", 0
    for turn in range(800):
        if turn % 2:  # the pickle alone, behind a CRC that fits: else every mutant ends at the CRC
            end = good.index(b"PK\x07\x08", start)
            mutant = torch_files.torch_file(
                mutated(good[start:end], random), {"0": np.arange(6, dtype="<f4").tobytes()}
            )
        else:
            mutant = mutated(good, random)
        path.write_bytes(mutant)
        try:
            read_torch_file(path)
        except InputError:
            refusals += 1
    assert refusals > 500
