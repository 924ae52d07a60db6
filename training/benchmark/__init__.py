"""The papers' comparisons re-run: suites of cells, each one training and its measurement, and the tables they fill."""
