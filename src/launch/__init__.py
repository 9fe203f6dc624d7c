"""`python -m launch`: the command line for runs with several ranks; `cosmicai.cli.launch` has its commands."""
