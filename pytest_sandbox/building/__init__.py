"""Images from Containerfiles: ``containerfile:`` references and ``pytest-sandbox build``."""
