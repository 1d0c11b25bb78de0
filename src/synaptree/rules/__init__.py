"""Rules beyond the core: how scores become masks."""
