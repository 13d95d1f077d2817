"""The commands of `mr1-bench`, a module each with `HELP`, `add_arguments(parser)` and `run(args)`: options and printing, no rules."""
