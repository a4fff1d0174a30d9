"""What several benchmark programs share."""
