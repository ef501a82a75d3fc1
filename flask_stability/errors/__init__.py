"""Exceptions: recorded once with their request, and answered well."""
