"""The Python client of the Tinkergate gateway."""
