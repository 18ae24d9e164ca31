"""Observers of what a launch does: ordering of accesses, use of barriers, memory that nobody wrote."""
