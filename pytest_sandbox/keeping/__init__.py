"""Failed tests' sandboxes, kept: written, bounded, found, opened, run again, exported (docs/design/0042)."""
