"""The command line `hba`: parses, calls, prints. Each module holds a group of commands; `main` puts them together."""
