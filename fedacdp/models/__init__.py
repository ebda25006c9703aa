"""Models. One file per model, none with batch statistics."""
