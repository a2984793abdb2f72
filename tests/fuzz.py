"""Run generated cases of damaged files and odd options, and list the faults found.

    python tests/fuzz.py --cases 10000 --state FOLDER

The results are kept in FOLDER; the same command goes on where it was stopped. To repeat one case and keep its files:

    python tests/fuzz.py --case 4711 --state FOLDER
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from fuzzing.cases import BUG, HANG, HANG_SECONDS, Bench, Outcome, kind_of

RESULTS, BEGUN = "results.jsonl", "begun"
CODES = (0, 1, 2, 3, BUG, HANG)


def main() -> None:
    """Run cases as the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=300, help="run cases 0 to CASES - 1")
    parser.add_argument("--case", type=int, help="repeat one case, and keep its files")
    parser.add_argument("--state", type=Path, required=True, help="folder of files and results")
    parser.add_argument(
        "--only", metavar="KIND", help="run only the cases of one kind of files, such as volume or model"
    )
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    numbers = [number for number in range(given.cases) if given.only is None or kind_of(number).startswith(given.only)]
    bench = Bench(given.state)
    bench.prepare()
    if given.case is not None:
        repeat(bench, given.case)
    elif given.worker:
        work(bench, given.state, numbers)
    else:
        supervise(given.state, numbers)
        report(read(given.state), given.state)


def repeat(bench: Bench, number: int) -> None:
    """Run one case, and print it with its folder."""
    found = bench.case(number, keep=True)
    print(json.dumps(found.to_dict(), indent=1))
    print(f"cd {bench.work / f'case{number}'} && unetcli {shlex.join(found.words)}")


def work(bench: Bench, state: Path, numbers: list[int]) -> None:
    """Run the cases that have no result, one after the other; a crash ends the process."""
    done = {found["number"] for found in read(state)}
    with (state / RESULTS).open("a") as file:
        for number in (number for number in numbers if number not in done):
            (state / BEGUN).write_text(str(number))
            file.write(json.dumps(bench.case(number).to_dict()) + "\n")
            file.flush()


def supervise(state: Path, numbers: list[int]) -> None:
    """Run a worker until all cases have results; a case in which it crashes or hangs for good gets one here."""
    while not {found["number"] for found in read(state)}.issuperset(numbers):
        words = [sys.executable, __file__, "--worker", *sys.argv[1:]]
        with (state / "worker.log").open("a") as log, subprocess.Popen(words, stderr=log, stdout=log) as worker:
            code = watch(worker, state)
        if code:
            number = int((state / BEGUN).read_text())
            if number not in {found["number"] for found in read(state)}:
                died = Outcome(number, "?", "?", [], HANG, [f"worker ended with {code}"])
                with (state / RESULTS).open("a") as file:
                    file.write(json.dumps(died.to_dict()) + "\n")


def watch(worker: subprocess.Popen[bytes], state: Path) -> int:
    """Wait for a worker; end it if one case takes three times as long as the limit. Return its exit code."""
    while worker.poll() is None:
        time.sleep(1)
        begun = state / BEGUN
        if begun.exists() and time.time() - begun.stat().st_mtime > 3 * HANG_SECONDS + 60:
            worker.kill()
    return worker.wait()


def read(state: Path) -> list[dict[str, Any]]:
    """Results so far."""
    file = state / RESULTS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def report(found: list[dict[str, Any]], state: Path) -> None:
    """Print the number of cases by kind of file and exit code, and every fault."""
    counts = Counter((each["kind"], each["code"]) for each in found)
    print(f"{'':<20}" + "".join(f"{'hang' if code == HANG else code:>7}" for code in CODES) + f"{'all':>8}")
    for kind in [*sorted({each["kind"] for each in found}), ""]:
        row = [sum(n for (k, c), n in counts.items() if c == code and kind in (k, "")) for code in CODES]
        print(f"{kind or 'all':<20}" + "".join(f"{n:>7}" for n in row) + f"{sum(row):>8}")
    for each in found:
        if each["faults"]:
            print(f"\ncase {each['number']}, {each['kind']}: {each['what']}\n  unetcli {shlex.join(each['words'])}")
            print(f"  {', '.join(each['faults'])}: {each['message']}")
            print(f"  python tests/fuzz.py --case {each['number']} --state {state}")


if __name__ == "__main__":
    main()
