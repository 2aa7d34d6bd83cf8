"""The framework doors."""
