"""Runs as one HTML page that opens anywhere: what was found, how the network developed, and what it is now."""
