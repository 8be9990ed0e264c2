"""The gateway itself: sessions, order, operations, routing. Knows no door and no adapter."""
