"""From a kernel description to readable CUDA source: Jinja2 with delimiters that leave plain CUDA alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from megamoe_jit.errors import ArgumentError, CompileError
from megamoe_jit.jit.places import templates_dir
from megamoe_jit.jit.source import Constant, KernelDescription, spell_constants

if TYPE_CHECKING:
    import jinja2
    from jinja2.lexer import Token, TokenStream

PROGRAM_NAME = "/kernel.cu"  # reaches the PTX, so it is the same for every kernel
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]*)"', re.MULTILINE)
_RESERVED = frozenset({"constants", "kernel_name", "arch"})


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderedSource:
    """A translation unit as NVRTC gets it: the program's text, and the headers by the name that `#include` uses.

    `files` holds just what the entry reaches, in the order of first inclusion; each opens with a `#line` that names its
    template.
    """

    main: str
    files: tuple[tuple[str, str], ...]

    def flatten(self) -> str:
        """Return one file that compiles to the same code: every header in the place of its first `#include`."""
        headers, seen = dict(self.files), set[str]()

        def expand(text: str) -> Iterator[str]:
            template, number = PROGRAM_NAME, 0
            for line in text.splitlines():
                number += 1
                if position := _LINE.match(line):
                    number, template = int(position[1]) - 1, position[2] or template
                if include := _INCLUDE.match(line):
                    if include[1] not in seen:
                        seen.add(include[1])
                        yield from expand(headers[include[1]])
                        yield f'#line {number + 1} "{template}"'
                    else:
                        yield f"//{line}"
                elif _PRAGMA_ONCE.match(line):
                    yield f"//{line}"
                else:
                    yield line

        return "\n".join(expand(self.main)) + "\n"


_LINE = re.compile(r'^#line (\d+)(?: "([^"]*)")?$')
_PRAGMA_ONCE = re.compile(r"^[ \t]*#[ \t]*pragma[ \t]+once\b")


def render(description: KernelDescription, *, templates: Sequence[Path] | None = None) -> RenderedSource:
    """Render the entry of `description` and every template that it includes, directly or not.

    `templates` are the folders to search, first match wins; the package's own by default. The result depends on the
    description and the templates only. Raises CompileError for a missing or undefined name, with its template and line.
    """
    roots = (templates_dir(),) if templates is None else tuple(templates)
    environment = _environment(roots)
    constants = spell_constants(description.constants())
    values = dict(description.template_values())
    if clash := sorted(_RESERVED & values.keys()):
        raise ArgumentError(f"template value {clash[0]!r} is a name that every template has already. Rename it.")
    context = {"constants": constants, "kernel_name": description.kernel_name, "arch": description.arch.name, **values}
    rendered: dict[str, str] = {}

    def visit(name: str, included_from: str) -> None:
        text = rendered[name] = f'#line 1 "/{name}"\n' + _render_file(environment, name, context, included_from)
        for match in _INCLUDE.finditer(text):
            if match[1] not in rendered:
                visit(match[1], f"{_template_position(text, match.start())} includes")

    visit(description.entry, "the kernel description names")
    main = f'#line 1 "{PROGRAM_NAME}"\n#include "{description.entry}"\n'
    return RenderedSource(main=main, files=tuple(rendered.items()))


def _template_position(text: str, offset: int) -> str:
    """Return "/template(line)" of an offset in a rendered file, by its `#line` directives."""
    template, number = PROGRAM_NAME, 0
    for line in [*text[:offset].splitlines(keepends=True), ""]:
        number += 1
        if position := _LINE.match(line.rstrip("\n")):
            number, template = int(position[1]) - 1, position[2] or template
    return f"{template}({number})"


def _render_file(environment: jinja2.Environment, name: str, context: dict[str, object], included_from: str) -> str:
    import jinja2

    try:
        return environment.get_template(name).render(context)
    except jinja2.TemplateNotFound:
        _raise_missing(environment, name, included_from)
    except jinja2.TemplateSyntaxError as error:
        _raise_at(f"/{error.name or name}({error.lineno}): {error.message}", error)
    except jinja2.TemplateError as error:  # undefined names, above all
        _raise_at(f"/{name}({_failing_line(error, environment, name)}): {error.message}", error)
    except (TypeError, ValueError) as error:  # a filter that got what it cannot use
        _raise_at(f"/{name}({_failing_line(error, environment, name)}): {error}", error)
    raise AssertionError("unreachable")


def _raise_missing(environment: jinja2.Environment, name: str, included_from: str) -> None:
    known = environment.list_templates()
    hint = (
        ""
        if not (same := [k for k in known if PurePosixPath(k).name == PurePosixPath(name).name])
        else f" Is it {same[0]!r}?"
    )
    message = (
        f"{included_from} {name!r}, which is not among the templates.{hint} "
        "Quoted includes are paths below the template folder; write <...> for headers of the compiler."
    )
    raise CompileError(message, errors=(message,)) from None


def _raise_at(diagnostic: str, cause: Exception) -> None:
    message = (
        f"a template does not render:\n  {diagnostic}\n"
        "Templates see constants, kernel_name, arch and what template_values() of the description returns."
    )
    raise CompileError(message, errors=(diagnostic,)) from cause


def _failing_line(error: Exception, environment: jinja2.Environment, name: str) -> int:
    """Return the template line of an error raised while rendering: Jinja puts it into the traceback."""
    filename = environment.get_template(name).filename
    traceback, line = error.__traceback__, 0
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == filename:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return line


@functools.cache
def _environment(roots: tuple[Path, ...]) -> jinja2.Environment:
    import jinja2
    import jinja2.ext

    class LineNumbers(jinja2.ext.Extension):
        """Follow every line statement with a `#line`, so that positions in rendered files are those of the template."""

        def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
            from jinja2.lexer import Token

            after_statement = False
            for token in stream:
                if after_statement and token.type in ("data", "variable_begin"):
                    yield Token(token.lineno, "data", f"#line {token.lineno}\n")
                after_statement = token.type == "block_end"
                yield token

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(list(roots)),
        block_start_string="<%",
        block_end_string="%>",
        variable_start_string="${",
        variable_end_string="}",
        comment_start_string="<#",
        comment_end_string="#>",
        line_statement_prefix="//%",
        line_comment_prefix="//#",
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # C++, not HTML
        extensions=[LineNumbers],
    )
    environment.filters.update(definitions=definitions, regs=regs, outs=outs, inouts=inouts, ins=ins)
    return environment


def definitions(constants: Sequence[Constant]) -> str:
    """Filter: the C++ definitions of constants, one a line."""
    return "\n".join(constant.definition for constant in constants)


def regs(count: int, first: int = 0) -> str:
    """Filter: `4 | regs` is "%0, %1, %2, %3"; `2 | regs(4)` is "%4, %5"."""
    return ", ".join(f"%{first + i}" for i in range(count))


def outs(count: int, constraint: str = "f", name: str = "d") -> str:
    """Filter: `2 | outs` is "=f"(d[0]), "=f"(d[1])."""
    return _operands(count, f"={constraint}", name)


def inouts(count: int, constraint: str = "f", name: str = "d") -> str:
    """Filter: `2 | inouts` is "+f"(d[0]), "+f"(d[1])."""
    return _operands(count, f"+{constraint}", name)


def ins(count: int, constraint: str = "r", name: str = "a") -> str:
    """Filter: `2 | ins` is "r"(a[0]), "r"(a[1])."""
    return _operands(count, constraint, name)


def _operands(count: int, constraint: str, name: str) -> str:
    return ", ".join(f'"{constraint}"({name}[{i}])' for i in range(count))
