"""A tenth of the corrupt inputs of `scripts/torture.py`, and proof that its checker notices what it looks for."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable

import pytest

from scripts import torture
from scripts.torture_cases import ROWS, all_cases, sample
from scripts.torture_cases.case import Box, Case, Command, Refused, Works
from scripts.torture_cases.checker import USUAL_SECONDS, Checker
from scripts.torture_cases.known import KNOWN, finding
from utils.errors import InputError

EVERY = 10
CASES = all_cases()
SAMPLE = [case for case in sample(CASES, EVERY) if case.seconds <= USUAL_SECONDS]
IN_THEIR_OWN = ("C1 empty behind .png", "C4 only the magic", "R4 metrics: gt/00001.png empty")  # train, render, metrics


@pytest.fixture(scope="module")
def checker(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    return Checker(tmp_path_factory.mktemp("torture"))


def parameter(case: Case) -> object:
    """A known finding must fail; once it does not, its entry in KNOWN is what fails."""
    why = finding(case.id)
    return pytest.param(case, id=case.id, marks=[pytest.mark.xfail(reason=why, strict=True)] if why else [])


@pytest.mark.parametrize("case", [parameter(case) for case in SAMPLE])
def test_refused_with_one_line_or_works_as_documented(case: Case, checker: Checker) -> None:
    assert not checker.run(case).complaint


@pytest.mark.parametrize("name", IN_THEIR_OWN)
def test_the_programs_themselves_refuse_likewise(name: str, checker: Checker) -> None:
    case = next(case for case in CASES if case.id == name)
    result = checker.run(case, own_process=True)
    assert not result.complaint and result.refused and result.outcome.started_up > 0


def test_the_cases_are_as_many_as_promised_and_always_the_same() -> None:
    counts = Counter(case.row for case in CASES)
    assert all(counts[name] >= row.least for name, row in ROWS.items()), counts
    names = [case.id for case in CASES]
    assert len(set(names)) == len(names)
    assert names == [case.id for case in all_cases()] != [case.id for case in all_cases(seed=1)]
    assert {case.row for case in SAMPLE} == set(ROWS)


def test_every_known_finding_is_about_a_case() -> None:
    found = {finding(case.id) for case in CASES}
    assert set(KNOWN.values()) <= found, set(KNOWN.values()) - found


class Exit:
    """What an action gives that ends the program without an error."""

    def __init__(self, code: int) -> None:
        self.code = code


def faulty(action: Callable[[Box], object]) -> Case:
    """A program that does something and then refuses as it should: `error: data: it is bad`."""

    def prepare(box: Box) -> Command:
        (box.root / "outside").mkdir()
        (box.root / "outside" / "secret").write_text("x")

        def main(argv: list[str]) -> int | None:
            code = action(box)
            if isinstance(code, Exit):
                return code.code
            raise InputError("data", "", "it is bad")

        return Command(main, [])

    return Case("C1", "faulty", prepare, Refused(("data", "bad")))


def fail(box: Box) -> None:
    raise ValueError("no contract")


FAULTS: dict[str, tuple[Callable[[Box], object], str]] = {
    "accepts silently": (lambda box: Exit(0), "exit code 0"),
    "another exit code": (lambda box: Exit(3), "exit code 3"),
    "a traceback": (fail, "exit code 1"),
    "two lines": (lambda box: print("error: something else", file=sys.stderr), "2 error lines"),
    "noise": (lambda box: print("something odd", file=sys.stderr), "unexpected on stderr"),
    "noise from a native library": (lambda box: os.write(2, b"something odd\n"), "unexpected on stderr"),
    "a Python warning": (lambda box: warnings.warn("odd", stacklevel=1), "UserWarning: odd"),
    "a new file": (lambda box: box.out.write_text("x"), "out changed"),
    "a new folder": (lambda box: box.out.mkdir(), "out changed"),
    "a changed input": (lambda box: box.head.write_bytes(b"x"), "head.pkl changed"),
    "a removed input": (lambda box: box.head.unlink(), "head.pkl changed"),
    "a shell": (lambda box: print(os.system("true")), "os.system"),
    "a file outside": (lambda box: (box.root / "outside/secret").read_text(), "open .*outside/secret"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_checker_notices(name: str, checker: Checker) -> None:
    action, complaint = FAULTS[name]
    result = checker.run(faulty(action))
    assert result.failed
    assert re.search(complaint, result.complaint), result.complaint


def test_the_checker_accepts_a_good_refusal(checker: Checker) -> None:
    result = checker.run(faulty(lambda box: None))
    assert not result.complaint and result.refused and not result.failed


def test_the_checker_measures_memory_and_time(checker: Checker) -> None:
    case = faulty(lambda box: None)
    assert not checker.run(case).complaint
    greedy = faulty(lambda box: len(b"x" * (int(checker.valid_peak) << 20)))
    if checker.valid_peak:  # Linux tells
        assert "a valid run takes" in checker.run(greedy).complaint
    slow = Case(case.row, case.name, case.spoil, case.expected, seconds=0.0)
    assert "the limit is 0.0 s" in checker.run(slow).complaint


def test_the_checker_looks_at_results(checker: Checker) -> None:
    bad = Works(lambda box, errors: "the result is wrong")
    assert checker.run(Case("C1", "x", lambda box: Command(lambda argv: 0, []), bad)).complaint == "the result is wrong"
    refused = Case("C1", "x", lambda box: box.train("--iterations=0"), Works(why="it should"))
    assert "expected 0 (it should)" in checker.run(refused).complaint


def test_the_table_counts_and_the_exit_code_tells(capsys: pytest.CaptureFixture[str]) -> None:
    assert torture.main(["--rows", "N4", "--every", "4", "--own_process", "0"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("N4"))
    assert row.split()[:6] == ["N4", "timesteps", "4", "4", "0", "0"]
