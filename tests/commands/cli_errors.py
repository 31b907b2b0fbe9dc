# SPDX-License-Identifier: Apache-2.0
"""Every user error exits with code 1 and prints one line."""

from __future__ import annotations


def fails_with(result, *texts):
    code, out, err = result
    assert code == 1
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err + out
    for text in texts:
        assert text in err
    return True
