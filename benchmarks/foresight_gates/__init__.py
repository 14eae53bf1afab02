"""The gate suite."""
