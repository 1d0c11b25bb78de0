"""Soft methods: a layer or a penalty that learns which connections matter, and the way back to a plain model."""
