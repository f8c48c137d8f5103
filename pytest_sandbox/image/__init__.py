"""Images: from a reference to read-only layers on disk. Knows neither pytest nor the runtime."""
