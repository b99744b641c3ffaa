"""HTTP: the engine for clients and browsers."""
