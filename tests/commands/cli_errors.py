# SPDX-License-Identifier: Apache-2.0
"""Wrong input exits with code 1, wrong usage with 2, which points to the help; one line each."""

from __future__ import annotations


def fails_with(result, *texts):
    code, out, err = result
    assert code == (2 if "See: muntin" in err else 1), err
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err + out
    for text in texts:
        assert text in err
    return True
