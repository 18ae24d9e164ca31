"""`python -m benchmarks`: answer every question, one script after the other, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NO_QUESTIONS = ("journal", "record", "tables", "sm90_sweep")  # the sweep needs to be told what to try


def questions() -> list[str]:
    """Return the names of the scripts that measure something."""
    scripts = sorted(Path(__file__).parent.glob("[a-z]*.py"))
    return [script.stem for script in scripts if script.stem not in NO_QUESTIONS]


def main(args: list[str]) -> int:
    """Run the scripts named in `args` (all by default); returns how many failed."""
    failed = []
    for name in args or questions():
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "all ran; `make tables` prints the results into the pages")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
