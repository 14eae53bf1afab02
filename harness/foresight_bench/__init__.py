"""foresight-bench: which frozen visual representation can drive a video decoder?"""

from foresight_bench.hookspecs import hookimpl

__all__ = ["hookimpl"]
