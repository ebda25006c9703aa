"""Privacy mechanisms: where noise enters and what it costs. One file per mechanism."""
