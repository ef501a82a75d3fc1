"""The operator's command line and all that it needs. It imports every room; no room imports it."""
