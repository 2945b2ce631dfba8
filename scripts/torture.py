"""Every corrupt input of `scripts/torture_cases`, with its verdict as a table.

python scripts/torture.py [--rows C1 N4] [--every 10] [--seed 0] [--own_process 2]

A case passes if the program refuses it with one line that names file and field, the documented exit code, nothing
written, within 5 s and 1.5 times the memory of a valid run; or if it works as documented. Exit code 1 if one does not.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads stall beside a busy neighbour

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from scripts.torture_cases import ROWS, all_cases, sample
from scripts.torture_cases.checker import Checker, Result
from utils.io.progress import progress

HEAD = ("row", "tried", "refused", "worked", "failures", "seconds", "MiB")


def table(results: Sequence[Result]) -> str:
    """One line per row: tried, refused with one line, worked as documented, failures, longest seconds, peak MiB."""
    lines = [f"{'row':34s}" + "".join(f"{name:>10s}" for name in HEAD[1:])]
    for name, row in [*((name, row.title) for name, row in ROWS.items()), ("all", "")]:
        found = [result for result in results if name in (result.case.row, "all")]
        if not found:
            continue
        good = [result for result in found if not result.complaint]
        refused = sum(result.refused for result in good)
        counts = (len(found), refused, len(good) - refused, len(found) - len(good))
        longest = max(result.outcome.seconds - result.outcome.started_up for result in found)
        peak = max(result.outcome.peak_mib for result in found)
        lines.append(
            f"{name + ' ' + row:34s}" + "".join(f"{count:10d}" for count in counts) + f"{longest:10.2f}{peak:10.0f}"
        )
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=ROWS, help="which rows; default: all")
    parser.add_argument("--every", type=int, default=1, help="only every n-th case of a row")
    parser.add_argument("--seed", type=int, default=0, help="of the places of cuts and flipped bits")
    parser.add_argument("--own_process", type=int, default=2, help="cases per row that run in a process of their own")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    cases = [case for case in sample(all_cases(options.seed), options.every) if case.row in options.rows]
    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="mien-torture-") as folder:
        checker, seen = Checker(Path(folder)), dict.fromkeys(ROWS, 0)
        for case in progress(cases, len(cases), "torture"):
            result = checker.run(case, seen[case.row] < options.own_process)
            seen[case.row] += 1
            results.append(result)
            if result.complaint:
                print(f"{case.id}: {result.known or 'FAILED'}: {result.complaint}", flush=True)
    print(table(results))
    return int(any(result.complaint or result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
