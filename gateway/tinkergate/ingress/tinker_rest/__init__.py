"""Tinker's REST API as a door: the official tinker and MinT SDKs point at it."""
