"""The commands of `mr1-bench`, a module each with `HELP`, `add_arguments(parser)` and `run(args)`; they hold no rules, only options and print."""
