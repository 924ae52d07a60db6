"""One module per command of ``python -m training``: a parser and a thin run function, no logic of its own."""
