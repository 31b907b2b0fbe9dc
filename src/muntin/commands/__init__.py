# SPDX-FileCopyrightText: 2026 The muntin authors
# SPDX-License-Identifier: Apache-2.0
"""The command line: one file a verb, no logic; errors and exit codes in one place.

Exit codes: 0 fine, 1 the input is wrong (one line on stderr), 2 a bug.
"""

from __future__ import annotations

import errno
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
    evaluate,
    explain,
    export,
    models,
    plan,
    predict,
    train,
)
from muntin.errors import MuntinError, MuntinWarning

__all__ = ["app", "main"]

app = typer.Typer(
    name="muntin",
    help="Hierarchical vision transformers for every vision task, on whatever machine you have.",
    no_args_is_help=True,
    add_completion=False,
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
        typer.Option("--version", callback=_show_version, is_eager=True, help="Say the version."),
    ] = False,
) -> None:
    """Take the options that belong to no verb."""


app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("models")(models.models)
app.command("check")(check.check)
app.command("plan")(plan.plan)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("bench")(bench.bench)
app.command("explain")(explain.explain)
app.command("doctor")(doctor.doctor)


# What the system says when a disk is full or a place cannot be written or read.
_OF_THE_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)

# What click raises for a wrong option; typer brings its own copy of click and names only the leaf.
_UsageError: type[Exception] = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None, verbs: typer.Typer = app) -> None:
    """Run the command line and leave with its exit code.

    Args:
        arguments: Words after the name of the program; those of the process when None.
        verbs: What they may call.
    """
    warnings.showwarning = _show_warning
    # Before PyTorch is imported: its C++ parts warn developers of it on stderr.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        code = verbs(arguments, standalone_mode=False)
    except MuntinError as error:
        _complain(str(error))
        code = 1
    except _UsageError as error:
        said = error.format_message().rstrip(". ")  # type: ignore[attr-defined]
        context = getattr(error, "ctx", None)
        verb = f" {context.info_name}" if context is not None and context.parent else ""
        if said:  # nothing is said when the help was shown
            _complain(f"{said}. See: muntin{verb} --help")
        code = 1
    except (KeyboardInterrupt, typer.Abort):
        _complain("stopped.")
        code = 1
    except BrokenPipeError:
        # The reader of our output went away (muntin models | head).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Say what went wrong, in a line if it is the machine's doing, and give the exit code."""
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        place = f"{error.filename}: " if error.filename else ""
        _complain(f"{place}{error.strerror}. Check that there is room and that access is allowed.")
        return 1
    from muntin.devices import find_shortage

    if (shortage := find_shortage(error)) is not None:
        asked = f": {shortage} were asked for at once" if shortage else ""
        _complain(f"there is not enough memory{asked}. Lower --batch-size or --img-size.")
        return 1
    import traceback

    traceback.print_exception(error)
    _complain("this is a bug in muntin, not in your input. Please report the lines above.")
    return 2


def _complain(text: str) -> None:
    sys.stderr.write(f"muntin: {' '.join(text.split())}\n")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,  # noqa: ANN401 (the signature of the warnings module)
    line: str | None = None,
) -> None:
    """Show our own warnings as one line; those of libraries are for developers."""
    if issubclass(category, MuntinWarning):
        _complain(f"warning: {message}")
