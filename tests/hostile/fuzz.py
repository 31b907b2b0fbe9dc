# SPDX-License-Identifier: Apache-2.0
"""Changes files at random and reads them, for as long as it is left running.

    python -m tests.hostile.fuzz --reader COCO --minutes 60 --out failures/ [--seed 1]
    python -m tests.hostile.fuzz --list

A reader is a format of the table of `tests.hostile.harness`. Each turn takes one of its cases,
changes bytes of one of its files, and keeps the folder and the answer where something failed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.hostile.harness import Case, Outcome, Place, run_case, warm_up

MOST_BYTES = 2**20


def change(data: bytes, rng: random.Random) -> bytes:
    """Flip, cut out, repeat or overwrite bytes, one to four times."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(changed) + 1), rng.choice((1, 1, 2, 4, 8, 64))
        kind = rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 2, 1000))
        elif kind == 3:
            changed[at : at + length] = rng.choice((b"\0", b"\xff", b"9", b"-", b"[")) * length
        else:
            changed[at : at + length] = rng.randbytes(length)
    return bytes(changed)


def randomised(case: Case, seed: str) -> Case:
    """The case, one of whose files is changed; a function of the seed alone."""

    def build(place: Place) -> list[str]:
        arguments = case.build(place)
        rng = random.Random(seed)
        files = sorted(path for path in place.root.rglob("*") if path.is_file())
        files = [path for path in files if not path.is_symlink()]
        files = [path for path in files if 0 < path.stat().st_size <= MOST_BYTES]
        if files:
            path = rng.choice(files)
            path.write_bytes(change(path.read_bytes(), rng))
        return arguments

    return replace(case, build=build, expect="either")


def keep(case: Case, outcome: Outcome, work: Path, out: Path) -> None:
    """Keep the files and the answer of a case that failed."""
    folder = out / case.name.replace("/", "_")[:150]
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(work / "case" / "in", folder / "in", symlinks=True)
    run = work / "case" / "out"
    shutil.copytree(run, folder / "out", symlinks=True, dirs_exist_ok=True)
    told = {"faults": outcome.faults, "code": outcome.code, "err": outcome.err[-20_000:]}
    (folder / "answer.json").write_text(json.dumps(told, indent=1))


def main() -> None:
    """Run until the time is over; a line for each failure, and one at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", default="", help="a format; every one in turn by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--out", type=Path, default=Path("failures"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    asked = parser.parse_args()
    say = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        warm_up(work)
        from tests.hostile.catalogue import by_kind, every_case

        kinds = by_kind(every_case(work))
        # Those of a verb are wrong words, and hold no file.
        kinds = {name: found for name, found in kinds.items() if not name.startswith("muntin ")}
        if asked.list or asked.reader not in ("", *kinds):
            say.write("\n".join(kinds) + "\n")
            return
        end, turn, failed = time.monotonic() + 60 * asked.minutes, 0, 0
        while time.monotonic() < end:
            turn += 1
            seed = f"{asked.seed}-{turn}"
            rng = random.Random(seed)
            kind = asked.reader or rng.choice(list(kinds))
            case = randomised(rng.choice(kinds[kind]), seed)
            outcome = run_case(case, work)
            if outcome.faults:
                failed += 1
                asked.out.mkdir(parents=True, exist_ok=True)
                keep(case, outcome, work, asked.out.resolve())
                say.write(f"{seed} {case.name}: {'; '.join(outcome.faults)}\n")
        say.write(f"{turn} inputs, {failed} failures\n")


if __name__ == "__main__":
    main()
