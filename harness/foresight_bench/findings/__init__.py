"""The decision document: what the numbers of finished cells say of one system, and what was not measured."""
