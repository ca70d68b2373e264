"""What differs between what a case came to and what is kept of it."""

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FILES = HERE / "files"
PINNED = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "1"}
"""What the child may use of the processor, which changes bits; PyTorch looks when it starts to compute."""
TOLERANCE = 5e-5
"""Of numbers on a machine whose bits are not kept; relative above one. Processors were up to 2e-5 apart."""


def recorded(names: Sequence[str], tree: Path = ROOT) -> tuple[str, dict[str, Any]]:
    """Carry out cases in a child process with the code of a tree; return the machine's key and what they came to."""
    with tempfile.TemporaryDirectory() as place:
        quiet = {"PYTHONPATH": str(tree), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        command = [sys.executable, str(HERE / "record.py"), str(tree), place, *names]
        done = subprocess.run(
            command, cwd=tree, env=os.environ | PINNED | quiet, stdout=subprocess.PIPE, text=True, check=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["key"], found["cases"]


def kept(name: str) -> dict[str, Any]:
    """Return what is kept of a case; nothing if it has no file."""
    path = FILES / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def keep(name: str, key: str, found: dict[str, Any], others_hold: bool = False) -> None:
    """Write what a case came to.

    Hashes of other machines are dropped, unless ``others_hold``, and no number changed: here nobody can tell whether
    bits are still the same there.
    """
    before = kept(name)
    same = before and not list(_differing(before["numbers"], found["numbers"], "", TOLERANCE))
    others = before["hashes"] if same and others_hold else {}
    numbers = before["numbers"] if same else found["numbers"]
    FILES.mkdir(exist_ok=True)
    lines = {"numbers": numbers, "hashes": dict(sorted((others | {key: found["hashes"]}).items()))}
    (FILES / f"{name}.json").write_text(json.dumps(lines, indent=1) + "\n")


def differences(kept: dict[str, Any], found: dict[str, Any], key: str) -> list[str]:
    """Return a line for each difference: bit by bit where the machine's key is known, else by numbers."""
    if not kept:
        return ["nothing is kept of it"]
    numbers = list(_differing(kept["numbers"], found["numbers"], "", TOLERANCE))
    if key not in kept["hashes"]:
        return numbers
    return [*_differing(kept["hashes"][key], found["hashes"], "bits of ", 0.0), *numbers]


def _differing(kept: Any, found: Any, where: str, tolerance: float) -> Iterator[str]:
    if isinstance(kept, dict) and isinstance(found, dict):
        for name in dict.fromkeys((*kept, *found)):
            if name not in kept or name not in found:
                yield f"{where}{name}: only {'found' if name in found else 'kept'}"
            else:
                yield from _differing(kept[name], found[name], f"{where}{name} ", tolerance)
    elif isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        for i, (one, other) in enumerate(zip(kept, found, strict=True)):
            yield from _differing(one, other, f"{where}{i} ", tolerance)
    elif not _alike(kept, found, tolerance):
        yield f"{where.strip()}: {kept} was kept, {found} is found"


def _alike(kept: Any, found: Any, tolerance: float) -> bool:
    try:
        one, other = float(kept), float(found)
    except (TypeError, ValueError):
        return bool(kept == found)
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
