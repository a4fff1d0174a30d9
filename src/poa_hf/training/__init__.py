"""The training loop, and what it is made of: arguments, checks, engines, optimizer, checkpoints and logs."""
