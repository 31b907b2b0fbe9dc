# SPDX-License-Identifier: Apache-2.0
"""The command line, called inside the test."""

from __future__ import annotations

import pytest

from muntin.commands import main


@pytest.fixture
def muntin(capsys, monkeypatch):
    """Run the command in this process; return exit code, stdout and stderr."""
    monkeypatch.setattr("warnings.showwarning", None)  # main replaces it

    def call(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return caught.value.code, captured.out, captured.err

    return call
