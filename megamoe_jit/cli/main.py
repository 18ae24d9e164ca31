"""The command `megamoe-jit`: its sub-commands, and how an error reaches the person who typed it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer
from rich.markup import escape

from megamoe_jit.cli.cache import cache_app
from megamoe_jit.cli.demo import demo
from megamoe_jit.cli.doctor import doctor
from megamoe_jit.cli.emulate import emulate
from megamoe_jit.cli.explain import explain
from megamoe_jit.cli.inspect import inspect
from megamoe_jit.cli.inspect_sf import inspect_sf
from megamoe_jit.cli.output import emit_json, log_console
from megamoe_jit.cli.trace import trace
from megamoe_jit.cli.version import version
from megamoe_jit.cli.warmup import warmup
from megamoe_jit.errors import CompileError, MegaMoeError

app = typer.Typer(
    name="megamoe-jit",
    help="Fused mixture-of-experts kernels for 4-bit checkpoints: look at them, build them ahead, run them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (doctor, demo, trace, emulate, warmup, inspect, inspect_sf, explain, version):
    app.command()(command)
app.add_typer(cache_app, name="cache")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line `args` (default: this process's); exits with 1 and one sentence on a MegaMoeError."""
    arguments = list(sys.argv[1:] if args is None else args)
    try:
        app(args=arguments)
    except MegaMoeError as error:
        if "--json" in arguments:
            emit_json({"error": str(error), "type": type(error).__name__})
        else:
            log_console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
            if isinstance(error, CompileError) and error.source_path:
                log_console.print(f"The rendered sources are kept in {escape(str(error.source_path))}", highlight=False)
        sys.exit(1)
