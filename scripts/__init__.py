"""Command lines that compose controller, vla and sim, and what they share."""
