"""The doors by which programs come in."""
