"""What others speak on the wire, for the doors that listen to it and the backends that talk it."""
