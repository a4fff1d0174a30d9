"""Code that several benchmark programs share: plain counterparts of our steps, timing, counting of bytes and FLOPs."""
