"""Units in order of importance, so that slices keep what matters most."""
