"""The subcommands of the command line, one module each; `lowbit.cli` lists them."""
