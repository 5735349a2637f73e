"""`python -m mmprompt`, the same as the command `mmprompt`."""

from __future__ import annotations

import sys

from mmprompt.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
