# SPDX-License-Identifier: Apache-2.0
"""The command: ``muntin`` or ``python -m muntin``."""

from muntin.commands import main

if __name__ == "__main__":
    main()
