"""``python -m pytest_sandbox.cli``: the same as ``pytest-sandbox``."""

from pytest_sandbox.cli import main

raise SystemExit(main())
