"""Do the Hopper kernels touch memory that is not theirs, or race? NVIDIA's compute-sanitizer over a small case, here.

python -m benchmarks.sanitize
"""

from __future__ import annotations

import re
import subprocess
import sys

from benchmarks.record import Column, Result, save

TOOLS = ("memcheck", "racecheck", "synccheck")
CASE = ("benchmarks.sm90_correctness", "--shapes", "tiny", "--tokens", "1", "20", "300", "--no-record", "--no-time")
COLUMNS = (
    Column(key="tool", heading="tool"),
    Column(key="errors", heading="errors"),
    Column(key="summary", heading="summary"),
)


def run_tool(tool: str) -> dict[str, str | int]:
    """Run one tool; its errors are those of kernels, not driver calls that a newer binding looks up in vain."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []
    output = subprocess.run([*command, sys.executable, "-m", *CASE], capture_output=True, text=True).stdout
    summary = next(
        (line for line in reversed(output.splitlines()) if "SUMMARY" in line), "no summary: " + output[-200:]
    )
    found = re.search(r"SUMMARY: (\d+)", summary)
    return {"tool": tool, "errors": int(found[1]) if found else -1, "summary": summary.strip("= ")}


def main() -> int:
    """Run every tool and record what each says; the exit status says whether all were clean."""
    rows = tuple(run_tool(tool) for tool in TOOLS)
    for row in rows:
        print(row)
    notes = "fp8_nvfp4 and bf16_nvfp4, hidden 256, intermediate 256, 4 experts, top-2, 1, 20 and 300 tokens."
    print(save(Result(name="sm90_sanitizer", title="compute-sanitizer", columns=COLUMNS, rows=rows, notes=notes)))
    return 0 if all(row["errors"] == 0 for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
