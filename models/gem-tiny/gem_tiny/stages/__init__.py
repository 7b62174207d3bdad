"""The commands `python -m gem_tiny STAGE`, one module each."""
