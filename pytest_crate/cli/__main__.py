"""``python -m pytest_crate.cli``, where the command is not in the PATH."""

from __future__ import annotations

import sys

from pytest_crate.cli import main

if __name__ == "__main__":
    sys.exit(main())
