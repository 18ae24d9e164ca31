"""Fill the kernel cache: `python cache/warmup.py --preset deepseek-v4-flash` is `megamoe-jit warmup ...`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # works in a checkout that is not installed
    from megamoe_jit.cli.main import main

    main(["warmup", *sys.argv[1:]])
