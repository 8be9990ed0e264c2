"""The embedded engine as a backend."""
