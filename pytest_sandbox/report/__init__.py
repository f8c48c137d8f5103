"""A run's sandboxes as one file: JSON for machines, or HTML that needs nothing else.

Knows neither pytest nor sandboxes: what goes in is plain data.
"""

from __future__ import annotations

from .write import Record, Run, write

__all__ = ["Record", "Run", "write"]
