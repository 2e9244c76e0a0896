"""The command as a file, for who starts files: ``python -m cli``, ``spark-submit …/cli/__main__.py``."""

from cli.main import program

program()
