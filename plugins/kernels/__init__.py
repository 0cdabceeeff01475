"""The plugin operator's kernel: one Triton source, and what is needed to launch it or compile it ahead of time."""
