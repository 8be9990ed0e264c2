"""Backends: what trains, samples and scores behind the gateway."""
