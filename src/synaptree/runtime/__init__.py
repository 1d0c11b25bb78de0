"""Run sparse networks fast: the native engine. Needs numpy, the coder and the extension; no torch."""
