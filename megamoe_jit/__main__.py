"""`python -m megamoe_jit` is the command `megamoe-jit`."""

from megamoe_jit.cli.main import main

if __name__ == "__main__":
    main()
