"""The objective of pre-training: `objective` has it in one function, the other modules compute its parts."""
