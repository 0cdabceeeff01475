"""One file a verb: `configure(parser)` adds its flags, `execute(args)` runs it and returns the exit code."""
