"""What an operator runs: the command line and what stands behind it. It imports every room; no room imports it."""
