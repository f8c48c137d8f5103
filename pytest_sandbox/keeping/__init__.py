"""Failed tests' sandboxes, kept: written, bounded, found again, opened, run again, sent elsewhere (docs/design/0042)."""
