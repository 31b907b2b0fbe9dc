# SPDX-License-Identifier: Apache-2.0
"""The command line: one file per verb, no logic; errors and exit codes in one place.

Exit codes: 0 success, 1 wrong input (one line on stderr), 2 wrong usage, 3 a bug in muntin.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import logging
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from muntin.commands import (
    bench,
    check,
    convert,
    demo,
    doctor,
    embed,
    evaluate,
    explain,
    export,
    models,
    pack,
    plan,
    predict,
    pretrain,
    search,
    serve,
    settings,
    train,
)
from muntin.errors import MuntinError, MuntinWarning, UsageError

app = typer.Typer(
    name="muntin",
    help="Hierarchical vision transformers for every vision task, on whatever machine you have.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> bool:
    if wanted:
        from muntin import __version__

        typer.echo(f"muntin {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _muntin(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", help="Print errors and warnings only; anywhere in a command."),
    ] = False,
) -> None:
    """Handle the options that belong to no verb."""


app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("pretrain")(pretrain.pretrain)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("embed")(embed.embed)
app.command("search")(search.search)
app.command("models")(models.models)
app.command("heads")(settings.heads)
app.command("settings")(settings.settings)
app.command("check")(check.check)
app.command("pack")(pack.pack)
app.command("plan")(plan.plan)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("explain")(explain.explain)
app.command("serve")(serve.serve)
app.command("doctor")(doctor.doctor)


# Full disks, and paths that cannot be read or written: caused by the machine, not by muntin.
_SYSTEM_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)

# What Lightning reads when it is imported, whoever has set it.
_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
# A process that calls several verbs, as tests do, reads the signatures of all of them once.
get_command = functools.cache(typer.main.get_command)

_INTERRUPTED = 130  # what typer returns for Ctrl-C, without a word
_LONGEST = 2000  # characters of a line on stderr

# What click raises for a wrong option; typer vendors click and exports only the subclass.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None, verbs: typer.Typer = app) -> None:
    """Run the command line (default: `sys.argv[1:]`) and exit with its exit code."""
    warnings.showwarning = _show_warning
    _fill_streams()
    try:  # libraries end the process without it
        os.getcwd()
    except OSError:
        _print_error("the current folder is no longer there. Change to another one.")
        sys.exit(1)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be text
        sys.stdout.reconfigure(errors="backslashreplace")
    # Set before PyTorch is imported: its C++ parts print developer warnings on stderr.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # It warns of CUDA's compiler without a GPU, which is of no matter to what is compiled here.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _call(verbs, arguments)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
    except MuntinError as error:
        code = 2 if isinstance(error, UsageError) else 1
        text = f"{error}{_name_help(verbs, arguments) if code == 2 else ''}"
        _print_error(text, told=error.told)
    except _UsageError as error:
        text = error.format_message().rstrip(". ")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        verb = f" {context.info_name}" if context is not None and context.parent else ""
        if text:  # empty after the help was printed
            stop = "" if text.endswith("?") else "."
            _print_error(f"{text}{stop} See: muntin{verb} --help")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        _print_error("interrupted.")
        code = 1
    except BrokenPipeError:
        # The reader of the pipe closed it (muntin models | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        code = _report(error)
    sys.exit(code if isinstance(code, int) else 0)


def _name_help(verbs: typer.Typer, arguments: list[str]) -> str:
    known = {command.name for command in verbs.registered_commands}
    verb = next((f" {word}" for word in arguments if word in known), "")
    return f" See: muntin{verb} --help"


def _call(verbs: typer.Typer, arguments: list[str]) -> Any:  # noqa: ANN401 (what a verb returns)
    """Run the command line; with --quiet, only warnings, errors and --json come through."""
    run = functools.partial(get_command(verbs), standalone_mode=False, prog_name="muntin")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--quiet" not in arguments[:end]:
        return run(arguments)
    given = [word for word in arguments[:end] if word != "--quiet"]
    warnings.showwarning = functools.partial(_show_warning, shown=sys.stderr)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        kept = sys.stdout if "--json" in given else nowhere
        with contextlib.redirect_stdout(kept):
            return run(given + arguments[end:])


def _fill_streams() -> None:
    """Let closed streams (``>&-``) lead nowhere: files that are opened would take their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # by programs that are started
    os.close(descriptor)
    for number, name in enumerate(("stdout", "stderr"), 1):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _report(error: Exception) -> int:
    """Print the error, in one line if the machine caused it, and return the exit code."""
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        place = f"{error.filename}: " if error.filename else ""
        _print_error(f"{place}{error.strerror}. Check free disk space and permissions.")
        return 1
    wrong = {name: value for name in _RANKS if not (value := os.environ.get(name, "0")).isdecimal()}
    if isinstance(error, ValueError) and wrong:
        name, value = wrong.popitem()
        _print_error(
            f"{name} must be a number, as torchrun or srun sets it, got {value!r} in the "
            f"environment. Start the processes with a launcher again, or unset the variable."
        )
        return 1
    from muntin.devices import parse_out_of_memory

    if (shortage := parse_out_of_memory(error)) is not None:
        request = f" (tried to allocate {shortage})" if shortage else ""
        _print_error(f"out of memory{request}. Reduce --batch-size or --img-size.")
        return 1
    import traceback

    traceback.print_exception(error)
    _print_error("this is a bug in muntin, not in your input. Please report the traceback above.")
    return 3


def _print_error(text: str, shown: Any = None, told: bool = False) -> None:  # noqa: ANN401 (a stream)
    if told:  # by another process of the same training
        return
    line = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in " ".join(text.split()))
    if len(line) > _LONGEST:  # what came may be long; what must hold and what to do are at the ends
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    (shown or sys.stderr).write(f"muntin: {line}\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,  # noqa: ANN401 (the signature of the warnings module)
    line: str | None = None,
    shown: Any = None,  # noqa: ANN401 (a stream)
) -> None:
    """Print muntin's warnings as one line each; warnings of libraries are for developers."""
    if issubclass(category, MuntinWarning):
        _print_error(f"warning: {message}", shown)
