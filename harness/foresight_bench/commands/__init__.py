"""The commands, a file for each kind; :mod:`foresight_bench.cli` puts them together. No torch is imported here."""
