"""``python -m foresight_bench``."""

from foresight_bench.cli import main

main(prog_name="foresight-bench")
