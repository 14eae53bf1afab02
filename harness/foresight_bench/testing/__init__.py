"""Conformance checks: the contracts in executable form."""
