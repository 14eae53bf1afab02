"""Converters from weights as published to named numpy arrays; none of them executes what it reads."""
